// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/core/parallel.hpp>
#include <laconic/recognition/recognizer/context.hpp>
#include <laconic/recognition/recognizer/inline.hpp>

#include <charconv>

// The devices that a recogniser can compute on.

namespace laconic {
inline namespace LACONIC_ABI {

LACONIC_RECOGNIZER_INLINE bool has_cuda() { return LACONIC_RECOGNIZER_CUDA == 1; }

LACONIC_RECOGNIZER_INLINE std::vector<DeviceInfo> devices() {
  std::vector<DeviceInfo> all{{{}, text(hardware_threads(), " threads"), 0}};
#if LACONIC_RECOGNIZER_CUDA
  for (const cuda::GpuInfo& gpu : cuda::gpus())
    all.push_back({{.gpu = static_cast<int>(all.size()) - 1},
                   text(gpu.name, ", compute capability ", gpu.major, '.', gpu.minor),
                   gpu.memory_bytes});
#endif
  return all;
}

LACONIC_RECOGNIZER_INLINE std::string Device::name() const {
  if (!gpu) return "cpu";
  return precision == ProductPrecision::full ? text("cuda:", *gpu) : text("cuda:", *gpu, ',', to_name(precision));
}

LACONIC_RECOGNIZER_INLINE Device Device::named(std::string_view given) {
  const std::size_t comma = given.find(',');
  const std::string_view name = given.substr(0, comma);
  auto precision = ProductPrecision::full;
  if (comma != std::string_view::npos) {
    const std::string_view asked = given.substr(comma + 1);
    const auto found = from_name<ProductPrecision>(asked);
    require(found.has_value(), "device: '", given, "' given, one of ", all_names<ProductPrecision>(),
            " expected after the comma");
    precision = *found;
  }
  if (name == "cpu") {
    require(precision == ProductPrecision::full, "device: '", given,
            "' given, cpu expected: the processor does not round products");
    return {};
  }
  const auto gpus = static_cast<int>(devices().size()) - 1;
  if (name == "auto") return gpus > 0 ? Device{0, precision} : Device{};
  const bool is_cuda = name == "cuda", has_number = name.starts_with("cuda:");
  int number = 0;
  if (has_number) {
    const char* const end = name.data() + name.size();
    const auto [after, error] = std::from_chars(name.data() + 5, end, number);
    require(error == std::errc() && after == end, "device: '", given, "' given, cuda and a number expected: cuda:0");
  }
  require(is_cuda || has_number, "device: '", given, "' given, cpu, cuda, cuda:N or auto expected");
  require(has_cuda(), "device: ", name,
          " given to a library that was built without CUDA (-DLACONIC_CUDA=ON builds it in)");
  require(
      gpus > 0, "device: ", name,
      " given, but CUDA finds no GPU: there is none, or its driver is missing or older than CUDA's runtime library");
  require(number >= 0 && number < gpus, "device: ", name, " given, cuda:0 to cuda:", gpus - 1, " expected");
  return {number, precision};
}

}  // namespace LACONIC_ABI
}  // namespace laconic
