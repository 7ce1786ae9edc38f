// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/parameter.hpp>
#include <laconic/core/random.hpp>
#include <laconic/nn/pass.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// Looks up a row for each id: ids to (ids, width). A model may multiply by the weight, too: with the layer's `linear`,
/// the same matrix turns rows back into logits of all ids (tied embeddings, Press and Wolf 2017). Initial values are
/// GPT-2's: normal with a standard deviation of 0.02.
template <class T>
class Embedding : public Module<Embedding<T>> {
 public:
  /// Makes an empty layer, without parameters.
  Embedding() = default;
  /// Makes the layer with its initial parameters. `use` is WeightUse::linear where products read the weight, too.
  /// Allocates.
  Embedding(Index count, Index width, Seed seed, WeightUse use = WeightUse::elementwise) : weight({count, width}) {
    weight.use = use;
    const Random random(seed, "weight");
    for (Index i = 0; i < weight.size(); ++i)
      weight.host().data()[i] = static_cast<T>(0.02 * random.normal(static_cast<std::uint64_t>(i)));
  }

  /// Returns the number of ids.
  Index count() const { return weight.rows(); }

  /// Returns the row of each id. Throws Error for an id that has none.
  template <class Context>
  auto operator()(Context& context, std::span<const int> ids) const {
    return context.embed(ids, weight);
  }
  /// Returns, for each row of a pass, the row of its position in its sequence: learned positions.
  template <class Context, class Tensor>
  Tensor of_positions(Context& context, const Pass<Tensor>& pass) const {
    const Index rows = pass.sequences.rows();
    const Buffer memory = context.arena().allocate(static_cast<std::size_t>(std::max<Index>(1, rows)) * sizeof(int));
    auto* ids = static_cast<int*>(memory.data());
    for (Index n = 0; n < pass.sequences.size(); ++n)
      for (Index i = 0; i < pass.sequences.length(n); ++i)
        ids[pass.sequences.begin(n) + i] = static_cast<int>(pass.first(n) + i);
    return (*this)(context, std::span<const int>(ids, static_cast<std::size_t>(rows)));
  }
  /// Returns x W^T: the product of each row of x (rows, width) with the rows of all ids, (rows, count).
  template <class Context, class Tensor>
  auto linear(Context& context, const Tensor& x) const {
    return context.linear(x, weight, nullptr);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) { visit("weight", self.weight); }

  Parameter<T> weight;  ///< (count, width)
};

}  // namespace LACONIC_ABI
}  // namespace laconic
