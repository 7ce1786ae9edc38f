// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/rounding.hpp>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Names what a recogniser computes on: the processor, or a GPU.
struct Device {
  std::optional<int> gpu{};                             ///< number of the GPU, from 0; empty: the processor
  ProductPrecision precision = ProductPrecision::full;  ///< how a GPU rounds the operands of products

  /// Returns the device that `cpu`, `cuda`, `cuda:N` or `auto` names; `auto` is the first GPU if there is one, and
  /// otherwise the processor. A precision may follow, which is that of a GPU: `cuda,bf16`, `cuda:1,tf32`. Throws
  /// `Error` for any other name, and for a GPU that this machine or this build of the library does not have.
  static Device named(std::string_view name);
  /// Returns the name: "cpu", "cuda:0" or "cuda:0,bf16".
  std::string name() const;
  /// Says whether two are the same.
  friend bool operator==(const Device&, const Device&) = default;
};

/// Describes a device.
struct DeviceInfo {
  Device device;               ///< the device
  std::string description;     ///< number of threads, or name of the card
  std::size_t memory_bytes{};  ///< memory of a GPU; 0 for the processor
};

/// Returns the processor, and the GPUs that this build of the library can compute on.
std::vector<DeviceInfo> devices();
/// Says whether the library was built with its CUDA backend.
bool has_cuda();

}  // namespace LACONIC_ABI
}  // namespace laconic
