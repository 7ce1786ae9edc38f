// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <laconic/core/error.hpp>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

// Files and folders that are written whole or not at all. POSIX, except for one Linux call (`FolderWriter::exchange`).

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

/// Makes a rename in this folder survive a power cut. Best effort: some file systems cannot.
inline void sync_folder(const std::filesystem::path& folder) {
  const Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.get() >= 0) ::fsync(descriptor.get());
}

/// Returns the path with links resolved and without a trailing slash, so that the target of a link is replaced, not the
/// link. Throws `Error` for an empty path.
inline std::filesystem::path resolved(const std::filesystem::path& path) {
  require(!path.empty(), "an empty path given, the name of a file or folder expected");
  std::error_code error;
  std::filesystem::path out = std::filesystem::weakly_canonical(std::filesystem::absolute(path), error);
  require(!error, path.string(), ": cannot resolve: ", error.message());
  return out.has_filename() ? out : out.parent_path();
}

/// Calls `make(name)` with "PATH.partial-PID", "PATH.partial-PID-1" ... until it no longer fails for an existing name.
/// Returns the name that was made. Throws `Error` if it fails for another reason.
template <class Make>
std::filesystem::path make_partial(const std::filesystem::path& path, Make&& make) {
  for (int attempt = 0; attempt < 1000; ++attempt) {
    std::filesystem::path name = path;
    name += text(".partial-", static_cast<long>(::getpid()));
    if (attempt > 0) name += text('-', attempt);
    if (make(name)) return name;
    if (errno != EEXIST) fail_system(path, "create");
  }
  fail_system(path, "create", EEXIST);
}

}  // namespace detail

/// Writes a file whole or not at all. Bytes go to a temporary name next to it, and `commit` puts that in its place.
/// Leaves nothing without `commit` (after an exception, say): an older file of that name stays as it was; a program
/// that is killed leaves the temporary file. Devices and pipes (`/dev/stdout`) are written directly. Every failed
/// write, a full disk too, throws `Error` with the file and the reason. Nothing is buffered: pass large pieces.
class FileWriter {
 public:
  /// Opens the temporary file, or the device. Throws `Error` for a folder and for what cannot be opened.
  explicit FileWriter(const std::filesystem::path& path) : name_(path), target_(detail::resolved(path)) {
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
      require(!S_ISDIR(status.st_mode), path.string(), ": is a folder, the name of a file expected");
      file_ = detail::Descriptor(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
      if (file_.get() < 0) detail::fail_system(path, "open for writing");
      return;
    }
    temporary_ = detail::make_partial(target_, [&](const std::filesystem::path& name) {
      file_ = detail::Descriptor(::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
      return file_.get() >= 0;
    });
  }
  /// Not copyable.
  FileWriter(const FileWriter&) = delete;
  /// Not assignable.
  FileWriter& operator=(const FileWriter&) = delete;
  /// Deletes the temporary file unless it was committed.
  ~FileWriter() {
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
  }

  /// Writes all bytes.
  void write(std::span<const std::byte> bytes) {
    require(file_.get() >= 0, name_.string(), ": written after commit");
    while (!bytes.empty()) {
      const ssize_t count = ::write(file_.get(), bytes.data(), std::min(bytes.size(), std::size_t{1} << 30));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) detail::fail_system(name_, "write", count < 0 ? errno : EIO);
      bytes = bytes.subspan(static_cast<std::size_t>(count));
      written_ += static_cast<std::size_t>(count);
    }
  }
  /// Writes all bytes of a text.
  void write(std::string_view bytes) { write(std::as_bytes(std::span(bytes.data(), bytes.size()))); }

  /// Returns the number of bytes written so far.
  std::size_t written() const { return written_; }

  /// Puts the file in place. When this returns, the whole file is on the disk.
  void commit() {
    require(file_.get() >= 0, name_.string(), ": committed twice");
    if (temporary_.empty()) {
      if (!file_.close()) detail::fail_system(name_, "write");
      return;
    }
    if (::fsync(file_.get()) != 0) detail::fail_system(name_, "write");
    if (!file_.close()) detail::fail_system(name_, "write");
    if (::rename(temporary_.c_str(), target_.c_str()) != 0) detail::fail_system(name_, "put in place");
    temporary_.clear();
    detail::sync_folder(target_.parent_path());
  }

 private:
  std::filesystem::path name_, target_, temporary_;
  detail::Descriptor file_;
  std::size_t written_ = 0;
};

/// Writes a file whole or not at all. Throws `Error` as FileWriter does.
inline void write_file(const std::filesystem::path& path, std::string_view bytes) {
  FileWriter file(path);
  file.write(bytes);
  file.commit();
}

/// Returns the whole file. Throws `Error` if it cannot be read or holds more than `max_bytes`.
inline std::string read_file(const std::filesystem::path& path, std::size_t max_bytes) {
  const detail::Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) detail::fail_system(path, "open");
  std::string out;
  struct stat status {};
  if (::fstat(file.get(), &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0)
    out.reserve(std::min(static_cast<std::size_t>(status.st_size), max_bytes));
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
/// file meanwhile, this one is killed, as with every mapped file; laconic itself replaces files and never rewrites
/// them.
class MappedFile {
 public:
  /// Maps nothing.
  MappedFile() = default;
  /// Maps this file. Throws `Error` if it cannot be opened or is not a regular file.
  explicit MappedFile(const std::filesystem::path& path) {
    const detail::Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.get() < 0) detail::fail_system(path, "open");
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) detail::fail_system(path, "read");
    require(S_ISREG(status.st_mode), path.string(), ": not a regular file, so it cannot be mapped");
    size_ = static_cast<std::size_t>(status.st_size);
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

/// Makes a folder and all above it, if they do not exist. Throws `Error` if one cannot be made.
inline void make_folder(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  require(!error, path.string(), ": cannot create: ", error.message());
}

/// Writes a folder DIR whole or not at all: fill `path()`, which is "DIR.partial-PID" next to DIR, then `commit` puts
/// it in place of DIR in one step. Files of an older DIR under other names are kept (moved over); those of the same
/// names are replaced. Without `commit` nothing is left, unless the program is killed. Folders above DIR are made.
class FolderWriter {
 public:
  /// Makes the partial folder. Throws `Error` if the path is a file or the root, or if it cannot be made.
  explicit FolderWriter(const std::filesystem::path& path) : name_(path), target_(detail::resolved(path)) {
    std::error_code error;
    const bool exists = std::filesystem::exists(target_, error);
    require(!exists || std::filesystem::is_directory(target_, error), path.string(),
            ": is a file, the name of a folder expected");
    require(target_ != target_.root_path(), path.string(), ": cannot be replaced");
    make_folder(target_.parent_path());
    partial_ = detail::make_partial(target_,
                                    [](const std::filesystem::path& name) { return ::mkdir(name.c_str(), 0777) == 0; });
  }
  /// Not copyable.
  FolderWriter(const FolderWriter&) = delete;
  /// Not assignable.
  FolderWriter& operator=(const FolderWriter&) = delete;
  /// Deletes the partial folder unless it was committed.
  ~FolderWriter() {
    std::error_code ignored;
    if (!partial_.empty()) std::filesystem::remove_all(partial_, ignored);
  }

  /// Returns the folder to write to until `commit`.
  const std::filesystem::path& path() const { return partial_; }

  /// Puts the folder in place. Throws `Error` if that fails, or if the older folder cannot be removed afterwards.
  void commit() {
    require(!partial_.empty(), name_.string(), ": committed twice");
    detail::sync_folder(partial_);
    // rename replaces a folder that does not exist or is empty.
    const bool simple = ::rename(partial_.c_str(), target_.c_str()) == 0;
    if (!simple) {
      if (errno != EEXIST && errno != ENOTEMPTY) detail::fail_system(name_, "put in place");
      exchange();
    }
    const std::filesystem::path old = std::exchange(partial_, {});
    detail::sync_folder(target_.parent_path());
    if (simple) return;
    keep_others(old);
    std::error_code error;
    std::filesystem::remove_all(old, error);
    require(!error, name_.string(), ": in place, but the older one is left as ", old.string(), ": ", error.message());
  }

 private:
  /// Swaps the new folder and the old one, which is then `partial_`.
  void exchange() {
#if defined(__linux__) && defined(RENAME_EXCHANGE)
    if (::renameat2(AT_FDCWD, partial_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) == 0) return;
    if (errno != EINVAL && errno != ENOSYS) detail::fail_system(name_, "put in place");
#endif
    // A file system without exchange needs two steps. The first is undone if the second fails.
    std::filesystem::path aside = partial_;
    aside += ".old";
    if (::rename(target_.c_str(), aside.c_str()) != 0) detail::fail_system(name_, "put in place");
    if (::rename(partial_.c_str(), target_.c_str()) != 0) {
      const int reason = errno;
      ::rename(aside.c_str(), target_.c_str());
      detail::fail_system(name_, "put in place", reason);
    }
    partial_ = aside;
  }

  /// Moves files of the older folder that the new one does not have into the new one.
  void keep_others(const std::filesystem::path& old) const {
    std::error_code error;
    std::vector<std::filesystem::path> names;  // listed first: moving while listing may skip some
    std::filesystem::directory_iterator entry(old, error);
    for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error))
      names.push_back(entry->path().filename());
    for (std::size_t i = 0; !error && i < names.size(); ++i) {
      struct stat status {};
      if (::lstat((target_ / names[i]).c_str(), &status) != 0)
        std::filesystem::rename(old / names[i], target_ / names[i], error);
    }
    require(!error, name_.string(), ": in place, but the older one is left as ", old.string(), ": ", error.message());
  }

  std::filesystem::path name_, target_, partial_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
