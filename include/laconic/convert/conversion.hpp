// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/heads.hpp>
#include <laconic/convert/conversion_report.hpp>
#include <laconic/convert/factorize.hpp>
#include <laconic/core/index_list.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Numbers of the converted attention that its type leaves open (`dyn`). 0 means "as the type says", and otherwise a
/// key-value head for every head.
struct ConversionConfig {
  Index num_kv_heads = 0;
  Index kv_lora_rank = 0;
  Index v_lora_rank = 0;
  AttentionName attention = AttentionName::by_type;
  /// Of each layer its own (`allocate_ranks`); empty: the one above for all.
  IndexList kv_lora_ranks{}, v_lora_ranks{};
  /// Of whatever latents are made.
  SingularValues singular_values = SingularValues::up;
  /// In a latent for both, errors of keys and of values count in proportion to the energy of each (Meng et al. 2025).
  /// Else the stronger of the two takes the latent for itself.
  bool balance = false;
  /// Channels of a latent are mixed by a Hadamard matrix: SVD gives the first most of the energy, which wastes the
  /// range of 8 bits on the others. It costs nothing, for it lies in the weights. Not of mla-head.
  bool hadamard = false;
};

/// `auto [small, report] = convert<Small>(model);`
template <class Target>
struct Conversion {
  Target model;
  ConversionReport report;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
