// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/core.hpp>
#include <laconic/backend/cuda/kernels/convolution.hpp>
#include <laconic/backend/cuda/kernels/gemm.hpp>
#include <laconic/backend/cuda/kernels/pack.hpp>
#include <laconic/backend/cuda/kernels/tensor_gemm.hpp>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <optional>
#include <type_traits>

// Starts products of matrices, and convolutions on tensor cores, as the precision of a context says. A library of a
// vendor could take their place here, but would choose the order of sums by the shape.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Refers to a matrix with rows and columns exchanged.
template <class Operand>
struct Transposed {
  Operand of;  ///< the matrix
  /// Returns N neighbours of a batch, from element (i, j) on.
  template <int N>
  LACONIC_DEVICE auto load(Index batch, Index i, Index j) const {
    return of.template load<N>(batch, j, i);
  }
  /// Says whether N neighbours can be read at once from every multiple of N on.
  template <int N>
  LACONIC_DEVICE bool in_vectors(bool along_rows) const {
    return of.template in_vectors<N>(!along_rows);
  }
};
/// Says that neighbours along a row are neighbours in memory.
template <class T, Storage storage>
constexpr bool has_contiguous_rows(const Transposed<StoredColumns<T, storage>>&) {
  return true;
}
/// Returns a matrix with rows and columns exchanged.
template <class T>
constexpr GemmOperand<T> transposed(const GemmOperand<T>& x) {
  return x.transposed();
}
/// Returns the rounded rows of a weight.
template <class T, Storage storage>
constexpr Transposed<StoredColumns<T, storage>> transposed(const StoredColumns<T, storage>& x) {
  return {x};
}

/// Holds an operand as tensor cores read it, and the memory that it was packed in, if it was.
template <TensorElement E>
struct Packed {
  TensorRows<E> rows;  ///< the operand
  Buffer memory{};     ///< keeps it
};

/// Packs an operand (rows, depth) of each of `batches` to memory for batches * rows * stride_for(depth) elements.
template <TensorElement E, class Operand>
void pack(const Stream& stream, const char* name, const Operand& x, Index rows, Index depth, Index batches, E* to) {
  const Index stride = TensorRows<E>::stride_for(depth);
  if constexpr (std::is_same_v<Operand, GemmOperand<float>>)
    if (!has_contiguous_rows(x)) {
      const PackColumns<E> kernel{x, to, rows, depth, stride};
      return launch(stream, name, {kernel.tiles(), batches}, kernel, kernel.shared_bytes());
    }
  for_each(stream, name, batches * rows * stride / TensorRows<E>::in_chunk,
           PackRows<E, Operand>{x, to, rows, depth, stride});
}
/// Returns an operand where tensor cores can read it as it is, or else rows with a null address.
template <TensorElement E>
TensorRows<E> readable(const GemmOperand<float>& x) {
  if constexpr (std::is_same_v<E, float>)
    if (has_contiguous_rows(x) && TensorRows<E>::can_read(x.data, x.row_stride, x.batch_stride))
      return {x.data, x.row_stride, x.batch_stride};
  return {nullptr, 0, 0};
}
template <TensorElement E, Storage storage>
TensorRows<E> readable(const Transposed<StoredColumns<float, storage>>& x) {
  const StoredRows<float>& rows = x.of.rows;
  if constexpr (std::is_same_v<E, Bf16> && storage == Storage::bf16)
    if (TensorRows<E>::can_read(rows.values, rows.width, 0))
      return {reinterpret_cast<const Bf16*>(rows.values), rows.width, 0};
  return {nullptr, 0, 0};
}
template <TensorElement E>
TensorRows<E> readable(const PatchWeights&) {
  return {nullptr, 0, 0};
}
/// Returns an operand (rows, depth) of each of `batches` as tensor cores read it. A weight, if it is one, keeps its
/// packed form; others are packed in scratch.
template <TensorElement E, class Core, class Operand>
Packed<E> packed(Core& core, const char* name, const Operand& x, Index rows, Index depth, Index batches,
                 const CudaWeight<float>* weight = nullptr) {
  if (const TensorRows<E> here = readable<E>(x); here.data != nullptr) return {here};
  const Index stride = TensorRows<E>::stride_for(depth);
  const auto bytes = static_cast<std::size_t>(batches * rows * stride) * sizeof(E);
  const auto fill = [&](void* to) { pack(core.stream(), name, x, rows, depth, batches, static_cast<E*>(to)); };
  Packed<E> out{{nullptr, stride, rows * stride}};
  if (weight != nullptr && !weight->can_train()) {
    const auto fill_and_wait = [&](void* to) {
      fill(to);
      core.stream().wait();  // other streams may read it
    };
    out.rows.data = static_cast<const E*>(
        weight->packed({sizeof(E), batches * rows, depth, has_contiguous_rows(x)}, bytes, fill_and_wait));
  } else {
    out.memory = core.device_arena().allocate(bytes);
    fill(out.memory.data());
    out.rows.data = static_cast<const E*>(out.memory.data());
  }
  return out;
}

/// Gives the tiles with which the largest ones are used: about as many as large GPUs have multiprocessors. No GPU has
/// confirmed it.
inline constexpr Index enough_tiles = 128;

/// Calls start.operator()<Kernel>() with the kernel for products on tensor cores whose tiles suit C: as large as rows
/// and multiprocessors allow.
template <TensorElement E, class A = TensorRows<E>, class Start>
void with_tensor_gemm(const GemmSize& size, const Start& start) {
  using Few = TensorGemm<E, 16, 32, 1, 4, 6, A>;
  using Some = TensorGemm<E, 64, 64, 2, 2, 4, A>;
  using Many = TensorGemm<E, 128, 128, 2, 4, 3, A>;
  if (size.rows <= 16) return start.template operator()<Few>();
  if (size.batches * Many::tiles(size) < enough_tiles) return start.template operator()<Some>();
  start.template operator()<Many>();
}
/// Computes C = A B^T + bias on tensor cores, then the activation.
template <TensorElement E, class Core, class A>
void multiply_on_tensor_cores(const Core& core, const char* name, const GemmSize& size, const A& a,
                              const TensorRows<E>& b, const GemmResult<float>& c, const GemmEpilogue<float>& epilogue) {
  with_tensor_gemm<E, A>(size, [&]<class Kernel>() {
    const RowSplit whole{pieces(size.depth, Kernel::chunk), pieces(size.depth, Kernel::chunk)};
    launch(core.stream(), name, {size.batches * Kernel::tiles(size)},
           Kernel{size, a, b, c, epilogue.bias, epilogue.activation.has_value(),
                  epilogue.activation.value_or(Activation::relu), whole, nullptr},
           Kernel::shared_bytes());
  });
}
/// Computes what `gemm` does, on tensor cores.
template <TensorElement E, class Core, class B>
void tensor_gemm(Core& core, const char* name, const GemmSize& size, const GemmOperand<float>& a, const B& b,
                 const GemmResult<float>& c, const GemmEpilogue<float>& epilogue, const CudaWeight<float>* weight) {
  const Packed<E> left = packed<E>(core, name, a, size.rows, size.depth, size.batches);
  const Packed<E> right =
      packed<E>(core, name, transposed(b), size.cols, size.depth, size.batches / size.sharing, weight);
  multiply_on_tensor_cores(core, name, size, left.rows, right.rows, c, epilogue);
}
/// Computes a convolution y = patches W^T + bias on tensor cores, then the activation.
template <TensorElement E, class Core>
void tensor_convolve(Core& core, const char* name, const Patches& patches, const CudaTensor<float>& x,
                     const Parameter<float>& weight, const float* bias, std::optional<Activation> activation,
                     CudaTensor<float>& y) {
  const Packed<E> inputs = packed<E>(core, name, GemmOperand<float>{x.data(), x.cols()}, x.rows(), x.cols(), 1);
  const Packed<E> weights = packed<E>(core, name, PatchWeights{patches, values_of(weight)}, weight.rows(),
                                      patches.depth(), 1, &CudaWeight<float>::of(weight));
  multiply_on_tensor_cores(core, name, {patches.points, patches.out_channels, patches.depth()},
                           TensorPatches<E>{patches, inputs.rows.data}, weights.rows, {y.data(), patches.out_channels},
                           {bias, activation});
}

/// Computes C = A B + bias, then the activation. Rows depend on no other rows, to the bit. B is a GemmOperand or
/// StoredColumns; `weight`, if not null, is what holds it. `core` gives stream, precision and scratch (`CudaCore`).
/// int8 is multiplied in float always: it is read as it is then.
template <class Core, class T, class B>
void gemm(Core& core, const char* name, const GemmSize& size, const GemmOperand<T>& a, const B& b,
          const GemmResult<T>& c, const GemmEpilogue<T>& epilogue = {}, const CudaWeight<T>* weight = nullptr) {
  if constexpr (std::is_same_v<T, float> && !std::is_same_v<B, StoredColumns<T, Storage::int8>>) {
    if (core.precision() == ProductPrecision::bf16)
      return tensor_gemm<Bf16>(core, name, size, a, b, c, epilogue, weight);
    if (core.precision() == ProductPrecision::tf32)
      return tensor_gemm<float>(core, name, size, a, b, c, epilogue, weight);
  }
  const auto start = [&]<int Side>() {
    using Kernel = Gemm<T, B, T, Side>;
    const Activation activation = epilogue.activation.value_or(Activation::relu);
    const RowSplit whole{pieces(size.depth, Kernel::chunk), pieces(size.depth, Kernel::chunk)};
    launch(core.stream(), name, {size.batches * Kernel::tiles(size)},
           Kernel{size, a, b, c, epilogue.bias, epilogue.activation.has_value(), has_contiguous_rows(a),
                  has_contiguous_rows(b), activation, whole, nullptr},
           Kernel::shared_bytes());
  };
  if (size.rows <= 16) return start.template operator()<16>();
  if constexpr (std::is_same_v<T, float>) {  // doubles would not fit into registers
    if (size.batches * Gemm<T, B, T, 128>::tiles(size) >= enough_tiles) return start.template operator()<128>();
  }
  start.template operator()<64>();
}

/// Computes C += A B for a long depth and contiguous C (batches, rows, cols). Chunks of the depth, 256 products or on
/// tensor cores up to 4096, are added up in double. The depth is divided among more blocks where C alone is few. `core`
/// is as in `gemm`.
template <class Core, class T>
void add_gemm(Core& core, const char* name, const GemmSize& size, const GemmOperand<T>& a, const GemmOperand<T>& b,
              T* c) {
  const auto add = [&]<class Kernel>(Index most_chunks, const auto& left, const auto& right, auto... layout) {
    const Index tiles = size.batches * Kernel::tiles(size);
    RowSplit of_depth = RowSplit::of(size.depth, Kernel::chunk, tiles);
    of_depth.each = std::min(of_depth.each, most_chunks);
    core.add_row_sums(name, of_depth, tiles, size.batches * size.rows * size.cols, c, Kernel::shared_bytes(),
                      [&](const RowSplit& split, double* parts) {
                        return Kernel{size, left, right, {}, nullptr, false, layout..., Activation::relu, split, parts};
                      });
  };
  const auto add_on_tensor_cores = [&]<class E>() {
    const auto left = packed<E>(core, name, a, size.rows, size.depth, size.batches);
    const auto right = packed<E>(core, name, transposed(b), size.cols, size.depth, size.batches);
    with_tensor_gemm<E>(size, [&]<class Kernel>() { add.template operator()<Kernel>(4, left.rows, right.rows); });
  };
  if constexpr (std::is_same_v<T, float>) {
    if (core.precision() == ProductPrecision::bf16) return add_on_tensor_cores.template operator()<Bf16>();
    if (core.precision() == ProductPrecision::tf32) return add_on_tensor_cores.template operator()<float>();
  }
  add.template operator()<Gemm<T, GemmOperand<T>, double, 64>>(std::numeric_limits<Index>::max(), a, b,
                                                               has_contiguous_rows(a), has_contiguous_rows(b));
}

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
