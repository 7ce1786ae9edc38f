// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/enum.hpp>
#include <laconic/core/index_list.hpp>
#include <laconic/core/random.hpp>
#include <laconic/core/rounding.hpp>
#include <laconic/core/sequences.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

// What the primitives of every context are told beside their tensors: plain structs without Eigen, so that the compiler
// of a device may read them.

namespace laconic {
inline namespace LACONIC_ABI {

template <class T>
class Parameter;

/// Which keys a query sees. Every mask of a speech model lets each query see one run of keys, so a mask is that run.
struct Mask {
  struct Keys {
    Index begin, end;
  };

  static constexpr Index unlimited = -1;
  Index chunk = unlimited;         ///< frames that are seen together; 1 is causal
  Index left_context = unlimited;  ///< frames seen before the own chunk; unlimited where there are no chunks

  static constexpr Mask bidirectional() { return {}; }
  static constexpr Mask causal() { return {1, unlimited}; }
  /// Throws where chunk is below 1, or left_context negative and not `unlimited`.
  static constexpr Mask chunked(Index chunk, Index left_context) {
    require(chunk > 0, "mask: chunk ", chunk, " given, at least 1 expected");
    require(left_context >= 0 || left_context == unlimited, "mask: left_context ", left_context,
            " given, at least 0 expected, or Mask::unlimited");
    return {chunk, left_context};
  }

  constexpr bool is_valid() const {
    if (chunk == unlimited) return left_context == unlimited;
    return chunk > 0 && (left_context == unlimited || left_context >= 0);
  }

  /// The keys that query number `query` sees among `num_keys`, the first `past` of which come before the first query.
  /// Chunks are counted from the first query.
  constexpr Keys keys(Index query, Index past, Index num_keys) const {
    if (chunk == unlimited) return {0, num_keys};
    const Index start = past + query / chunk * chunk;
    return {left_context == unlimited ? 0 : std::max<Index>(0, start - left_context),
            std::clamp<Index>(start + chunk, 0, num_keys)};
  }
};

/// Activations by their names in the literature. SiLU is also called swish; GELU is the exact one, with erf.
enum class Activation { relu, silu, gelu };
constexpr auto enum_names(Activation) {
  return std::to_array<EnumName<Activation>>(
      {{Activation::relu, "relu"}, {Activation::silu, "silu"}, {Activation::gelu, "gelu"}});
}

/// A 3 x 3 convolution over (time, frequency) without padding. Rows are frames; columns are (frequency, channel) with
/// the channel innermost. The weight is `(out, in, time, frequency)` as PyTorch stores it.
struct Conv2dShape {
  static constexpr Index kernel = 3;
  Index in_channels, out_channels, in_freqs;
  Index stride = 2;  ///< in time and in frequency

  constexpr Index out_length(Index in) const { return in < kernel ? 0 : (in - kernel) / stride + 1; }
  constexpr Index out_freqs() const { return out_length(in_freqs); }
  constexpr Index in_cols() const { return in_freqs * in_channels; }
  constexpr Index out_cols() const { return out_freqs() * out_channels; }
  constexpr Index taps() const { return kernel * kernel; }
  constexpr Index patch() const { return taps() * in_channels; }
};

/// A convolution over time without padding, all channels into all. Rows are frames or samples; the weight is `(out, in,
/// kernel)` as PyTorch stores it.
struct Conv1dShape {
  Index in_channels, out_channels, kernel, stride;

  constexpr Index out_length(Index in) const { return in < kernel ? 0 : (in - kernel) / stride + 1; }
  constexpr Index taps() const { return kernel; }
  constexpr Index patch() const { return taps() * in_channels; }
};

/// What one softmax attention is about, apart from its values.
struct AttendShape {
  Index num_heads, num_kv_heads;
  double scale;  ///< of the scores; 1/sqrt of the width that queries and keys had before any absorption
  Mask mask = {};
};

/// The relative-position part of an attention: the projected table (2 * span - 1, num_heads * head_dim), row span-1 for
/// distance 0 and row 0 for the key span-1 frames to the left, with pos_bias_u and pos_bias_v (null: zeros). Empty
/// where there is none.
template <class Tensor, class T>
struct RelativeTerm {
  Tensor table{};
  const Parameter<T>* pos_bias_u = nullptr;
  const Parameter<T>* pos_bias_v = nullptr;
  Tensor query{};  ///< what meets the table, (rows, num_heads * head_dim); empty: the attention's queries themselves
  bool packed = false;  ///< the table is what `prepare_table` of the context made of it
};

/// Heads that each have a matrix of their own, or share `num_blocks` of them: head h takes block h / (num_heads /
/// num_blocks).
struct HeadShape {
  Index num_heads, num_blocks;
  bool transposed = false;  ///< times the matrix as it is stored, (out, in), not its transpose: from out channels to in
};

/// Which two of a head's channels a rotary position turns together (Su et al. 2021): neighbours, as in the paper and in
/// DeepSeek's code, or channel i of the first half with channel i of the second, as in GPT-NeoX and Hugging Face.
enum class RotaryPairs { interleaved, halves };

/// Says where packed rows stand in time: row i of sequence n is at first(n) + step * i.
struct RowPositions {
  const Sequences& sequences;       ///< the sequences of the rows; must outlive this
  std::span<const Index> firsts{};  ///< the position of each sequence's first row, in frames; empty: 0
  Index step = 1;                   ///< 1, or -1 for distances, which fall from row to row

  /// Returns the position of the first row of sequence n.
  constexpr Index first(Index n) const { return firsts.empty() ? 0 : firsts[static_cast<std::size_t>(n)]; }
};

/// A depthwise convolution over time: output t sees inputs t - left and on.
struct DepthwiseShape {
  Index left;
  Index chunk = Mask::unlimited;  ///< outputs see no input behind the end of their chunk, counted from the first output
  Index past = 0;  ///< so many inputs at the head of every sequence are earlier frames, which give no output
};

/// Bytes of a stored row of `width` numbers, each of `number_bytes` as computed.
constexpr Index cache_row_bytes(Storage storage, Index width, Index number_bytes = 4) {
  switch (storage) {
    case Storage::bf16:
      return 2 * width;
    case Storage::int8:
      return width + 4;
    default:
      return number_bytes * width;
  }
}

/// The parameters of a batch norm.
template <class T>
struct BatchNormParameters {
  const Parameter<T>&weight, &bias, &running_mean, &running_var;
  double eps, momentum;
};

/// One step of AdamW, the same for all parameters (Loshchilov and Hutter 2019, algorithm 2).
struct AdamWStep {
  double learning_rate, beta1, beta2, eps;
  double weight_decay;    ///< of parameters of two dimensions and more
  double gradient_scale;  ///< less than 1 where the norm of all gradients is clipped
  std::int64_t number;    ///< of the step, from 1
};

/// A parameter that a step changes, and its moments (rows, cols), which are empty before its first step.
template <class Tensor, class T>
struct AdamWUpdate {
  Parameter<T>* parameter;
  Tensor *first, *second;
};

/// The label sequences of a batch, end to end: sequence n is labels[lengths.begin(n) .. lengths.end(n)).
struct Labels {
  std::vector<int> tokens;
  Sequences sequences;
};

/// Which of n numbers survive dropout: eight decisions of 16 bits from each random block, so the probability is
/// rounded to a multiple of 2^-16 and the survivors are scaled by the rounded one.
class DropoutMask {
 public:
  DropoutMask(double probability, const Random& random)
      : threshold_(static_cast<std::uint32_t>(std::min(65535.0, checked(probability) * 65536 + 0.5))),
        random_(random) {}

  double scale() const { return 65536.0 / (65536.0 - threshold_); }
  bool any() const { return threshold_ > 0; }
  /// The definition, one decision at a time.
  bool keeps(std::uint64_t i) const {
    const auto block = random_.block(i / 8);
    return ((block[(i % 8) / 2] >> (16 * (i % 2))) & 0xffff) >= threshold_;
  }

  /// y[j] = x[j] * (keeps(first + j) ? scale : 0) for j in [0, n).
  template <class T>
  void apply(Index n, std::uint64_t first, const T* x, T* y) const {
    const T factor = static_cast<T>(scale());
    std::uint16_t bits[together];
    for (Index j = 0; j < n;) {
      const std::uint64_t at = first + static_cast<std::uint64_t>(j);
      const Index skip = static_cast<Index>(at % together), count = std::min(together - skip, n - j);
      draw(at / together, bits);
      const auto put = [&](Index size) {
        for (Index i = 0; i < size; ++i) {
          const T kept = x[j + i] * factor;
          y[j + i] = bits[skip + i] >= threshold_ ? kept : T(0);
        }
      };
      count == together ? put(together) : put(count);  // a constant length makes the better loop
      j += count;
    }
  }

 private:
  static double checked(double probability) {
    require(probability >= 0 && probability < 1, "dropout: probability ", probability,
            " given, expected from 0 to less than 1");
    return probability;
  }

  /// Decisions drawn at once, so that the random blocks are computed in vectors.
  static constexpr Index together = 128;

  /// The 16 bits of decisions group * together and on.
  void draw(std::uint64_t group, std::uint16_t* bits) const {
    constexpr int count = together / 8;
    std::uint64_t w[4][count], pairs[2 * count];
    random_.template blocks<count>(group * count, w[0], w[1], w[2], w[3]);
    for (int b = 0; b < count; ++b) {
      pairs[2 * b] = w[0][b] | w[1][b] << 32;
      pairs[2 * b + 1] = w[2][b] | w[3][b] << 32;
    }
    static_assert(std::endian::native == std::endian::little,
                  "laconic: the order of the 16-bit halves is that of memory");
    std::memcpy(bits, pairs, sizeof pairs);
  }

  std::uint32_t threshold_;
  Random random_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
