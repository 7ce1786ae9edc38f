// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <csignal>
#include <fstream>
#include <iostream>
#include <laconic/io/file.hpp>
#include <memory>

#include "catch.hpp"
#include "message_of.hpp"
#include "temporary_folder.hpp"

using namespace laconic;
using Names = std::vector<std::string>;

namespace {

/// No file of this process may grow beyond `bytes` while this lives: writing then fails as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

/// Returns the mode of a file or folder, as `stat` has it.
mode_t mode_of(const std::filesystem::path& path) {
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  return status.st_mode & 07777;
}
/// Returns what tells a file or folder from one that was put in its place.
ino_t identity_of(const std::filesystem::path& path) {
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  return status.st_ino;
}
/// Returns the number of a process that is dead, and waited for.
pid_t dead_process() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  return child;
}
/// Writes a file as other programs do.
void put(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace

TEST_CASE("a file is there after commit and not before", "[io][file]") {
  const TemporaryFolder folder;
  const auto path = folder / "a";
  {
    FileWriter file(path);
    file.write("hello ");
    CHECK_FALSE(std::filesystem::exists(path));
    file.write("world");
    CHECK(file.written() == 11);
    file.commit();
    CHECK(message_of([&] { file.commit(); }) == path.string() + ": committed twice");
    CHECK(message_of([&] { file.write("x"); }) == path.string() + ": written after commit");
  }
  CHECK(read_file(path, 11) == "hello world");
  CHECK(folder.names() == Names{"a"});
}

TEST_CASE("a file that is not committed leaves the older one", "[io][file]") {
  const TemporaryFolder folder;
  write_file(folder / "a", "old");
  {
    FileWriter file(folder / "a");
    file.write("new");
    CHECK(folder.names().size() == 2);
  }
  CHECK(read_file(folder / "a", 100) == "old");
  CHECK(folder.names() == Names{"a"});
  write_file(folder / "a", "new");
  CHECK(read_file(folder / "a", 100) == "new");
}

TEST_CASE("a full disk is an error and leaves nothing", "[io][file]") {
  const TemporaryFolder folder;
  write_file(folder / "a", "old");
  SECTION("a limit on the size of files") {
    const FileSizeLimit limit(1000);
    // The first part still fits, so that the error comes after a short write.
    CHECK(message_of([&] { write_file(folder / "a", std::string(5000, 'x')); }) ==
          (folder / "a").string() + ": cannot write: File too large");
  }
  SECTION("a device that is always full") {
    CHECK(message_of([] { write_file("/dev/full", "x"); }) == "/dev/full: cannot write: No space left on device");
    CHECK(std::filesystem::is_character_file("/dev/full"));
  }
  SECTION("a file system of 64 KiB") {
    const auto mount = folder / "disk";
    std::filesystem::create_directory(mount);
    if (::mount("tmpfs", mount.c_str(), "tmpfs", 0, "size=64k") != 0) {
      std::cout << "skipped: a small file system cannot be mounted here\n";
      std::filesystem::remove(mount);
    } else {
      const auto message = message_of([&] { write_file(mount / "a", std::string(1 << 20, 'x')); });
      const bool empty = std::filesystem::is_empty(mount);
      ::umount(mount.c_str());
      std::filesystem::remove(mount);
      CHECK(message == (mount / "a").string() + ": cannot write: No space left on device");
      CHECK(empty);
    }
  }
  CHECK(read_file(folder / "a", 100) == "old");
  CHECK(folder.names() == Names{"a"});
}

TEST_CASE("writing where one cannot is an error that says why", "[io][file]") {
  const TemporaryFolder folder;
  const std::string missing = (folder / "none/a").string(), here = folder.path.string();
  CHECK(message_of([&] { write_file(missing, "x"); }) == missing + ": cannot create: No such file or directory");
  CHECK(message_of([&] { write_file(here, "x"); }) == here + ": is a folder, the name of a file expected");
  CHECK(message_of([&] { write_file("", "x"); }) == "an empty path given, the name of a file or folder expected");
}

TEST_CASE("a link stays a link, what it points to is replaced", "[io][file]") {
  const TemporaryFolder folder;
  write_file(folder / "a", "old");
  std::filesystem::create_symlink(folder / "a", folder / "link");
  write_file(folder / "link", "new");
  CHECK(std::filesystem::is_symlink(folder / "link"));
  CHECK(read_file(folder / "a", 10) == "new");
  CHECK(folder.names() == Names{"a", "link"});
  // What does not exist yet is made where the link, or a link behind it, points.
  std::filesystem::create_symlink("second", folder / "first");
  std::filesystem::create_symlink(folder / "b", folder / "second");
  FolderWriter::check(folder / "first");
  FolderWriter writer(folder / "first/");
  write_file(writer.path() / "c", "new");
  writer.commit();
  CHECK(read_file(folder / "b/c", 10) == "new");
  std::filesystem::create_symlink("d", folder / "third");
  write_file(folder / "third", "new");
  CHECK(read_file(folder / "d", 10) == "new");
  CHECK(folder.names() == Names{"a", "b", "d", "first", "link", "second", "third"});
}

TEST_CASE("reading a file is bounded", "[io][file]") {
  const TemporaryFolder folder;
  const std::string path = (folder / "a").string(), none = (folder / "b").string();
  write_file(path, std::string(100000, 'x'));
  CHECK(read_file(path, 100000) == std::string(100000, 'x'));
  CHECK(message_of([&] { read_file(path, 99999); }) ==
        path + ": more than 99999 bytes, which is the most that is read here");
  CHECK(message_of([&] { read_file("/dev/zero", 99999); }) == "/dev/zero: is a device, a regular file expected");
  CHECK(message_of([&] { read_file(none, 10); }) == none + ": cannot open: No such file or directory");
  const std::string here = folder.path.string(), pipe = (folder / "pipe").string(), last = std::string(300, 'n');
  CHECK(message_of([&] { read_file(here, 10); }) == here + ": is a folder, a regular file expected");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);  // nobody writes to it: opening it would wait for ever
  CHECK(message_of([&] { read_file(pipe, 10); }) == pipe + ": is a pipe, a regular file expected");
  CHECK(message_of([&] { MappedFile{pipe}; }) == pipe + ": is a pipe, a regular file expected");
  CHECK(message_of([&] { read_file(folder / last, 10); }) ==
        (folder / last).string() + ": cannot open: File name too long");
}

TEST_CASE("a mapped file shows the file's bytes", "[io][file]") {
  const TemporaryFolder folder;
  write_file(folder / "a", "abc");
  write_file(folder / "empty", "");
  MappedFile file(folder / "a");
  REQUIRE(file.size() == 3);
  CHECK(file.bytes()[1] == std::byte{'b'});
  MappedFile moved(std::move(file));
  CHECK(moved.bytes()[2] == std::byte{'c'});
  write_file(folder / "a", "replaced");  // the mapping keeps what it has mapped
  CHECK(moved.bytes()[0] == std::byte{'a'});
  moved = MappedFile(folder / "empty");
  CHECK(moved.bytes().empty());
  CHECK(message_of([&] { MappedFile(folder.path); }) ==
        folder.path.string() + ": is a folder, a regular file expected");
}

TEST_CASE("a folder is there after commit and not before", "[io][folder]") {
  const TemporaryFolder folder;
  const auto path = folder / "runs/first/";  // made with the folder above it; a slash at the end does no harm
  {
    FolderWriter writer(path);
    write_file(writer.path() / "a", "1");
    CHECK_FALSE(std::filesystem::exists(path));
    writer.commit();
  }
  CHECK(read_file(path / "a", 10) == "1");
  CHECK(std::distance(std::filesystem::directory_iterator(folder / "runs"), {}) == 1);
}

TEST_CASE("a folder that is not committed leaves nothing", "[io][folder]") {
  const TemporaryFolder folder;
  { FolderWriter(folder / "new"); }
  CHECK(folder.names().empty());
  std::filesystem::create_directory(folder / "old");
  write_file(folder / "old/a", "old");
  try {
    FolderWriter writer(folder / "old");
    write_file(writer.path() / "a", "new");
    throw Error("an interruption");
  } catch (const Error&) {
  }
  CHECK(read_file(folder / "old/a", 10) == "old");
  CHECK(folder.names() == Names{"old"});
}

TEST_CASE("a folder in place is replaced, what only it held is kept", "[io][folder]") {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder / "dir/logs");
  write_file(folder / "dir/a", "old");
  write_file(folder / "dir/notes", "mine");
  write_file(folder / "dir/logs/1", "log");
  FolderWriter writer(folder / "dir");
  write_file(writer.path() / "a", "new");
  write_file(writer.path() / "b", "b");
  writer.commit();
  CHECK(read_file(folder / "dir/a", 10) == "new");
  CHECK(read_file(folder / "dir/b", 10) == "b");
  CHECK(read_file(folder / "dir/notes", 10) == "mine");
  CHECK(read_file(folder / "dir/logs/1", 10) == "log");
  CHECK(folder.names() == Names{"dir"});
}

TEST_CASE("an empty folder is replaced, a file is not", "[io][folder]") {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "dir");
  FolderWriter writer(folder / "dir");
  write_file(writer.path() / "a", "1");
  writer.commit();
  CHECK(read_file(folder / "dir/a", 10) == "1");
  write_file(folder / "file", "x");
  CHECK(message_of([&] { FolderWriter(folder / "file"); }) ==
        (folder / "file").string() + ": is a file, the name of a folder expected");
  CHECK(message_of([&] {
          FolderWriter(folder / "file/dir");
        }).starts_with((folder / "file").string() + ": cannot create: "));
}

TEST_CASE("two writers of one folder do not meet", "[io][folder]") {
  const TemporaryFolder folder;
  FolderWriter first(folder / "dir"), second(folder / "dir");
  CHECK(first.path() != second.path());
  write_file(first.path() / "a", "1");
  write_file(second.path() / "a", "2");
  first.commit();
  second.commit();
  CHECK(read_file(folder / "dir/a", 10) == "2");
  CHECK(folder.names() == Names{"dir"});
}

TEST_CASE("an older file's mode stays", "[io][file]") {
  const TemporaryFolder folder;
  write_file(folder / "a", "old");
  ::chmod((folder / "a").c_str(), 0640);
  write_file(folder / "a", "new");
  CHECK(mode_of(folder / "a") == 0640);
  CHECK(read_file(folder / "a", 10) == "new");
}

TEST_CASE("a file is written into where its folder cannot be written to", "[io][file]") {
  if (::geteuid() == 0) {
    std::cout << "skipped: root may write everywhere\n";
    return;
  }
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "locked");
  const auto path = folder / "locked/a";
  put(path, std::string(100'000, 'o'));
  const ino_t identity = identity_of(path);
  ::chmod((folder / "locked").c_str(), 0500);
  {
    FileWriter file(path);
    file.write("lost");
  }
  CHECK(read_file(path, 1 << 20).size() == 100'000);  // not without commit
  CHECK_NOTHROW(FileWriter::check(path));
  write_file(path, "new");
  CHECK(read_file(path, 10) == "new");
  CHECK(identity_of(path) == identity);
  const auto other = folder / "locked/b";
  const std::string message = other.string() + ": cannot create: Permission denied";
  CHECK(message_of([&] { write_file(other, "x"); }) == message);
  CHECK(message_of([&] { FileWriter::check(other); }) == message);
  CHECK(message_of([&] { FolderWriter::check(folder / "locked/c/d"); }) ==
        (folder / "locked/c/d").string() + ": cannot create: Permission denied");
  ::chmod((folder / "locked").c_str(), 0);
  CHECK(message_of([&] { read_file(path, 10); }) == path.string() + ": cannot open: Permission denied");
  CHECK(message_of([&] { FolderWriter::check(path); }).starts_with(path.string() + ": cannot "));
  ::chmod((folder / "locked").c_str(), 0700);
}

TEST_CASE("a descriptor that is named as a file is written to", "[io][file]") {
  const TemporaryFolder folder;
  const detail::Descriptor file(::open((folder / "a").c_str(), O_RDWR | O_CREAT, 0600));
  REQUIRE(::write(file.get(), "before ", 7) == 7);
  const ino_t identity = identity_of(folder / "a");
  const std::string name = text("/dev/fd/", file.get());
  std::filesystem::create_symlink(name, folder / "link");
  FileWriter::check(name);
  write_file(name, "and ");
  write_file(folder / "link", "after");
  CHECK(read_file(folder / "a", 100) == "before and after");
  CHECK(identity_of(folder / "a") == identity);
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const detail::Descriptor out(ends[0]), in(ends[1]);
  write_file(text("/proc/self/fd/", in.get()), "through a pipe");
  char read[32] = "";
  CHECK(::read(out.get(), read, sizeof read) == 14);
  CHECK(read == std::string("through a pipe"));
  const std::string reads = text("/dev/fd/", out.get());
  CHECK(message_of([&] { FileWriter::check(reads); }) == reads + ": is open to be read, a name to write to expected");
  CHECK(message_of([&] { write_file("/dev/fd/987", "x"); }) ==
        "/dev/fd/987: cannot open for writing: Bad file descriptor");
}

TEST_CASE("whether a file or folder can be written is known before", "[io][file]") {
  const TemporaryFolder folder;
  put(folder / "file", "x");
  FileWriter::check(folder / "file");
  FileWriter::check(folder / "new");
  FileWriter::check("/dev/full");
  FolderWriter::check(folder / "new/and/newer");
  FolderWriter::check(folder.path);
  CHECK(folder.names() == Names{"file"});
  CHECK(read_file(folder / "file", 10) == "x");
  const std::string empty = "an empty path given, the name of a file or folder expected";
  CHECK(message_of([] { FileWriter::check(""); }) == empty);
  CHECK(message_of([] { FolderWriter::check(""); }) == empty);
  const std::string below = (folder / "file/below/it").string(), longest = (folder / std::string(300, 'n')).string();
  CHECK(message_of([&] { FolderWriter::check(below); }) ==
        below + ": " + (folder / "file").string() + " is a file, the name of a folder expected");
  CHECK(message_of([&] { FileWriter::check(longest); }) == longest + ": cannot resolve: File name too long");
  CHECK(message_of([&] { FolderWriter::check(longest); }) == longest + ": cannot resolve: File name too long");
  const auto fits = folder / std::string(255, 'n');  // the temporary name must not be longer
  write_file(fits, "x");
  CHECK(read_file(fits, 10) == "x");
}

TEST_CASE("a folder in place stays the folder that it is", "[io][folder]") {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "dir");
  ::chmod((folder / "dir").c_str(), 0700);
  put(folder / "dir/a", "old");
  ::chmod((folder / "dir/a").c_str(), 0600);
  const ino_t identity = identity_of(folder / "dir");
  FolderWriter writer(folder / "dir");
  write_file(writer.path() / "a", "new");
  write_file(writer.path() / "b", "b");
  writer.commit();
  CHECK(identity_of(folder / "dir") == identity);
  CHECK(mode_of(folder / "dir") == 0700);
  CHECK(mode_of(folder / "dir/a") == 0600);
  CHECK(read_file(folder / "dir/a", 10) == "new");
  CHECK(std::distance(std::filesystem::directory_iterator(folder / "dir"), {}) == 2);
}

TEST_CASE("files of a folder of which one cannot be moved are put back", "[io][folder]") {
  if (::geteuid() == 0) {
    std::cout << "skipped: root may move everything\n";
    return;
  }
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder / "dir");
  put(folder / "dir/a", "old");
  {
    FolderWriter writer(folder / "dir");
    for (const char* name : {"a", "b"}) write_file(writer.path() / name, "new");
    std::filesystem::create_directory(writer.path() / "c");
    ::chmod((writer.path() / "c").c_str(), 0500);  // a folder that may not be written to cannot leave its own folder
    CHECK(message_of([&] { writer.commit(); }) ==
          (folder / "dir").string() + ": cannot put in place: Permission denied");
    ::chmod((writer.path() / "c").c_str(), 0700);
  }
  CHECK(read_file(folder / "dir/a", 10) == "old");
  CHECK(std::distance(std::filesystem::directory_iterator(folder / "dir"), {}) == 1);
}

TEST_CASE("what dead processes were writing is removed by the next writer", "[io][file]") {
  const TemporaryFolder folder;
  const pid_t dead = dead_process();
  const auto named = [&](const std::string& name, pid_t process) { return folder / text(name, ".partial-", process); };
  put(named("a", dead), "left");
  put(folder / text("a.partial-", dead, "-7"), "left");
  put(named("a", 1), "alive");  // init
  put(folder / text("a.partial-", dead, "-x"), "not ours");
  put(folder / text("a.partial-", dead, ".txt"), "not ours");
  put(named("b", dead), "of another file");
  std::filesystem::create_directories(named("dir", dead) / "deep");
  const pid_t holder = ::fork();  // its lock is held on by this process: as in a container, whose numbers differ
  if (holder == 0) ::_exit(0);
  put(named("a", holder), "held");
  const detail::Descriptor held(::open(named("a", holder).c_str(), O_RDONLY));
  REQUIRE(::flock(held.get(), LOCK_EX) == 0);
  ::waitpid(holder, nullptr, 0);

  write_file(folder / "a", "x");
  CHECK_FALSE(std::filesystem::exists(named("a", dead)));
  CHECK_FALSE(std::filesystem::exists(folder / text("a.partial-", dead, "-7")));
  CHECK(std::filesystem::exists(named("a", 1)));
  CHECK(std::filesystem::exists(folder / text("a.partial-", dead, "-x")));
  CHECK(std::filesystem::exists(folder / text("a.partial-", dead, ".txt")));
  CHECK(std::filesystem::exists(named("b", dead)));
  CHECK(std::filesystem::exists(named("a", holder)));
  CHECK(std::filesystem::exists(named("dir", dead)));
  { const FolderWriter writer(folder / "dir"); }
  CHECK_FALSE(std::filesystem::exists(named("dir", dead)));
  std::filesystem::create_directories(folder / "dir" / text(".partial-", dead));
  { const FolderWriter writer(folder / "dir"); }
  CHECK(std::filesystem::is_empty(folder / "dir"));
}

TEST_CASE("a process that is told to end removes what it is writing", "[io][file]") {
  const TemporaryFolder folder;
  put(folder / "a", "old");
  const pid_t child = ::fork();
  if (child == 0) {
    FileWriter file(folder / "a");
    file.write("new");
    FolderWriter writer(folder / "dir");
    write_file(writer.path() / "b", "b");
    const FolderLock lock(folder / "run");
    abandon_writing();
    ::_exit(std::filesystem::exists(folder / "run/lock") ? 1 : 7);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WEXITSTATUS(status) == 7);
  CHECK(folder.names() == Names{"a", "run"});
  CHECK(read_file(folder / "a", 10) == "old");
}

TEST_CASE("a folder has one lock", "[io][folder]") {
  const TemporaryFolder folder;
  const std::string run = (folder / "runs/1").string();
  {
    const FolderLock lock(run);
    const std::string message = message_of([&] { FolderLock{run}; });
    CHECK(message.starts_with(text(run, ": process ", ::getpid(), " on ")));
    CHECK(message.ends_with(" is writing to it, a folder that nobody writes to expected"));
  }
  CHECK(folder.names().empty());
  std::filesystem::create_directories(run);
  put(run + "/lock", "process 1 on nowhere\n");  // of one that was killed
  { const FolderLock lock(run); }
  CHECK(std::filesystem::is_empty(run));
}
