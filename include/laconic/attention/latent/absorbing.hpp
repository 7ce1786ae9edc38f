// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/key_value.hpp>

#include <array>
#include <cstddef>
#include <optional>

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns a latent rank from type and configuration. Throws Error if it exceeds `max`, at which a latent is lossless.
template <Index R>
constexpr Index resolve_rank(Index configured, const char* name, Index max, const char* max_name) {
  const Index rank = resolve<R>(configured, name);
  require(rank <= max, name, ": ", rank, " given, at most ", max_name, " = ", max,
          " expected (a larger latent holds nothing more)");
  return rank;
}

/// Holds what most latents say of themselves: their memory is the latents, and no rotary position may rotate it, since
/// a rotated key differs from frame to frame and is no function of the latent.
struct LatentPolicy {
  static constexpr bool is_latent = true;           ///< there is an absorbed path
  static constexpr bool latents_are_memory = true;  ///< `latents` returns parts of the memory unchanged
  static constexpr std::optional<Index> rotary_part = std::nullopt;  ///< no part may be rotated
};

/// Evaluates attention over latents without expanding them (DeepSeek-V2 2024, section 2.1.2), for a layer that says
/// which linear layers lead from its latents to the keys and to the values of a head, in this order:
///   static auto key_up(auto& self) { return std::array{&self.linear_k_up}; }
///   static auto value_up(auto& self) { return std::array{&self.linear_v_up}; }
/// q . (c B_K^T) = (q B_K) . c, so the queries absorb the expansion of the keys; probabilities sum over frames, so the
/// expansion of the values is applied once, to the output. A bias of the keys moves all scores of a query by the same
/// amount, which softmax ignores; a bias of the values is added once, since probabilities sum to 1.
template <class Layer>
class AbsorbingLayer {
 public:
  /// Returns queries (rows, num_heads * latent width) from queries (rows, num_heads * head_dim).
  template <class Context, class Tensor>
  Tensor absorb(Context& context, const Tensor& q) const {
    const auto steps = Layer::key_up(self());
    Tensor x = q;
    for (auto step = steps.rbegin(); step != steps.rend(); ++step)
      x = context.head_linear(x, (*step)->weight, nullptr, {heads_.num_heads, heads_.num_blocks, true});
    return x;
  }
  /// Returns the first and the last part of the memory, which are those of keys and of values, or one for both.
  template <class Context, class Tensor, std::size_t N>
  KeysAndValues<Tensor> latents(Context&, const std::array<Tensor, N>& memory) const {
    return {memory.front(), memory.back()};
  }
  /// Returns the output (rows, num_heads * head_dim) from that of attention over latents, (rows, num_heads * latent
  /// width).
  template <class Context, class Tensor>
  Tensor release(Context& context, const Tensor& out) const {
    return expand_heads(context, out, Layer::value_up(self()), heads_);
  }

 protected:
  /// `heads`: the query heads, and how many blocks of matrices they share.
  explicit AbsorbingLayer(const HeadShape& heads) : heads_(heads) {}

  /// Marks the expansions as weights that heads multiply by one at a time. Called once they are constructed.
  void use_by_heads() {
    for (auto* step : Layer::key_up(static_cast<Layer&>(*this))) used_by_heads(*step);
    for (auto* step : Layer::value_up(static_cast<Layer&>(*this))) used_by_heads(*step);
  }

  /// Applies the steps to every head, each with its block of the weights: (rows, heads * in) to (rows, heads * out).
  template <class Context, class Tensor, class Steps>
  static Tensor expand_heads(Context& context, Tensor x, const Steps& steps, const HeadShape& heads) {
    for (const auto* step : steps) x = context.head_linear(x, step->weight, step->bias_or_null(), heads);
    return x;
  }

  /// Returns the query heads, and how many blocks of matrices they share.
  const HeadShape& heads() const { return heads_; }

 private:
  const Layer& self() const { return static_cast<const Layer&>(*this); }

  HeadShape heads_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
