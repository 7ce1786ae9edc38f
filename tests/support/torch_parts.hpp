// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Makes the parts of a torch.save file for tests: the instructions of a pickle, and the zip file around it.

namespace parts {

template <class T>
std::string number(T value) {
  std::string out(sizeof(T), '\0');
  std::memcpy(out.data(), &value, sizeof(T));
  return out;
}

inline std::string integer(std::int32_t value) { return "J" + number(value); }
inline std::string long_integer(std::int64_t value) { return "\x8a\x08" + number(value); }
inline std::string string(std::string_view value) {
  return "X" + number(static_cast<std::uint32_t>(value.size())) + std::string(value);
}
inline std::string global(std::string_view module, std::string_view name) {
  return "c" + std::string(module) + "\n" + std::string(name) + "\n";
}
inline std::string tuple(std::initializer_list<std::int64_t> values) {
  std::string out = "(";
  for (const std::int64_t value : values) out += long_integer(value);
  return out + "t";
}

inline const std::string ordered_dict = global("collections", "OrderedDict") + ")R";

/// Returns the pickle of a storage of `count` values in the entry data/KEY.
inline std::string storage(std::int64_t count, std::string_view type = "FloatStorage", std::string_view key = "0") {
  return "(" + string("storage") + global("torch", type) + string(key) + string("cpu") + long_integer(count) + "tQ";
}
inline std::string tensor(const std::string& of_storage, std::int64_t offset, std::initializer_list<std::int64_t> shape,
                          std::initializer_list<std::int64_t> strides) {
  return global("torch._utils", "_rebuild_tensor_v2") + "(" + of_storage + long_integer(offset) + tuple(shape) +
         tuple(strides) + "\x89" + ordered_dict + "tR";
}
/// Holds the pickle of three elements of a storage of six.
inline const std::string three = tensor(storage(6), 0, {3}, {1});

inline std::string program(const std::string& instructions) { return "\x80\x02" + instructions + "."; }
inline std::string dict(std::initializer_list<std::pair<std::string_view, std::string>> items) {
  std::string out = "}(";
  for (const auto& [name, value] : items) out += string(name) + value;
  return out + "u";
}

using Entries = std::vector<std::pair<std::string, std::string>>;

/// Returns a zip file of stored entries. With `zip64`, every size and offset that can be is in the 64-bit fields.
inline std::string zip(const Entries& entries, bool zip64 = false) {
  using U16 = std::uint16_t;
  using U32 = std::uint32_t;
  using U64 = std::uint64_t;
  const U32 unfit = 0xffffffff;
  std::string out, directory;
  for (const auto& [name, bytes] : entries) {
    const auto size = static_cast<U32>(bytes.size()), at = static_cast<U32>(out.size());
    const std::string sizes = zip64 ? number(unfit) + number(unfit) : number(size) + number(size);
    const std::string padding = number(U16{0x4246}) + number(U16{3}) + "ZZZ";  // as torch.save aligns its data
    const std::string extra =
        number(U16{1}) + number(U16{24}) + number(U64{size}) + number(U64{size}) + number(U64{at});
    const std::string start = number(U16{0}) + number(U16{0}) + std::string(8, '\0');  // flags, method, time, checksum
    out += "PK\3\4" + number(U16{45}) + start + sizes + number(static_cast<U16>(name.size())) +
           number(static_cast<U16>(padding.size())) + name + padding + bytes;
    directory += "PK\1\2" + number(U16{45}) + number(U16{45}) + start + sizes + number(static_cast<U16>(name.size())) +
                 number(static_cast<U16>(padding.size() + (zip64 ? extra.size() : 0))) + std::string(10, '\0') +
                 number(zip64 ? unfit : at) + name + padding + (zip64 ? extra : "");
  }
  const auto begin = static_cast<U32>(out.size()), size = static_cast<U32>(directory.size());
  out += directory;
  const auto count = static_cast<U16>(entries.size());
  if (zip64)
    out += "PK\6\6" + number(U64{44}) + std::string(12, '\0') + number(U64{count}) + number(U64{count}) +
           number(U64{size}) + number(U64{begin}) + "PK\6\7" + std::string(4, '\0') + number(U64{begin} + size) +
           number(U32{1});
  return out + "PK\5\6" + std::string(4, '\0') + number(count) + number(count) + number(zip64 ? unfit : size) +
         number(zip64 ? unfit : begin) + std::string(2, '\0');
}

/// Returns the entries of a file with this pickle and one storage of 24 bytes, which holds 0, 1, 2, 3, 4, 5 in single
/// precision.
inline Entries entries(const std::string& pickle) {
  std::string data;
  for (int i = 0; i < 6; ++i) data += number(static_cast<float>(i));
  return {{"m/data.pkl", pickle}, {"m/byteorder", "little"}, {"m/data/0", data}, {"m/version", "3\n"}};
}
inline std::string file(const std::string& pickle) { return zip(entries(pickle)); }

}  // namespace parts
