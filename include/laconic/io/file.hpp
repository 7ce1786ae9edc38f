// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <laconic/core/error.hpp>
#include <laconic/io/descriptor.hpp>
#include <laconic/io/file_writer.hpp>
#include <laconic/io/folder_writer.hpp>
#include <span>
#include <string>
#include <utility>

// Files: read whole or mapped, and written whole or not at all, as are folders. POSIX; where Linux has a call that is
// better (`renameat2`, `fallocate`), it is taken.

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns the whole file. Throws `Error` if it cannot be read, is not a regular file or holds more than `max_bytes`.
inline std::string read_file(const std::filesystem::path& path, std::size_t max_bytes) {
  const auto [file, size] = detail::open_to_read(path);
  std::string out;
  out.reserve(std::min(static_cast<std::size_t>(size), max_bytes));
  char block[16384];
  while (true) {
    const ssize_t count = ::read(file.get(), block, sizeof block);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) detail::fail_system(path, "read");
    if (count == 0) return out;
    require(static_cast<std::size_t>(count) <= max_bytes - out.size(), path.string(), ": more than ", max_bytes,
            " bytes, which is the most that is read here");
    out.append(block, static_cast<std::size_t>(count));
  }
}

/// Maps a file into memory, read-only. Pages come from the disk when they are touched. If another program truncates the
/// file meanwhile, this one is killed, as with every mapped file; laconic itself replaces files and rewrites only those
/// that cannot be replaced (`FileWriter`).
class MappedFile {
 public:
  /// Maps nothing.
  MappedFile() = default;
  /// Maps this file. Throws `Error` if it cannot be opened or is not a regular file.
  explicit MappedFile(const std::filesystem::path& path) {
    const auto [file, size] = detail::open_to_read(path);
    size_ = static_cast<std::size_t>(size);
    if (size_ == 0) return;
    void* memory = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (memory == MAP_FAILED) detail::fail_system(path, "map");
    data_ = static_cast<const std::byte*>(memory);
  }
  /// Takes over the mapping of the other, which is empty afterwards.
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  /// Removes its mapping and takes over that of the other.
  MappedFile& operator=(MappedFile other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  /// Removes the mapping.
  ~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  }

  /// Returns the contents, which are valid as long as this object.
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  /// Returns the number of bytes.
  std::size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

namespace detail {

/// Removes the whole pages among these bytes of a mapped file from memory; they come back from the file when touched.
inline void release_pages(std::span<const std::byte> bytes) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto from = reinterpret_cast<std::uintptr_t>(bytes.data());
  const std::uintptr_t begin = (from + page - 1) / page * page, end = (from + bytes.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);  // a hint: may fail
}

}  // namespace detail

}  // namespace LACONIC_ABI
}  // namespace laconic
