// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <cmath>
#include <fstream>
#include <laconic/io/safetensors.hpp>

#include "catch.hpp"
#include "message_of.hpp"
#include "temporary_folder.hpp"

using namespace laconic;

namespace {

/// A file with this header, whatever it says, before `data_bytes` bytes of data.
std::string file_of(std::string_view header, std::size_t data_bytes) {
  const std::uint64_t n = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &n, 8);
  out += header;
  for (std::size_t i = 0; i < data_bytes; ++i) out += static_cast<char>(i);
  return out;
}

/// Reads every byte of every tensor, so that a sanitizer sees a range that is not the file's.
std::size_t touch(const SafetensorsFile& file) {
  std::size_t sum = 0;
  for (const std::string& name : file.names())
    for (const std::byte b : file.info(name).bytes) sum += std::to_integer<std::size_t>(b);
  return sum;
}

/// Returns the message of opening a file with these bytes, without the file's name.
std::string open_message(std::string_view bytes) {
  const TemporaryFolder folder;
  const auto path = folder / "f";
  std::ofstream(path, std::ios::binary) << bytes;
  try {
    touch(SafetensorsFile(path));
  } catch (const Error& e) {
    const std::string message = e.what(), start = path.string() + ": ";
    return message.starts_with(start) ? message.substr(start.size()) : "the file is not named: " + message;
  }
  return "no error";
}

std::string header_message(std::string_view header, std::size_t data_bytes) {
  return open_message(file_of(header, data_bytes));
}

template <class T>
std::vector<T> values(const SafetensorsFile& file, std::string_view name, std::size_t count) {
  std::vector<T> out(count);
  file.read(name, std::span<T>(out));
  return out;
}

const std::filesystem::path golden = std::filesystem::path(LACONIC_GOLDEN_DIR) / "safetensors_file.safetensors";

const std::vector<float> six{-0.5F, -0.25F, 0, 0.25F, 0.5F, 0.75F};
using Shape = std::vector<Index>;

}  // namespace

TEST_CASE("a file of the Python package is read", "[io][safetensors]") {
  const SafetensorsFile file(golden);
  CHECK(file.names() == std::vector<std::string>{"steps", "encoder.bias", "empty", "encoder.weight", "scalar", "brain",
                                                 "half", "flags"});
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"note", "a \"quoted\" ä"}});
  CHECK(file.info("encoder.weight").shape == Shape{2, 3});
  CHECK(file.info("scalar").shape.empty());
  CHECK(file.info("empty").shape == Shape{0, 4});
  CHECK(file.info("flags").dtype == Dtype::boolean);
  CHECK(values<float>(file, "encoder.weight", 6) == six);
  CHECK(values<double>(file, "encoder.weight", 6)[5] == 0.75);
  CHECK(values<double>(file, "encoder.bias", 2) == std::vector{1e-300, -2.5});
  CHECK(values<float>(file, "encoder.bias", 2) == std::vector{0.0F, -2.5F});
  CHECK(values<float>(file, "scalar", 1)[0] == 7);
  CHECK(values<float>(file, "empty", 0).empty());
  const auto half = values<float>(file, "half", 5);
  CHECK(half[0] == 1.5F);
  CHECK((half[1] == 0 && std::signbit(half[1])));
  CHECK(half[2] == 0x1p-24F);
  CHECK(half[3] == 65504.0F);
  CHECK(std::isinf(half[4]));
  CHECK(values<double>(file, "brain", 2) ==
        std::vector<double>{3.140625, static_cast<double>(std::bit_cast<float>(0xfe960000U))});
}

TEST_CASE("reading a tensor says what is wrong with it", "[io][safetensors]") {
  const SafetensorsFile file(golden);
  CHECK(file.contains("half"));
  CHECK_FALSE(file.contains("hal"));
  CHECK(message_of([&] { file.info("none"); }) == file.path() + ": no tensor 'none'");
  CHECK(message_of([&] { values<float>(file, "half", 6); }) ==
        file.path() + ": tensor 'half' has 5 values, 6 expected");
  CHECK(message_of([&] { values<float>(file, "steps", 2); }) ==
        file.path() + ": tensor 'steps' has dtype I64, one of F32, F64, F16, BF16 expected, or I8 with scales");
  const TemporaryFolder folder;
  SafetensorsWriter writer;
  const std::vector<double> large{1, 1e300};
  writer.add("large", Shape{2}, large);
  writer.write(folder / "f");
  const SafetensorsFile other(folder / "f");
  CHECK(values<double>(other, "large", 2) == large);
  CHECK(message_of([&] { values<float>(other, "large", 2); }) ==
        other.path() + ": tensor 'large' holds 1e+300, too large for single precision");
}

TEST_CASE("half precision is widened exactly", "[io][safetensors]") {
  CHECK(detail::half_to_float(0x0001) == 0x1p-24F);
  CHECK(detail::half_to_float(0x83ff) == -1023 * 0x1p-24F);
  CHECK(detail::half_to_float(0x0400) == 0x1p-14F);
  CHECK(detail::half_to_float(0x3555) == 0.333251953125F);
  CHECK(detail::half_to_float(0xfc00) == -std::numeric_limits<float>::infinity());
  CHECK(std::isnan(detail::half_to_float(0x7e00)));
  CHECK(from_bf16({0x4049}) == 3.140625F);
  CHECK(std::isnan(from_bf16({0x7fc0})));
}

TEST_CASE("what is written is laid out as the Python package does it", "[io][safetensors]") {
  const TemporaryFolder folder;
  const std::vector<double> bias{1e-300, -2.5};
  const std::vector<float> scalar{7};
  SafetensorsWriter writer;
  writer.metadata = {{"note", "a \"quoted\" ä"}};
  writer.add("scalar", {}, scalar);
  writer.add("encoder.weight", Shape{2, 3}, six);
  writer.add("encoder.bias", Shape{2}, bias);
  writer.add("empty", Shape{0, 4}, std::span<const float>());
  writer.write(folder / "f");
  const std::string bytes = read_file(folder / "f", 10000);
  const std::string header =
      R"({"__metadata__":{"note":"a \"quoted\" ä"},"encoder.bias":{"dtype":"F64","shape":[2],"data_offsets":[0,16]},)"
      R"("empty":{"dtype":"F32","shape":[0,4],"data_offsets":[16,16]},)"
      R"("encoder.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[16,40]},)"
      R"("scalar":{"dtype":"F32","shape":[],"data_offsets":[40,44]}})";
  const std::size_t padded = (header.size() + 7) / 8 * 8;
  CHECK(bytes.substr(8, padded) == header + std::string(padded - header.size(), ' '));
  CHECK(bytes.size() == 8 + padded + 44);
  CHECK(static_cast<unsigned char>(bytes[0]) + 256 * static_cast<unsigned char>(bytes[1]) == static_cast<int>(padded));

  const SafetensorsFile file(folder / "f");
  CHECK(values<float>(file, "encoder.weight", 6) == six);
  CHECK(values<double>(file, "encoder.bias", 2) == bias);
  CHECK(values<float>(file, "scalar", 1) == scalar);
  CHECK(file.metadata().at("note") == "a \"quoted\" ä");
  CHECK(folder.names() == std::vector<std::string>{"f"});
}

TEST_CASE("a file without tensors is a file", "[io][safetensors]") {
  const TemporaryFolder folder;
  SafetensorsWriter().write(folder / "f");
  CHECK(SafetensorsFile(folder / "f").names().empty());
  CHECK(header_message("{}", 0) == "no error");
  CHECK(header_message("{}      ", 0) == "no error");
}

TEST_CASE("the writer refuses what could not be read", "[io][safetensors]") {
  SafetensorsWriter writer;
  writer.add("w", Shape{2, 3}, six);
  CHECK(message_of([&] { writer.add("w", Shape{6}, six); }) == "safetensors: tensor 'w' added twice");
  CHECK(message_of([&] {
          writer.add("v", Shape{2, 2}, six);
        }) ==
        "safetensors: tensor 'v' has 6 values and shape (2, 2); as many values as the shape says and at most 8 "
        "dimensions expected");
  CHECK(message_of([&] {
          writer.add("v", Shape{1, 1, 1, 1, 1, 1, 1, 6, 1}, six);
        }).starts_with("safetensors: tensor 'v' has 6"));
  CHECK(message_of([&] { writer.add("__metadata__", Shape{6}, six); }) ==
        "safetensors: a tensor cannot be named '__metadata__'");
  const TemporaryFolder folder;
  const std::string path = (folder / "f").string();
  writer.add("\xff", Shape{6}, six);
  CHECK(message_of([&] { writer.write(path); }) == path + ": cannot write: '?' is not valid UTF-8");
  CHECK(message_of([&] { SafetensorsWriter().write("/dev/full"); }) ==
        "/dev/full: cannot write: No space left on device");
  CHECK(folder.names().empty());
}

TEST_CASE("attack: a file that is none or cut short", "[io][safetensors]") {
  CHECK(open_message("") == "not a safetensors file: 0 bytes, at least 8 expected");
  CHECK(open_message("RIFF") == "not a safetensors file: 4 bytes, at least 8 expected");
  CHECK(open_message(std::string(8, '\0')) == "not a safetensors file: the header does not begin with '{'");
  const std::string whole = file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  CHECK(open_message(whole) == "no error");
  CHECK(open_message(whole.substr(0, whole.size() - 1)) ==
        "header entry 'a' has data_offsets [0, 8], but the file holds 7 bytes of data: it is cut short");
  CHECK(open_message("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2474\n") ==
        "a pointer of Git LFS given, the file that it stands for expected: run git lfs pull in its folder");
  CHECK(open_message(whole.substr(0, 20)) == "cut short: a header of 54 bytes, but only 12 follow");
}

TEST_CASE("attack: a header length that lies", "[io][safetensors]") {
  std::string bytes = file_of("{}", 0);
  const auto with_length = [&](std::uint64_t n) {
    std::memcpy(bytes.data(), &n, 8);
    return open_message(bytes);
  };
  CHECK(with_length(3) == "cut short: a header of 3 bytes, but only 2 follow");
  CHECK(with_length(100'000'000) == "cut short: a header of 100000000 bytes, but only 2 follow");
  CHECK(with_length(100'000'001) == "not a safetensors file: a header of 100000001 bytes, at most 100000000 expected");
  CHECK(with_length(~std::uint64_t{0}) ==
        "not a safetensors file: a header of 18446744073709551615 bytes, at most 100000000 expected");
  CHECK(with_length(~std::uint64_t{0} - 7).starts_with("not a safetensors file: a header of 18446744073709551608"));
}

TEST_CASE("attack: a header that is not the JSON it should be", "[io][safetensors]") {
  CHECK(header_message("[]", 0) == "not a safetensors file: the header does not begin with '{'");
  CHECK(header_message(" {}", 0) == "not a safetensors file: the header does not begin with '{'");
  CHECK(header_message("\xef\xbb\xbf{}", 0) == "not a safetensors file: the header does not begin with '{'");
  CHECK(header_message("{}x", 0).starts_with("not valid JSON: parse error at line 1, column 3: "));
  CHECK(header_message(std::string_view("{}\0", 3), 0).starts_with("not valid JSON: a zero byte"));
  CHECK(header_message("{\"\xff\":{}}", 0).starts_with("not valid JSON: "));
  CHECK(header_message(R"({"a":1})", 0) == "header entry 'a' is not a JSON object");
  CHECK(header_message(R"({"a":[]})", 0) == "header entry 'a' is not a JSON object");
  CHECK(header_message(R"({"a":{}})", 0) == "header entry 'a' must have dtype, shape and data_offsets");
  CHECK(header_message(R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"more":1}})", 4) ==
        "header entry 'a' has an unknown key 'more' (known: dtype, shape, data_offsets)");
  CHECK(header_message("{\"a\":" + std::string(1'000'000, '['), 0) == "header entry 'a' is not a JSON object");
  CHECK(header_message("{\"a\":{\"shape\":" + std::string(1'000'000, '['), 0) == "JSON nested more than 32 deep");
  CHECK(header_message("{\"" + std::string(1025, 'a') + "\":{}}", 0) ==
        "header entry '" + std::string(60, 'a') + "...' has a name of 1025 bytes, at most 1024 expected");
}

TEST_CASE("attack: a name twice", "[io][safetensors]") {
  CHECK(
      header_message(
          R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
          2) == "key 'a' appears twice in one JSON object");
  CHECK(header_message(R"({"a":{"dtype":"U8","dtype":"F32","shape":[2],"data_offsets":[0,2]}})", 2) ==
        "key 'dtype' appears twice in one JSON object");
}

TEST_CASE("attack: metadata that is not text", "[io][safetensors]") {
  CHECK(header_message(R"({"__metadata__":{"a":"b"}})", 0) == "no error");
  CHECK(header_message(R"({"__metadata__":{"a":1}})", 0) ==
        "header entry '__metadata__' has 1 for 'a', a string expected");
  CHECK(header_message(R"({"__metadata__":{"a":{}}})", 0) ==
        "header entry '__metadata__' has an object for 'a', a string expected");
  CHECK(header_message(R"({"__metadata__":null})", 0) == "no error");  // as safetensors reads it
  CHECK(header_message(R"({"a":null})", 0) == "header entry 'a' is not a JSON object");
  CHECK(header_message(R"({"__metadata__":"a"})", 0) == "header entry '__metadata__' is not a JSON object");
}

TEST_CASE("attack: an unknown type", "[io][safetensors]") {
  CHECK(header_message(R"({"a":{"dtype":"F99","shape":[0],"data_offsets":[0,0]}})", 0) ==
        "header entry 'a' has dtype 'F99', one of BOOL, U8, I8, F8_E5M2, F8_E4M3, I16, U16, F16, BF16, I32, U32, F32, "
        "F64, "
        "I64, U64 expected");
  CHECK(header_message(R"({"a":{"dtype":4,"shape":[0],"data_offsets":[0,0]}})", 0)
            .starts_with("header entry 'a' has dtype 4, one of "));
}

TEST_CASE("attack: shapes that overflow", "[io][safetensors]") {
  const auto shape = [](const std::string& s) {
    return header_message(R"({"a":{"dtype":"F32","shape":)" + s + R"(,"data_offsets":[0,0]}})", 0);
  };
  CHECK(shape("[0]") == "no error");
  CHECK(shape("[4294967296,4294967296]") ==
        "header entry 'a' has shape (4294967296, 4294967296), whose size is negative or overflows");
  CHECK(shape("[4294967296,1073741824]") ==  // the values' number fits, the bytes' number is 2^64
        "header entry 'a' has shape (4294967296, 1073741824), whose size is negative or overflows");
  CHECK(shape("[4294967296,4294967296,0]") ==
        "header entry 'a' has shape (4294967296, 4294967296, 0), whose size is negative or overflows");
  CHECK(shape("[-1]") == "header entry 'a' has shape (-1), whose size is negative or overflows");
  CHECK(shape("[-1,0]") == "header entry 'a' has shape (-1, 0), whose size is negative or overflows");
  CHECK(shape("[18446744073709551616]") ==
        "'a.shape[0]' is 1.8446744073709552e+19, an integer from -9223372036854775808 to 9223372036854775807 expected");
  CHECK(shape("[9223372036854775808]").starts_with("'a.shape[0]' is 9223372036854775808, an integer from "));
  CHECK(shape("[0.0]").starts_with("'a.shape[0]' is 0.0, an integer from "));
  CHECK(shape("3") == "'a.shape' is 3, an array expected");
  CHECK(shape("[0,1,1,1,1,1,1,1]") == "no error");
  CHECK(shape("[0,1,1,1,1,1,1,1,1]") == "header entry 'a' has 9 dimensions, at most 8 expected");
  CHECK(shape("[0" + [] {
          std::string s;
          for (int i = 0; i < 1'000'000; ++i) s += ",1";
          return s;
        }() + "]") == "header entry 'a' has too many values");
  CHECK(shape("[" + [] {
          std::string s = "[]";
          for (int i = 0; i < 1'000'000; ++i) s += ",[]";
          return s;
        }() + "]") == "header entry 'a' has too many values");
}

TEST_CASE("attack: offsets that lie", "[io][safetensors]") {
  const auto offsets = [](const std::string& o) {
    return header_message(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + o + "}}", 4);
  };
  CHECK(offsets("[0,4]") == "no error");
  CHECK(offsets("[0,5]") ==
        "header entry 'a' has data_offsets [0, 5], but the file holds 4 bytes of data: it is cut short");
  CHECK(offsets("[0,3]") ==
        "header entry 'a' has shape (4) and dtype U8, which is 4 bytes, but data_offsets [0, 3], which is 3");
  CHECK(offsets("[4,0]") == "header entry 'a' has data_offsets [4, 0], but the file holds 4 bytes of data");
  CHECK(offsets("[-4,0]") == "header entry 'a' has data_offsets [-4, 0], but the file holds 4 bytes of data");
  CHECK(
      offsets("[18446744073709551612,0]").starts_with("'a.data_offsets[0]' is 18446744073709551612, an integer from "));
  CHECK(offsets("[0]") == "header entry 'a' has 1 data_offsets, 2 expected");
  CHECK(offsets("[0,4,4]") == "header entry 'a' has 3 data_offsets, 2 expected");
}

TEST_CASE("attack: holes, overlaps and bytes that belong to nobody", "[io][safetensors]") {
  const auto two = [](const std::string& first, const std::string& second, std::size_t data_bytes) {
    return header_message(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":)" + first +
                              R"(},"b":{"dtype":"U8","shape":[2],"data_offsets":)" + second + "}}",
                          data_bytes);
  };
  CHECK(two("[0,2]", "[2,4]", 4) == "no error");
  CHECK(two("[2,4]", "[0,2]", 4) == "no error");  // the order in the header is free
  CHECK(two("[0,2]", "[0,2]", 2) == "tensor 'b' begins at byte 0 of the data, 2 expected: tensors must lie end to end");
  CHECK(two("[0,2]", "[1,3]", 3) == "tensor 'b' begins at byte 1 of the data, 2 expected: tensors must lie end to end");
  CHECK(two("[0,2]", "[3,5]", 5) == "tensor 'b' begins at byte 3 of the data, 2 expected: tensors must lie end to end");
  CHECK(two("[1,3]", "[3,5]", 5) == "tensor 'a' begins at byte 1 of the data, 0 expected: tensors must lie end to end");
  CHECK(two("[0,2]", "[2,4]", 5) == "the tensors end at byte 4 of the data, but the file holds 5 bytes of data");
  CHECK(header_message("{}", 1) == "the tensors end at byte 0 of the data, but the file holds 1 bytes of data");
}

TEST_CASE("attack: a million and one tensors", "[io][safetensors]") {
  std::string header = "{";
  for (int i = 0; i <= 1'000'000; ++i)
    header += (i > 0 ? ",\"" : "\"") + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  CHECK(header_message(header + "}", 0) == "more than 1000000 tensors");
}

TEST_CASE("a damaged file is refused or reads as a file", "[io][safetensors]") {
  const TemporaryFolder folder;
  const auto path = folder / "f";
  const std::string whole = read_file(golden, 10000);
  std::size_t refused = 0, read = 0;
  const auto attempt = [&](std::string_view bytes) {
    std::ofstream(path, std::ios::binary) << bytes;  // thousands of them: not synced one by one
    try {
      const SafetensorsFile file(path);
      std::size_t data = 0;
      for (const std::string& name : file.names()) data += file.info(name).bytes.size();
      touch(file);
      // Whatever has been accepted is consistent: the tensors cover exactly what follows the header.
      std::uint64_t n = 0;
      std::memcpy(&n, bytes.data(), 8);
      REQUIRE(data + n + 8 == bytes.size());
      ++read;
    } catch (const Error& e) {
      REQUIRE(std::string(e.what()).starts_with(path.string() + ": "));
      ++refused;
    }
  };
  std::uint64_t n = 0;
  std::memcpy(&n, whole.data(), 8);
  for (std::size_t size = 0; size < whole.size(); ++size) attempt(std::string_view(whole).substr(0, size));
  CHECK(read == 0);  // no truncated file is ever accepted
  for (std::size_t i = 0; i < 8 + n; ++i)
    for (const char flip : {'\x01', '\x02', '\x04', '\x08', '\x10', '\x20', '\x40', '\x80', '\xff'}) {
      std::string bytes = whole;
      bytes[i] = static_cast<char>(bytes[i] ^ flip);
      attempt(bytes);
    }
  for (std::size_t i = 0; i < 8 + n; ++i)
    for (const char c : {'{', '}', '"', ',', '0', '9', '-', '\0'}) {
      std::string bytes = whole;
      bytes[i] = c;
      attempt(bytes);
    }
  CHECK(refused > 5000);
  CHECK(read > 500);  // a letter of a name changed, say
}
