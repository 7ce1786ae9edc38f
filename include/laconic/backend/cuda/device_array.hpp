// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/stream.hpp>

#include <cstddef>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Owns an array of numbers on a device.
template <class T>
class DeviceArray {
 public:
  /// Makes an empty array.
  DeviceArray() = default;
  /// Makes an array of `size` unspecified numbers on a stream's device. Allocates.
  DeviceArray(const Stream& stream, Index size)
      : data_(size > 0 ? static_cast<T*>(allocate(stream.device(), bytes_of(size))) : nullptr),
        size_(size),
        device_(stream.device()) {}
  DeviceArray(const DeviceArray&) = delete;
  /// Takes over the memory of the other, which is empty afterwards.
  DeviceArray(DeviceArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), device_(other.device_) {}
  /// Drops its memory and takes that of the other.
  DeviceArray& operator=(DeviceArray other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(device_, other.device_);
    return *this;
  }
  ~DeviceArray() {
    if (data_ != nullptr) release(device_, data_);
  }

  /// Returns the first number, on the device.
  T* data() const { return data_; }
  /// Returns how many numbers there are.
  Index size() const { return size_; }
  /// Returns their bytes.
  std::size_t bytes() const { return bytes_of(size_); }
  /// Says whether there are none.
  bool empty() const { return size_ == 0; }

 private:
  static std::size_t bytes_of(Index size) { return static_cast<std::size_t>(size) * sizeof(T); }

  T* data_ = nullptr;
  Index size_ = 0;
  int device_ = 0;
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
