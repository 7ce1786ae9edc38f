// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/elementwise.hpp>
#include <laconic/backend/cuda/kernels/row_sums.hpp>
#include <laconic/backend/cuda/kernels/tensor_gemm.hpp>
#include <laconic/backend/cuda/kernels/tile_product.hpp>

#include <algorithm>
#include <cstddef>

// Convolutions that connect all channels, over time or over (time, frequency), as products of patches with the weight.
// Patches are never written to memory: a product reads them from x through the index. The weight is read as PyTorch
// stores it, (out, in, taps).

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Says where the patches of a convolution are. x is (rows in, in_freqs * in_channels) and y (rows out, out_freqs *
/// out_channels), with the channel innermost; a point is a (row, frequency) of y, numbered row by row over all
/// sequences. Value k of a patch is ordered (time tap, frequency tap, in channel), in which the last two are contiguous
/// in x. A convolution over time has one frequency. A patch has less than 2^31 values.
struct Patches {
  const Index *from, *to;                                       ///< offsets of the sequences in and out
  Index sequences, points;                                      ///< number of sequences, and points of all sequences
  Index in_freqs, out_freqs;                                    ///< frequencies in and out
  int in_channels, out_channels, time_taps, freq_taps, stride;  ///< the shape; the stride is that of both axes

  /// Returns the taps of a kernel.
  constexpr int taps() const { return time_taps * freq_taps; }
  /// Returns the values of a patch.
  constexpr int depth() const { return taps() * in_channels; }
  /// Returns where the patch of a point starts in x, or -1 from the last point on.
  LACONIC_DEVICE Index start(Index point) const {
    if (point >= points) return -1;
    const Index row = point / out_freqs, f = point % out_freqs, n = sequence_of(to, sequences, row);
    return ((from[n] + (row - to[n]) * stride) * in_freqs + f * stride) * in_channels;
  }
  /// Returns where value k of a patch is in x, counted from the start of the patch.
  LACONIC_DEVICE Index offset(int k) const {
    const int run = freq_taps * in_channels;
    return k / run * in_freqs * in_channels + k % run;
  }
  /// Returns where the weight of an output channel and value k of a patch is.
  LACONIC_DEVICE Index weight(Index out, int k) const {
    return (out * in_channels + k % in_channels) * taps() + k / in_channels;
  }
};

/// Refers to patches as tensor cores read them: x has been rounded, and 16 bytes of it are of one frame.
template <TensorElement E>
struct TensorPatches {
  /// Says what one of so many threads copies of them: the same chunk of every `together`-th patch of a tile.
  template <int Threads, int Rows>
  struct Lines {
    static constexpr int together = Threads / tensor_slice::chunks, count = Rows / together;
    static_assert(together % tensor_slice::chunks == 0 && Rows % together == 0);
    const E* first[static_cast<std::size_t>(count)];  ///< each patch; null after the last one
    const E* data;                                    ///< an address that can be named where nothing is read
    int run, next;                                    ///< values of a run, and from a run to the next

    /// Returns those of thread t for the patches from `row` on, which must be whole: `begin` is 0.
    LACONIC_DEVICE static Lines of(int t, const TensorPatches& x, Index, Index row, Index, Index) {
      Lines out;
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < count; ++i) {
        const Index start = x.patches.start(row + t / tensor_slice::chunks + i * together);
        out.first[i] = start < 0 ? nullptr : x.data + start;
      }
      out.data = x.data;
      out.run = x.patches.freq_taps * x.patches.in_channels;
      out.next = static_cast<int>(x.patches.in_freqs) * x.patches.in_channels;
      return out;
    }
    /// Begins to copy a slice at k, zeros where patches have ended.
    LACONIC_DEVICE void copy(Block& block, int t, std::byte* slice, int k, int until) const {
      const int chunk = t % tensor_slice::chunks, row = t / tensor_slice::chunks,
                at = k + chunk * static_cast<int>(TensorRows<E>::in_chunk),
                bytes = tensor_slice::bytes_before<E>(at, until), offset = at / run * next + at % run;
      std::byte* const to = slice + row * tensor_slice::bytes + tensor_slice::swizzled(chunk, row);
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < count; ++i) {
        const bool exists = bytes > 0 && first[i] != nullptr;
        block.copy(to + i * together * tensor_slice::bytes, exists ? first[i] + offset : data, exists ? bytes : 0);
      }
    }
  };
  Patches patches;
  const E* data;  ///< x, rounded

  /// Says whether patches can be read so.
  static bool can_read(const Patches& p) { return p.in_channels % TensorRows<E>::in_chunk == 0; }
};
/// Refers to the weight of a convolution as rows of values in the order of a patch's.
struct PatchWeights {
  Patches patches;
  const float* weight;
  /// Returns N values for an output channel, from value k on.
  template <int N>
  LACONIC_DEVICE Vector<float, N> load(Index, Index out, Index k) const {
    Vector<float, N> values;
    for (int i = 0; i < N; ++i) values[i] = weight[patches.weight(out, static_cast<int>(k) + i)];
    return values;
  }
  /// Says that they are read one by one.
  template <int N>
  static constexpr bool in_vectors(bool) {
    return false;
  }
};
/// Says that these rows run along those of the parameter.
constexpr bool has_contiguous_rows(const PatchWeights&) { return true; }

/// Computes y = patches W^T + bias, then the activation if there is one. bias (out_channels) or null. A block computes
/// 64 points (along x) of 64 output channels (along y).
template <class T>
struct Convolve {
  using Product = TileProduct<T>;
  static constexpr int threads = Product::threads;
  Patches patches;
  const T *x, *weight, *bias;
  T* y;
  bool activates;
  Activation activation;  ///< unspecified if there is none

  /// Returns the blocks to run.
  static Grid grid(const Patches& p) {
    return {pieces(p.points, Product::size), pieces(p.out_channels, Product::size)};
  }
  /// Returns the bytes of shared memory of a block.
  static constexpr std::size_t shared_bytes() { return Product::shared_bytes() + Product::size * sizeof(Index); }

  struct Inputs {
    static constexpr bool along_k = true;
    const Patches& patches;
    const T* x;
    const Index* starts;
    LACONIC_DEVICE T operator()(int i, int k) const { return starts[i] < 0 ? T(0) : x[starts[i] + patches.offset(k)]; }
  };
  struct Weights {
    static constexpr bool along_k = true;
    const Patches& patches;
    const T* weight;
    Index first;
    LACONIC_DEVICE T operator()(int i, int k) const {
      return first + i < patches.out_channels ? weight[patches.weight(first + i, k)] : T(0);
    }
  };
  LACONIC_DEVICE void operator()(Block& block) const {
    const Index first = block.x() * Product::size, first_out = block.y() * Product::size;
    Index* starts = block.template shared<Index>(Product::size);
    const Product product(block);
    PerThread<typename Product::Sums> sums(block);
    block.each([&](int t) {
      if (t < Product::size) starts[t] = patches.start(first + t);
      sums[t] = {};
    });
    product.add(block, patches.depth(), Inputs{patches, x, starts}, Weights{patches, weight, first_out}, sums);
    block.each([&](int t) {
      Product::each_sum(t, [&](int row, int col, int i, int j) {
        const Index point = first + row, out = first_out + col;
        if (point >= patches.points || out >= patches.out_channels) return;
        T value = sums[t].value[i][j];
        if (bias != nullptr) value += bias[out];
        y[point * patches.out_channels + out] = activates ? activate(activation, value) : value;
      });
    });
  }
};

/// Computes dx by gathering: every input adds what the outputs that saw it give back. The inputs of a class have the
/// same remainders of time and of frequency by the stride, so the same taps reach them, `stride` apart, and no product
/// meets taps that do not. A block computes 64 inputs of one class (along x) of 64 input channels (along y).
template <class T>
struct ConvolveBackwardInput {
  using Product = TileProduct<T>;
  static constexpr int threads = Product::threads;
  Patches patches;
  const T *dy, *weight;
  T* dx;
  Index class_inputs;  ///< inputs of a class, of which some are after the end of their sequence
  int freq_classes;    ///< classes of frequencies

  /// Returns the kernel for rows of dy in all sequences.
  static ConvolveBackwardInput of(const Patches& p, Index dy_rows, const T* dy, const T* weight, T* dx) {
    const Index frames = dy_rows + p.sequences * frames_after(p);
    return {p,
            dy,
            weight,
            dx,
            frames * pieces(p.in_freqs, p.stride),
            static_cast<int>(std::min<Index>(p.stride, p.in_freqs))};
  }
  /// Returns the blocks to run.
  Grid grid() const {
    return {pieces(class_inputs, Product::size) * patches.stride * freq_classes,
            pieces(patches.in_channels, Product::size)};
  }
  /// Returns the bytes of shared memory of a block.
  static constexpr std::size_t shared_bytes() { return Product::shared_bytes() + Product::size * sizeof(Input); }

  /// Holds an input frame and frequency, all channels of it.
  struct Input {
    Index at;          ///< index of its first channel in dx, or -1 if there is no input
    Index row;         ///< row of dy that its first time tap reaches
    Index freq;        ///< frequency of dy that its first frequency tap reaches
    Index begin, end;  ///< time taps that reach rows of its sequence
  };
  struct Outputs {
    static constexpr bool along_k = true;
    const Patches& patches;
    const T* dy;
    const Input* inputs;
    int freq_taps;
    LACONIC_DEVICE T operator()(int i, int k) const {
      const Input& in = inputs[i];
      const int out = k % patches.out_channels, tap = k / patches.out_channels;
      const Index a = tap / freq_taps, f = in.freq - tap % freq_taps;
      if (in.at < 0 || a < in.begin || a >= in.end || f < 0 || f >= patches.out_freqs) return T(0);
      return dy[((in.row - a) * patches.out_freqs + f) * patches.out_channels + out];
    }
  };
  struct Weights {
    static constexpr bool along_k = false;
    const Patches& patches;
    const T* weight;
    Index first;
    int freq_taps, time, freq;
    LACONIC_DEVICE T operator()(int i, int k) const {
      if (first + i >= patches.in_channels) return T(0);
      const Index out = k % patches.out_channels;
      const int tap = k / patches.out_channels, a = time + tap / freq_taps * patches.stride,
                b = freq + tap % freq_taps * patches.stride;
      return weight[(out * patches.in_channels + first + i) * patches.taps() + a * patches.freq_taps + b];
    }
  };
  LACONIC_DEVICE void operator()(Block& block) const {
    const Index tiles = pieces(class_inputs, Product::size), first = block.x() % tiles * Product::size,
                first_in = block.y() * Product::size;
    const int of_class = static_cast<int>(block.x() / tiles), time = of_class / freq_classes,
              freq = of_class % freq_classes;
    const int time_taps = taps_of(patches.time_taps, time), freq_taps = taps_of(patches.freq_taps, freq);
    Input* inputs = block.template shared<Input>(Product::size);
    const Product product(block);
    PerThread<typename Product::Sums> sums(block);
    block.each([&](int t) {
      if (t < Product::size) inputs[t] = input(first + t, time, freq);
      sums[t] = {};
    });
    product.add(block, time_taps * freq_taps * patches.out_channels, Outputs{patches, dy, inputs, freq_taps},
                Weights{patches, weight, first_in, freq_taps, time, freq}, sums);
    block.each([&](int t) {
      Product::each_sum(t, [&](int row, int col, int i, int j) {
        if (inputs[row].at >= 0 && first_in + col < patches.in_channels)
          dx[inputs[row].at + first_in + col] = sums[t].value[i][j];
      });
    });
  }

 private:
  /// Returns by how many frames a class has more in a sequence than that has rows out: one of n rows out has at most
  /// n * stride + time_taps - 1 rows in.
  static constexpr Index frames_after(const Patches& p) { return pieces(p.time_taps - 1, p.stride); }
  LACONIC_DEVICE int taps_of(int taps, int first) const {
    return taps > first ? (taps - first + patches.stride - 1) / patches.stride : 0;
  }
  LACONIC_DEVICE Input input(Index number, int time, int freq) const {
    if (number >= class_inputs) return {-1, 0, 0, 0, 0};
    const Index freqs = pieces(patches.in_freqs, patches.stride), after = frames_after(patches);
    const Index frame = number / freqs, f = number % freqs;
    const Index n = sequence_of(patches.to, patches.sequences, frame, after);
    const Index u = frame - patches.to[n] - n * after, t = u * patches.stride + time,
                length = patches.from[n + 1] - patches.from[n], rows = patches.to[n + 1] - patches.to[n];
    if (t >= length || f * patches.stride + freq >= patches.in_freqs) return {-1, 0, 0, 0, 0};
    return {((patches.from[n] + t) * patches.in_freqs + f * patches.stride + freq) * patches.in_channels,
            patches.to[n] + u, f, u < rows ? 0 : u - rows + 1, u + 1};
  }
};

/// Computes parts of the derivative by the weight, sum over points of dy^T patches. A block computes 64 output channels
/// of 64 values of the patch (along x) over the chunks of one part (along y); the sums of a chunk are in T, those of
/// chunks in double.
template <class T>
struct ConvolveBackwardWeight {
  using Product = TileProduct<T>;
  static constexpr int threads = Product::threads;
  static constexpr int chunk = 1024;  ///< points of a chunk
  Patches patches;
  RowSplit split;
  const T *dy, *x;
  double* parts;  ///< (parts, out_channels, in_channels, taps)

  /// Returns the blocks of one part.
  static Index tiles(const Patches& p) {
    return pieces(p.out_channels, Product::size) * pieces(p.depth(), Product::size);
  }
  /// Returns the bytes of shared memory of a block.
  static constexpr std::size_t shared_bytes() { return Product::shared_bytes() + chunk * sizeof(Index); }

  struct Outputs {
    static constexpr bool along_k = false;
    const T* dy;
    Index cols, first;
    LACONIC_DEVICE T operator()(int i, int k) const { return first + i < cols ? dy[k * cols + first + i] : T(0); }
  };
  struct Inputs {
    static constexpr bool along_k = false;
    const Patches& patches;
    const T* x;
    const Index* starts;
    int first;
    LACONIC_DEVICE T operator()(int i, int k) const {
      return first + i < patches.depth() ? x[starts[k] + patches.offset(first + i)] : T(0);
    }
  };
  LACONIC_DEVICE void operator()(Block& block) const {
    const int depth = patches.depth();
    const Index across = pieces(depth, Product::size), first_out = block.x() / across * Product::size;
    const int first_value = static_cast<int>(block.x() % across) * Product::size;
    Index* starts = block.template shared<Index>(chunk);
    const Product product(block);
    PerThread<typename Product::Sums> sums(block);
    PerThread<typename TileProduct<double>::Sums> totals(block);
    block.each([&](int t) { totals[t] = {}; });
    for (Index c = split.begin(block.y()); c < split.end(block.y()); ++c) {
      const Index first = c * chunk, left = patches.points - first;
      block.each([&](int t) {
        for (int k = t; k < chunk; k += threads) starts[k] = patches.start(first + k);
        sums[t] = {};
      });
      product.add(block, static_cast<int>(left < chunk ? left : chunk),
                  Outputs{dy + first * patches.out_channels, patches.out_channels, first_out},
                  Inputs{patches, x, starts, first_value}, sums);
      block.each([&](int t) {
        Product::each_sum(
            t, [&](int, int, int i, int j) { totals[t].value[i][j] += static_cast<double>(sums[t].value[i][j]); });
      });
    }
    block.each([&](int t) {
      Product::each_sum(t, [&](int row, int col, int i, int j) {
        const Index out = first_out + row;
        const int value = first_value + col;
        if (out < patches.out_channels && value < depth)
          parts[block.y() * patches.out_channels * depth + patches.weight(out, value)] = totals[t].value[i][j];
      });
    });
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
