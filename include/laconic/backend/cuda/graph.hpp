// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/device.hpp>

#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

#if defined(LACONIC_CUDA_EMULATED)

/// Stands for a CUDA graph. It does the work from its own copy of addresses and arguments, as a graph of a GPU does.
class Graph {
 public:
  /// Makes a graph of a list. Allocates.
  static std::unique_ptr<Graph> make(const DeviceQueue&, const WorkList& list) {
    return std::unique_ptr<Graph>(new Graph(list));
  }
  /// Says whether the graph can do the work of a list.
  bool has_shape_of(const WorkList& list) const { return list_.has_shape_of(list); }
  /// Does the work of a list of the graph's shape. Returns the number of nodes that had to be changed.
  Index launch(const DeviceQueue&, const WorkList& list) {
    Index changed = 0;
    for (std::size_t i = 0; i < list.size(); ++i)
      if (!list_.is_equal(i, list)) {
        ++changed;
        nodes_[i] = {list[i], {list.payload(i), list.payload(i) + payload_bytes(list[i])}};
      }
    list_ = list;
    staging_ = list.uploads();
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      const Node& node = nodes_[i];
      const bool uploads = node.work.kind == Work::Kind::upload;
      do_emulated(node.work, uploads ? staging_.data() + list_.upload_at(i) : node.arguments.data());
    }
    return changed;
  }

 private:
  struct Node {
    Work work;
    std::vector<std::byte> arguments;  // of a kernel
  };
  explicit Graph(const WorkList& list) : list_(list) {
    for (std::size_t i = 0; i < list.size(); ++i)
      nodes_.push_back({list[i], {list.payload(i), list.payload(i) + payload_bytes(list[i])}});
  }
  static std::size_t payload_bytes(const Work& work) { return work.kind == Work::Kind::kernel ? work.bytes : 0; }

  WorkList list_;
  std::vector<Node> nodes_{};
  std::vector<std::byte> staging_{};
};

#else

/// Owns a CUDA graph: a chain of kernels, copies and zeroings that one call starts. What it uploads is in memory of the
/// host at a place of its own, which is written before each launch.
class Graph {
 public:
  /// Makes a graph of a list. Allocates. Throws `Error` if the device has no memory for it.
  static std::unique_ptr<Graph> make(const DeviceQueue& queue, const WorkList& list) {
    std::unique_ptr<Graph> out(new Graph(list));  // frees what it has if a call fails
    queue.use();
    check(cudaEventCreateWithFlags(&out->done_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    if (!list.uploads().empty())
      check(cudaMallocHost(&out->staging_, list.uploads().size()), "cudaMallocHost", " of ", list.uploads().size(),
            " bytes");
    check(cudaGraphCreate(&out->graph_, 0), "cudaGraphCreate");
    for (std::size_t i = 0; i < list.size(); ++i) out->add(list, i);
    check(cudaGraphInstantiateWithFlags(&out->executable_, out->graph_, 0), "cudaGraphInstantiateWithFlags", " for ",
          list.size(), " nodes");
    return out;
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  /// Waits for the last launch.
  ~Graph() {
    if (done_ != nullptr) cudaEventSynchronize(done_);
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
    if (staging_ != nullptr) cudaFreeHost(staging_);
    if (done_ != nullptr) cudaEventDestroy(done_);
  }

  /// Says whether the graph can do the work of a list.
  bool has_shape_of(const WorkList& list) const { return list_.has_shape_of(list); }
  /// Does the work of a list of the graph's shape. Returns the number of nodes that had to be changed. Throws `Error`
  /// if a call fails; the graph cannot be used then.
  Index launch(const DeviceQueue& queue, const WorkList& list) {
    queue.use();
    check(cudaEventSynchronize(done_), "cudaEventSynchronize");  // the last launch reads what it uploads
    if (!list.uploads().empty()) std::memcpy(staging_, list.uploads().data(), list.uploads().size());
    Index changed = 0;
    for (std::size_t i = 0; i < list.size(); ++i)
      if (!list_.is_equal(i, list)) {
        change(list, i);
        ++changed;
      }
    if (changed > 0) list_ = list;
    check(cudaGraphLaunch(executable_, queue.handle()), "cudaGraphLaunch", " for ", list.size(), " nodes");
    check(cudaEventRecord(done_, queue.handle()), "cudaEventRecord");
    return changed;
  }

 private:
  explicit Graph(const WorkList& list) : list_(list), nodes_(list.size()) {}

  static cudaKernelNodeParams kernel_of(const Work& work, void** arguments) {
    cudaKernelNodeParams out{};
    out.func = reinterpret_cast<void*>(work.function);
    out.gridDim = dim_of(work.grid);
    out.blockDim = dim3(static_cast<unsigned>(work.threads));
    out.sharedMemBytes = static_cast<unsigned>(work.shared_bytes);
    out.kernelParams = arguments;
    return out;
  }
  static cudaMemsetParams zeros_of(const Work& work) {
    cudaMemsetParams out{};
    out.dst = work.to;
    out.elementSize = 1;
    out.width = work.bytes;
    out.height = 1;
    return out;
  }
  const void* source_of(const WorkList& list, std::size_t i) const {
    return list[i].kind == Work::Kind::upload ? static_cast<const std::byte*>(staging_) + list.upload_at(i)
                                              : list[i].from;
  }
  static cudaMemcpyKind direction_of(const Work& work) {
    return work.kind == Work::Kind::upload ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice;
  }

  /// Appends piece i to the chain.
  void add(const WorkList& list, std::size_t i) {
    const Work& work = list[i];
    const cudaGraphNode_t* before = i == 0 ? nullptr : &nodes_[i - 1];
    const std::size_t count = i == 0 ? 0 : 1;
    switch (work.kind) {
      case Work::Kind::kernel: {
        void* arguments[] = {const_cast<std::byte*>(list.payload(i))};
        const cudaKernelNodeParams kernel = kernel_of(work, arguments);
        return check(cudaGraphAddKernelNode(&nodes_[i], graph_, before, count, &kernel), "cudaGraphAddKernelNode",
                     " for ", work.name);
      }
      case Work::Kind::zero: {
        const cudaMemsetParams zeros = zeros_of(work);
        return check(cudaGraphAddMemsetNode(&nodes_[i], graph_, before, count, &zeros), "cudaGraphAddMemsetNode",
                     " for ", work.bytes, " bytes");
      }
      default:
        return check(cudaGraphAddMemcpyNode1D(&nodes_[i], graph_, before, count, work.to, source_of(list, i),
                                              work.bytes, direction_of(work)),
                     "cudaGraphAddMemcpyNode1D", " for ", work.bytes, " bytes");
    }
  }
  /// Gives node i the addresses and arguments of piece i.
  void change(const WorkList& list, std::size_t i) {
    const Work& work = list[i];
    switch (work.kind) {
      case Work::Kind::kernel: {
        void* arguments[] = {const_cast<std::byte*>(list.payload(i))};
        const cudaKernelNodeParams kernel = kernel_of(work, arguments);
        return check(cudaGraphExecKernelNodeSetParams(executable_, nodes_[i], &kernel),
                     "cudaGraphExecKernelNodeSetParams", " for ", work.name);
      }
      case Work::Kind::zero: {
        const cudaMemsetParams zeros = zeros_of(work);
        return check(cudaGraphExecMemsetNodeSetParams(executable_, nodes_[i], &zeros),
                     "cudaGraphExecMemsetNodeSetParams", " for ", work.bytes, " bytes");
      }
      default:
        return check(cudaGraphExecMemcpyNodeSetParams1D(executable_, nodes_[i], work.to, source_of(list, i), work.bytes,
                                                        direction_of(work)),
                     "cudaGraphExecMemcpyNodeSetParams1D", " for ", work.bytes, " bytes");
    }
  }

  WorkList list_;  // what the nodes do now
  std::vector<cudaGraphNode_t> nodes_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
  void* staging_ = nullptr;     // what is uploaded
  cudaEvent_t done_ = nullptr;  // the last launch has finished
};

#endif

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
