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

// Files and folders that are written whole or not at all. POSIX, but for one call of Linux (`FolderWriter::exchange`).

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// The error of the last system call: "PATH: cannot write: No space left on device".
[[noreturn]] inline void fail_system(const std::filesystem::path& path, std::string_view what, int reason = errno) {
  throw Error(text(path.string(), ": cannot ", what, ": ", std::generic_category().message(reason)));
}

/// A file descriptor that closes itself.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  int get() const { return number_; }
  /// Closes now, and says whether that went well (a network file system may only report a full disk here).
  bool close() { return ::close(std::exchange(number_, -1)) == 0; }

 private:
  int number_ = -1;
};

/// Makes a rename in this folder survive a power cut. Best effort: some file systems cannot.
inline void sync_folder(const std::filesystem::path& folder) {
  const Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.get() >= 0) ::fsync(descriptor.get());
}

/// The path itself with links resolved and no trailing slash, so that what a link points to is replaced, not the link.
inline std::filesystem::path resolved(const std::filesystem::path& path) {
  require(!path.empty(), "an empty path given, the name of a file or folder expected");
  std::error_code error;
  std::filesystem::path out = std::filesystem::weakly_canonical(std::filesystem::absolute(path), error);
  require(!error, path.string(), ": cannot resolve: ", error.message());
  return out.has_filename() ? out : out.parent_path();
}

/// `make(name)` with "PATH.partial-PID", "PATH.partial-PID-1" ... until it does not fail for an existing name.
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

/// Writes a file whole or not at all: bytes go to a temporary name beside it, and `commit` puts that in its place.
/// Without `commit` (an exception, say) nothing is left and an older file of that name stays as it was; a program that
/// is killed leaves the temporary one.
/// Devices and pipes (`/dev/stdout`) are written directly. Every failed write, a full disk too, throws `Error`
/// with the file and the reason. Not buffered: hand over large pieces.
class FileWriter {
 public:
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
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  ~FileWriter() {
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
  }

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
  void write(std::string_view bytes) { write(std::as_bytes(std::span(bytes.data(), bytes.size()))); }

  /// Bytes written so far.
  std::size_t written() const { return written_; }

  /// The file is there, whole and on the disk, when this returns.
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

/// Writes the file whole or not at all.
inline void write_file(const std::filesystem::path& path, std::string_view bytes) {
  FileWriter file(path);
  file.write(bytes);
  file.commit();
}

/// The whole file. Throws `Error` if it cannot be read or holds more than `max_bytes`.
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

/// A file seen as memory, read-only. Pages come from the disk when they are touched. Another program that cuts the
/// file short meanwhile kills this one (as with every mapped file); laconic itself replaces files, never rewrites them.
class MappedFile {
 public:
  MappedFile() = default;
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
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  }

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

namespace detail {

/// The whole pages among these bytes of a mapped file leave memory; they come back from the file when touched.
inline void release_pages(std::span<const std::byte> bytes) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto from = reinterpret_cast<std::uintptr_t>(bytes.data());
  const std::uintptr_t begin = (from + page - 1) / page * page, end = (from + bytes.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);  // a wish: may fail
}

}  // namespace detail

/// Makes a folder and those above it, if they are not there.
inline void make_folder(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  require(!error, path.string(), ": cannot create: ", error.message());
}

/// Writes a folder whole or not at all: fill `path()`, "DIR.partial-PID" beside DIR, then `commit` puts it in place of
/// DIR in one step. What an older DIR held under other names is kept (moved over); under the same names it is replaced.
/// Without `commit` nothing is left, unless the program is killed. Folders above DIR are made.
class FolderWriter {
 public:
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
  FolderWriter(const FolderWriter&) = delete;
  FolderWriter& operator=(const FolderWriter&) = delete;
  ~FolderWriter() {
    std::error_code ignored;
    if (!partial_.empty()) std::filesystem::remove_all(partial_, ignored);
  }

  /// Where to write until `commit`.
  const std::filesystem::path& path() const { return partial_; }

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
  /// Swaps the new folder and the old one; the old one is then `partial_`.
  void exchange() {
#if defined(__linux__) && defined(RENAME_EXCHANGE)
    if (::renameat2(AT_FDCWD, partial_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) == 0) return;
    if (errno != EINVAL && errno != ENOSYS) detail::fail_system(name_, "put in place");
#endif
    std::filesystem::path aside =
        partial_;  // a file system without exchange: two steps, the first taken back on failure
    aside += ".old";
    if (::rename(target_.c_str(), aside.c_str()) != 0) detail::fail_system(name_, "put in place");
    if (::rename(partial_.c_str(), target_.c_str()) != 0) {
      const int reason = errno;
      ::rename(aside.c_str(), target_.c_str());
      detail::fail_system(name_, "put in place", reason);
    }
    partial_ = aside;
  }

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
