// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <sys/mount.h>
#include <sys/resource.h>

#include <csignal>
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
}

TEST_CASE("reading a file is bounded", "[io][file]") {
  const TemporaryFolder folder;
  const std::string path = (folder / "a").string(), none = (folder / "b").string();
  write_file(path, std::string(100000, 'x'));
  CHECK(read_file(path, 100000) == std::string(100000, 'x'));
  CHECK(message_of([&] { read_file(path, 99999); }) ==
        path + ": more than 99999 bytes, which is the most that is read here");
  CHECK(message_of([&] { read_file("/dev/zero", 99999); }) ==
        "/dev/zero: more than 99999 bytes, which is the most that is read here");
  CHECK(message_of([&] { read_file(none, 10); }) == none + ": cannot open: No such file or directory");
  CHECK(message_of([&] { read_file(folder.path, 10); }) == folder.path.string() + ": cannot read: Is a directory");
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
        folder.path.string() + ": not a regular file, so it cannot be mapped");
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
