// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/attention_decoder.hpp>

#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Writes down what an encoder hears or sees: an encoder, such as `Conformer` or `PatchEncoder`, and an
/// `AttentionDecoder` of the same width.
///
///     EncoderDecoder<Conformer<Mha<4>>, AttentionDecoder<Mha<4, NoPosition>, Mha<4, NoPosition>>> model(...);
///     auto logits = model(cpu, features, sequences, {ids, Sequences{5, 9}});   // sequence n of ids writes utterance n
///
/// A Conformer keeps its CTC head, so both can be trained and decoded together (Watanabe et al. 2017).
template <class Encoder_, class Decoder_>
class EncoderDecoder : public Module<EncoderDecoder<Encoder_, Decoder_>> {
 public:
  using Scalar = typename Encoder_::Scalar;  ///< the type of its parameters
  using Encoder = Encoder_;                  ///< the type of the encoder
  using Decoder = Decoder_;                  ///< the type of the decoder
  /// Holds all sizes.
  struct Config {
    typename Encoder::Config encoder;  ///< sizes of the encoder
    typename Decoder::Config decoder;  ///< sizes of the decoder

    /// Visits each member with its name, for files and command lines.
    static constexpr void fields(auto& self, auto&& visit) {
      visit("encoder", self.encoder);
      visit("decoder", self.decoder);
    }
  };

  /// Makes a model with random parameters. Allocates. Throws Error for sizes that do not fit.
  EncoderDecoder(const Config& config, Seed seed)
      : encoder(config.encoder, seed / "encoder"), decoder(config.decoder, seed / "decoder") {
    const Index from = encoder.layer_norm.weight.size(), to = decoder.text.layer_norm.weight.size();
    require(from == to, "encoder-decoder: an encoder of d_model ", from, " and a decoder of d_model ", to,
            " given, equal ones expected");
  }

  /// Returns the configuration with every size resolved.
  Config config() const { return {encoder.config(), decoder.config()}; }

  /// Returns the logits (rows, vocab_size) of the token after each token. Input and sequences are those of the
  /// encoder's `hidden`; sequence n of the tokens reads sequence n.
  template <class Context, class Input>
  requires ContextOf<Context, Scalar>
  auto operator()(Context& context, Input&& input, const Sequences& sequences, const TokenRows& tokens) const {
    auto [rows, sources] = encoder.hidden(context, std::forward<Input>(input), sequences);
    return decoder(context, tokens, decoder.remember(context, rows, sources), sources);
  }

  /// Visits the parts with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("encoder", self.encoder);
    visit("decoder", self.decoder);
  }

  Encoder encoder;  ///< from the input to rows (rows, d_model)
  Decoder decoder;  ///< from these and tokens to logits
};

}  // namespace LACONIC_ABI
}  // namespace laconic
