// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <cstddef>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// What the CUDA backend asks of a device: memory, copies, and a stream of work. This file and block.hpp are the only
// ones that know the compiler:
// - nvcc compiles all of the backend.
// - With LACONIC_CUDA_COMPILED, which laconic::cuda defines, any compiler uses what nvcc compiled into that library.
// - With LACONIC_CUDA_EMULATED, memory and kernels are those of the host: every kernel is tested where no GPU is.
#if defined(LACONIC_CUDA_EMULATED)
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

/// Stands for a stream of work on a device. Emulated work is done when it is given.
class Stream {
 public:
  /// Makes a stream on the device of this number. Throws `Error` unless it is 0.
  explicit Stream(std::optional<int> device) {
    require(!device || *device == 0, "Cuda: device ", device.value_or(0), " given, 0 expected (emulated)");
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  /// Copies bytes of the host to the device. The memory of the host may be reused at once.
  void to_device(void* to, const void* from, std::size_t bytes) const { copy(to, from, bytes); }
  /// Copies bytes of the device to the host, and waits for them.
  void to_host(void* to, const void* from, std::size_t bytes) const { copy(to, from, bytes); }
  /// Copies bytes within the device. The ranges must not overlap.
  void copy(void* to, const void* from, std::size_t bytes) const {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  /// Sets bytes of the device to zero.
  void zero(void* to, std::size_t bytes) const {
    if (bytes > 0) std::memset(to, 0, bytes);
  }
  /// Waits until all work is done.
  void wait() const {}
  /// Waits until all work of all streams of the device is done.
  void wait_for_all() const {}
  /// Returns the number of the device.
  static constexpr int device() { return 0; }
};

/// Makes a device the current one of this thread, until it ends.
class Current {
 public:
  /// Throws `Error` unless the device is 0.
  explicit Current(int device) { Stream stream(device); }
};

/// Returns the GPUs of this machine: one, which is emulated.
inline std::vector<GpuInfo> gpus() { return {{"emulated GPU", 0, 0, 0}}; }

/// Returns memory of a device. Throws std::bad_alloc.
inline void* allocate(int, std::size_t bytes) {
  void* memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
/// Frees memory of `allocate`.
inline void release(int, void* memory) { std::free(memory); }

#else

/// Throws `Error` with the call, and what it was for, unless it succeeded.
template <class... What>
void check(cudaError_t status, const char* call, const What&... what) {
  if (status != cudaSuccess) [[unlikely]]
    throw Error(text("Cuda: ", call, " failed", what..., ": ", cudaGetErrorString(status)));
}

/// Owns a stream of work on a device, which each of its calls makes the current one of the calling thread.
class Stream {
 public:
  /// Makes a stream on the device of this number; without a number, on the current one. Throws `Error` if there is
  /// none.
  explicit Stream(std::optional<int> device) {
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
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    cudaStreamSynchronize(stream_);
    cudaFreeHost(staging_);
    cudaStreamDestroy(stream_);
  }
  /// Copies bytes of the host to the device. The memory of the host may be reused at once: few bytes are copied aside
  /// first, many are waited for.
  void to_device(void* to, const void* from, std::size_t bytes) const {
    if (bytes == 0) return;
    use();
    if (bytes > staging_bytes / 4) {
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
  /// Copies bytes of the device to the host, and waits for them.
  void to_host(void* to, const void* from, std::size_t bytes) const {
    use();
    if (bytes > 0) copy(to, from, bytes, cudaMemcpyDeviceToHost);
    wait();
  }
  /// Copies bytes within the device. The ranges must not overlap.
  void copy(void* to, const void* from, std::size_t bytes) const {
    use();
    if (bytes > 0) copy(to, from, bytes, cudaMemcpyDeviceToDevice);
  }
  /// Sets bytes of the device to zero.
  void zero(void* to, std::size_t bytes) const {
    use();
    if (bytes > 0) check(cudaMemsetAsync(to, 0, bytes, stream_), "cudaMemsetAsync", " for ", bytes, " bytes");
  }
  /// Waits until all work is done. Throws `Error` if a kernel failed.
  void wait() const {
    use();
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }
  /// Waits until all work of all streams of the device is done.
  void wait_for_all() const {
    use();
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  /// Makes the device the current one of this thread.
  void use() const { check(cudaSetDevice(device_), "cudaSetDevice", " for device ", device_); }
  /// Returns the number of the device.
  int device() const { return device_; }
  /// Returns CUDA's own handle.
  cudaStream_t handle() const { return stream_; }

 private:
  static constexpr std::size_t staging_bytes = std::size_t{4} << 20;

  void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) const {
    check(cudaMemcpyAsync(to, from, bytes, kind, stream_), "cudaMemcpyAsync", " for ", bytes, " bytes");
  }

  int device_ = 0;
  cudaStream_t stream_ = nullptr;
  void* staging_ = nullptr;  // memory of the host that the device reads by itself
  // Bytes of it that the device may not have read yet. Only `to_device` changes them, which the context alone calls:
  // other threads may wait for a stream that holds their weights.
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
inline void release(int, void* memory) { cudaFree(memory); }

#endif

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
