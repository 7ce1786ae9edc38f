// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/gpt.hpp>

#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Encodes images that are cut into patches (Dosovitskiy et al. 2021): a linear layer, a learned vector for each place
/// of a patch, and a stack of blocks in which every patch sees every other.
///
///     PatchEncoder<Mha<4, NoPosition>> encoder({.patch_size = 49, .blocks = config}, Seed(1));
///     auto [rows, sequences] = encoder.hidden(cpu, patches, Sequences{16, 16});   // patches (32, 49), two images
///
/// Construction allocates, and throws Error where the sizes do not fit; the forward pass takes memory from the
/// context's pool only.
template <class AttentionPolicy, class T = float>
class PatchEncoder : public Module<PatchEncoder<AttentionPolicy, T>>,
                     public Stack<PreNormBlock<GptKind, AttentionPolicy, T>, LayerNorm<T>> {
  using Blocks = Stack<PreNormBlock<GptKind, AttentionPolicy, T>, LayerNorm<T>>;

 public:
  /// Holds all sizes.
  struct Config {
    Index patch_size = 0;        ///< elements of a patch
    LanguageModelConfig blocks;  ///< sizes of the blocks; an image has at most max_positions patches

    /// Visits each member with its name, for files and command lines.
    static constexpr void fields(auto& self, auto&& visit) {
      visit("patch_size", self.patch_size);
      visit("blocks", self.blocks);
    }
  };
  using Scalar = T;                ///< the type of its parameters
  using Policy = AttentionPolicy;  ///< the attention of its blocks
  using Blocks::layers, Blocks::layer_norm;

  /// Makes an encoder with random parameters. Allocates. Throws Error for sizes that do not fit.
  PatchEncoder(const Config& config, Seed seed)
      : Blocks(LayerNorm<T>(config.blocks.checked().d_model, config.blocks.layer_norm_eps)),
        patches(checked(config.patch_size), config.blocks.d_model, seed / "patches"),
        places(config.blocks.max_positions, config.blocks.d_model, seed / "places"),
        config_(config) {
    layers.reserve(static_cast<std::size_t>(config.blocks.num_layers));
    for (Index i = 0; i < config.blocks.num_layers; ++i) layers.emplace_back(config.blocks, seed / "layers" / i);
  }

  /// Returns the configuration.
  const Config& config() const { return config_; }

  /// Returns the rows (rows, d_model) of patches (rows, patch_size), and their sequences, which are those given.
  /// Throws Error for an image of too many patches.
  template <class Context, class Patches>
  requires ContextOf<Context, T>
  auto hidden(Context& context, Patches&& input, const Sequences& sequences) const {
    require(sequences.max_length() <= config_.blocks.max_positions, "patch encoder: an image of ",
            sequences.max_length(), " patches given, at most max_positions = ", config_.blocks.max_positions,
            " expected");
    auto x = patches(context, context.input(std::forward<Patches>(input)));
    Pass<decltype(x)> pass{sequences};
    x = context.add(std::move(x), places.of_positions(context, pass));
    x = this->run(context, context.dropout(std::move(x), config_.blocks.dropout), std::move(pass), nullptr);
    return std::pair(std::move(x), sequences);
  }

  /// Returns the trained parameters.
  static constexpr Index parameter_count(const Config& config) {
    checked(config.patch_size);
    const LanguageModelConfig& c = config.blocks.checked();
    const Index d = c.d_model;
    return (config.patch_size + 1) * d + c.max_positions * d + c.num_layers * Blocks::Block::parameter_count(c) +
           LayerNorm<T>::parameter_count(d);
  }

  /// Visits the parts with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("patches", self.patches);
    visit("places", self.places);
    visit("layers", self.layers);
    visit("layer_norm", self.layer_norm);
  }

  Linear<T> patches;    ///< from patch_size to d_model
  Embedding<T> places;  ///< the vector of each place, (max_positions, d_model)

 private:
  static constexpr Index checked(Index patch_size) {
    require(patch_size > 0 && patch_size <= 1 << 16, "patch encoder: patch_size ", patch_size, " given, 1 to ", 1 << 16,
            " expected");
    return patch_size;
  }
  Config config_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
