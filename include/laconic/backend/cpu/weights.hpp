// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/linear.hpp>
#include <laconic/backend/cpu/kernels/convolution.hpp>
#include <laconic/backend/cpu/kernels/packed_gemm.hpp>
#include <laconic/backend/cpu/kernels/winograd_conv2d.hpp>
#include <laconic/core/compiled.hpp>
#include <laconic/core/memory.hpp>
#include <laconic/core/parameter.hpp>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>

// The forms in which the CPU holds a weight: how each is made, found by the kernels, and read back.

namespace laconic {
inline namespace LACONIC_ABI {

/// Names the forms of a weight on the CPU.
enum class WeightForm {
  plain,   ///< row-major, as on the host
  panels,  ///< W^T in panels, for rows times W^T
  taps,    ///< a convolution's weight ordered (out, taps, in), transposed, in panels
  tiles    ///< the components of a Winograd convolution (kernels/winograd_conv2d.hpp) in panels
};

/// Holds a weight that is resident in `Cpu`.
template <class T>
class CpuWeight final : public ResidentWeight, public std::enable_shared_from_this<CpuWeight<T>> {
 public:
  /// Holds the values unpacked. If `trains` is true, they can change and have a gradient, which is made when it is
  /// first asked for.
  CpuWeight(Matrix<T> values, Matrix<T> gradient_values, bool trains)
      : ResidentWeight(&tag), value(std::move(values)), gradient(std::move(gradient_values)), trains_(trains) {}
  /// Holds a packed weight, which cannot change.
  CpuWeight(WeightForm weight_form, Storage weight_storage, std::shared_ptr<const std::byte> memory)
      : ResidentWeight(&tag), form(weight_form), data(std::move(memory)), storage_(weight_storage) {}

  /// Returns the CPU's form of a resident parameter. Throws `Error` if another backend holds it, or this one with
  /// another scalar type.
  static CpuWeight& of(const Parameter<T>& p) {
    ResidentWeight& weight = *p.resident();
    require(weight.kind() == &tag, "weight: one resident in ", weight.backend(), " given, one of this Cpu expected");
    return static_cast<CpuWeight&>(weight);
  }

  /// Returns the name of the backend.
  const char* backend() const override { return "Cpu"; }
  /// Returns how the values are stored.
  Storage storage() const override { return storage_; }
  /// Returns whether the values can change.
  bool can_train() const override { return trains_; }
  /// Returns a copy if the values can change, and otherwise this weight itself.
  std::shared_ptr<ResidentWeight> copy() const override {
    if (trains_) return std::make_shared<CpuWeight>(value, gradient, true);
    return std::const_pointer_cast<CpuWeight>(this->shared_from_this());  // never written
  }

  const WeightForm form = WeightForm::plain;      ///< the form of the values
  const std::shared_ptr<const std::byte> data{};  ///< the packed values; null in plain form
  Matrix<T> value{};                              ///< the values in plain form; otherwise empty
  Matrix<T> gradient{};                           ///< the gradient in plain form, once it was used; otherwise empty

 private:
  static constexpr char tag = 0;
  Storage storage_ = Storage::full;
  bool trains_ = false;
};

namespace kernels {

/// Returns the values of a parameter, row-major (rows, cols). Throws `Error` if they are packed.
template <class T>
const T* values_of(const Parameter<T>& p) {
  if (!p.is_resident()) return p.host().data();
  const CpuWeight<T>& weight = CpuWeight<T>::of(p);
  require(weight.form == WeightForm::plain,
          "weight: one that is packed for products given (prepare), one as it is on the host expected");
  return weight.value.data();
}
/// Returns the values of a parameter, to be changed. Throws `Error` if they were prepared to run.
template <class T>
T* editable_values_of(Parameter<T>& p) {
  if (!p.is_resident()) return p.host().data();
  require(p.can_train(), "weight: one prepared to run given, one that can be trained expected");
  return CpuWeight<T>::of(p).value.data();
}
/// Returns the gradient of a parameter (rows, cols), zeroed in the first call, or null if the parameter is frozen.
/// Throws `Error` if the parameter was prepared to run.
template <class T>
T* gradient_of(const Parameter<T>& p) {
  if (!p.trainable) return nullptr;
  if (!p.is_resident()) return p.gradient().data();
  require(p.can_train(), "weight: one prepared to run given, one that can be trained expected");
  CpuWeight<T>& weight = CpuWeight<T>::of(p);
  if (weight.gradient.size() == 0) weight.gradient.setZero(p.rows(), p.cols());
  return weight.gradient.data();
}
/// Returns the gradient of a parameter, or null if it has none yet.
template <class T>
Matrix<T>* existing_gradient_of(const Parameter<T>& p) {
  if (!p.is_resident()) return p.has_gradient() ? &p.gradient() : nullptr;
  Matrix<T>& gradient = CpuWeight<T>::of(p).gradient;
  return gradient.size() > 0 ? &gradient : nullptr;
}
/// Returns the packed form of a parameter, or null if its values are unpacked.
template <class T>
const CpuWeight<T>* packed_form_of(const Parameter<T>& p) {
  if (!p.is_resident()) return nullptr;
  const CpuWeight<T>& weight = CpuWeight<T>::of(p);
  return weight.form == WeightForm::plain ? nullptr : &weight;
}

/// Copies row ids[r] of a weight (vocabulary, channels), packed for products or not, to row r of `to`. Parallel over
/// rows; no allocation. Throws `Error` for the packed weight of a convolution.
template <class T>
void gather_rows(int threads, const Parameter<T>& p, std::span<const int> ids, T* to) {
  const CpuWeight<T>* packed = packed_form_of(p);
  require(packed == nullptr || packed->form == WeightForm::panels,
          "embed: the packed weight of a convolution given, a matrix expected");
  const T* values = packed == nullptr ? values_of(p) : nullptr;
  const Index cols = p.cols();
  parallel_blocks(threads, static_cast<Index>(ids.size()), 16, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const Index id = ids[static_cast<std::size_t>(r)];
      if (packed == nullptr)
        std::copy_n(values + id * cols, cols, to + r * cols);
      else
        unpack_row(PackedWeight{packed->storage(), packed->data.get()}, p.rows(), cols, id, to + r * cols);
    }
  });
}

/// Allocates memory for the weights of a model end to end, in blocks of large pages. Each piece keeps its block alive.
class WeightMemory {
 public:
  /// Returns `bytes` of memory, aligned to 64 bytes and uninitialised. Allocates.
  std::shared_ptr<std::byte> take(Index bytes) {
    constexpr Index line = laconic::detail::line_bytes;
    const Index rounded = (bytes + line - 1) / line * line;
    if (2 * rounded > block_) return allocate(rounded);
    if (left_ < rounded) {
      next_ = allocate(block_);
      left_ = block_;
      block_ = std::min<Index>(2 * block_, 32 << 20);
    }
    left_ -= rounded;
    std::shared_ptr<std::byte> piece = next_;
    next_ = {piece, piece.get() + rounded};
    return piece;
  }

 private:
  static std::shared_ptr<std::byte> allocate(Index bytes) {
    const auto size = static_cast<std::size_t>(bytes);
    return {static_cast<std::byte*>(laconic::detail::allocate_aligned(size)),
            [size](std::byte* p) { laconic::detail::free_aligned(p, size); }};
  }

  std::shared_ptr<std::byte> next_{};
  Index left_ = 0, block_ = laconic::detail::large_page_bytes;  // bytes left in this block, and bytes of the next
};

/// Makes a parameter resident in the form that its use is computed fastest in, rounded as `storage` says if products
/// read it. Allocates. Throws `Error` if a parameter is to be rounded and not of float.
template <class T>
void prepare_weight(WeightMemory& memory, int threads, Storage storage, Parameter<T>& p) {
  checks::prepare<T>(storage);
  if (p.use == WeightUse::elementwise || p.use == WeightUse::heads || p.size() == 0)
    return p.make_resident(std::make_shared<CpuWeight<T>>(std::move(p.host()), Matrix<T>(), false));
  const Index out = p.rows(), in = p.shape()[1], taps = p.cols() / in;
  // The patches of a convolution are rounded to bytes only if products of whole numbers are fast.
  const bool stays = storage == Storage::int8 && p.use != WeightUse::linear && !LACONIC_WHOLE_PRODUCTS;
  const Storage form = is_rounded(p, storage) && !stays ? storage : Storage::full;
  const Conv2dShape shape{in, out, 0};
  if (p.use == WeightUse::conv2d_stride_2 && is_tiled(shape) && form == Storage::full) {
    Matrix<T> components(ConvTiles::all * in, out);
    tile_weights(threads, shape, p.host().data(), components.data());
    const auto data = memory.take(tile_panels_size<T>(shape) * static_cast<Index>(sizeof(T)));
    pack_tile_weights(threads, shape, components.data(), reinterpret_cast<T*>(data.get()));
    return p.make_resident(std::make_shared<CpuWeight<T>>(WeightForm::tiles, form, data));
  }
  Matrix<T> ordered;
  if (taps > 1) {
    ordered.resize(p.rows(), p.cols());
    reorder_taps(out, in, taps, p.host().data(), ordered.data());
    p.host().swap(ordered);
  }
  const auto data = memory.take(PackedLayout{form, out, p.cols()}.bytes(sizeof(T)));
  pack_weight(threads, form, out, p.cols(), p.host().data(), data.get());
  const WeightForm weight_form = p.use == WeightUse::linear ? WeightForm::panels : WeightForm::taps;
  p.make_resident(std::make_shared<CpuWeight<T>>(weight_form, form, data));
}

/// Moves the values of a parameter back to the host, and its gradient if it has one. Rounded values stay rounded.
/// Allocates.
template <class T>
void fetch_weight(Parameter<T>& p) {
  if (!p.is_resident()) return;
  CpuWeight<T>& weight = CpuWeight<T>::of(p);
  const Index out = p.rows(), in = p.shape().size() > 1 ? p.shape()[1] : p.cols(), taps = in > 0 ? p.cols() / in : 0;
  if (weight.form == WeightForm::plain) {
    if (weight.can_train()) return p.make_host(std::move(weight.value), std::move(weight.gradient));
    return p.make_host(weight.value);  // copies of the model may share it
  }
  Matrix<T> values(p.rows(), p.cols());
  if (weight.form == WeightForm::tiles) {
    untile_weights({in, out, 0}, reinterpret_cast<const T*>(weight.data.get()), values.data());
  } else if (weight.form == WeightForm::taps) {
    Matrix<T> ordered(p.rows(), p.cols());
    unpack_weight(PackedWeight{weight.storage(), weight.data.get()}, out, p.cols(), ordered.data());
    restore_taps(out, in, taps, ordered.data(), values.data());
  } else {
    unpack_weight(PackedWeight{weight.storage(), weight.data.get()}, out, in, values.data());
  }
  p.make_host(std::move(values));
}

LACONIC_COMPILE(gather_rows);
LACONIC_COMPILE(prepare_weight);
LACONIC_COMPILE(fetch_weight);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
