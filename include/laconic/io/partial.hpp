// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <limits.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <laconic/core/error.hpp>
#include <laconic/io/descriptor.hpp>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

// What is being written has a name of its own until it is whole: "NAME.partial-PID".

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Returns "NAME.partial-", where a long name is cut so that the whole fits a folder (255 bytes on Linux).
inline std::string partial_prefix(std::string_view name) {
  return text(name.substr(0, static_cast<std::size_t>(NAME_MAX) - 40), ".partial-");
}

/// Returns the process that made this name, or 0 if it is not PREFIX followed by a number, or by two with '-' between.
inline pid_t maker_of_partial(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return 0;
  name.remove_prefix(prefix.size());
  const char* const end = name.data() + name.size();
  pid_t pid = 0;
  int attempt = 0;
  auto parsed = std::from_chars(name.data(), end, pid);
  if (parsed.ec == std::errc() && parsed.ptr != end && *parsed.ptr == '-')
    parsed = std::from_chars(parsed.ptr + 1, end, attempt);
  return parsed.ec == std::errc() && parsed.ptr == end && pid > 0 && attempt >= 0 ? pid : 0;
}

/// Knows all that this process is writing and has not put in place yet.
class Partials {
 public:
  /// Returns the only one, which lives as long as the process.
  static Partials& all() {
    static Partials& only = *new Partials;
    return only;
  }

  /// Calls f and returns what it returns. Meanwhile nothing is made, put in place or abandoned.
  template <class F>
  auto locked(F&& f) {
    const std::lock_guard lock(mutex_);
    return f();
  }

  /// Calls `make(name)`, which returns a descriptor or a negative number, for "FOLDER/PREFIX PID", "FOLDER/PREFIX
  /// PID-1" ... until it no longer fails for an existing name. Returns the name and the descriptor, on which a lock
  /// tells others that it is in use, or an errno. Removes what dead processes left under the same prefix before.
  template <class Make>
  std::pair<std::filesystem::path, Descriptor> make(const std::filesystem::path& folder, const std::string& prefix,
                                                    int& reason, Make&& make) {
    const std::lock_guard lock(mutex_);
    remove_stale(folder, prefix);
    for (int attempt = 0; attempt < 1000; ++attempt) {
      std::filesystem::path name = folder / text(prefix, static_cast<long>(::getpid()));
      if (attempt > 0) name += text('-', attempt);
      Descriptor made(make(name));
      reason = made.get() < 0 ? errno : 0;
      if (reason == EEXIST) continue;
      if (reason != 0) return {};
      ::flock(made.get(), LOCK_EX | LOCK_NB);  // some file systems have no locks: then the number of the process counts
      names_.insert(name);
      return {std::move(name), std::move(made)};
    }
    return {};
  }

  /// Registers a file or folder that is to be removed if the process is ended by a signal. Call it within `locked`.
  void add(const std::filesystem::path& name) { names_.insert(name); }
  /// Forgets a name that is in place or removed. Call it within `locked`.
  void forget(const std::filesystem::path& name) { names_.erase(name); }
  /// Removes a file, or a folder with all that is in it, and forgets it.
  void remove(const std::filesystem::path& name) {
    const std::lock_guard lock(mutex_);
    names_.erase(name);
    std::error_code ignored;
    std::filesystem::remove_all(name, ignored);
  }

  /// Removes what is not in place, and from then on stops every thread that would make something or put it in place.
  void abandon() {
    mutex_.lock();                           // for ever
    for (int tries = 0; tries < 3; ++tries)  // another program may just be writing into a folder
      for (const auto& name : names_) {
        std::error_code ignored;
        std::filesystem::remove_all(name, ignored);
      }
  }

  /// Removes what processes that are dead have left in a folder under "PREFIX PID". Call it within `locked`.
  void remove_stale(const std::filesystem::path& folder, const std::string& prefix) {
    // A folder is listed once: where thousands of files are written, each would list all of them.
    const auto [at, fresh] = seen_.try_emplace(folder);
    if (fresh && !is_within_own(folder)) at->second = partials_in(folder);
    std::vector<std::string>& names = at->second;
    for (auto name = names.begin(); name != names.end();) {
      const pid_t maker = maker_of_partial(*name, prefix);
      if (maker != 0) remove_if_stale(folder / *name, maker);
      name = maker != 0 ? names.erase(name) : name + 1;
    }
  }

 private:
  bool is_within_own(const std::filesystem::path& folder) const {
    for (std::filesystem::path at = folder; at.has_relative_path(); at = at.parent_path())
      if (names_.contains(at)) return true;
    return false;
  }
  static std::vector<std::string> partials_in(const std::filesystem::path& folder) {
    std::vector<std::string> out;
    std::error_code error;
    std::filesystem::directory_iterator entry(folder, error);
    for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
      std::string name = entry->path().filename().string();
      if (name.find(".partial-") != std::string::npos) out.push_back(std::move(name));
    }
    return out;
  }
  /// Removes it unless its maker lives, here or (as its lock tells) where this machine's numbers do not count.
  static void remove_if_stale(const std::filesystem::path& name, pid_t maker) {
    if (::kill(maker, 0) == 0 || errno != ESRCH) return;
    const Descriptor left(::open(name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (left.get() < 0 || ::flock(left.get(), LOCK_EX | LOCK_NB) != 0)
      return;  // in use, or a file system without locks
    std::error_code ignored;
    std::filesystem::remove_all(name, ignored);
  }

  std::mutex mutex_;
  std::set<std::filesystem::path> names_;
  std::map<std::filesystem::path, std::vector<std::string>> seen_;  // partials of others, by folder
};

}  // namespace detail

/// Removes every file and folder that this process is writing and has not put in place. Every later writer stops where
/// it would make something or put it in place, so the caller ends the process next. For a program that is told to end
/// (SIGINT, SIGTERM): call it from a thread that waits for signals, not from a handler. Allocates.
inline void abandon_writing() { detail::Partials::all().abandon(); }

}  // namespace LACONIC_ABI
}  // namespace laconic
