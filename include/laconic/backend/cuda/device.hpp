// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/work.hpp>
#include <laconic/core/extent.hpp>

#include <cstddef>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

// What the CUDA backend asks of a device: memory, and a queue of work. This file, graph.hpp, block.hpp with its halves,
// macros.hpp and tensor_cores.hpp are the only ones that know the compiler:
// - nvcc compiles all of the backend.
// - With LACONIC_CUDA_COMPILED, which laconic::cuda defines, any compiler uses what nvcc compiled into that library.
// - With LACONIC_CUDA_EMULATED, memory and kernels are those of the host: every kernel is tested where no GPU is.
#if defined(LACONIC_CUDA_EMULATED)
#include <laconic/backend/cuda/emulation.hpp>

#include <array>
#include <atomic>
#include <cstdlib>
#include <new>
#elif defined(__CUDACC__) || defined(LACONIC_CUDA_COMPILED)
#include <cuda_runtime.h>
#else
#error "laconic: backend/cuda.hpp is compiled by nvcc, or used from the library laconic::cuda, which nvcc compiles"
#include <laconic_cuda>
#endif

/// LACONIC_COMPILE_CUDA_CLASS(name), after a class template, says that laconic::cuda holds the members of name<float>
/// and name<double>. Its sources define LACONIC_CUDA_NUMBER, the type that they compile for.
#if defined(LACONIC_CUDA_NUMBER)
#define LACONIC_COMPILE_CUDA_CLASS(name) template class name<LACONIC_CUDA_NUMBER>
#elif defined(LACONIC_CUDA_COMPILED)
#define LACONIC_COMPILE_CUDA_CLASS(name) \
  extern template class name<float>;     \
  extern template class name<double>
#else
#define LACONIC_COMPILE_CUDA_CLASS(name) static_assert(true)
#endif

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Describes a GPU.
struct GpuInfo {
  std::string name;          ///< name of the card
  std::size_t memory_bytes;  ///< its memory
  int major, minor;          ///< its compute capability
};

#if defined(LACONIC_CUDA_EMULATED)

/// Counts what a program has asked a device to do.
struct WorkCounts {
  Index kernels = 0;   ///< kernels that were started, but for those of graphs
  Index uploads = 0;   ///< copies from the host
  Index copies = 0;    ///< copies within the device
  Index zeroings = 0;  ///< zeroings of its memory
};

/// Does work. It is not inlined, where compilers would warn of payloads that work without one does not have.
[[gnu::noinline]] inline void do_emulated(const Work& work, const std::byte* payload) {
  switch (work.kind) {
    case Work::Kind::kernel:
      return reinterpret_cast<EmulatedKernel>(work.function)(payload, work.grid, work.shared_bytes);
    case Work::Kind::upload:
      std::memcpy(work.to, payload, work.bytes);
      return;
    case Work::Kind::copy:
      std::memcpy(work.to, work.from, work.bytes);
      return;
    case Work::Kind::zero:
      std::memset(work.to, 0, work.bytes);
      return;
  }
}

/// Stands for a queue of work on a device. Emulated work is done when it is given.
class DeviceQueue {
 public:
  /// Makes a queue on the device of this number. Throws `Error` unless it is 0.
  explicit DeviceQueue(std::optional<int> device) {
    require(!device || *device == 0, "Cuda: device ", device.value_or(0), " given, 0 expected (emulated)");
  }
  DeviceQueue(const DeviceQueue&) = delete;
  DeviceQueue& operator=(const DeviceQueue&) = delete;
  /// Gives work to the device. Its payload may be reused at once.
  void start(const Work& work, const void* payload) const {
    static constexpr std::array counters{&Counters::kernels, &Counters::uploads, &Counters::copies,
                                         &Counters::zeroings};
    (counts_.*counters[static_cast<std::size_t>(work.kind)]).fetch_add(1, std::memory_order_relaxed);
    do_emulated(work, static_cast<const std::byte*>(payload));
  }
  /// Copies bytes of the device to the host, and waits for them.
  void to_host(void* to, const void* from, std::size_t bytes) const {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  /// Waits until all work is done.
  void wait() const {}
  /// Waits until all work of all queues of the device is done.
  void wait_for_all() const {}
  /// Says whether an upload of so many bytes is not waited for.
  static constexpr bool is_staged(std::size_t bytes) { return bytes <= std::size_t{1} << 20; }
  /// Returns the number of the device.
  static constexpr int device() { return 0; }
  /// Returns what was given to the device.
  WorkCounts counts() const { return {counts_.kernels, counts_.uploads, counts_.copies, counts_.zeroings}; }

 private:
  struct Counters {
    std::atomic<Index> kernels{0}, uploads{0}, copies{0}, zeroings{0};
  };
  mutable Counters counts_{};
};

/// Makes a device the current one of this thread, until it ends.
class Current {
 public:
  /// Throws `Error` unless the device is 0.
  explicit Current(int device) { DeviceQueue queue(device); }
};

/// Returns the GPUs of this machine: one, which is emulated.
inline std::vector<GpuInfo> gpus() { return {{"emulated GPU", 0, 0, 0}}; }

/// Returns memory of a device. Throws std::bad_alloc.
inline void* allocate(int, std::size_t bytes) {
  void* memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  if (auto* observer = kernel_observer()) observer->on_allocation(memory, bytes);
  return memory;
}
/// Frees memory of `allocate`.
inline void free_memory(int, void* memory) {
  if (auto* observer = kernel_observer()) observer->on_release(memory);
  std::free(memory);
}

#else

/// Throws `Error` with the call, and what it was for, unless it succeeded.
template <class... What>
void check(cudaError_t status, const char* call, const What&... what) {
  if (status != cudaSuccess) [[unlikely]]
    throw Error(text("Cuda: ", call, " failed", what..., ": ", cudaGetErrorString(status)));
}

/// Returns a grid as CUDA takes it.
inline dim3 dim_of(Grid grid) { return dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y)); }

/// Owns a queue of work on a device, a stream of CUDA. Each of its calls makes the device the current one of the
/// calling thread.
class DeviceQueue {
 public:
  /// Makes a queue on the device of this number; without a number, on the current one. Throws `Error` if there is none.
  explicit DeviceQueue(std::optional<int> device) {
    int count = 0;
    const cudaError_t found = cudaGetDeviceCount(&count);
    require(found != cudaErrorInsufficientDriver,
            "Cuda: no driver of a GPU found, or one that is older than CUDA's runtime library expects");
    require(found == cudaSuccess && count > 0,
            "Cuda: no device found: ", found == cudaSuccess ? "none is installed" : cudaGetErrorString(found));
    check(cudaGetDevice(&device_), "cudaGetDevice");
    device_ = device.value_or(device_);
    require(device_ >= 0 && device_ < count, "Cuda: device ", device_, " given, 0 to ", count - 1, " expected");
    use();
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    const cudaError_t staged = cudaMallocHost(&staging_, staging_bytes);
    if (staged != cudaSuccess) cudaStreamDestroy(stream_);
    check(staged, "cudaMallocHost", " of ", staging_bytes, " bytes");
  }
  DeviceQueue(const DeviceQueue&) = delete;
  DeviceQueue& operator=(const DeviceQueue&) = delete;
  ~DeviceQueue() {
    cudaStreamSynchronize(stream_);
    cudaFreeHost(staging_);
    cudaStreamDestroy(stream_);
  }
  /// Gives work to the device. Its payload may be reused at once: few bytes are copied aside first, many are waited
  /// for.
  void start(const Work& work, const void* payload) const {
    use();
    switch (work.kind) {
      case Work::Kind::kernel:
        return launch(work, payload);
      case Work::Kind::upload:
        return upload(work.to, payload, work.bytes);
      case Work::Kind::copy:
        return copy(work.to, work.from, work.bytes, cudaMemcpyDeviceToDevice);
      case Work::Kind::zero:
        return check(cudaMemsetAsync(work.to, 0, work.bytes, stream_), "cudaMemsetAsync", " for ", work.bytes,
                     " bytes");
    }
  }
  /// Copies bytes of the device to the host, and waits for them.
  void to_host(void* to, const void* from, std::size_t bytes) const {
    use();
    if (bytes > 0) copy(to, from, bytes, cudaMemcpyDeviceToHost);
    wait();
  }
  /// Waits until all work is done. Throws `Error` if a kernel failed.
  void wait() const {
    use();
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }
  /// Waits until all work of all queues of the device is done.
  void wait_for_all() const {
    use();
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  /// Says whether an upload of so many bytes is not waited for.
  static constexpr bool is_staged(std::size_t bytes) { return bytes <= staging_bytes / 4; }
  /// Makes the device the current one of this thread.
  void use() const { check(cudaSetDevice(device_), "cudaSetDevice", " for device ", device_); }
  /// Returns the number of the device.
  int device() const { return device_; }
  /// Returns CUDA's own handle.
  cudaStream_t handle() const { return stream_; }

 private:
  static constexpr std::size_t staging_bytes = std::size_t{4} << 20;

  void launch(const Work& work, const void* payload) const {
    void* arguments[] = {const_cast<void*>(payload)};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(work.function), dim_of(work.grid),
                           dim3(static_cast<unsigned>(work.threads)), arguments, work.shared_bytes, stream_),
          "cudaLaunchKernel", " for ", work.name, " with (", work.grid.x, ", ", work.grid.y, ") blocks of ",
          work.threads, " threads");
  }
  // Not inlined, where compilers would warn of payloads that work without one does not have.
  [[gnu::noinline]] void upload(void* to, const void* from, std::size_t bytes) const {
    if (!is_staged(bytes)) {
      copy(to, from, bytes, cudaMemcpyHostToDevice);
      return wait();
    }
    if (staged_ + bytes > staging_bytes) {
      wait();  // until what was copied aside has been read
      staged_ = 0;
    }
    void* const aside = static_cast<std::byte*>(staging_) + staged_;
    std::memcpy(aside, from, bytes);
    staged_ += (bytes + 63) / 64 * 64;
    copy(to, aside, bytes, cudaMemcpyHostToDevice);
  }
  void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) const {
    check(cudaMemcpyAsync(to, from, bytes, kind, stream_), "cudaMemcpyAsync", " for ", bytes, " bytes");
  }

  int device_ = 0;
  cudaStream_t stream_ = nullptr;
  void* staging_ = nullptr;  // memory of the host that the device reads by itself
  // Bytes of it that the device may not have read yet. Only uploads change them, which the context alone gives: other
  // threads may wait for a stream that holds their weights.
  mutable std::size_t staged_ = 0;
};

/// Makes a device the current one of this thread, and the one before it again on destruction.
class Current {
 public:
  /// Throws `Error` if there is no such device.
  explicit Current(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice", " for device ", device);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  ~Current() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

/// Returns the GPUs of this machine; none if there is no driver, or one that is older than CUDA's runtime library
/// expects, which CUDA does not tell apart. Throws `Error` for any other failure.
inline std::vector<GpuInfo> gpus() {
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found == cudaErrorNoDevice || found == cudaErrorInsufficientDriver) {
    cudaGetLastError();  // forgets the error
    return {};
  }
  check(found, "cudaGetDeviceCount");
  std::vector<GpuInfo> all;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp card{};
    check(cudaGetDeviceProperties(&card, i), "cudaGetDeviceProperties", " of device ", i);
    all.push_back({card.name, card.totalGlobalMem, card.major, card.minor});
  }
  return all;
}

/// Returns memory of a device, which becomes the current one of this thread. Throws `Error` that says how much there
/// is.
inline void* allocate(int device, std::size_t bytes) {
  void* memory = nullptr;
  check(cudaSetDevice(device), "cudaSetDevice", " for device ", device);
  if (cudaMalloc(&memory, bytes) == cudaSuccess) return memory;
  cudaGetLastError();  // forgets the error, so that the next call does not report it
  std::size_t unused = 0, all = 0;
  check(cudaMemGetInfo(&unused, &all), "cudaMemGetInfo");
  throw Error(text("Cuda: ", bytes, " bytes of memory asked for, ", unused, " of ", all, " are free"));
}
/// Frees memory of `allocate`, once the device has done all work that was given before.
inline void free_memory(int, void* memory) { cudaFree(memory); }

#endif

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
