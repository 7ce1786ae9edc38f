// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/config.hpp>
#include <laconic/convert/conversion_report.hpp>
#include <laconic/convert/factorize.hpp>
#include <laconic/core/index_list.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the settings of a conversion, and the sizes of the converted attention that its type leaves open (`dyn`). A
/// size of 0 means "as the type says".
struct ConversionConfig {
  Index num_kv_heads = 0;  ///< key-value heads; 0 in an open type: one for each query head
  Index kv_lora_rank = 0;  ///< rank of the latent, or of the keys' latent where values have their own
  Index v_lora_rank = 0;   ///< rank of the values' latent; 0 in an open type: kv_lora_rank
  AttentionName attention = AttentionName::by_type;  ///< the target's attention, where its type is AnyAttention
  IndexList kv_lora_ranks{},  ///< one kv_lora_rank for each layer (`allocate_ranks`); empty: the same for all
      v_lora_ranks{};         ///< one v_lora_rank for each layer; empty: the same for all
  SingularValues singular_values = SingularValues::up;  ///< place of the singular values in the factors
  /// Divides the errors of keys and of values in a joint latent by the energy of each (Meng et al. 2025). Without it,
  /// the stronger of the two takes most of the latent.
  bool balance = false;
  /// Mixes the channels of a latent by a Hadamard matrix. SVD puts most of the energy into the first channels, which
  /// wastes the range of 8 bits on the others. It is free, because it is folded into the weights. `mla-head` has none.
  bool hadamard = false;
};

/// Holds a converted model and the report on it: `auto [small, report] = convert<Small>(model);`
template <class Target>
struct Conversion {
  Target model;             ///< the converted model, its parameters on the host
  ConversionReport report;  ///< predicted and measured errors
};

}  // namespace LACONIC_ABI
}  // namespace laconic
