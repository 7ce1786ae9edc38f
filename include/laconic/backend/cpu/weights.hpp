// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/convolution.hpp>
#include <laconic/backend/cpu/kernels/packed_gemm.hpp>
#include <laconic/backend/cpu/kernels/winograd_conv2d.hpp>
#include <laconic/core/memory.hpp>
#include <laconic/core/parameter.hpp>

#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

// Every form in which the CPU holds a weight: how it is made, found by the kernels, and read back.

namespace laconic {
inline namespace LACONIC_ABI {

/// The forms of a weight on the CPU.
enum class WeightForm {
  plain,   ///< as on the host, row-major
  panels,  ///< W^T in panels, for rows times W^T
  taps,    ///< a convolution's weight with its taps in order, then as panels
  tiles    ///< the components of a convolution by tiles (kernels/winograd_conv2d.hpp), as panels
};

/// A weight that `Cpu` holds.
template <class T>
class CpuWeight final : public ResidentWeight, public std::enable_shared_from_this<CpuWeight<T>> {
 public:
  /// Holds the values as they are. Where `trains`, they can change, and have a gradient once one was asked for.
  CpuWeight(Matrix<T> values, Matrix<T> gradient_values, bool trains)
      : ResidentWeight(&tag), value(std::move(values)), gradient(std::move(gradient_values)), trains_(trains) {}
  /// Holds a packed weight.
  CpuWeight(WeightForm weight_form, Storage weight_storage, std::shared_ptr<const std::byte> memory)
      : ResidentWeight(&tag), form(weight_form), data(std::move(memory)), storage_(weight_storage) {}

  /// Returns the CPU's form of a resident parameter. Throws `Error` where another backend, or one of another scalar
  /// type, holds it.
  static CpuWeight& of(const Parameter<T>& p) {
    ResidentWeight& weight = *p.resident();
    require(weight.kind() == &tag, "weight: one resident in ", weight.backend(), " given, one of this Cpu expected");
    return static_cast<CpuWeight&>(weight);
  }

  const char* backend() const override { return "Cpu"; }
  Storage storage() const override { return storage_; }
  bool can_train() const override { return trains_; }
  std::shared_ptr<ResidentWeight> copy() const override {
    if (trains_) return std::make_shared<CpuWeight>(value, gradient, true);
    return std::const_pointer_cast<CpuWeight>(this->shared_from_this());  // never written
  }

  const WeightForm form = WeightForm::plain;
  const std::shared_ptr<const std::byte> data{};  ///< of a packed form
  Matrix<T> value{}, gradient{};                  ///< of the plain form

 private:
  static constexpr char tag = 0;
  Storage storage_ = Storage::full;
  bool trains_ = false;
};

namespace kernels {

/// Returns the values of a parameter, row-major (rows, cols). Throws `Error` where they are packed.
template <class T>
const T* values_of(const Parameter<T>& p) {
  if (!p.is_resident()) return p.host().data();
  const CpuWeight<T>& weight = CpuWeight<T>::of(p);
  require(weight.form == WeightForm::plain,
          "weight: one that is packed for products given (prepare), one as it is on the host expected");
  return weight.value.data();
}
/// Returns the values of a parameter that can be changed.
template <class T>
T* editable_values_of(Parameter<T>& p) {
  if (!p.is_resident()) return p.host().data();
  require(p.can_train(), "weight: one prepared to run given, one that can be trained expected");
  return CpuWeight<T>::of(p).value.data();
}
/// Returns the gradient of a parameter, zeroed when it is asked for the first time, or null where it is frozen.
template <class T>
T* gradient_of(const Parameter<T>& p) {
  if (!p.trainable) return nullptr;
  if (!p.is_resident()) return p.gradient().data();
  require(p.can_train(), "weight: one prepared to run given, one that can be trained expected");
  CpuWeight<T>& weight = CpuWeight<T>::of(p);
  if (weight.gradient.size() == 0) weight.gradient.setZero(p.rows(), p.cols());
  return weight.gradient.data();
}
/// Returns the gradient of a parameter as a matrix, or null where none was asked for yet.
template <class T>
Matrix<T>* existing_gradient_of(const Parameter<T>& p) {
  if (!p.is_resident()) return p.has_gradient() ? &p.gradient() : nullptr;
  Matrix<T>& gradient = CpuWeight<T>::of(p).gradient;
  return gradient.size() > 0 ? &gradient : nullptr;
}
/// Returns the packed form of a parameter, or null where its values are as on the host.
template <class T>
const CpuWeight<T>* packed_form_of(const Parameter<T>& p) {
  if (!p.is_resident()) return nullptr;
  const CpuWeight<T>& weight = CpuWeight<T>::of(p);
  return weight.form == WeightForm::plain ? nullptr : &weight;
}

/// Memory for the weights of a model, end to end in blocks of large pages. Each piece keeps the block that it lies in.
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
  Index left_ = 0, block_ = laconic::detail::large_page_bytes;  // the size of the next
};

/// Makes a parameter resident in the form that its use is computed in fastest, rounded as `storage` says where products
/// read it. Allocates.
template <class T>
void prepare_weight(WeightMemory& memory, int threads, Storage storage, Parameter<T>& p) {
  require(storage == Storage::full || std::is_same_v<T, float>, "prepare: ", to_name(storage),
          " given for a model that is not of float");
  if (p.use == WeightUse::elementwise || p.use == WeightUse::heads || p.size() == 0)
    return p.make_resident(std::make_shared<CpuWeight<T>>(std::move(p.host()), Matrix<T>(), false));
  const Index out = p.rows(), in = p.shape()[1], taps = p.cols() / in;
  // Patches of a convolution are rounded as rows of bytes only where that makes them faster.
  const bool stays = storage == Storage::int8 && p.use != WeightUse::linear && !LACONIC_VNNI;
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

/// Brings the values of a parameter back to the host, and its gradient if it has one. Values that were rounded stay so.
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

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
