// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <laconic/core/error.hpp>
#include <laconic/core/extent.hpp>
#include <laconic/io/json.hpp>
#include <laconic/io/tensors.hpp>
#include <laconic/io/zip.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// The state dict in a file of torch.save. It is a pickle: a program for a stack machine that can call any Python
// function. Nothing is executed here: the machine below knows the few instructions and names that tensors need, and
// refuses all others.

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Lists the limits of a state dict.
struct TorchLimits {
  static constexpr std::size_t pickle_bytes = std::size_t{64} << 20,  ///< max bytes of data.pkl
      values = 10'000'000,                                            ///< max number of values
      stack = 1'000'000,                                              ///< max number of values on the stack
      tensors = 1'000'000,                                            ///< max number of tensors
      rank = 8,                                                       ///< max dimensions of a tensor
      name_bytes = 1024;                                              ///< max bytes of a name
};

/// Pairs a Python name that a pickle of tensors may use with its meaning.
struct TorchGlobal {
  /// Says what calling or naming it does.
  enum Does { ordered_dict, rebuild_tensor, rebuild_parameter, storage };
  std::string_view name;     ///< module and name
  Does does;                 ///< its meaning
  Dtype dtype = Dtype::f32;  ///< element type, if it is a storage
};

/// Lists all Python names that are not refused.
inline constexpr auto torch_globals = std::to_array<TorchGlobal>({
    {"collections.OrderedDict", TorchGlobal::ordered_dict},
    {"torch._utils._rebuild_tensor_v2", TorchGlobal::rebuild_tensor},
    {"torch._utils._rebuild_parameter", TorchGlobal::rebuild_parameter},
    {"torch.FloatStorage", TorchGlobal::storage, Dtype::f32},
    {"torch.DoubleStorage", TorchGlobal::storage, Dtype::f64},
    {"torch.HalfStorage", TorchGlobal::storage, Dtype::f16},
    {"torch.BFloat16Storage", TorchGlobal::storage, Dtype::bf16},
    {"torch.LongStorage", TorchGlobal::storage, Dtype::i64},
    {"torch.IntStorage", TorchGlobal::storage, Dtype::i32},
    {"torch.ShortStorage", TorchGlobal::storage, Dtype::i16},
    {"torch.CharStorage", TorchGlobal::storage, Dtype::i8},
    {"torch.ByteStorage", TorchGlobal::storage, Dtype::u8},
    {"torch.BoolStorage", TorchGlobal::storage, Dtype::boolean},
});

/// Returns the name of an instruction that is refused, or an empty text if pickle has no instruction of this code.
constexpr std::string_view refused_opcode(unsigned char code) {
  constexpr std::string_view letters = "012FILPSTUVBCdgilop";
  constexpr auto by_letter = std::to_array<std::string_view>(
      {"POP", "POP_MARK", "DUP", "FLOAT", "INT", "LONG", "PERSID", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE",
       "BINBYTES", "SHORT_BINBYTES", "DICT", "GET", "INST", "LIST", "OBJ", "PUT"});
  constexpr auto from_0x80 = std::to_array<std::string_view>(
      {"PROTO",     "NEWOBJ",     "EXT1",        "EXT2",           "EXT4",      "TUPLE1",           "TUPLE2",
       "TUPLE3",    "NEWTRUE",    "NEWFALSE",    "LONG1",          "LONG4",     "SHORT_BINUNICODE", "BINUNICODE8",
       "BINBYTES8", "EMPTY_SET",  "ADDITEMS",    "FROZENSET",      "NEWOBJ_EX", "STACK_GLOBAL",     "MEMOIZE",
       "FRAME",     "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"});
  static_assert(letters.size() == by_letter.size());
  if (const auto at = letters.find(static_cast<char>(code)); at != std::string_view::npos) return by_letter[at];
  return code >= 0x80 && code < 0x80 + from_0x80.size() ? from_0x80[code - 0x80U] : "";
}

/// Holds a value on the pickle's stack. It owns nothing: copies of a tuple, dict, storage or tensor refer to the same
/// one.
struct PickleValue {
  /// Names the types of values.
  enum Kind { none, boolean, integer, real, string, tuple, list, dict, global, storage, tensor };
  Kind kind;                ///< its type
  std::uint32_t size = 0;   ///< length, if it is a string or tuple
  std::int64_t number = 0;  ///< the value of an integer, else its position in the pickle or in TorchPickle's lists

  /// Returns the type for a message: "an integer".
  std::string_view kind_text() const {
    constexpr auto texts = std::to_array<std::string_view>({"None", "a boolean", "an integer",
                                                            "a floating-point number", "a string", "a tuple", "a list",
                                                            "a dict", "a class or function", "a storage", "a tensor"});
    return texts[kind];
  }
};

/// Reads data.pkl and checks everything that it claims, so that using a tensor later needs no checks. A value refers to
/// another by number only, so that neither depth nor a dict within itself causes recursion.
class TorchPickle {
 public:
  /// Reads the tensors of NAME/data.pkl, where `folder` is "NAME/". Throws `Error`, naming `where`, for anything but a
  /// state dict.
  TorchPickle(const std::string& where, const ZipDirectory& zip, const std::string& folder)
      : where_(where), zip_(zip), folder_(folder), bytes_(*zip.find(folder + "data.pkl")) {
    require(bytes_.size() <= TorchLimits::pickle_bytes, where_, ": data.pkl holds ", bytes_.size(), " bytes, at most ",
            TorchLimits::pickle_bytes, " expected");
    if (number<std::uint8_t>() != 0x80) fail("not a pickle of protocol 2");
    const int protocol = number<std::uint8_t>();
    if (protocol != 2)
      fail("pickle protocol ", protocol, ", 2 expected, which torch.save writes unless told otherwise");
    while (step()) {
    }
    take_state_dict();
  }

  std::vector<std::pair<std::string, TensorInfo>> tensors;  ///< names and tensors in the dict's order

 private:
  using Value = PickleValue;

  struct Storage {
    Dtype dtype;
    std::span<const std::byte> bytes;
  };
  struct Tensor {
    Storage storage;
    std::int64_t offset;
    Value shape, strides;
  };

  /// Throws `Error` with the position of the current instruction.
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw Error(text(where_, ": data.pkl byte ", opcode_at_, ": ", parts...));
  }

  /// Skips bytes that belong to an instruction and returns the position of the first.
  std::size_t skip(std::size_t count) {
    if (count > bytes_.size() - at_) fail("cut short: ", count, " bytes expected, ", bytes_.size() - at_, " left");
    return std::exchange(at_, at_ + count);
  }
  /// Reads a little-endian number that belongs to an instruction.
  template <std::unsigned_integral T>
  T number() {
    return number_at<T>(bytes_, skip(sizeof(T)));
  }
  /// Reads a line that belongs to an instruction, without its end.
  std::string_view line() {
    const std::string_view rest = text_at(bytes_, at_, bytes_.size() - at_);
    const std::size_t size = rest.find('\n');
    if (size == std::string_view::npos) fail("cut short: a line without its end");
    at_ += size + 1;
    return rest.substr(0, size);
  }

  /// Counts a value that costs memory, and fails beyond the limit.
  void count() {
    if (++values_ > TorchLimits::values) fail("more than ", TorchLimits::values, " values");
  }
  /// Pushes a value, and fails beyond the limit of the stack.
  void push(Value value) {
    count();
    if (stack_.size() >= TorchLimits::stack) fail("more than ", TorchLimits::stack, " values on the stack");
    stack_.push_back(value);
  }
  /// Returns the number of values on the stack above the last mark.
  std::size_t available() const { return stack_.size() - (marks_.empty() ? 0 : marks_.back()); }
  Value& top() {
    if (available() == 0) fail("needs a value, but there is none on the stack");
    return stack_.back();
  }
  Value pop() {
    const Value value = top();
    stack_.pop_back();
    return value;
  }
  /// Removes the last mark and returns the number of values above it.
  std::size_t pop_mark() {
    if (marks_.empty()) fail("needs a mark, but there is none on the stack");
    const std::size_t above = available();
    marks_.pop_back();
    return above;
  }
  /// Fails unless a value has this type; the parts name the value in the message.
  template <class... Parts>
  void expect(const Value& value, Value::Kind kind, const Parts&... what) const {
    if (value.kind != kind) fail(what..., " is ", value.kind_text(), ", ", Value{kind}.kind_text(), " expected");
  }

  /// Returns the text of a string.
  std::string_view string_of(const Value& value) const {
    return text_at(bytes_, static_cast<std::size_t>(value.number), value.size);
  }
  /// Returns the elements of a tuple.
  std::span<const Value> elements(const Value& tuple) const {
    return std::span(tuple_elements_).subspan(static_cast<std::size_t>(tuple.number), tuple.size);
  }
  /// Returns the keys and values of a dict.
  std::vector<std::pair<Value, Value>>& items(const Value& dict) {
    return dicts_[static_cast<std::size_t>(dict.number)];
  }
  /// Returns the Python name that a value stands for.
  const TorchGlobal& global_of(const Value& value) const {
    return torch_globals[static_cast<std::size_t>(value.number)];
  }

  /// Executes one instruction. Returns false at the end.
  bool step() {
    opcode_at_ = at_;
    const auto code = number<std::uint8_t>();
    switch (code) {
      case '.':  // STOP
        if (at_ != bytes_.size()) fail(bytes_.size() - at_, " bytes after the end");
        if (stack_.size() != 1 || !marks_.empty())
          fail("ends with ", stack_.size(), " values and ", marks_.size(), " marks on the stack, 1 value expected");
        return false;
      case '(':  // MARK
        count();
        marks_.push_back(stack_.size());
        break;
      case 'N':  // NONE
        push({Value::none});
        break;
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        push({Value::boolean, 0, code == 0x88});
        break;
      case 'K':  // BININT1
        push({Value::integer, 0, number<std::uint8_t>()});
        break;
      case 'M':  // BININT2
        push({Value::integer, 0, number<std::uint16_t>()});
        break;
      case 'J':  // BININT
        push({Value::integer, 0, static_cast<std::int32_t>(number<std::uint32_t>())});
        break;
      case 0x8a:  // LONG1
        push({Value::integer, 0, long_integer(number<std::uint8_t>())});
        break;
      case 'G':  // BINFLOAT
        skip(8);
        push({Value::real});
        break;
      case 'X': {  // BINUNICODE
        const auto size = number<std::uint32_t>();
        push({Value::string, size, static_cast<std::int64_t>(skip(size))});
        break;
      }
      case ')':  // EMPTY_TUPLE
        push_tuple(0);
        break;
      case 0x85:  // TUPLE1
      case 0x86:  // TUPLE2
      case 0x87:  // TUPLE3
        push_tuple(code - 0x84U);
        break;
      case 't':  // TUPLE
        push_tuple(pop_mark());
        break;
      case ']':  // EMPTY_LIST: the elements of a list are never needed
        push({Value::list});
        break;
      case 'a':  // APPEND
        pop();
        expect(top(), Value::list, "what is appended to");
        break;
      case 'e':  // APPENDS
        stack_.resize(stack_.size() - pop_mark());
        expect(top(), Value::list, "what is appended to");
        break;
      case '}':  // EMPTY_DICT
        push_dict();
        break;
      case 's':  // SETITEM
        set_items(2);
        break;
      case 'u':  // SETITEMS
        set_items(pop_mark());
        break;
      case 'q':  // BINPUT
        put(number<std::uint8_t>());
        break;
      case 'r':  // LONG_BINPUT
        put(number<std::uint32_t>());
        break;
      case 'h':  // BINGET
        get(number<std::uint8_t>());
        break;
      case 'j':  // LONG_BINGET
        get(number<std::uint32_t>());
        break;
      case 'c':  // GLOBAL
        push_global();
        break;
      case 'R':  // REDUCE
        reduce();
        break;
      case 'Q':  // BINPERSID
        push_storage();
        break;
      case 'b':  // BUILD
        build();
        break;
      default:
        fail("instruction ", refused_opcode(code), refused_opcode(code).empty() ? "" : " ", '(', int{code},
             "), which tensors do not need");
    }
    return true;
  }

  /// Reads a little-endian signed integer of `size` bytes.
  std::int64_t long_integer(std::size_t size) {
    if (size > 8) fail("an integer of ", size, " bytes, at most 8 expected");
    std::uint64_t out = 0;
    const std::size_t from = skip(size);
    for (std::size_t i = 0; i < size; ++i) out |= std::uint64_t{number_at<std::uint8_t>(bytes_, from + i)} << (8 * i);
    const bool negative = size > 0 && size < 8 && (out >> (8 * size - 1)) != 0;
    return static_cast<std::int64_t>(negative ? out | ~std::uint64_t{0} << (8 * size) : out);
  }

  /// Replaces the topmost `size` values with a tuple of them.
  void push_tuple(std::size_t size) {
    if (available() < size) fail("a tuple of ", size, " values, but ", available(), " on the stack");
    const auto from = static_cast<std::int64_t>(tuple_elements_.size());
    tuple_elements_.insert(tuple_elements_.end(), stack_.end() - static_cast<std::ptrdiff_t>(size), stack_.end());
    stack_.resize(stack_.size() - size);
    push({Value::tuple, static_cast<std::uint32_t>(size), from});
  }
  /// Pushes an empty dict.
  void push_dict() {
    push({Value::dict, 0, static_cast<std::int64_t>(dicts_.size())});
    dicts_.emplace_back();
  }
  /// Adds the topmost `size` values, keys and values in turn, to the dict below them.
  void set_items(std::size_t size) {
    if (size % 2 != 0 || available() <= size) fail("a dict and pairs for it expected on the stack");
    const std::size_t from = stack_.size() - size;
    const Value target = stack_[from - 1];
    expect(target, Value::dict, "what items are set in");
    for (std::size_t i = from; i < stack_.size(); i += 2) items(target).emplace_back(stack_[i], stack_[i + 1]);
    stack_.resize(from);
  }

  /// Stores the topmost value in the memo.
  void put(std::size_t place) {
    if (place > memo_.size()) fail("place ", place, " of the memo, at most ", memo_.size(), " expected");
    const Value value = top();
    count();
    if (place == memo_.size()) memo_.push_back(value);
    memo_[place] = value;
  }
  /// Pushes a value of the memo.
  void get(std::size_t place) {
    if (place >= memo_.size()) fail("place ", place, " of the memo, which holds ", memo_.size());
    push(memo_[place]);
  }

  /// Pushes the meaning of a Python name, and refuses those that are not in `torch_globals`.
  void push_global() {
    const std::string_view module = line();
    const std::string name = text(module, '.', line());
    const auto found = std::find_if(torch_globals.begin(), torch_globals.end(),
                                    [&](const TorchGlobal& global) { return global.name == name; });
    if (found == torch_globals.end())
      fail("names ", in_quotes(name), ", which is refused: tensors do not need it, and nothing of a file is run");
    push({Value::global, 0, found - torch_globals.begin()});
  }

  /// Handles a call: makes a dict, a tensor or a parameter, and refuses all else.
  void reduce() {
    const Value arguments = pop(), callable = pop();
    expect(arguments, Value::tuple, "what a function is called with");
    expect(callable, Value::global, "what is called");
    const TorchGlobal& function = global_of(callable);
    const std::span<const Value> given = elements(arguments);
    const auto expect_count = [&](std::size_t least, std::size_t most) {
      if (given.size() < least || given.size() > most)
        fail(function.name, " called with ", given.size(), " values, ", least, " expected");
    };
    switch (function.does) {
      case TorchGlobal::ordered_dict:
        expect_count(0, 0);
        return push_dict();
      case TorchGlobal::rebuild_tensor:
        expect_count(6, 7);
        return push_tensor(given);
      case TorchGlobal::rebuild_parameter:
        expect_count(3, 3);
        expect(given[0], Value::tensor, "the tensor of a parameter");
        return push(given[0]);
      case TorchGlobal::storage:
        fail("calls ", function.name, ", which is a class of storages");
    }
  }

  /// Pushes the tensor that the arguments of _rebuild_tensor_v2 describe.
  void push_tensor(std::span<const Value> given) {
    expect(given[0], Value::storage, "the storage of a tensor");
    expect(given[1], Value::integer, "the offset of a tensor");
    expect(given[2], Value::tuple, "the shape of a tensor");
    expect(given[3], Value::tuple, "the strides of a tensor");
    expect(given[4], Value::boolean, "whether a tensor needs a gradient");
    expect(given[5], Value::dict, "the hooks of a tensor");
    if (given.size() > 6 && given[6].kind != Value::none) {
      expect(given[6], Value::dict, "the marks of a tensor");
      if (!items(given[6]).empty()) fail("a tensor marked as conjugate or negative, a plain one expected");
    }
    push({Value::tensor, 0, static_cast<std::int64_t>(tensors_.size())});
    tensors_.push_back({storages_[static_cast<std::size_t>(given[0].number)], given[1].number, given[2], given[3]});
  }

  /// Pushes the storage that ('storage', class, key, device, count) names; its bytes are those of the entry data/KEY.
  void push_storage() {
    const Value id = pop();
    expect(id, Value::tuple, "what names a storage");
    const std::span<const Value> given = elements(id);
    if (given.size() != 5) fail("a storage is named by ", given.size(), " values, 5 expected");
    for (const std::size_t i : {0U, 2U, 3U}) expect(given[i], Value::string, "value ", i, " of what names a storage");
    expect(given[1], Value::global, "the class of a storage");
    expect(given[4], Value::integer, "the size of a storage");
    const TorchGlobal& type = global_of(given[1]);
    if (string_of(given[0]) != "storage" || type.does != TorchGlobal::storage)
      fail("a reference to ", in_quotes(string_of(given[0])), " of class ", type.name, ", a storage expected");
    const auto* const bytes = zip_.find(text(folder_, "data/", string_of(given[2])));
    if (bytes == nullptr) fail("no entry ", in_quotes(text("data/", string_of(given[2]))), " in the file");
    const std::size_t width = dtype_bytes(type.dtype);
    if (bytes->size() % width != 0 || !std::cmp_equal(bytes->size() / width, given[4].number))
      fail("a storage of ", given[4].number, " values of ", width, " bytes, but ",
           in_quotes(text("data/", string_of(given[2]))), " holds ", bytes->size(), " bytes");
    push({Value::storage, 0, static_cast<std::int64_t>(storages_.size())});
    storages_.push_back({type.dtype, *bytes});
  }

  /// Accepts the state of an object, which no tensor needs: an OrderedDict of module.state_dict() has the modules'
  /// versions.
  void build() {
    const Value state = pop();
    expect(state, Value::dict, "the state of an object");
    expect(top(), Value::dict, "what gets a state");
    if (items(state).size() > 1) fail("a dict with ", items(state).size(), " members, _metadata alone expected");
    for (const auto& [key, value] : items(state)) {
      expect(key, Value::string, "the name of a member");
      if (string_of(key) != "_metadata")
        fail("a dict with a member ", in_quotes(string_of(key)), ", _metadata expected");
    }
  }

  /// Takes the tensors of the state dict, which is the one value left on the stack.
  void take_state_dict() {
    const Value& whole = stack_.back();
    require(whole.kind == Value::dict, where_, ": holds ", whole.kind_text(),
            ", a state dict expected: a dict of names and tensors");
    for (const auto& [key, value] : items(whole)) {
      require(key.kind == Value::string, where_, ": holds a dict with ", key.kind_text(),
              " for a key, a string expected");
      const std::string name(string_of(key));
      require(name.size() <= TorchLimits::name_bytes, where_, ": ", in_quotes(name), " is a name of ", name.size(),
              " bytes, at most ", TorchLimits::name_bytes, " expected");
      require(value.kind == Value::tensor, where_, ": ", in_quotes(name), " is ", value.kind_text(),
              ", a tensor expected",
              value.kind == Value::dict ? ": a state dict within another is not read, save it alone" : "");
      require(tensors.size() < TorchLimits::tensors, where_, ": more than ", TorchLimits::tensors, " tensors");
      tensors.emplace_back(name, checked(name, tensors_[static_cast<std::size_t>(value.number)]));
    }
  }

  /// Returns the type, shape and bytes of a tensor, with strides if its values do not lie one after the other: it may
  /// be transposed, or a part of another one. Throws `Error` unless its values are apart and lie within its storage.
  TensorInfo checked(const std::string& name, const Tensor& tensor) const {
    const std::string start = text(where_, ": tensor ", in_quotes(name), " has ");
    const std::vector<Index> shape = extents(start, "shape", tensor.shape);
    const std::vector<Index> strides = extents(start, "strides", tensor.strides);
    require(shape.size() == strides.size(), start, "shape ", shape_text(shape), " but strides ", shape_text(strides));
    Index size = 0;
    require(checked_size(shape, size), start, "shape ", shape_text(shape), ", whose size is negative or overflows");
    const std::size_t width = dtype_bytes(tensor.storage.dtype);
    const auto held = static_cast<Index>(tensor.storage.bytes.size() / width);
    Index dense = 1, span = size > 0 ? 1 : 0;  // from the first value to the last
    bool is_dense = true;
    for (std::size_t d = shape.size(); d-- > 0 && size > 0; dense *= shape[d]) {
      if (shape[d] == 1) continue;
      is_dense = is_dense && strides[d] == dense;
      require(strides[d] >= 0 && strides[d] <= held, start, "strides ", shape_text(strides), ", 0 to ", held,
              " expected, as many as its storage holds");
      span =
          strides[d] > 0 && shape[d] - 1 > (held - span) / strides[d] ? held + 1 : span + (shape[d] - 1) * strides[d];
      if (span > held) break;
    }
    require(tensor.offset >= 0 && tensor.offset <= held && span <= held - tensor.offset, start, "shape ",
            shape_text(shape), is_dense ? "" : text(" and strides ", shape_text(strides)), " from value ",
            tensor.offset, " on, but its storage holds ", held, " values");
    require(size <= span, start, "shape ", shape_text(shape), " and strides ", shape_text(strides),
            ": its values overlap, save it after .contiguous()");
    TensorInfo out{tensor.storage.dtype, shape,
                   tensor.storage.bytes.subspan(static_cast<std::size_t>(tensor.offset) * width,
                                                static_cast<std::size_t>(span) * width)};
    if (!is_dense) out.strides = strides;
    return out;
  }
  /// Returns the integers of a tuple that is a shape or strides.
  std::vector<Index> extents(const std::string& start, std::string_view what, const Value& tuple) const {
    require(tuple.size <= TorchLimits::rank, start, tuple.size, " dimensions in its ", what, ", at most ",
            TorchLimits::rank, " expected");
    std::vector<Index> out;
    for (const Value& value : elements(tuple)) {
      require(value.kind == Value::integer, start, value.kind_text(), " in its ", what, ", integers expected");
      out.push_back(value.number);
    }
    return out;
  }

  const std::string& where_;
  const ZipDirectory& zip_;
  const std::string& folder_;
  std::span<const std::byte> bytes_;
  std::size_t at_ = 0, opcode_at_ = 0, values_ = 0;
  std::vector<Value> stack_, memo_, tuple_elements_;
  std::vector<std::size_t> marks_;  ///< sizes of the stack when the marks were set
  std::vector<std::vector<std::pair<Value, Value>>> dicts_;
  std::vector<Storage> storages_;
  std::vector<Tensor> tensors_;
};

}  // namespace detail

}  // namespace LACONIC_ABI
}  // namespace laconic
