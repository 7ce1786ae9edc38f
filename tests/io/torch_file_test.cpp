// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <cmath>
#include <fstream>
#include <laconic/io/torch_file.hpp>

#include "catch.hpp"
#include "message_of.hpp"
#include "temporary_folder.hpp"
#include "torch_parts.hpp"

using namespace laconic;

namespace {

const std::filesystem::path golden = std::filesystem::path(LACONIC_GOLDEN_DIR) / "torch_file.bin";

using Shape = std::vector<Index>;

/// Reads every byte of every tensor, so that a sanitizer sees a range that is not the file's.
std::size_t touch(const Tensors& file) {
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
    touch(TorchFile(path));
  } catch (const Error& e) {
    const std::string message = e.what(), start = path.string() + ": ";
    return message.starts_with(start) ? message.substr(start.size()) : "the file is not named: " + message;
  }
  return "no error";
}

/// Returns the message of opening a file with these instructions in its pickle.
std::string pickle_message(const std::string& instructions) {
  return open_message(parts::file(parts::program(instructions)));
}
/// Returns the message of opening a file with a state dict of one value, made by these instructions.
std::string tensor_message(const std::string& instructions) {
  return pickle_message(parts::dict({{"w", instructions}}));
}
/// Returns a message without the place in the pickle.
std::string without_place(const std::string& message) {
  const std::string start = "data.pkl byte ";
  return message.starts_with(start) ? message.substr(message.find(": ") + 2) : "no place: " + message;
}

template <class T>
std::vector<T> values(const Tensors& file, std::string_view name) {
  Index size = 1;
  for (const Index extent : file.info(name).shape) size *= extent;
  std::vector<T> out(static_cast<std::size_t>(size));
  file.read(name, std::span<T>(out));
  return out;
}

template <class T>
std::vector<T> integers(const Tensors& file, std::string_view name) {
  const auto bytes = file.info(name).bytes;
  std::vector<T> out(bytes.size() / sizeof(T));
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

}  // namespace

TEST_CASE("a file of torch.save is read", "[io][torch]") {
  const TorchFile file(golden);
  CHECK(file.path() == golden.string());
  CHECK(file.names() ==
        std::vector<std::string>{
            "0.weight", "0.bias", "1.weight", "1.bias",    "1.running_mean", "1.running_var", "1.num_batches_tracked",
            "first",    "rest",   "again",    "parameter", "one.column",     "double",        "half",
            "brain",    "empty",  "int",      "short",     "char",           "byte",          "flags"});
  CHECK(file.info("0.weight").shape == Shape{2, 3});
  CHECK(values<float>(file, "0.weight") == std::vector<float>{-0.5F, -0.25F, 0, 0.25F, 0.5F, 0.75F});
  CHECK(values<double>(file, "0.weight")[5] == 0.75);
  CHECK(values<float>(file, "0.bias") == std::vector<float>{1.5F, -2.5F});
  CHECK(values<float>(file, "1.running_var") == std::vector<float>{1, 1});
  CHECK(file.info("1.num_batches_tracked").shape.empty());
  CHECK(integers<std::int64_t>(file, "1.num_batches_tracked") == std::vector{std::int64_t{1} << 40});
  CHECK(values<float>(file, "first") == std::vector<float>{0, 1, 2});
  CHECK(file.info("rest").shape == Shape{2, 2});
  CHECK(values<float>(file, "rest") == std::vector<float>{3, 4, 5, 6});
  CHECK(file.info("rest").bytes.data() == file.info("first").bytes.data() + 12);  // one storage
  CHECK(values<float>(file, "again") == std::vector<float>{3, 4, 5, 6});
  CHECK(file.info("parameter").shape == Shape{2, 1});
  CHECK(values<float>(file, "parameter") == std::vector<float>{7, 8});
  CHECK(file.info("one.column").shape == Shape{1, 1});
  CHECK(values<float>(file, "one.column") == std::vector<float>{0});
  CHECK(values<double>(file, "double") == std::vector<double>{1e-300, -2.5});
  const auto half = values<float>(file, "half");
  CHECK(half[0] == 1.5F);
  CHECK((half[1] == 0 && std::signbit(half[1])));
  CHECK(half[2] == 0x1p-24F);
  CHECK(half[3] == 65504.0F);
  CHECK(std::isinf(half[4]));
  CHECK(values<double>(file, "brain") ==
        std::vector<double>{3.140625, static_cast<double>(std::bit_cast<float>(0xfe960000U))});
  CHECK(file.info("empty").shape == Shape{0, 4});
  CHECK(values<float>(file, "empty").empty());
  CHECK(file.info("int").dtype == Dtype::i32);
  CHECK(integers<std::int32_t>(file, "int") == std::vector{std::numeric_limits<std::int32_t>::min(), 3});
  CHECK(file.info("short").dtype == Dtype::i16);
  CHECK(integers<std::int16_t>(file, "short") == std::vector<std::int16_t>{-300});
  CHECK(file.info("char").dtype == Dtype::i8);
  CHECK(integers<std::int8_t>(file, "char") == std::vector<std::int8_t>{-1, 2, 3});
  CHECK(file.info("byte").dtype == Dtype::u8);
  CHECK(integers<std::uint8_t>(file, "byte") == std::vector<std::uint8_t>{200});
  CHECK(file.info("flags").dtype == Dtype::boolean);
  CHECK(integers<std::uint8_t>(file, "flags") == std::vector<std::uint8_t>{1, 0, 1});
  CHECK(message_of([&] { file.info("none"); }) == file.path() + ": no tensor 'none'");
  std::vector<float> one(1);
  CHECK(message_of([&] { file.read("1.num_batches_tracked", std::span<float>(one)); }) ==
        file.path() +
            ": tensor '1.num_batches_tracked' has dtype I64, one of F32, F64, F16, BF16 expected, or I8 with scales");
}

TEST_CASE("a file made by hand is read", "[io][torch]") {
  using namespace parts;
  const TemporaryFolder folder;
  // The second tensor is the first by the memo, the third is set alone, lists and numbers may lie about.
  const std::string w = tensor(storage(6), 2, {2, 2}, {2, 1}) + "q" + number(std::uint8_t{0});
  const std::string once = string("d") + tensor(storage(3, "DoubleStorage"), 3, {0, 7}, {1, 1}) + "s";
  const std::string pickle =
      dict({{"a", w}, {"b", "h" + number(std::uint8_t{0})}, {"c", w}}) + once +
      dict({{"_metadata", ordered_dict + "(" + string("") + dict({{"version", "K\x01"}}) + "u"}}) + "b";
  for (const bool zip64 : {false, true}) {
    std::ofstream(folder / "f", std::ios::binary) << zip(entries(program(pickle)), zip64);
    const TorchFile file(folder / "f");
    CHECK(file.names() == std::vector<std::string>{"a", "b", "c", "d"});
    CHECK(values<float>(file, "a") == std::vector<float>{2, 3, 4, 5});
    CHECK(values<float>(file, "b") == std::vector<float>{2, 3, 4, 5});
    CHECK(file.info("d").dtype == Dtype::f64);
    CHECK(file.info("d").bytes.empty());
    CHECK(file.count_values() == 12);
  }
  CHECK(pickle_message("}") == "no error");
}

TEST_CASE("attack: nothing of a pickle is run", "[io][torch]") {
  using namespace parts;
  const std::string refused = ", which is refused: tensors do not need it, and nothing of a file is run";
  const std::string call = "(" + string("touch /tmp/owned") + "tR";
  for (const auto& [module, name] :
       std::vector<std::pair<std::string, std::string>>{{"os", "system"},
                                                        {"posix", "system"},
                                                        {"builtins", "eval"},
                                                        {"__builtin__", "exec"},
                                                        {"subprocess", "Popen"},
                                                        {"torch", "load"},
                                                        {"torch", "FloatTensor"},
                                                        {"torch", "ComplexFloatStorage"},
                                                        {"torch.storage", "UntypedStorage"},
                                                        {"torch._utils", "_rebuild_tensor_v3"},
                                                        {"numpy.core.multiarray", "_reconstruct"}}) {
    CHECK(pickle_message(global(module, name) + call) ==
          "data.pkl byte 2: names '" + module + "." + name + "'" + refused);
    CHECK(without_place(tensor_message(global(module, name) + call)) ==
          "names '" + module + "." + name + "'" + refused);
  }
  CHECK(pickle_message(global("os\x1b[31m", std::string(100, 'x'))) ==
        "data.pkl byte 2: names 'os?[31m." + std::string(52, 'x') + "...'" + refused);
  // The other ways of a pickle to call something.
  const std::string unneeded = ", which tensors do not need";
  CHECK(pickle_message("(S'touch /tmp/owned'\nios\nsystem\n") == "data.pkl byte 3: instruction STRING (83)" + unneeded);
  CHECK(pickle_message("(ios\nsystem\n") == "data.pkl byte 3: instruction INST (105)" + unneeded);
  CHECK(pickle_message("(o") == "data.pkl byte 3: instruction OBJ (111)" + unneeded);
  CHECK(pickle_message(string("os") + string("system") + "\x93") ==
        "data.pkl byte 20: instruction STACK_GLOBAL (147)" + unneeded);
  CHECK(pickle_message(ordered_dict + ")\x81").ends_with(": instruction NEWOBJ (129)" + unneeded));
  CHECK(pickle_message("\x82\x01") == "data.pkl byte 2: instruction EXT1 (130)" + unneeded);
  CHECK(pickle_message("\x99") == "data.pkl byte 2: instruction (153)" + unneeded);
  CHECK(pickle_message("}}" + string("os") + "}sb") ==
        "data.pkl byte 13: a dict with a member 'os', _metadata expected");
  CHECK(pickle_message(global("torch", "FloatStorage") + ")R") ==
        "data.pkl byte 23: calls torch.FloatStorage, which is a class of storages");
  CHECK(pickle_message("})R") == "data.pkl byte 4: what is called is a dict, a class or function expected");
  CHECK(pickle_message(global("collections", "OrderedDict") + "}R") ==
        "data.pkl byte 28: what a function is called with is a dict, a tuple expected");
  CHECK(pickle_message(global("collections", "OrderedDict") + "]\x85R") ==
        "data.pkl byte 29: collections.OrderedDict called with 1 values, 0 expected");
}

TEST_CASE("every instruction is known or refused by name", "[io][torch]") {
  int refused = 0;
  for (int code = 0; code < 256; ++code) {
    const std::string message = pickle_message(std::string(1, static_cast<char>(code)));
    CHECK(message != "the file is not named");
    refused += message.find("which tensors do not need") != std::string::npos ? 1 : 0;
    CHECK((message == "no error") == (code == '}'));
  }
  CHECK(refused == 256 - 30);
}

TEST_CASE("a pickle that is no state dict says what it is", "[io][torch]") {
  using namespace parts;
  const std::string expected = ", a state dict expected: a dict of names and tensors";
  CHECK(pickle_message(three) == "holds a tensor" + expected);
  CHECK(pickle_message("]" + three + "a") == "holds a list" + expected);
  CHECK(pickle_message("N") == "holds None" + expected);
  CHECK(tensor_message("K\x07") == "'w' is an integer, a tensor expected");
  CHECK(tensor_message("\x88") == "'w' is a boolean, a tensor expected");
  CHECK(tensor_message("G12345678") == "'w' is a floating-point number, a tensor expected");
  CHECK(tensor_message(string("x")) == "'w' is a string, a tensor expected");
  CHECK(tensor_message(")") == "'w' is a tuple, a tensor expected");
  CHECK(tensor_message("]") == "'w' is a list, a tensor expected");
  CHECK(tensor_message(storage(6)) == "'w' is a storage, a tensor expected");
  CHECK(pickle_message(dict({{"epoch", "K\x07"}, {"model", three}})) == "'epoch' is an integer, a tensor expected");
  CHECK(pickle_message(dict({{"model", ordered_dict + "(" + string("w") + three + "u"}})) ==
        "'model' is a dict, a tensor expected: a state dict within another is not read, save it alone");
  CHECK(pickle_message("}K\x01" + three + "s") == "holds a dict with an integer for a key, a string expected");
  CHECK(pickle_message(dict({{"w", three}, {"w", three}})) == "tensor 'w' appears twice");
  CHECK(pickle_message(dict({{std::string(1025, 'w'), three}})) ==
        "'" + std::string(60, 'w') + "...' is a name of 1025 bytes, at most 1024 expected");
}

TEST_CASE("transposed tensors and parts of others are read in their own order", "[io][torch]") {
  using namespace parts;
  const TemporaryFolder folder;
  std::ofstream(folder / "f", std::ios::binary)
      << file(program(dict({{"transposed", tensor(storage(6), 0, {3, 2}, {1, 3})},
                            {"column", tensor(storage(6), 1, {3, 1}, {2, 9})},
                            {"turned", tensor(storage(6), 0, {1, 2, 3}, {6, 1, 2})}})));
  const TorchFile f(folder / "f");
  CHECK(values<float>(f, "transposed") == std::vector<float>{0, 3, 1, 4, 2, 5});
  CHECK(values<double>(f, "column") == std::vector<double>{1, 3, 5});
  CHECK(values<float>(f, "turned") == std::vector<float>{0, 2, 4, 1, 3, 5});
  CHECK(f.count_values() == 15);
}

TEST_CASE("attack: tensors that lie", "[io][torch]") {
  using namespace parts;
  const Index large = Index{1} << 62;
  CHECK(tensor_message(tensor(storage(6), 0, {2, 3}, {3, 1})) == "no error");
  CHECK(tensor_message(tensor(storage(6), 0, {}, {})) == "no error");
  CHECK(tensor_message(tensor(storage(6), 5, {1, 1}, {9, -9})) == "no error");  // one value, whatever its strides
  CHECK(tensor_message(tensor(storage(6), 6, {0}, {1})) == "no error");
  CHECK(tensor_message(tensor(storage(6), 0, {3}, {0})) ==
        "tensor 'w' has shape (3) and strides (0): its values overlap, save it after .contiguous()");
  CHECK(tensor_message(tensor(storage(6), 0, {3, 2}, {1, 1})) ==
        "tensor 'w' has shape (3, 2) and strides (1, 1): its values overlap, save it after .contiguous()");
  for (const Index stride : {Index{-1}, Index{7}, large})
    CHECK(tensor_message(tensor(storage(6), 0, {3}, {stride})) ==
          text("tensor 'w' has strides (", stride, "), 0 to 6 expected, as many as its storage holds"));
  CHECK(tensor_message(tensor(storage(6), 0, {2, 4}, {1, 2})) ==
        "tensor 'w' has shape (2, 4) and strides (1, 2) from value 0 on, but its storage holds 6 values");
  CHECK(tensor_message(tensor(storage(6), 1, {3, 2}, {1, 3})) ==
        "tensor 'w' has shape (3, 2) and strides (1, 3) from value 1 on, but its storage holds 6 values");
  const std::string holds = ", but its storage holds 6 values";
  CHECK(tensor_message(tensor(storage(6), 0, {7}, {1})) == "tensor 'w' has shape (7) from value 0 on" + holds);
  CHECK(tensor_message(tensor(storage(6), 4, {3}, {1})) == "tensor 'w' has shape (3) from value 4 on" + holds);
  CHECK(tensor_message(tensor(storage(6), 7, {0}, {1})) == "tensor 'w' has shape (0) from value 7 on" + holds);
  CHECK(tensor_message(tensor(storage(6), -1, {3}, {1})) == "tensor 'w' has shape (3) from value -1 on" + holds);
  CHECK(tensor_message(tensor(storage(6), std::numeric_limits<Index>::max(), {3}, {1})).ends_with(holds));
  CHECK(tensor_message(tensor(storage(6), std::numeric_limits<Index>::min(), {3}, {1})).ends_with(holds));
  CHECK(tensor_message(tensor(storage(6), 0, {large, 2}, {2, 1})) ==
        "tensor 'w' has shape (4611686018427387904, 2), whose size is negative or overflows");
  CHECK(tensor_message(tensor(storage(6), 0, {large}, {1})).ends_with(holds));
  CHECK(tensor_message(tensor(storage(6), 0, {-1}, {1})) ==
        "tensor 'w' has shape (-1), whose size is negative or overflows");
  CHECK(tensor_message(tensor(storage(6), 0, {2, 3}, {1})) == "tensor 'w' has shape (2, 3) but strides (1)");
  CHECK(tensor_message(tensor(storage(6), 0, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1})) ==
        "tensor 'w' has 9 dimensions in its shape, at most 8 expected");

  const std::string start = global("torch._utils", "_rebuild_tensor_v2") + "(";
  const auto rebuilt = [&](const std::string& arguments) {
    return without_place(tensor_message(start + arguments + "tR"));
  };
  const std::string end = "\x89" + ordered_dict,
                    whole = storage(6) + "K" + std::string(1, '\0') + tuple({3}) + tuple({1}) + end;
  CHECK(rebuilt(whole + "}") == "no place: no error");
  CHECK(rebuilt(whole + "N") == "no place: no error");
  CHECK(rebuilt(whole + dict({{"neg", "\x88"}})) == "a tensor marked as conjugate or negative, a plain one expected");
  CHECK(rebuilt(whole + "K\x01") == "the marks of a tensor is an integer, a dict expected");
  CHECK(rebuilt(whole + "}}") == "torch._utils._rebuild_tensor_v2 called with 8 values, 6 expected");
  CHECK(rebuilt("") == "torch._utils._rebuild_tensor_v2 called with 0 values, 6 expected");
  CHECK(rebuilt("NK\x01" + tuple({3}) + tuple({1}) + end) == "the storage of a tensor is None, a storage expected");
  CHECK(rebuilt(storage(6) + "N" + tuple({3}) + tuple({1}) + end) ==
        "the offset of a tensor is None, an integer expected");
  CHECK(rebuilt(storage(6) + "K\x01]" + tuple({1}) + end) == "the shape of a tensor is a list, a tuple expected");
  CHECK(rebuilt(storage(6) + "K\x01" + tuple({3}) + "N" + end) == "the strides of a tensor is None, a tuple expected");
  CHECK(rebuilt(storage(6) + "K\x01" + tuple({3}) + tuple({1}) + "N" + ordered_dict) ==
        "whether a tensor needs a gradient is None, a boolean expected");
  CHECK(rebuilt(storage(6) + "K\x01" + tuple({3}) + tuple({1}) + "\x89N") ==
        "the hooks of a tensor is None, a dict expected");
  CHECK(tensor_message(start + storage(6) + "K\x01" + "N\x85" + tuple({1}) + end + "tR") ==
        "tensor 'w' has None in its shape, integers expected");
  CHECK(without_place(tensor_message(global("torch._utils", "_rebuild_parameter") + "(" + storage(6) + "\x89" +
                                     ordered_dict + "tR")) ==
        "the tensor of a parameter is a storage, a tensor expected");
}

TEST_CASE("attack: storages that lie", "[io][torch]") {
  using namespace parts;
  const auto stored = [&](const std::string& one) { return without_place(tensor_message(tensor(one, 0, {1}, {1}))); };
  CHECK(stored(storage(6)) == "no place: no error");
  CHECK(stored(storage(24, "CharStorage")) == "no place: no error");
  CHECK(stored(storage(7)) == "a storage of 7 values of 4 bytes, but 'data/0' holds 24 bytes");
  CHECK(stored(storage(5)) == "a storage of 5 values of 4 bytes, but 'data/0' holds 24 bytes");
  CHECK(stored(storage(-6)) == "a storage of -6 values of 4 bytes, but 'data/0' holds 24 bytes");
  CHECK(stored(storage((Index{1} << 62) + 6)) ==
        "a storage of 4611686018427387910 values of 4 bytes, but 'data/0' holds 24 bytes");
  CHECK(stored(storage(6, "LongStorage")) == "a storage of 6 values of 8 bytes, but 'data/0' holds 24 bytes");
  CHECK(stored(storage(6, "FloatStorage", "1")) == "no entry 'data/1' in the file");
  CHECK(stored(storage(6, "FloatStorage", "../version")) == "no entry 'data/../version' in the file");
  CHECK(stored("NQ") == "what names a storage is None, a tuple expected");
  CHECK(stored(")Q") == "a storage is named by 0 values, 5 expected");
  const auto named = [&](const std::string& type, const std::string& of) {
    return stored("(" + string(type) + of + string("0") + string("cpu") + "K\x06tQ");
  };
  CHECK(named("module", global("torch", "FloatStorage")) ==
        "a reference to 'module' of class torch.FloatStorage, a storage expected");
  CHECK(named("storage", global("collections", "OrderedDict")) ==
        "a reference to 'storage' of class collections.OrderedDict, a storage expected");
  CHECK(named("storage", string("torch.FloatStorage")) ==
        "the class of a storage is a string, a class or function expected");
  CHECK(stored("(K\x01" + global("torch", "FloatStorage") + string("0") + string("cpu") + "K\x06tQ") ==
        "value 0 of what names a storage is an integer, a string expected");
}

TEST_CASE("attack: a machine driven wrongly", "[io][torch]") {
  using namespace parts;
  CHECK(open_message(file("")) == "data.pkl byte 0: cut short: 1 bytes expected, 0 left");
  CHECK(open_message(file("\x80")) == "data.pkl byte 0: cut short: 1 bytes expected, 0 left");
  CHECK(open_message(file("}.")) == "data.pkl byte 0: not a pickle of protocol 2");
  CHECK(open_message(file("\x80\x04}.")) ==
        "data.pkl byte 0: pickle protocol 4, 2 expected, which torch.save writes unless told otherwise");
  CHECK(open_message(file("\x80\x02}")) == "data.pkl byte 3: cut short: 1 bytes expected, 0 left");
  CHECK(pickle_message("}.") == "data.pkl byte 3: 1 bytes after the end");
  CHECK(pickle_message("") == "data.pkl byte 2: ends with 0 values and 0 marks on the stack, 1 value expected");
  CHECK(pickle_message("}}") == "data.pkl byte 4: ends with 2 values and 0 marks on the stack, 1 value expected");
  CHECK(pickle_message("}(") == "data.pkl byte 4: ends with 1 values and 1 marks on the stack, 1 value expected");
  CHECK(pickle_message("R") == "data.pkl byte 2: needs a value, but there is none on the stack");
  CHECK(pickle_message("}(b") == "data.pkl byte 4: needs a value, but there is none on the stack");  // not past a mark
  CHECK(pickle_message("}\x86") == "data.pkl byte 3: a tuple of 2 values, but 1 on the stack");
  CHECK(pickle_message("t") == "data.pkl byte 2: needs a mark, but there is none on the stack");
  CHECK(pickle_message("}u") == "data.pkl byte 3: needs a mark, but there is none on the stack");
  CHECK(pickle_message("}(Nu") == "data.pkl byte 5: a dict and pairs for it expected on the stack");
  CHECK(pickle_message("(NNu") == "data.pkl byte 5: a dict and pairs for it expected on the stack");
  CHECK(pickle_message("](NNu") == "data.pkl byte 6: what items are set in is a list, a dict expected");
  CHECK(pickle_message("NNs") == "data.pkl byte 4: a dict and pairs for it expected on the stack");
  CHECK(pickle_message("}Na") == "data.pkl byte 4: what is appended to is a dict, a list expected");
  CHECK(pickle_message("}(NNe") == "data.pkl byte 6: what is appended to is a dict, a list expected");
  CHECK(pickle_message("N}b") == "data.pkl byte 4: what gets a state is None, a dict expected");
  CHECK(pickle_message("X\xff\xff\xff\xffzz") == "data.pkl byte 2: cut short: 4294967295 bytes expected, 3 left");
  CHECK(pickle_message("cos") == "data.pkl byte 2: cut short: a line without its end");
  CHECK(pickle_message("\x8a\x09"
                       "123456789") == "data.pkl byte 2: an integer of 9 bytes, at most 8 expected");
  CHECK(pickle_message("q\x01") == "data.pkl byte 2: place 1 of the memo, at most 0 expected");
  CHECK(pickle_message("r\xff\xff\xff\xff") == "data.pkl byte 2: place 4294967295 of the memo, at most 0 expected");
  CHECK(pickle_message("h\x01") == "data.pkl byte 2: place 1 of the memo, which holds 0");
  CHECK(pickle_message("j\xff\xff\xff\xff") == "data.pkl byte 2: place 4294967295 of the memo, which holds 0");
}

TEST_CASE("integers of every length are read with their sign", "[io][torch]") {
  using namespace parts;
  const auto offset = [](const std::string& number) {
    const std::string tensor =
        global("torch._utils", "_rebuild_tensor_v2") + "(" + storage(6) + number + tuple({9}) + tuple({1}) + "\x89}tR";
    const std::string message = tensor_message(tensor), start = "from value ";
    return message.substr(message.find(start) + start.size(),
                          message.find(" on,") - message.find(start) - start.size());
  };
  CHECK(offset("K\xff") == "255");
  CHECK(offset("M\xff\xff") == "65535");
  CHECK(offset(integer(-5)) == "-5");
  CHECK(offset(std::string("\x8a\0", 2)) == "0");
  CHECK(offset("\x8a\x01\xff") == "-1");
  CHECK(offset(std::string("\x8a\x02\xff\0", 4)) == "255");
  CHECK(offset("\x8a\x05\xff\xff\xff\xff\x7f") == "549755813887");
  CHECK(offset("\x8a\x05\xff\xff\xff\xff\x80") == "-545460846593");
  CHECK(offset(long_integer(std::numeric_limits<std::int64_t>::min())) == "-9223372036854775808");
}

TEST_CASE("attack: a pickle that grows or nests without end", "[io][torch]") {
  using namespace parts;
  const auto many = [](std::size_t count, const std::string& what) {
    std::string out;
    for (std::size_t i = 0; i < count; ++i) out += what;
    return out;
  };
  const std::string expected = ", a state dict expected: a dict of names and tensors";
  CHECK(pickle_message(many(1'000'001, ")")) == "data.pkl byte 1000002: more than 1000000 values on the stack");
  CHECK(pickle_message(many(10'000'001, "(")) == "data.pkl byte 10000002: more than 10000000 values");
  CHECK(pickle_message(")" + many(10'000'000, "\x85")) == "data.pkl byte 10000002: more than 10000000 values");
  CHECK(pickle_message(")" + many(5'000'000, std::string("q\0\x85", 3))).ends_with(": more than 10000000 values"));
  CHECK(pickle_message(")" + many(900'000, "\x85")) == "holds a tuple" + expected);  // as deep as that
  CHECK(open_message(file(many((64 << 20) + 1, "}"))) == "data.pkl holds 67108865 bytes, at most 67108864 expected");

  const std::string put = std::string("q\0", 2), get = std::string("h\0", 2);
  const std::string within = " is a dict, a tensor expected: a state dict within another is not read, save it alone";
  CHECK(pickle_message("}" + put + string("w") + get + "s") == "'w'" + within);  // itself
  CHECK(pickle_message("}" + put + string("_metadata") + get + "s" + get + "b") == "'_metadata'" + within);
  // A dict with a thousand members, which would be looked at again and again.
  CHECK(pickle_message("}" + put + "(" + many(1000, string("_metadata") + "N") + "u" + many(1000, get + "b")) ==
        "data.pkl byte 15009: a dict with 1000 members, _metadata alone expected");
  CHECK(pickle_message("]" + put + get + "a") == "holds a list" + expected);
  CHECK(pickle_message(")" + put + get + get + "\x87" + put) == "holds a tuple" + expected);

  std::string million = "}" + string("0") + three + put + "s";
  for (int i = 1; i <= 1'000'000; ++i) million += string(std::to_string(i)) + get + "s";
  CHECK(pickle_message(million) == "more than 1000000 tensors");
}

TEST_CASE("a zip file that is not of torch.save says so", "[io][torch]") {
  using namespace parts;
  const std::string pickle = program(dict({{"w", three}}));
  const auto with = [&](std::size_t entry, const std::string& name, const std::string& bytes) {
    Entries all = entries(pickle);
    all[entry] = {name, bytes};
    return open_message(zip(all));
  };
  CHECK(with(1, "m/other", "big") == "no error");  // no byte order, as older files
  CHECK(with(1, "m/byteorder", "big") == "byte order 'big', 'little' expected");
  CHECK(with(3, "m/version", "10") == "no error");
  CHECK(with(3, "m/version", "11\n") == "a torch.save file of version '11', 1 to 10 expected");
  CHECK(with(3, "m/version", "0") == "a torch.save file of version '0', 1 to 10 expected");
  CHECK(with(3, "m/version", "") == "a torch.save file of version '', 1 to 10 expected");
  CHECK(with(3, "n/version", "3") == "a torch.save file of version '', 1 to 10 expected");
  CHECK(with(3, "n/data.pkl", pickle) == "holds two entries */data.pkl, one expected");
  CHECK(with(0, "m/n/data.pkl", pickle) == "a zip file without an entry */data.pkl, which torch.save writes");
  CHECK(with(0, "data.pkl", pickle) == "a zip file without an entry */data.pkl, which torch.save writes");
  CHECK(open_message(zip({})) == "a zip file without an entry */data.pkl, which torch.save writes");
  const std::string old = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";
  CHECK(open_message(old + std::string(100, 'x')) ==
        "the format of PyTorch before 1.6, a zip file expected: torch.load and torch.save it with a newer one");
  CHECK(open_message("") == "cut short, or not a zip file: 0 bytes, at least 22 expected");
  CHECK(open_message("version 7 of a text that is no zip file") ==
        "cut short, or not a zip file: no zip end record in its last 22 bytes");
}

TEST_CASE("a damaged file of torch.save is refused or reads as a file", "[io][torch]") {
  const TemporaryFolder folder;
  const auto path = folder / "f";
  const std::string whole = read_file(golden, 100'000);
  std::size_t refused = 0, read = 0;
  const auto attempt = [&](std::string_view bytes) {
    std::filesystem::remove(path);  // some file systems sync a file that is written anew
    std::ofstream(path, std::ios::binary) << bytes;
    try {
      const TorchFile file(path);
      touch(file);
      for (const std::string& name : file.names()) {
        Index size = static_cast<Index>(dtype_bytes(file.info(name).dtype));
        for (const Index extent : file.info(name).shape) size *= extent;
        REQUIRE((file.info(name).strides.empty() ? std::cmp_equal(size, file.info(name).bytes.size())
                                                 : std::cmp_less_equal(size, file.info(name).bytes.size())));
      }
      ++read;
    } catch (const Error& e) {
      REQUIRE(std::string(e.what()).starts_with(path.string() + ": "));
      ++refused;
    }
  };
  for (std::size_t size = 0; size < whole.size(); ++size) attempt(std::string_view(whole).substr(0, size));
  CHECK(read == 0);  // no truncated file is ever accepted
  const std::size_t pickle = whole.find("\x80\x02"), pickle_end = whole.find("PK", pickle),
                    directory = whole.find("PK\1\2");
  REQUIRE(pickle < pickle_end);
  REQUIRE(pickle_end < directory);
  for (std::size_t i = 0; i < whole.size(); ++i) {
    const bool described = (i >= pickle && i < pickle_end) || i >= directory;
    for (const char flip : {'\xff', '\x01', '\x02', '\x04', '\x08', '\x10', '\x20', '\x40', '\x80'}) {
      std::string bytes = whole;
      bytes[i] = static_cast<char>(bytes[i] ^ flip);
      attempt(bytes);
      if (!described) break;  // one is enough for the bytes of the tensors
    }
    for (const char c : {'.', '(', 't', 'R', 'Q', 'u', 'q', 'h', 'N', '}', '\0'}) {
      if (!described) break;
      std::string bytes = whole;
      bytes[i] = c;
      attempt(bytes);
    }
  }
  CHECK(refused > 10'000);
  CHECK(read > 5'000);  // a letter of a name changed, or a number
}
