// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/enum.hpp>
#include <laconic/core/index_list.hpp>
#include <laconic/core/random.hpp>
#include <laconic/core/rounding.hpp>
#include <laconic/core/sequences.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numbers>
#include <span>
#include <utility>
#include <vector>

// The arguments of primitives in addition to their tensors: masks, shapes and options. These are plain structs without
// Eigen, so that the compiler of a device can read them.

namespace laconic {
inline namespace LACONIC_ABI {

template <class T>
class Parameter;

/// Says which rows of a tensor go where in another one.
struct RowRange {
  Index from;   ///< the first row in the source
  Index count;  ///< how many there are
  Index to;     ///< the row of the target that gets the first one
};

/// Says which keys a query sees. Every mask of a speech model shows each query one contiguous range of keys, so a mask
/// is two numbers.
struct Mask {
  /// Holds a range of keys, [begin, end).
  struct Keys {
    Index begin;  ///< the first key that is seen
    Index end;    ///< the key after the last one that is seen
  };

  static constexpr Index unlimited = -1;  ///< no limit
  Index chunk = unlimited;                ///< frames that see each other; 1 is causal
  Index left_context = unlimited;         ///< frames seen before the own chunk; unlimited if there are no chunks

  /// Returns a mask that shows every query all keys.
  static constexpr Mask bidirectional() { return {}; }
  /// Returns a mask that shows a query its own key and all earlier ones.
  static constexpr Mask causal() { return {1, unlimited}; }
  /// Returns a mask that shows a query all keys of its chunk and `left_context` frames before it. Throws `Error` if
  /// chunk is below 1, or if left_context is negative and not `unlimited`.
  static constexpr Mask chunked(Index chunk, Index left_context) {
    require(chunk > 0, "mask: chunk ", chunk, " given, at least 1 expected");
    require(left_context >= 0 || left_context == unlimited, "mask: left_context ", left_context,
            " given, at least 0 expected, or Mask::unlimited");
    return {chunk, left_context};
  }

  /// Returns whether this is a mask that `bidirectional`, `causal` or `chunked` can return.
  constexpr bool is_valid() const {
    if (chunk == unlimited) return left_context == unlimited;
    return chunk > 0 && (left_context == unlimited || left_context >= 0);
  }

  /// Returns the keys that query number `query` sees among `num_keys`, the first `past` of which are before the first
  /// query. Chunks are counted from the first query.
  constexpr Keys keys(Index query, Index past, Index num_keys) const {
    if (chunk == unlimited) return {0, num_keys};
    const Index start = past + query / chunk * chunk;
    return {left_context == unlimited ? 0 : std::max<Index>(0, start - left_context),
            std::clamp<Index>(start + chunk, 0, num_keys)};
  }
};

/// Names the activation functions. SiLU is also called swish; `gelu` is the exact one, with erf; `gelu_new` is GPT-2's
/// approximation by a hyperbolic tangent (Hendrycks and Gimpel 2016, section 2).
enum class Activation { relu, silu, gelu, gelu_new };
/// Returns the activations with their names in configuration files.
constexpr auto enum_names(Activation) {
  return std::to_array<EnumName<Activation>>({{Activation::relu, "relu"},
                                              {Activation::silu, "silu"},
                                              {Activation::gelu, "gelu"},
                                              {Activation::gelu_new, "gelu_new"}});
}

/// Describes a 3 x 3 convolution over (time, frequency) without padding. Rows are frames; columns are (frequency,
/// channel) with the channel innermost. The weight is (out, in, time, frequency), as PyTorch stores it.
struct Conv2dShape {
  static constexpr Index kernel = 3;  ///< taps in time and in frequency
  Index in_channels;                  ///< channels of the input
  Index out_channels;                 ///< channels of the output
  Index in_freqs;                     ///< frequencies of the input
  Index stride = 2;                   ///< in time and in frequency

  /// Returns the outputs along an axis of `in` inputs.
  constexpr Index out_length(Index in) const { return in < kernel ? 0 : (in - kernel) / stride + 1; }
  /// Returns the frequencies out.
  constexpr Index out_freqs() const { return out_length(in_freqs); }
  /// Returns the columns of an input row.
  constexpr Index in_cols() const { return in_freqs * in_channels; }
  /// Returns the columns of an output row.
  constexpr Index out_cols() const { return out_freqs() * out_channels; }
  /// Returns the taps of a kernel.
  constexpr Index taps() const { return kernel * kernel; }
  /// Returns the inputs that one output is computed from.
  constexpr Index patch() const { return taps() * in_channels; }
};

/// Describes a convolution over time without padding that connects all channels in to all channels out. Rows are frames
/// or samples. The weight is (out, in, kernel), as PyTorch stores it.
struct Conv1dShape {
  Index in_channels;   ///< channels of the input
  Index out_channels;  ///< channels of the output
  Index kernel;        ///< taps
  Index stride;        ///< input rows from one output to the next

  /// Returns the outputs of a sequence of `in` inputs.
  constexpr Index out_length(Index in) const { return in < kernel ? 0 : (in - kernel) / stride + 1; }
  /// Returns the taps of a kernel.
  constexpr Index taps() const { return kernel; }
  /// Returns the inputs that one output is computed from.
  constexpr Index patch() const { return taps() * in_channels; }
};

/// Describes a softmax attention: heads, scale and mask.
struct AttendShape {
  Index num_heads;     ///< query heads
  Index num_kv_heads;  ///< key-value heads, a divisor of num_heads
  double scale;        ///< factor of the scores: 1/sqrt of the width that queries and keys had before any absorption
  Mask mask = {};      ///< the keys that a query sees
};

/// Holds the relative-position term of an attention (Dai et al. 2019, section 3.3): the projected table (2 * span - 1,
/// num_heads * head_dim) and the biases pos_bias_u and pos_bias_v (null: zeros). Row span - 1 + d of the table is for a
/// key d frames to the right of the query. An empty table means that there is no such term.
template <class Tensor, class T>
struct RelativeTerm {
  Tensor table{};                            ///< the projected table, or empty
  const Parameter<T>* pos_bias_u = nullptr;  ///< added to the queries that meet the keys; null: zeros
  const Parameter<T>* pos_bias_v = nullptr;  ///< added to the queries that meet the table; null: zeros
  Tensor query{};       ///< queries that meet the table, (rows, num_heads * head_dim); empty: those of the attention
  bool packed = false;  ///< whether `prepare_table` of the context made the table
};

/// Describes heads that each have a matrix of their own, or share `num_blocks` matrices: head h takes block h /
/// (num_heads / num_blocks).
struct HeadShape {
  Index num_heads;          ///< heads
  Index num_blocks;         ///< matrices, a divisor of num_heads
  bool transposed = false;  ///< whether the product is x_h W_h, from out channels to in, and not x_h W_h^T
};

/// Says which two channels of a head a rotary position rotates together (Su et al. 2021). `interleaved` pairs
/// neighbours, as the paper and DeepSeek's code do. `halves` pairs channel i of the first half with channel i of the
/// second, as GPT-NeoX and Hugging Face do.
enum class RotaryPairs { interleaved, halves };

/// Names how the rates of rotary positions are changed for sequences longer than those of the training.
enum class RotaryScaling {
  none,    ///< not at all
  linear,  ///< all rates are divided by the factor (Chen et al. 2023)
  llama3,  ///< slow rates are divided, fast ones are not, with a smooth transition (Llama 3.1)
  yarn     ///< as llama3 by other limits, with a factor on cosines and sines (Peng et al. 2023)
};
/// Lists the names as configurations spell them.
constexpr auto enum_names(RotaryScaling) {
  return std::to_array<EnumName<RotaryScaling>>({{RotaryScaling::none, "none"},
                                                 {RotaryScaling::linear, "linear"},
                                                 {RotaryScaling::llama3, "llama3"},
                                                 {RotaryScaling::yarn, "yarn"}});
}

/// Says how fast the pairs of channels of a rotary position rotate. The members have the names and the meaning of
/// transformers' `rope_parameters`.
struct RotaryRates {
  double base = 10000;                          ///< pair m of a width rotates by base^(-2 m / width) a position
  RotaryScaling scaling = RotaryScaling::none;  ///< change of these rates
  double factor = 1;                            ///< divisor of the rates, at least 1
  double low_freq_factor = 1;                   ///< llama3: full rotations below which a rate is divided
  double high_freq_factor = 4;                  ///< llama3: full rotations above which it is not
  double beta_fast = 32;                        ///< yarn: full rotations above which a rate is not divided
  double beta_slow = 1;                         ///< yarn: full rotations below which it is
  double attention_factor = 0;                  ///< yarn: factor of cosines and sines; 0: 0.1 ln(factor) + 1
  Index original_max_positions = 8192;          ///< llama3 and yarn: positions of the training

  /// Returns the rate of pair m of `width` channels, in radians a position.
  double rate(Index m, Index width) const {
    const double plain = std::pow(base, -2 * static_cast<double>(m) / static_cast<double>(width));
    constexpr double two_pi = 2 * std::numbers::pi;
    const double rotations = static_cast<double>(original_max_positions) * plain / two_pi;
    if (scaling == RotaryScaling::linear) return plain / factor;
    if (scaling == RotaryScaling::llama3) {
      const double kept = std::clamp((rotations - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0);
      return kept * plain + (1 - kept) * plain / factor;
    }
    if (scaling == RotaryScaling::yarn) {
      const auto pair_of = [&](double full_rotations) {
        return static_cast<double>(width) *
               std::log(static_cast<double>(original_max_positions) / (full_rotations * two_pi)) / (2 * std::log(base));
      };
      const double low = std::max(0.0, std::floor(pair_of(beta_fast))),
                   high = std::min(static_cast<double>(width - 1), std::ceil(pair_of(beta_slow)));
      const double divided = std::clamp((static_cast<double>(m) - low) / (high > low ? high - low : 0.001), 0.0, 1.0);
      return (1 - divided) * plain + divided * plain / factor;
    }
    return plain;
  }
  /// Returns the factor of cosines and sines.
  double amplitude() const {
    if (scaling != RotaryScaling::yarn) return 1;
    return attention_factor > 0 ? attention_factor : 0.1 * std::log(factor) + 1;
  }

  /// Visits each member with its name, for files.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("base", self.base);
    visit("scaling", self.scaling);
    visit("factor", self.factor);
    visit("low_freq_factor", self.low_freq_factor);
    visit("high_freq_factor", self.high_freq_factor);
    visit("beta_fast", self.beta_fast);
    visit("beta_slow", self.beta_slow);
    visit("attention_factor", self.attention_factor);
    visit("original_max_positions", self.original_max_positions);
  }
  /// Returns these rates if every number makes sense. Throws `Error` otherwise.
  constexpr const RotaryRates& checked() const {
    require(base > 1 && base <= 1e12, "rotary: base ", base, " given, more than 1 and at most 1e12 expected");
    require(factor >= 1 && factor <= 1e6, "rotary: factor ", factor, " given, 1 to 1e6 expected");
    require(low_freq_factor > 0 && high_freq_factor > low_freq_factor, "rotary: low_freq_factor ", low_freq_factor,
            " and high_freq_factor ", high_freq_factor, " given, 0 < low < high expected");
    require(beta_slow > 0 && beta_fast >= beta_slow, "rotary: beta_slow ", beta_slow, " and beta_fast ", beta_fast,
            " given, 0 < slow <= fast expected");
    require(attention_factor >= 0 && attention_factor <= 1e3, "rotary: attention_factor ", attention_factor,
            " given, 0 to 1000 expected");
    require(original_max_positions > 0, "rotary: original_max_positions ", original_max_positions,
            " given, at least 1 expected");
    return *this;
  }
  /// Says whether two have the same members.
  friend constexpr bool operator==(const RotaryRates&, const RotaryRates&) = default;
};

/// Gives the position of packed rows in time: row i of sequence n is at first(n) + step * i, in frames.
struct RowPositions {
  const Sequences& sequences;       ///< the sequences of the rows; must outlive this
  std::span<const Index> firsts{};  ///< the position of each sequence's first row, in frames; empty: 0
  Index step = 1;                   ///< 1, or -1 for distances, which fall from row to row

  /// Returns the position of the first row of sequence n.
  constexpr Index first(Index n) const { return firsts.empty() ? 0 : firsts[static_cast<std::size_t>(n)]; }
};

/// Describes a depthwise convolution over time, whose output t sees the inputs from t - left on.
struct DepthwiseShape {
  Index left;                     ///< inputs before t that output t sees
  Index chunk = Mask::unlimited;  ///< outputs see no input after the end of their chunk, counted from the first output
  Index past = 0;                 ///< earlier frames at the start of every sequence, which give no output
};

/// Returns the bytes of a cached row of `width` values, each of `number_bytes` in full storage. int8 adds a float
/// scale.
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

/// Refers to the parameters of a batch norm, each (channels).
template <class T>
struct BatchNormParameters {
  const Parameter<T>& weight;        ///< scale
  const Parameter<T>& bias;          ///< shift
  const Parameter<T>& running_mean;  ///< moving average of the mean
  const Parameter<T>& running_var;   ///< moving average of the unbiased variance
  double eps;                        ///< added to the variance
};

/// Describes one step of AdamW, which is the same for all parameters (Loshchilov and Hutter 2019, algorithm 2).
struct AdamWStep {
  double learning_rate;   ///< factor of the update
  double beta1;           ///< decay of the first moment
  double beta2;           ///< decay of the second moment
  double eps;             ///< added to the denominator
  double weight_decay;    ///< decay of parameters that have two dimensions or more
  double gradient_scale;  ///< factor of all gradients, less than 1 if their norm is clipped
  std::int64_t number;    ///< number of this step, from 1

  /// Returns the factor of the first moment in the update: it corrects that moments begin as zeros.
  double rate() const { return learning_rate / (1 - std::pow(beta1, static_cast<double>(number))); }
  /// Returns the factor of the root of the second moment, which corrects the same.
  double root_scale() const { return 1 / std::sqrt(1 - std::pow(beta2, static_cast<double>(number))); }
  /// Returns the part of the values of a parameter that decay leaves. Only those of two dimensions or more decay.
  double kept(std::size_t dimensions) const { return dimensions > 1 ? 1 - learning_rate * weight_decay : 1; }
};

/// Refers to a parameter that a step changes and to its moments (rows, cols), which are empty before its first step.
template <class Tensor, class T>
struct AdamWUpdate {
  Parameter<T>* parameter;  ///< the parameter
  Tensor* first;            ///< moving average of the gradient
  Tensor* second;           ///< moving average of the squared gradient
};

/// Holds the label sequences of a batch, end to end. Sequence n is tokens[sequences.begin(n) .. sequences.end(n)).
struct Labels {
  std::vector<int> tokens;  ///< the labels of all sequences
  Sequences sequences;      ///< the offsets of each sequence in `tokens`
};

/// Holds the tokens of packed sequences, one id a row. The ids are borrowed.
struct TokenRows {
  std::span<const int> ids;  ///< the id of each row's token
  Sequences sequences;       ///< the rows of each sequence
};

/// Describes a cross entropy over integer targets.
struct CrossEntropyShape {
  double label_smoothing = 0;  ///< probability that is spread evenly over all classes (Szegedy et al. 2016, section 7)
  int ignored = -100;          ///< a target that is not predicted: its row has loss 0 and no derivative

  /// Returns the probability of the target in addition to that of every class.
  double on_target() const { return 1 - label_smoothing; }
  /// Returns the probability of every one of these classes.
  double on_all(Index classes) const { return label_smoothing / static_cast<double>(classes); }
};

/// Decides which elements survive dropout. Each random block gives eight decisions of 16 bits, so the probability is
/// rounded to a multiple of 2^-16; the survivors are scaled by the rounded one.
class DropoutMask {
 public:
  /// Makes the mask of a stream of random numbers. Throws `Error` unless 0 <= probability < 1.
  DropoutMask(double probability, const Random& random)
      : threshold_(static_cast<std::uint32_t>(std::min(65535.0, checked(probability) * 65536 + 0.5))),
        random_(random) {}

  /// Returns the factor of the survivors, 1 / (1 - rounded probability).
  constexpr double scale() const { return 65536.0 / (65536.0 - threshold_); }
  /// Returns which elements from 8 * number on survive: bit k is set if element 8 * number + k does.
  constexpr std::uint32_t kept_of(std::uint64_t number) const {
    const auto block = random_.block(number);
    std::uint32_t kept = 0;
    for (std::uint32_t k = 0; k < 8; ++k)
      kept |= static_cast<std::uint32_t>((block[k / 2] >> (16 * (k % 2)) & 0xffff) >= threshold_) << k;
    return kept;
  }
  /// Returns whether any element can be dropped.
  bool any() const { return threshold_ > 0; }
  /// Returns whether element i survives. This defines the mask; `apply` computes it faster.
  constexpr bool keeps(std::uint64_t i) const { return (keeps_two(i - i % 2) >> i % 2 & 1) != 0; }
  /// Returns whether elements i and i + 1 survive, in bits 0 and 1. i is even.
  constexpr std::uint32_t keeps_two(std::uint64_t i) const {
    const auto block = random_.block(i / 8);
    const std::uint32_t low = (i & 2) != 0 ? block[1] : block[0], high = (i & 2) != 0 ? block[3] : block[2],
                        two = (i & 4) != 0 ? high : low;  // no index, so that a GPU has the block in registers
    return ((two & 0xffff) >= threshold_ ? 1U : 0U) | ((two >> 16) >= threshold_ ? 2U : 0U);
  }

  /// Computes y[j] = x[j] * (keeps(first + j) ? scale() : 0) for j in [0, n). x and y may be the same.
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

  /// Gives the number of decisions of one call, so that the random blocks are computed in vectors.
  static constexpr Index together = 128;

  /// Writes the 16 bits of the decisions group * together .. group * together + together - 1.
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
