// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/linear.hpp>
#include <laconic/backend/cuda/device_array.hpp>
#include <laconic/backend/cuda/kernels/stored_rows.hpp>
#include <laconic/core/parameter.hpp>

#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

// The form in which a GPU holds a weight: row-major, as on the host. A rounded weight of a linear layer has 2 bytes or
// 1 for each value.

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds a weight that is resident in `Cuda`.
template <class T>
class CudaWeight final : public ResidentWeight, public std::enable_shared_from_this<CudaWeight<T>> {
 public:
  /// Holds values. If `trains` is true, they can change and have a gradient, which is made when it is first asked for.
  CudaWeight(std::shared_ptr<const cuda::Stream> on, cuda::DeviceArray<T> values, cuda::DeviceArray<T> gradient_values,
             bool trains, Storage storage)
      : ResidentWeight(&tag),
        stream(std::move(on)),
        value(std::move(values)),
        gradient(std::move(gradient_values)),
        storage_(storage),
        trains_(trains) {}
  /// Holds a rounded matrix (rows, cols), which cannot change, as `cuda::StoredRows` lays it out.
  CudaWeight(std::shared_ptr<const cuda::Stream> on, cuda::DeviceArray<std::byte> bytes, Storage storage)
      : ResidentWeight(&tag), stream(std::move(on)), rounded(std::move(bytes)), storage_(storage) {}

  /// Returns the GPU's form of a resident parameter. Throws `Error` if another backend holds it, or this one with
  /// another scalar type.
  static CudaWeight& of(const Parameter<T>& p) {
    require(p.is_resident(), "weight: one on the host given, one resident in Cuda expected (prepare)");
    ResidentWeight& weight = *p.resident();
    require(weight.kind() == &tag, "weight: one resident in ", weight.backend(), " given, one of this Cuda expected");
    return static_cast<CudaWeight&>(weight);
  }

  /// Returns the name of the backend.
  const char* backend() const override { return "Cuda"; }
  /// Returns how the values were rounded.
  Storage storage() const override { return storage_; }
  /// Returns whether the values can change.
  bool can_train() const override { return trains_; }
  /// Returns a copy if the values can change, and otherwise this weight itself.
  std::shared_ptr<ResidentWeight> copy() const override {
    if (!trains_) return std::const_pointer_cast<CudaWeight>(this->shared_from_this());  // never written
    return std::make_shared<CudaWeight>(stream, copied(value), copied(gradient), true, storage_);
  }

  /// Names a form of the values for tensor cores: the bytes of an element, and the rows and the depth of a product.
  struct PackedForm {
    std::size_t element_bytes;  ///< 2 for bf16, 4 for TF32
    Index rows, depth;          ///< rows of all batches, and elements of a row
    bool by_rows;               ///< whether these rows run along those of the matrix, or along its columns
    /// Says whether two are the same.
    friend bool operator==(const PackedForm&, const PackedForm&) = default;
  };
  /// Returns the values in a form: those of an earlier call, or what fill(memory) writes to `bytes` bytes of the device
  /// and waits for. Allocates, the first time. Several threads may call it. The values must not change.
  template <class Fill>
  const void* packed(const PackedForm& form, std::size_t bytes, const Fill& fill) const {
    const std::lock_guard lock(packing_);
    for (const auto& [existing, memory] : packed_)
      if (existing == form) return memory.data();
    cuda::DeviceArray<std::byte> memory(*stream, static_cast<Index>(bytes));
    fill(memory.data());
    return packed_.emplace_back(form, std::move(memory)).second.data();
  }

  const std::shared_ptr<const cuda::Stream> stream;  ///< orders what changes the values
  const cuda::DeviceArray<std::byte> rounded{};      ///< the rounded values of a matrix; otherwise empty
  cuda::DeviceArray<T> value{};                      ///< the values, on the device, if they are not in `rounded`
  cuda::DeviceArray<T> gradient{};                   ///< the gradient, once it was used; otherwise empty

 private:
  cuda::DeviceArray<T> copied(const cuda::DeviceArray<T>& from) const {
    cuda::DeviceArray<T> to(*stream, from.size());
    stream->wait_for_all();  // another stream may have written the values
    stream->copy(to.data(), from.data(), from.bytes());
    stream->wait();  // another stream may read the copy
    return to;
  }

  static constexpr char tag = 0;
  mutable std::mutex packing_{};
  mutable std::vector<std::pair<PackedForm, cuda::DeviceArray<std::byte>>> packed_{};
  Storage storage_ = Storage::full;
  bool trains_ = false;
};

namespace cuda {

/// Returns the values of a parameter, row-major (rows, cols), on the device. Throws `Error` if they are not there, or
/// rounded. A parameter without elements has none.
template <class T>
const T* values_of(const Parameter<T>& p) {
  if (p.size() == 0) return nullptr;
  const CudaWeight<T>& weight = CudaWeight<T>::of(p);
  require(weight.rounded.empty(), "weight: one that is rounded to ", to_name(weight.storage()),
          " for products given (prepare), one in full expected");
  return weight.value.data();
}
/// Returns the rows of a matrix, rounded or not, on the device. Throws `Error` if they are not there.
template <class T>
StoredRows<T> rows_of(const Parameter<T>& p) {
  if (p.size() == 0) return {Storage::full, p.cols()};
  const CudaWeight<T>& weight = CudaWeight<T>::of(p);
  if (weight.rounded.empty()) return {Storage::full, p.cols(), reinterpret_cast<std::byte*>(weight.value.data())};
  return StoredRows<T>::in(weight.rounded.data(), weight.storage(), p.rows(), p.cols());
}
/// Returns the values of a parameter that may be null.
template <class T>
const T* values_of(const Parameter<T>* p) {
  return p == nullptr ? nullptr : values_of(*p);
}
/// Returns the values of a parameter, to be changed. Throws `Error` if they were prepared to run.
template <class T>
T* editable_values_of(Parameter<T>& p) {
  CudaWeight<T>& weight = CudaWeight<T>::of(p);
  require(p.can_train(), "weight: one prepared to run given, one that can be trained expected");
  return weight.value.data();
}
/// Returns the gradient of a parameter (rows, cols), zeroed in the first call, or null if the parameter is frozen. The
/// first call allocates. Throws `Error` if the parameter was prepared to run.
template <class T>
T* gradient_of(const Parameter<T>& p) {
  if (!p.trainable) return nullptr;
  CudaWeight<T>& weight = CudaWeight<T>::of(p);
  require(p.can_train(), "weight: one prepared to run given, one that can be trained expected");
  if (weight.gradient.empty()) {
    weight.gradient = DeviceArray<T>(*weight.stream, p.size());
    weight.stream->zero(weight.gradient.data(), weight.gradient.bytes());
    weight.stream->wait();  // another stream may add to it
  }
  return weight.gradient.data();
}
/// Returns the gradient of a parameter, or null if it has none yet.
template <class T>
T* existing_gradient_of(const Parameter<T>& p) {
  return p.size() == 0 ? nullptr : CudaWeight<T>::of(p).gradient.data();
}

/// Makes a parameter of the host resident, rounded as `storage` says if products read it, or with its gradient if it
/// trains. Allocates. Throws `Error` if a parameter is to be rounded and not of float.
template <class T>
void make_resident(const std::shared_ptr<const Stream>& stream, Parameter<T>& p, bool trains, Storage storage) {
  checks::prepare<T>(storage);
  DeviceArray<T> value(*stream, p.size()), gradient(*stream, trains && p.has_gradient() ? p.size() : 0);
  stream->to_device(value.data(), p.host().data(), value.bytes());
  if (!gradient.empty()) stream->to_device(gradient.data(), p.gradient().data(), gradient.bytes());
  const Storage form = is_rounded(p, storage) ? storage : Storage::full;
  if (form != Storage::full) {
    DeviceArray<std::byte> rounded(*stream, p.rows() * cache_row_bytes(form, p.cols(), sizeof(T)));
    const auto rows = StoredRows<T>::in(rounded.data(), form, p.rows(), p.cols());
    launch(*stream, "prepare", {p.rows()}, StoreRows<T>{value.data(), rows});
    if (p.use == WeightUse::linear) {
      stream->wait();
      return p.make_resident(std::make_shared<CudaWeight<T>>(stream, std::move(rounded), form));
    }
    // Kernels of convolutions read plain numbers: they get the rounded ones.
    for_each(*stream, "prepare", p.size(), LoadRows<T>{rows, nullptr, value.data()});
    stream->wait();  // the rounded ones are freed
  }
  stream->wait();
  p.make_resident(std::make_shared<CudaWeight<T>>(stream, std::move(value), std::move(gradient), trains, form));
}
/// Moves the values of a parameter back to the host, and its gradient if it has one. Rounded values stay rounded.
/// Allocates.
template <class T>
void fetch_weight(Parameter<T>& p) {
  if (!p.is_resident()) return;
  const CudaWeight<T>& weight = CudaWeight<T>::of(p);
  Matrix<T> values(p.rows(), p.cols()), gradient;
  weight.stream->wait_for_all();  // another stream may have changed them
  DeviceArray<T> widened(*weight.stream, weight.rounded.empty() ? 0 : p.size());
  if (!widened.empty()) for_each(*weight.stream, "fetch", p.size(), LoadRows<T>{rows_of(p), nullptr, widened.data()});
  const DeviceArray<T>& from = widened.empty() ? weight.value : widened;
  weight.stream->to_host(values.data(), from.data(), from.bytes());
  if (!weight.gradient.empty()) {
    gradient.resize(p.rows(), p.cols());
    weight.stream->to_host(gradient.data(), weight.gradient.data(), weight.gradient.bytes());
  }
  p.make_host(std::move(values), std::move(gradient));
}

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
