// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/version.hpp>

#include <cstddef>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

inline constexpr std::size_t line_bytes = 64,  ///< size of a cache line
    large_page_bytes = std::size_t{1} << 21;   ///< size of a large page on most machines

/// Returns the alignment of a block: a cache line, or a large page for a block of at least that size.
inline constexpr std::align_val_t alignment_of(std::size_t bytes) {
  return std::align_val_t(bytes < large_page_bytes ? line_bytes : large_page_bytes);
}
/// Returns uninitialised memory that starts at a cache line. A block of at least a large page starts at one, and the
/// system is told to use large pages for it, because small ones cost a walk through page tables every 4 KiB. Throws
/// std::bad_alloc.
inline void* allocate_aligned(std::size_t bytes) {
  void* memory = ::operator new(bytes, alignment_of(bytes));
#ifdef MADV_HUGEPAGE
  // A hint: it may fail, and it stays with the pages when they are freed. The remainder after the last whole large page
  // stays in small pages.
  if (bytes >= large_page_bytes) ::madvise(memory, bytes / large_page_bytes * large_page_bytes, MADV_HUGEPAGE);
#endif
  return memory;
}
/// Frees memory of `allocate_aligned`, called with the same number of bytes.
inline void free_aligned(void* memory, std::size_t bytes) { ::operator delete(memory, alignment_of(bytes)); }

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
