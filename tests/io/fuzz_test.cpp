// laconic: attention for speech models. SPDX-License-Identifier: MIT
// What scripts/fuzz began with and what it found, given to the same readers again.
#include "../fuzz/seeds.hpp"
#include "catch.hpp"

#include <algorithm>
#include <iostream>

namespace fs = std::filesystem;

namespace {

const fs::path corpus = fs::path(LACONIC_SOURCE_DIR) / "tests" / "fuzz" / "corpus";

std::vector<fs::path> files_of(const fs::path& folder) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(folder)) out.push_back(entry.path());
  std::ranges::sort(out);
  return out;
}

}  // namespace

TEST_CASE("readers take or refuse, and nothing else, what fuzzing knows", "[fuzz]") {
  for (const fuzz::Target& target : fuzz::targets) {
    std::size_t accepted = 0, refused = 0;
    for (const fs::path& path : files_of(corpus / std::string(target.name))) {
      INFO(path.string());
      const bool accepts = fuzz::accepts(target, laconic::read_file(path, 20'000));
      ++(accepts ? accepted : refused);
      const std::string name = path.filename().string();
      if (name.starts_with("good_")) CHECK(accepts);
      if (name.starts_with("bad_")) CHECK_FALSE(accepts);
    }
    INFO(target.name);
    CHECK(accepted > 0);
    CHECK(refused > 0);
  }
}

TEST_CASE("every file of the corpus belongs to a reader, and all are small", "[fuzz]") {
  std::uintmax_t bytes = 0;
  for (const fs::path& folder : files_of(corpus)) {
    CHECK(std::ranges::count(fuzz::targets, folder.filename().string(), &fuzz::Target::name) == 1);
    for (const fs::path& path : files_of(folder)) bytes += fs::file_size(path);
  }
  CHECK(bytes < 200'000);
}

TEST_CASE("what is neither taken nor refused in one line is caught", "[fuzz]") {
  const auto says = [](auto message) { return fuzz::Target{"planted", message}; };
  CHECK(fuzz::accepts(says([](std::string_view) {}), ""));
  CHECK_FALSE(fuzz::accepts(says([](std::string_view) { throw laconic::Error("one line"); }), ""));
  CHECK_THROWS_AS(fuzz::accepts(says([](std::string_view) { throw std::runtime_error("not ours"); }), ""),
                  std::runtime_error);
  CHECK_THROWS_AS(fuzz::accepts(says([](std::string_view) { throw laconic::Error(""); }), ""), fuzz::Violation);
  CHECK_THROWS_AS(fuzz::accepts(says([](std::string_view) { fuzz::demand(false, "a wrong result"); }), ""),
                  fuzz::Violation);
}

TEST_CASE("the seeds are written", "[.seeds]") {
  const fuzz::Seeds written(corpus);
  std::cout << "written: " << corpus.string() << '\n';
}
