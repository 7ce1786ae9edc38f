// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/decode/ngram.hpp>
#include <laconic/io/descriptor.hpp>

#include <unistd.h>

#include <zlib.h>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

// Programs that include this header link zlib (ZLIB::ZLIB). NgramModel::read needs no other library.

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Gives the lines of a gzip file, one after the other, without their ends. Memory is that of the longest line.
class GzipLines {
 public:
  /// Opens the file. Throws `Error` if that fails.
  explicit GzipLines(const std::filesystem::path& path) : path_(path.string()) {
    const auto opened = open_to_read(path);
    const int own = ::dup(opened.descriptor.get());  // which gzclose closes
    file_ = ::gzdopen(own, "rb");
    if (file_ == nullptr) ::close(own);
    require(file_ != nullptr, path_, ": cannot be opened: out of memory");
  }
  /// Not copyable.
  GzipLines(const GzipLines&) = delete;
  /// Not assignable.
  GzipLines& operator=(const GzipLines&) = delete;
  /// Closes the file.
  ~GzipLines() { ::gzclose(file_); }

  /// Writes the next line and returns true, or returns false after the last. The line is valid until the next call.
  /// Throws `Error` for a damaged file and for a line of more than a MiB.
  bool operator()(std::string_view& line) {
    std::size_t end = buffer_.find('\n', begin_);
    while (end == std::string::npos) {
      buffer_.erase(0, std::exchange(begin_, 0));
      const std::size_t searched = buffer_.size();
      require(searched <= max_line, path_, ": a line of more than ", max_line, " bytes, which is no ARPA file's");
      end = read_more() ? buffer_.find('\n', searched) : searched;
    }
    const bool last = end == buffer_.size();
    if (last && begin_ == buffer_.size()) return false;
    line = std::string_view(buffer_).substr(begin_, end - begin_);
    begin_ = last ? end : end + 1;
    return true;
  }

 private:
  static constexpr std::size_t max_line = 1 << 20, block = 1 << 16;

  bool read_more() {
    const std::size_t before = buffer_.size();
    buffer_.resize(before + block);
    const int count = ::gzread(file_, buffer_.data() + before, block);
    buffer_.resize(before + static_cast<std::size_t>(count > 0 ? count : 0));
    if (count > 0) return true;
    int code = Z_OK;
    const char* const reason = ::gzerror(file_, &code);
    if (code == Z_ERRNO) fail_system(path_, "read");
    require(code == Z_OK || code == Z_STREAM_END, path_, ": cannot decompress: ", std::string_view(reason));
    return false;
  }

  std::string path_;
  ::gzFile file_ = nullptr;
  std::string buffer_;
  std::size_t begin_ = 0;  // of the next line in the buffer
};

}  // namespace detail

/// Reads an ARPA file, compressed by gzip or not, whatever its name is. Throws `Error` as `NgramModel::read` does, and
/// for a damaged gzip file.
inline NgramModel read_ngram_model(const std::filesystem::path& path) {
  char first[2] = {};
  const auto opened = detail::open_to_read(path);
  const bool is_gzip = ::pread(opened.descriptor.get(), first, sizeof first, 0) == sizeof first &&
                       std::string_view(first, sizeof first) == "\x1f\x8b";
  if (!is_gzip) return NgramModel::read(path);
  return NgramModel(path.string(), detail::GzipLines(path));
}

}  // namespace LACONIC_ABI
}  // namespace laconic
