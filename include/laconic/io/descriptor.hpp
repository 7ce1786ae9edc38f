// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <laconic/core/error.hpp>
#include <string_view>
#include <system_error>
#include <utility>

// Descriptors of files, and the one way in which files are opened to be read. POSIX.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Throws the error of the last system call: "PATH: cannot write: No space left on device".
[[noreturn]] inline void fail_system(const std::filesystem::path& path, std::string_view what, int reason = errno) {
  throw Error(text(path.string(), ": cannot ", what, ": ", std::generic_category().message(reason)));
}

/// Owns a file descriptor and closes it.
class Descriptor {
 public:
  /// Owns nothing.
  Descriptor() = default;
  /// Owns this descriptor; a negative one means none.
  explicit Descriptor(int number) : number_(number) {}
  /// Takes over the descriptor of the other.
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  /// Closes its descriptor and takes over that of the other.
  Descriptor& operator=(Descriptor other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  /// Closes the descriptor, if there is one.
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  /// Returns the descriptor, negative without one.
  int get() const { return number_; }
  /// Closes the descriptor now and says whether that succeeded. A network file system may report a full disk only here.
  bool close() { return ::close(std::exchange(number_, -1)) == 0; }

 private:
  int number_ = -1;
};

/// Names what a path is, by its mode: "a folder", "a pipe" ...
inline std::string_view kind_of_file(mode_t mode) {
  return S_ISDIR(mode)    ? "a folder"
         : S_ISFIFO(mode) ? "a pipe"
         : S_ISSOCK(mode) ? "a socket"
         : S_ISREG(mode)  ? "a file"
                          : "a device";
}

/// Holds a regular file that is open to be read, and its size when it was opened, in bytes.
struct OpenFile {
  Descriptor descriptor;
  std::int64_t size = 0;
};

/// Opens a file to read it. Throws `Error` if that fails, for anything but a regular file (a pipe could block for ever,
/// and a device may have no end) and for a file that only stands for another one, in Git LFS.
inline OpenFile open_to_read(const std::filesystem::path& path) {
  // Without O_NONBLOCK, opening a pipe waits for somebody who writes to it.
  OpenFile out{Descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)), 0};
  if (out.descriptor.get() < 0) fail_system(path, "open");
  struct stat status {};
  if (::fstat(out.descriptor.get(), &status) != 0) fail_system(path, "read");
  require(S_ISREG(status.st_mode), path.string(), ": is ", kind_of_file(status.st_mode), ", a regular file expected");
  out.size = status.st_size;
  constexpr std::string_view pointer = "version https://git-lfs.github.com/spec/";
  char start[pointer.size()];
  const bool may_point = out.size >= static_cast<std::int64_t>(pointer.size()) && out.size < 1024;  // as Git LFS says
  require(!may_point || ::pread(out.descriptor.get(), start, sizeof start, 0) != static_cast<ssize_t>(sizeof start) ||
              std::string_view(start, sizeof start) != pointer,
          path.string(),
          ": a pointer of Git LFS given, the file that it stands for expected: run git lfs pull in its folder");
  return out;
}

/// Makes a rename in this folder survive a power cut. Best effort: some file systems cannot.
inline void sync_folder(const std::filesystem::path& folder) {
  const Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.get() >= 0) ::fsync(descriptor.get());
}

/// Returns a path from the root on. Throws `Error` if the current folder is gone.
inline std::filesystem::path absolute_path(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::path out = std::filesystem::absolute(path, error);
  require(!error, path.string(), ": cannot resolve: ", error.message());
  return out;
}

/// Returns the path with links resolved and without a trailing slash, so that the target of a link is replaced or made,
/// not the link. Throws `Error` for an empty path and one that cannot be looked at.
inline std::filesystem::path resolved(const std::filesystem::path& path) {
  require(!path.empty(), "an empty path given, the name of a file or folder expected");
  std::error_code error;
  std::filesystem::path out = std::filesystem::weakly_canonical(absolute_path(path), error);
  // A link to what does not exist yet is left of it. The system follows 40 links at most.
  for (int links = 0; !error && links < 40 && std::filesystem::is_symlink(out.has_filename() ? out : out.parent_path());
       ++links) {
    if (!out.has_filename()) out = out.parent_path();
    const std::filesystem::path target = std::filesystem::read_symlink(out, error);
    if (!error) out = std::filesystem::weakly_canonical(out.parent_path() / target, error);
  }
  require(!error, path.string(), ": cannot resolve: ", error.message());
  return out.has_filename() ? out : out.parent_path();
}

/// Says whether a folder has this entry, also if it is a link that points to nothing. To open such a link is an error
/// that a person should see; a file that may be missing is missing only if this is false.
inline bool is_listed(const std::filesystem::path& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0;
}

/// Says whether there is something of this name. Throws `Error` where that cannot be known (a folder above it may not
/// be searched, a name is too long).
inline bool is_there(const std::filesystem::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0) return true;
  if (errno != ENOENT && errno != ENOTDIR) fail_system(path, "look at");
  return false;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
