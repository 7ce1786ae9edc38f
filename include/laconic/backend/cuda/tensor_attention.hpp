// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/core.hpp>
#include <laconic/backend/cuda/kernels/attention_tensor.hpp>
#include <laconic/backend/cuda/row_cache.hpp>

#include <cstddef>
#include <limits>

namespace laconic {
inline namespace LACONIC_ABI {

/// Runs softmax attention on tensor cores, for contexts that round operands of products to Bf16.
class TensorAttention {
 public:
  /// Runs on the stream of a core.
  explicit TensorAttention(CudaCore<float>& core) : core_(core) {}

  /// Computes attention with `AttendTensor`, whose keys, values and table are set here. Returns false, and computes
  /// nothing, if heads are too wide for shared memory or there are too many rows.
  template <class Rows>
  bool attend(cuda::AttendTensorOperands of, const Rows& k, const Rows& v, const Sequences& q_sequences,
              const Sequences& kv_sequences) {
    const cuda::AttendOperands<float>& in = of.in;
    of.k = as_stored(k, in.key_width);
    of.v = as_stored(v, in.value_width);
    of.same_rows =
        is_same(k, v) && in.value_width <= in.key_width && (in.num_kv_heads == 1 || in.value_width == in.key_width);
    if (in.p != nullptr)
      of.p = as_stored(cuda::WholeRows<float>{in.p, in.num_heads * in.position_width, nullptr}, in.position_width);
    constexpr Index most = std::numeric_limits<int>::max();  // the kernel numbers rows in 32 bits
    if (q_sequences.rows() * in.num_heads > most || kv_sequences.max_length() > most || 2 * in.span > most)
      return false;
    const Index rows = q_sequences.max_length() * of.group;
    const bool by_rows = rows > cuda::AttendTensor<1, 1>::rows;
    Buffer rounded[3];
    if (rows > cuda::AttendTensor<4, 1>::rows) {  // several blocks read the same rows, which are rounded once before
      if (of.k.rings == nullptr) {
        rounded[0] = round(of.k, kv_sequences.rows(), in.num_kv_heads, in.key_width);
        if (of.same_rows)
          of.v = of.k;
        else
          rounded[1] = round(of.v, kv_sequences.rows(), in.num_kv_heads, in.value_width);
      }
      if (in.p != nullptr) rounded[2] = round(of.p, 2 * in.span - 1, in.num_heads, in.position_width);
    }
    const Index slices = cuda::Slice::count(in.value_width);
    if (slices <= 1) return (by_rows && launched<4, 1>(of, q_sequences)) || launched<1, 1>(of, q_sequences);
    if (slices <= 2) return (by_rows && launched<4, 2>(of, q_sequences)) || launched<1, 2>(of, q_sequences);
    return launched<1, 8>(of, q_sequences);
  }

 private:
  /// Launches the kernel, unless a block of it needs too much shared memory.
  template <int RowWarps, int ValueSlices>
  bool launched(const cuda::AttendTensorOperands& of, const Sequences& q_sequences) {
    using Attend = cuda::AttendTensor<RowWarps, ValueSlices>;
    if (Attend::bytes(of) > cuda::max_shared_bytes) return false;
    launch(core_.stream(), "attend", Attend::grid(of, q_sequences.rows()), Attend{of}, Attend::bytes(of));
    return true;
  }
  static bool is_same(const cuda::WholeRows<float>& a, const cuda::WholeRows<float>& b) {
    return a.rows == b.rows && a.width == b.width;
  }
  static bool is_same(const cuda::CachedRowsView<float>& a, const cuda::CachedRowsView<float>& b) {
    return a.rows == b.rows && a.width == b.width && a.rings == b.rings && a.stored.values == b.stored.values;
  }
  static cuda::AttendRows as_stored(const cuda::WholeRows<float>& rows, Index head_width) {
    return as_stored(cuda::CachedRowsView<float>{rows.rows, rows.width, rows.offsets, nullptr, {}, 0}, head_width);
  }
  static cuda::AttendRows as_stored(const cuda::CachedRowsView<float>& view, Index head_width) {
    // They are only read; StoredRows is also how rows are written.
    auto* const fresh = reinterpret_cast<std::byte*>(const_cast<float*>(view.rows));
    return {
        {Storage::full, view.width, fresh, nullptr}, view.offsets, view.rings, view.stored, view.capacity, head_width};
  }
  /// Replaces rows of floats by the same rounded to Bf16, in memory that is returned.
  Buffer round(cuda::AttendRows& rows, Index count, Index heads, Index width) {
    const Index padded = cuda::RoundHeads::padded_width(width);
    Buffer memory = core_.device_arena().allocate(static_cast<std::size_t>(count * heads * padded) * sizeof(Bf16));
    for_each(core_.stream(), "attend: round", count * heads * (padded / cuda::Slice::chunk),
             cuda::RoundHeads{reinterpret_cast<const float*>(rows.fresh.values), static_cast<Bf16*>(memory.data()),
                              width, padded});
    rows.fresh = {Storage::bf16, heads * padded, static_cast<std::byte*>(memory.data()), nullptr};
    rows.head_stride = padded;
    return memory;
  }

  CudaCore<float>& core_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
