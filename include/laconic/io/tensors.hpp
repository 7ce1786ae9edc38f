// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <laconic/core/enum.hpp>
#include <laconic/core/extent.hpp>
#include <laconic/core/rounding.hpp>
#include <laconic/io/file.hpp>
#include <laconic/io/json.hpp>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

// Tensors by name, from files of any format that laconic reads. A format is a class that derives from `Tensors` and
// fills it in its constructor: SafetensorsFile, TorchFile, ShardedTensors.

namespace laconic {
inline namespace LACONIC_ABI {

static_assert(std::endian::native == std::endian::little,
              "laconic: model files are little endian, and so must the machine be");

/// Names the element types of tensors in files, as safetensors spells them; wider types come later.
enum class Dtype { boolean, u8, i8, f8_e5m2, f8_e4m3, i16, u16, f16, bf16, i32, u32, f32, f64, i64, u64 };

/// Names the values of Dtype.
constexpr auto enum_names(Dtype) {
  using enum Dtype;
  return std::to_array<EnumName<Dtype>>({{boolean, "BOOL"},
                                         {u8, "U8"},
                                         {i8, "I8"},
                                         {f8_e5m2, "F8_E5M2"},
                                         {f8_e4m3, "F8_E4M3"},
                                         {i16, "I16"},
                                         {u16, "U16"},
                                         {f16, "F16"},
                                         {bf16, "BF16"},
                                         {i32, "I32"},
                                         {u32, "U32"},
                                         {f32, "F32"},
                                         {f64, "F64"},
                                         {i64, "I64"},
                                         {u64, "U64"}});
}

/// Returns the number of bytes of an element.
constexpr std::size_t dtype_bytes(Dtype dtype) {
  return dtype >= Dtype::f64 ? 8 : dtype >= Dtype::i32 ? 4 : dtype >= Dtype::i16 ? 2 : 1;
}

/// Returns a shape for messages: "(2, 3)".
inline std::string shape_text(std::span<const Index> shape) {
  std::string out = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) out += text(i > 0 ? ", " : "", shape[i]);
  return out + ")";
}

/// Describes a tensor in a file.
struct TensorInfo {
  Dtype dtype;                       ///< element type
  std::vector<Index> shape;          ///< dimensions
  std::span<const std::byte> bytes;  ///< the elements in the mapped file, unaligned
  std::vector<Index> strides{};      ///< elements from one index of a dimension to the next; empty: those of the shape
};

namespace detail {

/// Computes the number of elements of a shape. Returns false if an extent is negative or the product overflows.
inline bool checked_size(std::span<const Index> shape, Index& size) {
  size = 1;
  for (const Index extent : shape) {
    if (extent < 0 || (extent > 0 && size > std::numeric_limits<Index>::max() / extent)) return false;
    size *= extent;
  }
  return true;
}

/// Goes through the elements of a tensor with strides in the order of its shape and says where each lies.
class ElementPlaces {
 public:
  /// Begins at the first element. The tensor must outlive this object. Allocates.
  explicit ElementPlaces(const TensorInfo& tensor) : tensor_(tensor), at_(tensor.shape.size()) {}
  /// Returns the place of the current element, in elements, and goes on to the next.
  std::size_t next() {
    const std::size_t here = place_;
    for (std::size_t d = at_.size(); d-- > 0;) {
      const auto stride = static_cast<std::size_t>(tensor_.strides[d]);
      place_ += stride;
      if (++at_[d] < tensor_.shape[d]) break;
      place_ -= stride * static_cast<std::size_t>(std::exchange(at_[d], 0));
    }
    return here;
  }

 private:
  const TensorInfo& tensor_;
  std::vector<Index> at_;  // index in each dimension
  std::size_t place_ = 0;
};

/// Converts IEEE half precision to single, exactly.
inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  const std::uint32_t exponent = (half >> 10) & 31, fraction = half & 0x3ff;
  if (exponent == 0) {  // zero and subnormal: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  const std::uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

/// Returns up to five names for a message: "'a', 'b', 'c', 'd', 'e' and 7 more".
inline std::string some_names(const std::vector<std::string>& names) {
  std::string out;
  for (std::size_t i = 0; i < std::min<std::size_t>(5, names.size()); ++i)
    out += text(i > 0 ? ", " : "", in_quotes(names[i]));
  return names.size() > 5 ? text(out, " and ", names.size() - 5, " more") : out;
}

}  // namespace detail

/// Holds the tensors of one file or of several, memory-mapped and fully checked when opened. Opening throws `Error` for
/// anything that the format does not allow, so that what can be opened can be read. The bytes of a tensor come from the
/// disk only when they are touched.
class Tensors {
 public:
  /// Returns the path of the file, or of the index if there are several files.
  const std::string& path() const { return path_; }
  /// Returns the path of the file that holds a tensor. Throws `Error` if there is no tensor of that name.
  const std::string& path(std::string_view name) const { return files_[find(name).file].path; }
  /// Returns the names of the tensors in the order of the file.
  const std::vector<std::string>& names() const { return names_; }
  /// Returns the number of elements of all tensors together. If tensors share their bytes, it is at most the number of
  /// bytes.
  Index count_values() const {
    std::size_t count = 0, bytes = 0;
    for (const auto& [name, entry] : entries_) count = std::min(count + count_of(entry.info), std::size_t{1} << 62);
    for (const File& file : files_) bytes += file.map.bytes().size();
    return static_cast<Index>(std::min(count, bytes));
  }
  /// Says whether there is a tensor of that name.
  bool contains(std::string_view name) const { return entries_.contains(std::string(name)); }

  /// Returns the type, shape and bytes of a tensor. Throws `Error` if there is none of that name.
  const TensorInfo& info(std::string_view name) const { return find(name).info; }

  /// Copies a tensor of F32, F64, F16 or BF16 to `out`, converting to `T` (float or double), or a tensor of I8 whose
  /// rows have scales in a tensor of the same name with `scale_suffix`. Throws `Error` for other types, for a number of
  /// elements other than `out.size()`, and for a finite value too large for `T`. The pages that were read leave memory
  /// again, so that a model is not in memory twice while it is loaded.
  template <std::floating_point T>
  void read(std::string_view name, std::span<T> out) const {
    const TensorInfo& tensor = info(name);
    require(count_of(tensor) == out.size(), path(name), ": tensor ", detail::in_quotes(name), " has ", count_of(tensor),
            " values, ", out.size(), " expected");
    require_readable(name);
    switch (tensor.dtype) {
      case Dtype::f32:
        convert<float>(name, tensor, out, [](float x) { return x; });
        break;
      case Dtype::f64:
        convert<double>(name, tensor, out, [](double x) { return x; });
        break;
      case Dtype::f16:
        convert<std::uint16_t>(name, tensor, out, detail::half_to_float);
        break;
      case Dtype::bf16:
        convert<Bf16>(name, tensor, out, from_bf16);
        break;
      default: {
        const auto rows = static_cast<std::size_t>(tensor.shape[0]);
        std::vector<float> scales(rows);
        read(text(name, scale_suffix), std::span(scales));
        for (std::size_t i = 0; i < out.size(); ++i)
          out[i] = static_cast<T>(scales[i / (out.size() / rows)] *
                                  static_cast<float>(static_cast<std::int8_t>(tensor.bytes[i])));
      }
    }
    detail::release_pages(tensor.bytes);
  }

  static constexpr std::string_view scale_suffix = "_scale";  ///< ends the name of the scales of an I8 tensor

  /// Throws `Error` unless the tensor is of a type that `read` converts.
  void require_readable(std::string_view name) const {
    const TensorInfo& tensor = info(name);
    if (tensor.dtype == Dtype::i8 && contains(text(name, scale_suffix))) {
      const TensorInfo& scales = info(text(name, scale_suffix));
      require(!tensor.shape.empty() && tensor.strides.empty() && scales.dtype == Dtype::f32 &&
                  scales.shape == std::vector{tensor.shape[0]},
              path(name), ": tensor ", detail::in_quotes(name), " of shape ", shape_text(tensor.shape),
              " has scales of dtype ", to_name(scales.dtype), " and shape ", shape_text(scales.shape),
              ", F32 and one for each row expected");
      return;
    }
    require(tensor.dtype == Dtype::f32 || tensor.dtype == Dtype::f64 || tensor.dtype == Dtype::f16 ||
                tensor.dtype == Dtype::bf16,
            path(name), ": tensor ", detail::in_quotes(name), " has dtype ", to_name(tensor.dtype),
            ", one of F32, F64, F16, BF16 expected, or I8 with scales");
  }

 protected:
  /// Makes an empty set of tensors, which `path` names in messages.
  explicit Tensors(std::string path) : path_(std::move(path)) {}

  /// Maps a file, keeps it and returns its bytes. Tensors added next belong to it.
  std::span<const std::byte> map(const std::filesystem::path& path) {
    files_.push_back({path.string(), MappedFile(path)});
    return files_.back().map.bytes();
  }
  /// Adds a tensor of the file mapped last. Throws `Error` if there is one of that name already.
  void add(const std::string& name, TensorInfo info) {
    require(entries_.emplace(name, Entry{std::move(info), files_.size() - 1}).second, files_.back().path, ": tensor ",
            detail::in_quotes(name), " appears twice");
    names_.push_back(name);
  }
  /// Takes over all tensors of another set, with its files. Throws `Error` for a name that both have.
  void add(Tensors other) {
    const std::size_t before = files_.size();
    for (File& file : other.files_) files_.push_back(std::move(file));
    for (const std::string& name : other.names_) {
      Entry& entry = other.entries_.at(name);
      entry.file += before;
      require(entries_.emplace(name, std::move(entry)).second, other.path_, ": tensor ", detail::in_quotes(name),
              " is also in another file of ", path_);
      names_.push_back(name);
    }
  }

 private:
  struct File {
    std::string path;
    MappedFile map;
  };
  struct Entry {
    TensorInfo info;
    std::size_t file;
  };

  /// Returns the number of elements of a tensor.
  static std::size_t count_of(const TensorInfo& tensor) {
    Index size = 0;
    detail::checked_size(tensor.shape, size);
    return static_cast<std::size_t>(size);
  }

  /// Returns the entry of a tensor. Throws `Error` if there is none of that name.
  const Entry& find(std::string_view name) const {
    const auto found = entries_.find(std::string(name));
    require(found != entries_.end(), path_, ": no tensor ", detail::in_quotes(name));
    return found->second;
  }

  /// Converts the elements of a tensor, stored as `Stored`, to `T`. Throws `Error` for a finite value too large for
  /// `T`.
  template <class Stored, class T, class Decode>
  void convert(std::string_view name, const TensorInfo& tensor, std::span<T> out, Decode&& decode) const {
    const auto take = [&](std::size_t i, std::size_t place) {
      Stored stored;
      std::memcpy(&stored, tensor.bytes.data() + place * sizeof(Stored), sizeof(Stored));  // the bytes may be unaligned
      const auto value = decode(stored);
      if constexpr (sizeof(value) > sizeof(T))
        if (std::isfinite(value) && std::abs(value) > std::numeric_limits<T>::max())
          throw Error(text(path(name), ": tensor ", detail::in_quotes(name), " holds ", value,
                           ", too large for single precision"));
      out[i] = static_cast<T>(value);
    };
    detail::ElementPlaces places(tensor);
    for (std::size_t i = 0; i < out.size(); ++i) take(i, tensor.strides.empty() ? i : places.next());
  }

  std::string path_;
  std::vector<File> files_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, Entry> entries_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
