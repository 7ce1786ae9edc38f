// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/enum.hpp>
#include <laconic/core/extent.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how layers share the floats that may be cached of a frame. Energy is the sum of squared singular values.
enum class RankAllocation {
  uniform,        ///< evenly
  energy,         ///< so that each layer keeps an equal fraction of its energy, as X-EcoMLA does by a threshold
  water_filling,  ///< min loss of energy over all layers: the largest squares of all layers come first
  fisher          ///< as water-filling, with energies weighed by the layers' Fisher information
};
constexpr auto enum_names(RankAllocation) {
  using enum RankAllocation;
  return std::to_array<EnumName<RankAllocation>>(
      {{uniform, "uniform"}, {energy, "energy"}, {water_filling, "water-filling"}, {fisher, "fisher"}});
}

/// Returns the rank of each layer's latent. `spectra` are the layers' singular values, falling
/// (`JointFactors::singular_values`). Their squares are multiplied by the layers' `weights`, which `fisher` needs
/// (`fisher_information`) and the others do not take. `budget` is the number of floats that all layers together may
/// cache of a frame; it is never exceeded. Ranks are positive multiples of `multiple` (which suits vector registers),
/// and at most the number of singular values. Channels that would hold no energy are not allocated. Allocates memory.
/// Throws `Error` unless such ranks exist and the values are finite and at least 0.
inline std::vector<Index> allocate_ranks(std::span<const std::vector<double>> spectra, Index budget, Index multiple,
                                         RankAllocation how, std::span<const double> weights = {}) {
  const auto layers = static_cast<Index>(spectra.size());
  require(layers > 0, "allocate_ranks: no layers given");
  require(multiple > 0, "allocate_ranks: ranks that are multiples of ", multiple, " given, positive numbers expected");
  require(budget / multiple >= layers, "allocate_ranks: a budget of ", budget, " floats a frame given for ", layers,
          " layers, at least ", multiple, " each expected");
  require(how == RankAllocation::fisher ? weights.size() == spectra.size() : weights.empty(),
          "allocate_ranks: ", to_name(how), " with ", weights.size(), " weights given for ", spectra.size(), " layers");
  for (const double weight : weights)
    require(weight >= 0 && weight < 1e300, "allocate_ranks: a weight of ", weight,
            " given, a finite one of at least 0 expected");

  // Energy of each block of `multiple` singular values.
  std::vector<std::vector<double>> blocks(spectra.size());
  std::vector<double> energies(spectra.size()), tails(spectra.size());
  for (std::size_t l = 0; l < spectra.size(); ++l) {
    const std::vector<double>& s = spectra[l];
    const auto size = static_cast<Index>(s.size());
    const double weight = weights.empty() ? 1 : weights[l];
    require(size >= multiple, "allocate_ranks: layer ", l, " has ", size, " singular values, at least ", multiple,
            " expected");
    for (Index i = 0; i < size; ++i) {
      const double value = s[static_cast<std::size_t>(i)];
      require(value >= 0 && value * value < 1e300, "allocate_ranks: singular value ", i, " of layer ", l, " is ", value,
              ", a finite one of at least 0 expected");
      if (i % multiple == 0 && i + multiple <= size) blocks[l].push_back(0);
      if (i / multiple < static_cast<Index>(blocks[l].size())) blocks[l].back() += weight * value * value;
      energies[l] += weight * value * value;
    }
    tails[l] = energies[l] - blocks[l][0];
  }

  std::vector<std::size_t> given(spectra.size(), 1);
  if (how == RankAllocation::uniform) {
    for (std::size_t l = 0; l < spectra.size(); ++l)
      given[l] = std::min(blocks[l].size(), static_cast<std::size_t>(budget / multiple / layers));
  } else {
    // One block after the other to whom it helps most. Since the blocks of a layer fall, no other choice loses less.
    for (Index left = budget / multiple - layers; left > 0; --left) {
      std::size_t best = 0;
      double most = 0;
      for (std::size_t l = 0; l < spectra.size(); ++l) {
        if (given[l] == blocks[l].size() || blocks[l][given[l]] <= 0) continue;
        const double gain = how == RankAllocation::energy ? tails[l] / energies[l] : blocks[l][given[l]];
        if (gain > most) {
          most = gain;
          best = l;
        }
      }
      if (most == 0) break;
      tails[best] -= blocks[best][given[best]++];
    }
  }
  std::vector<Index> ranks;
  for (const std::size_t count : given) ranks.push_back(static_cast<Index>(count) * multiple);
  return ranks;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
