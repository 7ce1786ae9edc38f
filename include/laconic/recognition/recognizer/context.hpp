// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu.hpp>
#include <laconic/recognition/device.hpp>
#include <laconic/recognition/recognizer.hpp>

#include <memory>
#include <utility>

#if defined(LACONIC_CUDA_COMPILED) || defined(LACONIC_CUDA_EMULATED)
#define LACONIC_RECOGNIZER_CUDA 1  // this build computes on GPUs, too
#include <laconic/backend/cuda.hpp>
#else
#define LACONIC_RECOGNIZER_CUDA 0
#endif

// The contexts that Recognizer computes with: one on the processor, and one on a GPU where the build has that backend.

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the context that a workspace computes with.
struct Workspace::Context {
  Device device;   ///< the device that models run on
  Cpu<float> cpu;  ///< threads and memory of the host
#if LACONIC_RECOGNIZER_CUDA
  std::unique_ptr<Cuda<float>> gpu;  ///< the GPU's, if the device is one
#endif

  /// Makes a context on a device, with so many threads of the processor. Throws `Error` for a GPU that is not there.
  Context(const Device& on, int threads) : device(on), cpu(threads) {
#if LACONIC_RECOGNIZER_CUDA
    if (!device.gpu) return;
    const cuda::Current current(*device.gpu);
    gpu = std::make_unique<Cuda<float>>(gpu_of(device));
#else
    require(!device.gpu, "device: ", device.name(), " given to a library that was built without CUDA");
#endif
  }

#if LACONIC_RECOGNIZER_CUDA
  /// Returns how contexts compute on a device, which is a GPU.
  static CudaDevice gpu_of(const Device& on) { return {*on.gpu, on.precision}; }
#endif
  /// Returns f(context) with the context of the device.
  template <class F>
  decltype(auto) visit(F&& f) {
#if LACONIC_RECOGNIZER_CUDA
    if (gpu) {
      const cuda::Current current(*device.gpu);
      return f(*gpu);
    }
#endif
    return f(cpu);
  }
  /// Returns the max bytes that tensors have taken at once, on the device.
  std::size_t peak_bytes() {
#if LACONIC_RECOGNIZER_CUDA
    if (gpu) return gpu->device_arena().peak_bytes();
#endif
    return cpu.arena().peak_bytes();
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
