// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/gemm.hpp>
#include <laconic/backend/shapes.hpp>
#include <laconic/core/compiled.hpp>
#include <laconic/core/sequences.hpp>

#include <type_traits>

namespace laconic {
inline namespace LACONIC_ABI {

namespace kernels {

/// Calls body(n, rows of sequence n) for all rows of all sequences, at most `grain` rows in a task.
template <class Body>
void parallel_rows(int threads, const Sequences& sequences, Index grain, Body&& body) {
  parallel_blocks(threads, sequences.rows(), grain, [&](Index begin, Index end) {
    each_part(sequences, {begin, end}, body);
  });
}

/// Computes y[t, c] = bias[c] + sum_k weight[c, k] x[past + t + k - left, c] within each sequence, with zeros outside
/// it and after the chunk of t. x (rows of `sequences`, channels); y has `past` rows less in each sequence; taps
/// (kernel, channels) is the transposed weight; bias (channels) or null. If `flipped`, the taps run backwards and
/// frames before the own chunk are not seen: the derivative by x. Parallel over rows; no allocation.
template <class T>
void depthwise_conv(int threads, const Sequences& sequences, Index channels, Index kernel, const DepthwiseShape& shape,
                    bool flipped, const T* x, const T* taps, const T* bias, T* y) {
  const Index shift = shape.past - shape.left;
  parallel_rows(threads, sequences, 64, [&](Index n, Range rows_of_x) {
    const T* input = x + sequences.begin(n) * channels;
    T* output = y + (sequences.begin(n) - n * shape.past) * channels;
    const Index length = sequences.length(n), begin = std::max<Index>(0, rows_of_x.begin - shape.past),
                end = rows_of_x.end - shape.past;
    const auto taps_seen = [&](Index t) {
      Range seen{std::max<Index>(0, -shift - t), std::min(kernel, length - shift - t)};
      if (shape.chunk != Mask::unlimited && flipped) seen.begin = std::max(seen.begin, shape.left - t % shape.chunk);
      if (shape.chunk != Mask::unlimited && !flipped)
        seen.end = std::min(seen.end, shape.left + shape.chunk - t % shape.chunk);
      return seen;
    };
    // Register blocking: outputs that see all taps are computed together, enough to hide the latency of an addition.
    constexpr Index together = 8;
    const auto outputs = [&](Index t, auto size, Range seen) {
      constexpr Index count = decltype(size)::value;
      for (Index c = 0; c < channels; c += lanes<T>) {
        const Index some = std::min(lanes<T>, channels - c);
        const bool whole = some == lanes<T>;
        const auto part = [&](const T* from) { return whole ? load(from) : load_part(from, some); };
        const Batch<T> start = bias == nullptr ? Batch<T>(T(0)) : part(bias + c);
        Local<Batch<T>, count> sum;
        for (Index i = 0; i < count; ++i) sum[i] = start;
        for (Index k = seen.begin; k < seen.end; ++k) {
          const Batch<T> tap = part(taps + (flipped ? kernel - 1 - k : k) * channels + c);
          const T* row = input + (t + k + shift) * channels + c;
          LACONIC_UNROLL
          for (Index i = 0; i < count; ++i) sum[i] = xsimd::fma(tap, part(row + i * channels), sum[i]);
        }
        for (Index i = 0; i < count; ++i) {
          T* to = output + (t + i) * channels + c;
          whole ? store(to, sum[i]) : store_part(to, sum[i], some);
        }
      }
    };
    for (Index t = begin; t < end;) {
      bool all = t + together <= end;
      for (Index i = 0; all && i < together; ++i) all = taps_seen(t + i).size() == kernel;
      if (all)
        outputs(t, std::integral_constant<Index, together>(), Range{0, kernel});
      else
        outputs(t, std::integral_constant<Index, 1>(), taps_seen(t));
      t += all ? together : 1;
    }
  });
}

/// Computes dtaps[k, c] += sum_t dy[t, c] x[t + k - left, c] without past rows. dy and x (rows, channels), dtaps
/// (kernel, channels). Parallel over channels, so the order of each sum is fixed; no allocation.
template <class T>
void depthwise_conv_backward_taps(int threads, const Sequences& sequences, Index channels, Index kernel,
                                  const DepthwiseShape& shape, const T* dy, const T* x, T* dtaps) {
  parallel_blocks(threads, channels, 2 * lanes<T>, [&](Index begin, Index end) {
    for (Index n = 0; n < sequences.size(); ++n) {
      const Index first = sequences.begin(n), length = sequences.length(n);
      for (Index k = 0; k < kernel; ++k) {
        const Index ahead = k - shape.left;
        Local<T, 2 * lanes<T>> sum = {};
        for (Index t = std::max<Index>(0, -ahead); t < std::min(length, length - ahead); ++t) {
          if (shape.chunk != Mask::unlimited && t % shape.chunk + ahead >= shape.chunk) continue;
          const T *g = dy + (first + t) * channels, *row = x + (first + t + ahead) * channels;
          for (Index c = begin; c < end; ++c) sum[c - begin] += g[c] * row[c];
        }
        for (Index c = begin; c < end; ++c) dtaps[k * channels + c] += sum[c - begin];
      }
    }
  });
}

/// Reorders a convolution's weight (out, in, taps) to `ordered` (out, taps, in), which matches patches that are
/// contiguous in memory.
template <class T>
void reorder_taps(Index out, Index in, Index taps, const T* weight, T* ordered) {
  for (Index o = 0; o < out; ++o)
    for (Index i = 0; i < in; ++i)
      for (Index k = 0; k < taps; ++k) ordered[(o * taps + k) * in + i] = weight[(o * in + i) * taps + k];
}
/// Reorders `ordered` (out, taps, in) back to a weight (out, in, taps).
template <class T>
void restore_taps(Index out, Index in, Index taps, const T* ordered, T* weight) {
  for (Index o = 0; o < out; ++o)
    for (Index i = 0; i < in; ++i)
      for (Index k = 0; k < taps; ++k) weight[(o * in + i) * taps + k] = ordered[(o * taps + k) * in + i];
}
/// Adds `ordered` (taps, in, out) to the gradient of a weight (out, in, taps).
template <class T>
void add_reordered_taps(Index out, Index in, Index taps, const T* ordered, T* weight) {
  for (Index o = 0; o < out; ++o)
    for (Index i = 0; i < in; ++i)
      for (Index k = 0; k < taps; ++k) weight[(o * in + i) * taps + k] += ordered[(k * in + i) * out + o];
}

/// Returns the output frames of a block, whose patches stay in a second-level cache.
inline Index conv2d_block(const Conv2dShape& s) { return std::max<Index>(1, 256 / std::max<Index>(1, s.out_freqs())); }

/// Writes the patches of the output frames [t0, t1) of one sequence (im2col): patches ((t1 - t0) * out_freqs, patch),
/// each ordered (time, frequency, in). x (rows, in_cols). One thread; no allocation.
template <class T>
void conv2d_patches(const Conv2dShape& s, const T* x, Index t0, Index t1, T* patches) {
  const Index run = Conv2dShape::kernel * s.in_channels;
  for (Index t = t0; t < t1; ++t)
    for (Index f = 0; f < s.out_freqs(); ++f)
      for (Index k = 0; k < Conv2dShape::kernel; ++k) {
        const T* from = x + (t * s.stride + k) * s.in_cols() + f * s.stride * s.in_channels;
        std::copy(from, from + run, patches);
        patches += run;
      }
}

/// Computes y (rows of `to`, out_cols) from x (rows of `from`, in_cols) as products of patches with the weight.
/// multiply(patches, count, y, space) computes (count, out_channels) of `count` patches; it gets `space` bytes of
/// scratch for each patch. A task is a block of output frames. Takes scratch from `arena`; call it from one thread.
template <class T, class Multiply>
void conv2d(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from, const Sequences& to, const T* x,
            T* y, Index space, const Multiply& multiply) {
  const Blocks blocks(to.rows(), conv2d_block(s), 1, threads);
  const Index rows = blocks.most() * s.out_freqs();
  const Index patch_bytes = s.patch() * static_cast<Index>(sizeof(T)), each = rows * (patch_bytes + space);
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * each));
  parallel_for(threads, blocks.count(), [&](Index task, int thread) {
    std::byte* memory = static_cast<std::byte*>(scratch.data()) + thread * each;
    T* patches = reinterpret_cast<T*>(memory);
    const Range frames = blocks[task];
    Index done = 0;
    each_part(to, frames, [&](Index n, Range of_sequence) {
      conv2d_patches(s, x + from.begin(n) * s.in_cols(), of_sequence.begin, of_sequence.end,
                     patches + done * s.out_freqs() * s.patch());
      done += of_sequence.size();
    });
    multiply(patches, frames.size() * s.out_freqs(), y + frames.begin * s.out_cols(), memory + rows * patch_bytes);
  });
}

/// Computes dordered (patch, out) += patches^T dy, with dy (rows of `to`, out_cols) and x (rows of `from`, in_cols). A
/// task is a range of columns of the result, so each sum has one order and dy is read once. Takes scratch from `arena`;
/// call it from one thread.
template <class T>
void conv2d_backward_weight(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from, const Sequences& to,
                            const T* dy, const T* x, T* dordered) {
  const Index block = conv2d_block(s), rows = block * s.out_freqs();
  const Blocks pieces(s.out_channels, std::max(lanes<T>, padded_cols<T>(s.out_channels)), lanes<T>, threads);
  const Index each = rows * s.patch() + gemm_scratch<T>();
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(pieces.count() * each) * sizeof(T));
  parallel_for(threads, pieces.count(), [&](Index piece, int) {
    const Range cols = pieces[piece];
    T* patches = static_cast<T*>(scratch.data()) + piece * each;
    for (Index n = 0; n < from.size(); ++n)
      for (Index t0 = 0; t0 < to.length(n); t0 += block) {
        const Index t1 = std::min(to.length(n), t0 + block);
        conv2d_patches(s, x + from.begin(n) * s.in_cols(), t0, t1, patches);
        gemm_block<T>(s.patch(), cols.size(), (t1 - t0) * s.out_freqs(), Operand<T>{patches, s.patch()}.transposed(),
                      {dy + (to.begin(n) + t0) * s.out_cols() + cols.begin, s.out_channels}, dordered + cols.begin,
                      s.out_channels, true, nullptr, patches + rows * s.patch());
      }
  });
}

/// Adds the gradients of the patches, dy W, to the frames of dx that they were copied from. dy (rows of `to`,
/// out_cols), ordered (out, patch), dx (rows of `from`, in_cols), which must be zero on entry. Earlier output frames
/// are added first, so the order of each sum depends neither on blocks nor on threads. Takes scratch from `arena`; call
/// it from one thread.
template <class T>
void conv2d_backward_input(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from, const Sequences& to,
                           const T* dy, const T* ordered, T* dx) {
  constexpr Index kernel = Conv2dShape::kernel;
  const Index block = conv2d_block(s) * threads, run = kernel * s.in_channels;
  const Buffer buffer = arena.allocate(static_cast<std::size_t>(block * s.out_freqs() * s.patch()) * sizeof(T));
  T* patches = static_cast<T*>(buffer.data());
  for (Index n = 0; n < from.size(); ++n)
    for (Index t0 = 0; t0 < to.length(n); t0 += block) {
      const Index t1 = std::min(to.length(n), t0 + block);
      gemm<T>(threads, arena, (t1 - t0) * s.out_freqs(), s.patch(), s.out_channels,
              {dy + (to.begin(n) + t0) * s.out_cols(), s.out_channels}, {ordered, s.patch()}, patches, s.patch(), false,
              nullptr);
      const Index first = t0 * s.stride, frames = (t1 - 1) * s.stride + kernel - first;
      parallel_blocks(threads, frames, 4, [&](Index begin, Index end) {
        for (Index t = first + begin; t < first + end; ++t) {
          T* row = dx + (from.begin(n) + t) * s.in_cols();
          for (Index k = kernel; k-- > 0;) {
            const Index out = (t - k) / s.stride;
            if (t < k || (t - k) % s.stride != 0 || out < t0 || out >= t1) continue;
            for (Index f = 0; f < s.out_freqs(); ++f) {
              const T* g = patches + ((out - t0) * s.out_freqs() + f) * s.patch() + k * run;
              T* d = row + f * s.stride * s.in_channels;
              for (Index i = 0; i < run; ++i) d[i] += g[i];
            }
          }
        }
      });
    }
}

/// Computes dordered (patch, out) += patches^T dy. The patches are rows of x (rows of `from`, in_channels) read in
/// place, `stride` rows apart; dy (rows of `to`, out_channels). Takes scratch from `arena`; call it from one thread.
template <class T>
void conv1d_backward_weight(int threads, Arena& arena, const Conv1dShape& s, const Sequences& from, const Sequences& to,
                            const T* dy, const T* x, T* dordered) {
  for (Index n = 0; n < from.size(); ++n)
    gemm<T>(threads, arena, s.patch(), s.out_channels, to.length(n),
            Operand<T>{x + from.begin(n) * s.in_channels, s.stride * s.in_channels}.transposed(),
            {dy + to.begin(n) * s.out_channels, s.out_channels}, dordered, s.out_channels, true, nullptr);
}

/// Computes dx += dy W_k for one tap k after the other. The rows of dx that a tap reaches are `stride` rows apart, and
/// none is reached twice. dy (rows of `to`, out_channels), ordered (out, patch), dx (rows of `from`, in_channels),
/// which must be zero on entry. Takes scratch from `arena`; call it from one thread.
template <class T>
void conv1d_backward_input(int threads, Arena& arena, const Conv1dShape& s, const Sequences& from, const Sequences& to,
                           const T* dy, const T* ordered, T* dx) {
  for (Index n = 0; n < from.size(); ++n)
    for (Index k = 0; k < s.kernel; ++k)
      gemm<T>(threads, arena, to.length(n), s.in_channels, s.out_channels,
              {dy + to.begin(n) * s.out_channels, s.out_channels}, {ordered + k * s.in_channels, s.patch()},
              dx + (from.begin(n) + k) * s.in_channels, s.stride * s.in_channels, true, nullptr);
}

LACONIC_COMPILE(depthwise_conv);
LACONIC_COMPILE(depthwise_conv_backward_taps);
LACONIC_COMPILE(conv2d_backward_weight);
LACONIC_COMPILE(conv2d_backward_input);
LACONIC_COMPILE(conv1d_backward_weight);
LACONIC_COMPILE(conv1d_backward_input);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
