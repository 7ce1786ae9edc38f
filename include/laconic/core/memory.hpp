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

/// A line of the cache, and what a large page has on most machines.
inline constexpr std::size_t line_bytes = 64, large_page_bytes = std::size_t{1} << 21;

inline constexpr std::align_val_t alignment_of(std::size_t bytes) {
  return std::align_val_t(bytes < large_page_bytes ? line_bytes : large_page_bytes);
}
/// Memory that vectors read without crossing lines of the cache; where it has the size of large pages, the system is
/// asked for those. Small ones cost a walk through page tables every 4 KiB. Uninitialised. Throws std::bad_alloc.
inline void* allocate_aligned(std::size_t bytes) {
  void* memory = ::operator new(bytes, alignment_of(bytes));
#ifdef MADV_HUGEPAGE
  // A wish: may fail, and stays with the pages when they are given back. What is left behind the last whole one stays
  // in small pages.
  if (bytes >= large_page_bytes) ::madvise(memory, bytes / large_page_bytes * large_page_bytes, MADV_HUGEPAGE);
#endif
  return memory;
}
/// Gives it back; `bytes` as they were asked for.
inline void free_aligned(void* memory, std::size_t bytes) { ::operator delete(memory, alignment_of(bytes)); }

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
