// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <laconic/core/error.hpp>
#include <laconic/io/descriptor.hpp>
#include <laconic/io/file_writer.hpp>
#include <laconic/io/partial.hpp>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Makes a folder and all above it, if they do not exist. Throws `Error` if one cannot be made.
inline void make_folder(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  require(!error, path.string(), ": cannot create: ", error.message());
}

/// Writes the files of a folder DIR whole or not at all: fill `path()`, then `commit` puts all in place.
///
/// A new DIR appears in one step: it is "DIR.partial-PID" before. An older DIR stays the folder that it is, with its
/// mode, owner and group (it may be a mount point, or where a shell sits); the new files are collected in
/// "DIR/.partial-PID" and replace those of the same names one after the other, each whole, when all are on the disk. If
/// one of them cannot be replaced, those before it are put back. Other files in it are kept. Without `commit` nothing
/// is left, unless the program is killed; the next writer of DIR removes that. Folders above DIR are made.
class FolderWriter {
 public:
  /// Makes the partial folder. Throws `Error` if the path is a file, or if it cannot be made.
  explicit FolderWriter(const std::filesystem::path& path) : name_(path), target_(detail::resolved(path)) {
    const bool exists = detail::is_there(target_);
    std::error_code ignored;
    require(!exists || std::filesystem::is_directory(target_, ignored), path.string(),
            ": is a file, the name of a folder expected");
    if (!exists) make_folder(target_.parent_path());
    int reason = 0;
    std::tie(partial_, lock_) = detail::Partials::all().make(
        exists ? target_ : target_.parent_path(),
        detail::partial_prefix(exists ? std::string() : target_.filename().string()), reason,
        [](const std::filesystem::path& name) {
          return ::mkdir(name.c_str(), 0777) == 0 ? ::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
        });
    if (partial_.empty()) detail::fail_system(path, "create", reason);
  }
  /// Not copyable.
  FolderWriter(const FolderWriter&) = delete;
  /// Not assignable.
  FolderWriter& operator=(const FolderWriter&) = delete;
  /// Deletes the partial folder unless it was committed.
  ~FolderWriter() {
    if (!partial_.empty()) detail::Partials::all().remove(partial_);
  }

  /// Throws `Error` unless a writer of this folder could begin now. Leaves nothing, and makes no folder above it.
  static void check(const std::filesystem::path& path) {
    std::filesystem::path at = detail::resolved(path);
    if (detail::is_there(at)) {
      const FolderWriter writer(path);
      return;
    }
    while (!detail::is_there(at)) at = at.parent_path();
    std::error_code ignored;
    require(std::filesystem::is_directory(at, ignored), path.string(), ": ", at.string(),
            " is a file, the name of a folder expected");
    if (::access(at.c_str(), W_OK | X_OK) != 0) detail::fail_system(path, "create");
  }

  /// Returns the folder to write to until `commit`.
  const std::filesystem::path& path() const { return partial_; }

  /// Puts the files in place. Throws `Error` if that fails, or if the older files cannot be removed afterwards.
  void commit() {
    require(!partial_.empty(), name_.string(), ": committed twice");
    detail::sync_folder(partial_);
    const int reason = detail::Partials::all().locked([&] { return put_in_place(); });
    if (reason != 0) detail::fail_system(name_, "put in place", reason);
    detail::sync_folder(target_);
    detail::sync_folder(target_.parent_path());
  }

 private:
  /// Returns 0, or the errno of what failed. Throws `Error` if all is in place but older files cannot be removed.
  int put_in_place() {
    // rename replaces a folder that does not exist. A folder that holds the new files, or that exists by now, stays.
    const bool is_inside = partial_.parent_path() == target_;
    if (!is_inside && ::rename(partial_.c_str(), target_.c_str()) == 0) {
      detail::Partials::all().forget(std::exchange(partial_, {}));
      return 0;
    }
    if (!is_inside && errno != EEXIST && errno != ENOTEMPTY && errno != EBUSY) return errno;
    if (const int reason = replace_files(); reason != 0) return reason;
    const std::filesystem::path old = std::exchange(partial_, {});
    detail::Partials::all().forget(old);
    std::error_code error;
    std::filesystem::remove_all(old, error);
    require(!error, name_.string(), ": in place, but older files are left in ", old.string(), ": ", error.message());
    return 0;
  }

  /// Moves all new files into the target, and what they replace into the partial folder. Returns 0, or an errno after
  /// all has been moved back.
  int replace_files() const {
    std::error_code error;
    std::vector<std::filesystem::path> names;  // listed first: moving while listing may skip some
    std::filesystem::directory_iterator entry(partial_, error);
    for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error))
      names.push_back(entry->path().filename());
    if (error) return error.value();
    std::sort(names.begin(), names.end());
    for (std::size_t i = 0; i < names.size(); ++i)
      if (const int reason = exchange(names[i]); reason != 0) {
        while (i-- > 0) put_back(names[i]);
        return reason;
      }
    return 0;
  }

  /// Swaps a new file and the older one, or moves whichever of the two there is to the other's place. Returns an errno.
  int exchange(const std::filesystem::path& name) const {
    const std::filesystem::path fresh = partial_ / name, place = target_ / name;
    struct stat older {
    }, newer{};
    const bool has_older = ::lstat(place.c_str(), &older) == 0, has_newer = ::lstat(fresh.c_str(), &newer) == 0;
    const auto moved = [](int result) { return result == 0 ? 0 : errno; };
    if (!has_older) return moved(::rename(fresh.c_str(), place.c_str()));
    if (!has_newer) return moved(::rename(place.c_str(), fresh.c_str()));
    if (S_ISREG(older.st_mode) && S_ISREG(newer.st_mode)) {
      const detail::Descriptor file(::open(fresh.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
      if (file.get() >= 0) detail::take_over_owner(file.get(), older);
    }
#if defined(__linux__) && defined(RENAME_EXCHANGE)
    if (::renameat2(AT_FDCWD, fresh.c_str(), AT_FDCWD, place.c_str(), RENAME_EXCHANGE) == 0) return 0;
    if (errno != EINVAL && errno != ENOSYS) return errno;
#endif
    // A file system without exchange: the older one is kept aside until all is in place.
    const std::filesystem::path aside = partial_ / (name.string() + ".older");
    if (::rename(place.c_str(), aside.c_str()) != 0) return errno;
    if (::rename(fresh.c_str(), place.c_str()) == 0) return 0;
    const int reason = errno;
    ::rename(aside.c_str(), place.c_str());
    return reason;
  }
  /// Undoes `exchange`.
  void put_back(const std::filesystem::path& name) const {
    const std::filesystem::path aside = partial_ / (name.string() + ".older");
    if (::rename(aside.c_str(), (target_ / name).c_str()) != 0) exchange(name);
  }

  std::filesystem::path name_, target_, partial_;
  detail::Descriptor lock_;  // on the partial folder
};

/// Keeps others from writing to a folder while it lives: a second one of the same folder, in this or another process,
/// throws `Error` and names the process that holds the first. The folder is made, and removed at the end if nothing is
/// in it. The lock is a file "lock" in the folder, which says who holds it; without its holder, also after a crash, it
/// locks nothing.
class FolderLock {
 public:
  /// Locks the folder. Throws `Error` if it is locked or cannot be written to.
  explicit FolderLock(const std::filesystem::path& folder) : folder_(detail::resolved(folder)) {
    for (auto at = folder_; !detail::is_there(at); at = at.parent_path()) made_.push_back(at);
    make_folder(folder_);
    path_ = folder_ / "lock";
    for (int tries = 0; tries < 100 && file_.get() < 0; ++tries) take(folder);
    require(file_.get() >= 0, folder.string(), ": cannot be locked");
    char host[256] = "";
    ::gethostname(host, sizeof host - 1);
    const std::string holder = text("process ", static_cast<long>(::getpid()), " on ", host, '\n');
    if (::ftruncate(file_.get(), 0) != 0 ||
        ::write(file_.get(), holder.data(), holder.size()) != static_cast<ssize_t>(holder.size())) {
      const int reason = errno;
      ::unlink(path_.c_str());
      detail::fail_system(folder, "lock", reason);
    }
    detail::Partials::all().locked([&] { detail::Partials::all().add(path_); });
  }
  /// Not copyable.
  FolderLock(const FolderLock&) = delete;
  /// Not assignable.
  FolderLock& operator=(const FolderLock&) = delete;
  /// Unlocks the folder.
  ~FolderLock() {
    detail::Partials::all().remove(path_);
    for (const auto& folder : made_) ::rmdir(folder.c_str());  // fails where something is in it
  }

 private:
  /// Takes the lock, unless its file has just been removed by the one who had it.
  void take(const std::filesystem::path& folder) {
    detail::Descriptor file(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666));
    if (file.get() < 0) detail::fail_system(folder, "lock");
    if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      char holder[300] = "";
      const ssize_t count = ::pread(file.get(), holder, sizeof holder - 1, 0);
      std::string who(holder, static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
      who = who.substr(0, who.find('\n'));
      throw Error(text(folder.string(), ": ", who.empty() ? "another process" : who,
                       " is writing to it, a folder that nobody writes to expected"));
    }
    struct stat opened {
    }, there{};
    if (::fstat(file.get(), &opened) == 0 && ::stat(path_.c_str(), &there) == 0 && opened.st_ino == there.st_ino)
      file_ = std::move(file);
  }

  std::filesystem::path folder_, path_;
  std::vector<std::filesystem::path> made_;  // the innermost first
  detail::Descriptor file_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
