// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <laconic/core/enum.hpp>
#include <laconic/core/extent.hpp>
#include <laconic/io/file.hpp>
#include <laconic/io/json.hpp>
#include <laconic/io/tensors.hpp>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// The safetensors format: 8 bytes N (unsigned, little endian), N bytes of JSON, then the contiguous bytes of the
// tensors. The header names each tensor: {"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
// and may hold {"__metadata__": {"text": "text"}}. Rules and limits are those of the Rust implementation
// (github.com/huggingface/safetensors).

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Lists the limits of a header.
struct SafetensorsLimits {
  static constexpr std::size_t header_bytes = 100'000'000,  ///< max bytes of JSON
      tensors = 1'000'000,                                  ///< max number of tensors
      rank = 8,                                             ///< max dimensions of a tensor
      name_bytes = 1024;                                    ///< max bytes of a name
};

/// Reads the header and checks everything that the file claims, so that using a tensor later needs no checks.
class SafetensorsHeader {
 public:
  /// Describes one tensor.
  struct Entry {
    std::string name;   ///< its name
    TensorInfo info;    ///< its type, shape and bytes
    std::size_t begin,  ///< first byte of the tensor in the data
        end;            ///< one past its last byte
  };

  /// Reads the header `json` of a file whose tensors are in `data`. Throws `Error`, naming `where`, for anything that
  /// the format does not allow.
  SafetensorsHeader(const std::string& where, std::string_view json, std::span<const std::byte> data)
      : where_(where), data_(data) {
    require(!json.empty() && json.front() == '{', where_,
            ": not a safetensors file: the header does not begin with '{'");
    parse_json(json, where_, [this](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
      return watch(depth, event, value);
    });
    check_layout();
  }

  std::vector<Entry> entries;                   ///< the tensors in the order of their bytes
  std::map<std::string, std::string> metadata;  ///< the texts of "__metadata__"

 private:
  using Event = nlohmann::json::parse_event_t;

  /// Takes each entry as soon as it is complete and drops its JSON, so that memory stays near the header's size.
  bool watch(int depth, Event event, nlohmann::json& value) {
    if (event == Event::key && depth == 1) {
      name_ = value.get<std::string>();
      values_ = 0;
      if (name_.size() > SafetensorsLimits::name_bytes)
        fail("has a name of ", name_.size(), " bytes, at most ", SafetensorsLimits::name_bytes, " expected");
      return true;
    }
    const bool metadata_entry = name_ == "__metadata__";
    if (event == Event::value && depth == 1 && metadata_entry && value.is_null()) return false;  // as good as none
    if ((event == Event::value || event == Event::array_start) && depth == 1) fail("is not a JSON object");
    if ((event == Event::value || event == Event::array_start || event == Event::object_start) && depth > 1 &&
        ++values_ > (metadata_entry ? 100'000u : 64u))
      fail("has too many values");
    if (event != Event::object_end || depth != 1) return true;
    if (metadata_entry)
      take_metadata(value);
    else
      take_tensor(value);
    return false;
  }

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw Error(text(where_, ": header entry ", in_quotes(name_), ' ', parts...));
  }

  void take_metadata(const nlohmann::json& value) {
    for (const auto& [key, member] : value.items()) {
      if (!member.is_string()) fail("has ", shown(member), " for ", in_quotes(key), ", a string expected");
      metadata[key] = member.get<std::string>();
    }
  }

  void take_tensor(const nlohmann::json& value) {
    for (const auto& [key, member] : value.items())
      if (key != "dtype" && key != "shape" && key != "data_offsets")
        fail("has an unknown key ", in_quotes(key), " (known: dtype, shape, data_offsets)");
    if (value.size() != 3) fail("must have dtype, shape and data_offsets");
    const auto& dtype = value["dtype"];
    const auto known = dtype.is_string() ? from_name<Dtype>(dtype.get_ref<const std::string&>()) : std::nullopt;
    if (!known) fail("has dtype ", shown(dtype), ", one of ", all_names<Dtype>(), " expected");

    const auto shape = numbers(value["shape"], "shape");
    const auto offsets = numbers(value["data_offsets"], "data_offsets");
    if (shape.size() > SafetensorsLimits::rank)
      fail("has ", shape.size(), " dimensions, at most ", SafetensorsLimits::rank, " expected");
    if (offsets.size() != 2) fail("has ", offsets.size(), " data_offsets, 2 expected");
    const Index begin = offsets[0], end = offsets[1];
    const bool ordered = begin >= 0 && begin <= end;
    if (!ordered || static_cast<std::size_t>(end) > data_.size())
      fail("has data_offsets [", begin, ", ", end, "], but the file holds ", data_.size(), " bytes of data",
           ordered ? ": it is cut short" : "");

    Index size = 0, bytes = 0;
    const auto width = static_cast<Index>(dtype_bytes(*known));
    if (!checked_size(shape, size) || !checked_size(std::array{size, width}, bytes))
      fail("has shape ", shape_text(shape), ", whose size is negative or overflows");
    if (bytes != end - begin)
      fail("has shape ", shape_text(shape), " and dtype ", to_name(*known), ", which is ", bytes,
           " bytes, but data_offsets [", begin, ", ", end, "], which is ", end - begin);

    require(entries.size() < SafetensorsLimits::tensors, where_, ": more than ", SafetensorsLimits::tensors,
            " tensors");
    const auto from = static_cast<std::size_t>(begin), to = static_cast<std::size_t>(end);
    entries.push_back({name_, {*known, shape, data_.subspan(from, to - from)}, from, to});
  }

  std::vector<Index> numbers(const nlohmann::json& value, std::string_view key) const {
    return read_value<std::vector<Index>>(value, {where_, text(name_, '.', key)});
  }

  /// Throws `Error` unless every byte of the data belongs to exactly one tensor: no gaps, no overlaps, nothing after
  /// the last.
  void check_layout() {
    std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    std::size_t expected = 0;
    for (const Entry& entry : entries) {
      require(entry.begin == expected, where_, ": tensor ", in_quotes(entry.name), " begins at byte ", entry.begin,
              " of the data, ", expected, " expected: tensors must lie end to end");
      expected = entry.end;
    }
    require(expected == data_.size(), where_, ": the tensors end at byte ", expected,
            " of the data, but the file holds ", data_.size(), " bytes of data");
  }

  const std::string& where_;
  std::span<const std::byte> data_;
  std::string name_;
  std::size_t values_ = 0;
};

}  // namespace detail

/// Opens the tensors of a safetensors file.
class SafetensorsFile : public Tensors {
 public:
  /// Maps the file and checks its header. Throws `Error` for anything that the format does not allow.
  explicit SafetensorsFile(const std::filesystem::path& path) : Tensors(path.string()) {
    const std::string& where = this->path();
    const auto bytes = map(path);
    require(bytes.size() >= 8, where, ": not a safetensors file: ", bytes.size(), " bytes, at least 8 expected");
    std::uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes.data(), 8);
    require(header_bytes <= detail::SafetensorsLimits::header_bytes, where, ": not a safetensors file: a header of ",
            header_bytes, " bytes, at most ", detail::SafetensorsLimits::header_bytes, " expected");
    require(header_bytes <= bytes.size() - 8, where, ": cut short: a header of ", header_bytes, " bytes, but only ",
            bytes.size() - 8, " follow");
    const auto n = static_cast<std::size_t>(header_bytes);
    const std::string_view json(reinterpret_cast<const char*>(bytes.data()) + 8, n);
    detail::SafetensorsHeader header(where, json, bytes.subspan(8 + n));
    metadata_ = std::move(header.metadata);
    for (auto& entry : header.entries) add(entry.name, std::move(entry.info));
  }

  /// Returns the texts that the file holds in addition to the tensors.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  std::map<std::string, std::string> metadata_;
};

/// Collects tensors and writes them as one safetensors file, whole or not at all. The values are borrowed until
/// `write`: only the header is built in memory.
class SafetensorsWriter {
 public:
  /// Texts to write in addition to the tensors.
  std::map<std::string, std::string> metadata;

  /// Adds a tensor of F32. Throws `Error` for a name given twice or reserved, and for a shape that is not that of the
  /// values.
  void add(std::string_view name, std::span<const Index> shape, std::span<const float> values) {
    add(name, Dtype::f32, shape, values.size(), std::as_bytes(values));
  }
  /// Adds a tensor of F64, with the errors of F32.
  void add(std::string_view name, std::span<const Index> shape, std::span<const double> values) {
    add(name, Dtype::f64, shape, values.size(), std::as_bytes(values));
  }

  /// Adds a tensor of BF16, with the errors of F32.
  void add(std::string_view name, std::span<const Index> shape, std::span<const Bf16> values) {
    add(name, Dtype::bf16, shape, values.size(), std::as_bytes(values));
  }
  /// Adds a tensor of I8, with the errors of F32.
  void add(std::string_view name, std::span<const Index> shape, std::span<const std::int8_t> values) {
    add(name, Dtype::i8, shape, values.size(), std::as_bytes(values));
  }

  /// Writes the file. Throws `Error` for texts that are not UTF-8, a header that could not be read back, and a failed
  /// write.
  void write(const std::filesystem::path& path) const {
    // As in the Rust implementation: wide types first, which keeps every tensor aligned; then by name.
    std::vector<const Tensor*> order;
    for (const auto& [name, tensor] : tensors_) order.push_back(&tensor);
    std::stable_sort(order.begin(), order.end(),
                     [](const Tensor* a, const Tensor* b) { return a->info.dtype > b->info.dtype; });

    std::string header = "{";
    std::size_t begin = 0;
    const auto member = [&](const std::string& key, const std::string& json) {
      if (header.size() > 1) header += ',';
      header += escaped(path, key);
      header += ':';
      header += json;
    };
    if (!metadata.empty()) {
      std::string texts;
      for (const auto& [key, value] : metadata)
        texts += text(texts.empty() ? "{" : ",", escaped(path, key), ':', escaped(path, value));
      member("__metadata__", texts + "}");
    }
    for (const Tensor* tensor : order) {
      const std::size_t end = begin + tensor->info.bytes.size();
      std::string shape;
      for (const Index extent : tensor->info.shape) shape += text(shape.empty() ? "" : ",", extent);
      member(tensor->name, text(R"({"dtype":")", to_name(tensor->info.dtype), R"(","shape":[)", shape,
                                R"(],"data_offsets":[)", begin, ',', end, "]}"));
      begin = end;
    }
    header += '}';
    header.append((8 - header.size() % 8) % 8, ' ');
    require(header.size() <= detail::SafetensorsLimits::header_bytes, path.string(), ": a header of ", header.size(),
            " bytes, at most ", detail::SafetensorsLimits::header_bytes, " can be read back");

    FileWriter file(path);
    const std::uint64_t header_bytes = header.size();
    file.write(std::as_bytes(std::span(&header_bytes, 1)));
    file.write(header);
    for (const Tensor* tensor : order) file.write(tensor->info.bytes);
    file.commit();
  }

 private:
  struct Tensor {
    std::string name;
    TensorInfo info;
  };

  void add(std::string_view name, Dtype dtype, std::span<const Index> shape, std::size_t count,
           std::span<const std::byte> bytes) {
    using Limits = detail::SafetensorsLimits;
    require(name != "__metadata__" && name.size() <= Limits::name_bytes, "safetensors: a tensor cannot be named ",
            detail::in_quotes(name));
    Index size = 0;
    require(
        shape.size() <= Limits::rank && detail::checked_size(shape, size) && static_cast<std::size_t>(size) == count,
        "safetensors: tensor ", detail::in_quotes(name), " has ", count, " values and shape ", shape_text(shape),
        "; as many values as the shape says and at most ", Limits::rank, " dimensions expected");
    Tensor tensor{std::string(name), {dtype, {shape.begin(), shape.end()}, bytes}};
    require(tensors_.emplace(tensor.name, tensor).second, "safetensors: tensor ", detail::in_quotes(name),
            " added twice");
  }

  static std::string escaped(const std::filesystem::path& path, const std::string& word) {
    try {
      return nlohmann::json(word).dump();
    } catch (const nlohmann::json::exception&) {
      throw Error(text(path.string(), ": cannot write: ", detail::in_quotes(word), " is not valid UTF-8"));
    }
  }

  std::map<std::string, Tensor> tensors_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
