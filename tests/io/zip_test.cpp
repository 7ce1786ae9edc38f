// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/io/zip.hpp>

#include "catch.hpp"
#include "torch_parts.hpp"

using namespace laconic;

namespace {

using U16 = std::uint16_t;
using U32 = std::uint32_t;
using U64 = std::uint64_t;

/// Returns the message of reading the directory, without the name given for the file.
std::string zip_message(std::string_view bytes) {
  try {
    const std::string where = "f";
    const std::string exact(bytes);  // a sanitizer sees what is read behind its end
    const detail::ZipDirectory zip(where, std::as_bytes(std::span(exact.data(), exact.size())));
    std::size_t sum = 0;
    for (const auto& [name, data] : zip.entries())
      for (const std::byte b : data) sum += std::to_integer<std::size_t>(b);
    return sum > 0 ? "no error" : "nothing in it";
  } catch (const Error& e) {
    const std::string message = e.what();
    return message.starts_with("f: ") ? message.substr(3) : "the file is not named: " + message;
  }
}

/// Returns the offset of the entry of this number, in the directory or in the file as `mark` says.
std::size_t place(const std::string& zip, std::string_view mark, int number) {
  std::size_t at = zip.find(mark);
  for (; number > 0; --number) at = zip.find(mark, at + 1);
  return at;
}
std::size_t central(const std::string& zip, int number) { return place(zip, "PK\1\2", number); }
std::size_t local(const std::string& zip, int number) { return place(zip, "PK\3\4", number); }

template <class T>
std::string with(std::string zip, std::size_t at, T value) {
  std::memcpy(zip.data() + at, &value, sizeof(T));
  return zip;
}

const std::string whole = parts::zip({{"m/a", "12345"}, {"m/b", ""}, {"m/c", "678"}});
const std::string wide = parts::zip({{"m/a", "12345"}, {"m/b", ""}, {"m/c", "678"}}, true);

}  // namespace

TEST_CASE("entries of a zip file are found by the directory", "[io][zip]") {
  for (const std::string& bytes : {whole, wide}) {
    const std::string where = "f";
    const detail::ZipDirectory zip(where, std::as_bytes(std::span(bytes.data(), bytes.size())));
    CHECK(zip.entries().size() == 3);
    REQUIRE(zip.find("m/c") != nullptr);
    CHECK(detail::text_at(*zip.find("m/c"), 0, 3) == "678");
    CHECK(zip.find("m/a")->size() == 5);
    CHECK(zip.find("m/b")->empty());
    CHECK(zip.find("m/d") == nullptr);
    CHECK(zip.find("a") == nullptr);
  }
}

TEST_CASE("attack: zip entries that are not stored bytes", "[io][zip]") {
  const std::size_t a = central(whole, 0), la = local(whole, 0);
  CHECK(zip_message(with(whole, a + 10, U16{8})) ==
        "zip entry 'm/a' is compressed (method 8), stored bytes expected, as torch.save writes");
  CHECK(zip_message(with(whole, a + 8, U16{1})) == "zip entry 'm/a' is encrypted");
  CHECK(zip_message(with(whole, a + 8, U16{0x808})) == "no error");  // sizes behind the data, names in UTF-8
  CHECK(zip_message(with(whole, la + 8, U16{8})) == "zip entry 'm/a' is compressed or encrypted at byte 0");
  CHECK(zip_message(with(whole, la + 6, U16{1})) == "zip entry 'm/a' is compressed or encrypted at byte 0");
  CHECK(zip_message(with(whole, a + 20, U32{4})) == "zip entry 'm/a' has 4 bytes stored of 5, all expected");
  CHECK(zip_message(with(whole, a + 34, U16{1})) ==
        "zip entry 'm/a' is in another part of a zip file in several parts");
}

TEST_CASE("attack: zip entries that reach elsewhere", "[io][zip]") {
  const std::size_t a = central(whole, 0), b = central(whole, 1), c = central(whole, 2), begin = a;
  const auto sized = [&](std::size_t entry, U32 size) { return with(with(whole, entry + 20, size), entry + 24, size); };
  const std::string lc = std::to_string(local(whole, 2)), directory = std::to_string(begin);
  CHECK(zip_message(sized(c, 4)) ==
        "zip entry 'm/c' has 4 bytes at byte " + lc + ", which reaches into the zip directory at byte " + directory);
  CHECK(zip_message(sized(c, 0xffffffff)) == "zip entry 'm/c' has 4294967295 bytes at byte " + lc +
                                                 ", which reaches into the zip directory at byte " + directory);
  CHECK(zip_message(sized(a, 6)) ==
        "zip entry 'm/b' begins at byte " + std::to_string(local(whole, 1)) + ", within entry 'm/a'");
  CHECK(zip_message(with(whole, a + 42, U32{1})) == "zip entry 'm/a' has no header at byte 1");
  CHECK(zip_message(with(whole, a + 42, U32{0xfffffffe})) == "zip entry 'm/a' has no header at byte 4294967294");
  CHECK(zip_message(with(whole, a + 42, static_cast<U32>(begin))) ==
        "zip entry 'm/a' has no header at byte " + directory);
  CHECK(zip_message(with(whole, b + 42, U32{0})) == "zip entry 'm/b' has another name at byte 0");
  const std::size_t l = local(whole, 2);
  CHECK(zip_message(with(whole, l + 28, U16{0xffff}))
            .starts_with("zip entry 'm/c' has 3 bytes at byte " + lc + ", which reaches"));
  CHECK(zip_message(with(whole, l + 26, U16{0xffff}))
            .starts_with("zip entry 'm/c' has 3 bytes at byte " + lc + ", which reaches"));
  CHECK(zip_message(with(whole, l + 30, 'x')) == "zip entry 'm/c' has another name at byte " + lc);
}

TEST_CASE("attack: a zip entry whose name takes long to compare", "[io][zip]") {
  CHECK(zip_message(parts::zip({{std::string(1024, 'm'), "x"}})) == "no error");
  CHECK(zip_message(parts::zip({{std::string(1025, 'm'), "x"}})) ==
        "zip entry '" + std::string(60, 'm') + "...' has a name of 1025 bytes, at most 1024 expected");
}

TEST_CASE("attack: a zip entry twice", "[io][zip]") {
  CHECK(zip_message(parts::zip({{"m/a", "1"}, {"m/a", "2"}})) == "zip entry 'm/a' appears twice");
  // Two names for the same bytes: the second header in the directory points into the first entry.
  const std::string inner = parts::zip({{"m/b", "1"}});
  std::string outer = parts::zip({{"m/a", inner}, {"m/b", "2"}});
  outer = with(outer, outer.rfind("PK\1\2") + 42, static_cast<U32>(outer.find("PK\3\4", 4)));
  CHECK(zip_message(outer) ==
        "zip entry 'm/b' begins at byte " + std::to_string(outer.find("PK\3\4", 4)) + ", within entry 'm/a'");
}

TEST_CASE("attack: a zip directory that lies", "[io][zip]") {
  const std::size_t end = whole.size() - 22, begin = central(whole, 0);
  const std::string size = std::to_string(end - begin), at = std::to_string(begin);
  CHECK(zip_message("PK") == "cut short, or not a zip file: 2 bytes, at least 22 expected");
  CHECK(zip_message(whole + "x") == "cut short, or not a zip file: no zip end record in its last 22 bytes");
  CHECK(zip_message(with(whole, end + 20, U16{1})) ==
        "cut short, or not a zip file: no zip end record in its last 22 bytes");
  CHECK(zip_message(with(whole, end + 10, U16{2})) == "a zip file in several parts, one whole file expected");
  CHECK(zip_message(with(whole, end + 4, U16{1})) == "a zip file in several parts, one whole file expected");
  const std::string fewer = with(with(whole, end + 8, U16{2}), end + 10, U16{2});
  CHECK(zip_message(fewer) == "damaged: the zip directory holds 3 entries, 2 expected");
  CHECK(zip_message(with(whole, end + 12, static_cast<U32>(end - begin + 1))) ==
        "damaged: a zip directory of " + std::to_string(end - begin + 1) + " bytes at byte " + at +
            ", but its end is at byte " + std::to_string(end));
  CHECK(zip_message(with(whole, end + 16, U32{0xffffffff})) ==
        "damaged: a zip directory of " + size + " bytes at byte 4294967295, but its end is at byte " +
            std::to_string(end));
  CHECK(zip_message(with(whole, begin, 'x')) == "damaged: no zip directory entry at byte " + at);
  CHECK(zip_message(with(whole, begin + 28, U16{0xffff})) ==
        "damaged: the zip directory entry at byte " + at + " is longer than the rest");
  CHECK(zip_message(with(whole, begin + 30, U16{0xffff})) ==
        "damaged: the zip directory entry at byte " + at + " is longer than the rest");
  CHECK(zip_message(with(whole, begin + 32, U16{0xffff})) ==
        "damaged: the zip directory entry at byte " + at + " is longer than the rest");
  CHECK(zip_message(parts::zip({})) == "nothing in it");
}

TEST_CASE("attack: 64-bit fields of a zip file that lie", "[io][zip]") {
  const std::size_t end = wide.size() - 22, locator = end - 20, end64 = locator - 56;
  const std::string at = std::to_string(end64);
  CHECK(zip_message(with(wide, locator + 8, U64{7})) == "damaged: the zip64 end record is not at byte " + at);
  CHECK(zip_message(with(wide, locator + 8, ~U64{0})) == "damaged: the zip64 end record is not at byte " + at);
  CHECK(zip_message(with(wide, end64, 'x')) == "damaged: the zip64 end record is not at byte " + at);
  CHECK(zip_message(with(wide, end64 + 4, U64{45})) == "damaged: a zip64 end record of 45 bytes, 44 expected");
  CHECK(zip_message(with(wide, end64 + 24, U64{4})) == "a zip file in several parts, one whole file expected");
  CHECK(zip_message(with(wide, end64 + 32, U64{4})) == "damaged: the zip end record and the zip64 end record differ");
  CHECK(zip_message(with(wide, end64 + 48, ~U64{0}))
            .ends_with("bytes at byte 18446744073709551615, but its end is at byte " + at));
  CHECK(zip_message(with(wide, end64 + 40, ~U64{0})).starts_with("damaged: a zip directory of 18446744073709551615"));
  CHECK(zip_message(with(wide, locator, 'x')).starts_with("damaged: a zip directory of 4294967295 bytes"));

  // The extra fields of the first entry: 7 bytes of padding, then 4 and three numbers of 8 bytes.
  const std::size_t a = central(wide, 0), extra = a + 46 + 3;
  const auto both = [&](U64 size) { return with(with(wide, extra + 11, size), extra + 19, size); };
  CHECK(zip_message(both(5)) == "no error");
  CHECK(zip_message(both(~U64{0}))
            .starts_with("zip entry 'm/a' has 18446744073709551615 bytes at byte 0, which reaches"));
  CHECK(zip_message(both(~U64{0} - 40)).ends_with("which reaches into the zip directory at byte " + std::to_string(a)));
  CHECK(zip_message(with(wide, extra + 11, U64{6})) == "zip entry 'm/a' has 5 bytes stored of 6, all expected");
  CHECK(zip_message(with(wide, extra + 27, ~U64{0})) == "zip entry 'm/a' has no header at byte 18446744073709551615");
  CHECK(zip_message(with(wide, extra + 27, U64{a})) == "zip entry 'm/a' has no header at byte " + std::to_string(a));
  CHECK(zip_message(with(wide, extra + 9, U16{16})) == "zip entry 'm/a' has a zip64 field that is too short");
  CHECK(zip_message(with(wide, extra + 9, U16{25})) == "zip entry 'm/a' has a damaged extra field");
  CHECK(zip_message(with(wide, extra + 2, U16{30})) == "zip entry 'm/a' has a damaged extra field");
  CHECK(zip_message(with(wide, extra + 7, U16{2})).starts_with("zip entry 'm/a' has no header at byte 4294967295"));
}

TEST_CASE("a damaged zip file is refused or reads as a file", "[io][zip]") {
  for (const std::string& bytes : {whole, wide}) {
    for (std::size_t size = 0; size < bytes.size(); ++size)
      CHECK(zip_message(std::string_view(bytes).substr(0, size)) != "no error");
    for (std::size_t i = 0; i < bytes.size(); ++i)
      for (int change = 1; change < 256; ++change)
        CHECK(!zip_message(with(bytes, i, static_cast<char>(bytes[i] ^ change))).starts_with("the file is not named"));
  }
}
