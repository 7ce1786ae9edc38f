// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <laconic/core/error.hpp>
#include <laconic/io/descriptor.hpp>
#include <laconic/io/partial.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Returns the descriptor of this process that a path names (/dev/stdout, /dev/fd/3, /proc/self/fd/3, or a link to
/// one of them), or -1. What is opened by such a name would be another file, not what the descriptor stands for.
inline int own_descriptor(std::filesystem::path path) {
  std::error_code error;
  for (int links = 0; links < 40; ++links) {
    path = std::filesystem::absolute(path, error);
    const std::filesystem::path folder = std::filesystem::weakly_canonical(path.parent_path(), error);
    if (error) return -1;
    const std::string name = path.filename().string();
    if (folder == text("/proc/", static_cast<long>(::getpid()), "/fd") || folder == "/dev/fd") {
      int number = -1;
      const auto [end, failed] = std::from_chars(name.data(), name.data() + name.size(), number);
      return failed == std::errc() && end == name.data() + name.size() ? number : -1;
    }
    if (!std::filesystem::is_symlink(folder / name, error) || error) return -1;
    const std::filesystem::path next = std::filesystem::read_symlink(folder / name, error);
    if (error) return -1;
    path = folder / next;  // an absolute one stays as it is
  }
  return -1;
}

/// Gives a file the owner, group and mode of an older one. Says whether it has the owner and group; only root can give
/// a file away.
inline bool take_over_owner(int descriptor, const struct stat& older) {
  struct stat own {};
  if (::fstat(descriptor, &own) != 0) return false;
  const bool same = own.st_uid == older.st_uid && own.st_gid == older.st_gid;
  const bool done = same || ::fchown(descriptor, older.st_uid, older.st_gid) == 0;
  ::fchmod(descriptor, older.st_mode & 07777);  // after the owner, for giving a file away clears bits of its mode
  return done;
}

}  // namespace detail

/// Writes a file whole or not at all. Bytes go to a temporary name next to it, and `commit` puts that in its place; an
/// older file's mode, owner and group stay. Leaves nothing without `commit` (after an exception, say): an older file of
/// that name stays as it was. A program that is killed leaves the temporary file, which the next writer of the same
/// file removes. Every failed write, a full disk too, throws `Error` with the file and the reason. Nothing is buffered:
/// pass large pieces.
///
/// `commit` copies the bytes into an older file that cannot be replaced, because it is a mount point, its folder cannot
/// be written to or its owner could not be kept. Room on the disk is made sure of before; a power cut meanwhile
/// leaves a part. Devices, pipes and descriptors of the process (`/dev/stdout`, `/dev/fd/3`) are written directly, in
/// turns with what the program prints.
class FileWriter {
 public:
  /// Opens the temporary file, or the device. Throws `Error` for a folder and for what cannot be opened.
  explicit FileWriter(const std::filesystem::path& path) : name_(path) {
    if (const int own = detail::own_descriptor(path); own >= 0) {
      if (own == STDOUT_FILENO) std::fflush(stdout);  // what was printed before comes before
      file_ = detail::Descriptor(::fcntl(own, F_DUPFD_CLOEXEC, 3));
      if (file_.get() < 0) detail::fail_system(path, "open for writing");
      return;
    }
    target_ = detail::resolved(path);
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0) {
      require(!S_ISDIR(status.st_mode), path.string(), ": is a folder, the name of a file expected");
      if (!S_ISREG(status.st_mode)) {
        file_ = detail::Descriptor(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
        if (file_.get() < 0) detail::fail_system(path, "open for writing");
        target_.clear();
        return;
      }
      older_ = status;
    }
    begin();
  }
  /// Not copyable.
  FileWriter(const FileWriter&) = delete;
  /// Not assignable.
  FileWriter& operator=(const FileWriter&) = delete;
  /// Deletes the temporary file unless it was committed.
  ~FileWriter() {
    if (!temporary_.empty()) detail::Partials::all().remove(temporary_);
  }

  /// Throws `Error` unless a writer of this file could begin now. Leaves nothing, and opens no device or pipe. Says
  /// before the work what would fail after it; only whether there is room, nobody knows before.
  static void check(const std::filesystem::path& path) {
    if (const int own = detail::own_descriptor(path); own >= 0) {
      const int flags = ::fcntl(own, F_GETFL);
      if (flags < 0) detail::fail_system(path, "open for writing");
      require((flags & O_ACCMODE) != O_RDONLY, path.string(), ": is open to be read, a name to write to expected");
      return;
    }
    struct stat status {};
    if (!path.empty() && ::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)) {
      if (::access(path.c_str(), W_OK) != 0) detail::fail_system(path, "open for writing");
      return;
    }
    const FileWriter writer(path);
  }

  /// Writes all bytes.
  void write(std::span<const std::byte> bytes) {
    require(file_.get() >= 0, name_.string(), ": written after commit");
    write_to(file_.get(), bytes);
    written_ += bytes.size();
  }
  /// Writes all bytes of a text.
  void write(std::string_view bytes) { write(std::as_bytes(std::span(bytes.data(), bytes.size()))); }

  /// Returns the number of bytes written so far.
  std::size_t written() const { return written_; }

  /// Puts the file in place. When this returns, the whole file is on the disk.
  void commit() {
    require(file_.get() >= 0, name_.string(), ": committed twice");
    if (!target_.empty() && !(older_ ? replace_older() : put_in_place())) copy_into_place();
    if (file_.get() >= 0 && !file_.close()) detail::fail_system(name_, "write");
  }

 private:
  /// Makes the temporary file: next to the target, or where temporary files are if only the target can be written to.
  void begin() {
    int reason = 0;
    std::tie(temporary_, file_) =
        detail::Partials::all().make(target_.parent_path(), detail::partial_prefix(target_.filename().string()), reason,
                                     [&](const std::filesystem::path& name) {
                                       // Nobody may read more of it than of the older one.
                                       const mode_t mode = older_ ? older_->st_mode & 0666 : 0666;
                                       return ::open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode);
                                     });
    if (file_.get() >= 0) return;
    if (reason != EACCES && reason != EPERM && reason != EROFS) detail::fail_system(name_, "create", reason);
    if (!older_ || ::access(target_.c_str(), W_OK) != 0) detail::fail_system(name_, "create", reason);
    std::error_code error;
    std::string name = (std::filesystem::temp_directory_path(error) / "laconic-XXXXXX").string();
    if (!error) file_ = detail::Descriptor(::mkostemp(name.data(), O_CLOEXEC));
    if (file_.get() < 0) detail::fail_system(name_, "create", reason);
    ::unlink(name.c_str());
  }

  void write_to(int descriptor, std::span<const std::byte> bytes) const {
    while (!bytes.empty()) {
      const ssize_t count = ::write(descriptor, bytes.data(), std::min(bytes.size(), std::size_t{1} << 30));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) detail::fail_system(name_, "write", count < 0 ? errno : EIO);
      bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
  }

  /// Puts the file in place of the older one, with its owner and mode, if that can be.
  bool replace_older() {
    if (temporary_.empty()) return false;
    const bool kept = detail::take_over_owner(file_.get(), *older_);
    if (!kept && ::access(target_.c_str(), W_OK) == 0) return false;
    return put_in_place();
  }

  /// Renames the temporary file. Says whether that could be done; throws `Error` where copying could not do it either.
  bool put_in_place() {
    if (::fsync(file_.get()) != 0) detail::fail_system(name_, "write");
    const int reason = detail::Partials::all().locked([&] {
      if (::rename(temporary_.c_str(), target_.c_str()) != 0) return errno;
      detail::Partials::all().forget(temporary_);
      temporary_.clear();
      return 0;
    });
    // A mount point; or somebody else's file in a folder like /tmp.
    if (reason != 0 && older_ && (reason == EBUSY || reason == EPERM || reason == EACCES)) return false;
    if (reason != 0) detail::fail_system(name_, "put in place", reason);
    detail::sync_folder(target_.parent_path());
    return true;
  }

  /// Copies the bytes into the older file.
  void copy_into_place() {
    detail::Partials::all().locked([&] {  // so that a signal does not end it halfway
      detail::Descriptor out(::open(target_.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
      struct stat status {};
      if (out.get() < 0 || ::fstat(out.get(), &status) != 0) detail::fail_system(name_, "open for writing");
      require(S_ISREG(status.st_mode), name_.string(), ": is no longer a regular file");
#if defined(__linux__)
      const auto size = static_cast<off_t>(written_);
      if (size > 0 && ::fallocate(out.get(), FALLOC_FL_KEEP_SIZE, 0, size) != 0 && (errno == ENOSPC || errno == EFBIG))
        detail::fail_system(name_, "write");
#endif
      std::array<std::byte, 65536> block;
      for (std::size_t at = 0; at < written_;) {
        const ssize_t count = ::pread(file_.get(), block.data(), block.size(), static_cast<off_t>(at));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) detail::fail_system(name_, "read what was written", count < 0 ? errno : EIO);
        write_to(out.get(), std::span(block).first(static_cast<std::size_t>(count)));
        at += static_cast<std::size_t>(count);
      }
      if (::ftruncate(out.get(), static_cast<off_t>(written_)) != 0 || ::fsync(out.get()) != 0 || !out.close())
        detail::fail_system(name_, "write");
    });
  }

  std::filesystem::path name_, target_, temporary_;  // no target: written directly; no temporary name: unlinked
  std::optional<struct stat> older_;
  detail::Descriptor file_;
  std::size_t written_ = 0;
};

/// Writes a file whole or not at all. Throws `Error` as FileWriter does.
inline void write_file(const std::filesystem::path& path, std::string_view bytes) {
  FileWriter file(path);
  file.write(bytes);
  file.commit();
}

}  // namespace LACONIC_ABI
}  // namespace laconic
