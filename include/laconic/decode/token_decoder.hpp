// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/cost.hpp>
#include <laconic/backend/context.hpp>
#include <laconic/backend/cpu.hpp>
#include <laconic/backend/shapes.hpp>
#include <laconic/nn/pass.hpp>

#include <concepts>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Requires what greedy decoding, sampling and beam search need: the logits that follow the tokens of a slot.
///   append(tokens, slots)   appends the tokens of sequence n to slots[n] and returns the logits (slots, vocab_size) of
///                           the token after the last of each
///   begin(slot, n)          empties a slot for sequence n of a caller's list
///   fork(from, to)          makes slot `to` hold what slot `from` holds
///   slots(), vocab_size(), room(slot)   the number of slots, of tokens, and of tokens that a slot can still take
///   context()               the context of the logits
template <class D>
concept TokenPredictor = requires(D& d, const D& constant, const TokenRows& tokens, std::span<const Index> slots,
                                  Index slot) {
  { d.append(tokens, slots) } -> std::convertible_to<typename D::Tensor>;
  d.begin(slot, slot);
  d.fork(slot, slot);
  { constant.slots() } -> std::convertible_to<Index>;
  { constant.vocab_size() } -> std::convertible_to<Index>;
  { constant.room(slot) } -> std::convertible_to<Index>;
  d.context();
};

/// Holds the sizes of a TokenDecoder.
struct TokenDecoderConfig {
  Index slots = 1;                  ///< sequences at a time
  Index max_tokens = 0;             ///< tokens of a sequence; 0: the model's max_positions
  Storage storage = Storage::full;  ///< how keys, values and latents are stored
};

/// Runs a language model token by token: each slot holds the keys and values, or the latents, of one sequence, so that
/// a token costs one pass over one row.
///
///     TokenDecoder decoder(cpu, model, {.slots = 2});
///     auto logits = decoder.append({prompt, Sequences{5}}, std::array{Index{0}});   // (1, vocab_size)
///
/// Construction allocates. A warm `append` takes memory from the context's pool only. The logits are those of a pass
/// over the whole sequence; with attention over latents, up to rounding. Latents are expanded for a long prompt and not
/// for single tokens, whichever costs each sequence less, whatever the others do.
template <class Model, StreamingContext Context_ = Cpu<typename Model::Scalar>>
class TokenDecoder {
 public:
  using Context = Context_;                 ///< the context that computes
  using Tensor = typename Context::Tensor;  ///< the type of logits

  /// Makes empty slots for a model. Context and model must outlive this. Allocates. Throws Error for sizes out of
  /// range.
  TokenDecoder(Context& context, const Model& model, const TokenDecoderConfig& config = {})
      : context_(context),
        model_(model),
        max_tokens_(checked(model, config)),
        state_(context, model, StateShape{config.slots, max_tokens_, std::nullopt, config.storage}),
        counts_(static_cast<std::size_t>(config.slots)) {
    firsts_.reserve(counts_.size());
    lasts_.reserve(counts_.size());
  }

  /// Returns the context that computes.
  Context& context() { return context_; }
  /// Returns the number of slots.
  Index slots() const { return static_cast<Index>(counts_.size()); }
  /// Returns the number of tokens that the model knows.
  Index vocab_size() const { return model_.config().vocab_size; }
  /// Returns the tokens that a slot holds.
  Index count(Index slot) const { return counts_[checked_slot(slot)]; }
  /// Returns the tokens that a slot can still take.
  Index room(Index slot) const { return max_tokens_ - count(slot); }
  /// Returns the bytes that the slots hold, all layers.
  Index cache_bytes() const { return state_.attention_bytes(); }

  /// Empties a slot for a new sequence, whatever its number.
  void begin(Index slot, Index = 0) {
    counts_[checked_slot(slot)] = 0;
    state_.clear(context_, slot);
  }
  /// Makes slot `to` hold what slot `from` holds.
  void fork(Index from, Index to) {
    counts_[checked_slot(to)] = counts_[checked_slot(from)];
    if (from != to) state_.fork(context_, from, to);
  }

  /// Appends the tokens of sequence n, at least one, to slots[n]. Returns the logits (slots, vocab_size) of the token
  /// that follows the last of each. Throws Error for a slot that does not exist, is named twice or has no room, for an
  /// id that is no token, and for a sequence without tokens. Where computing fails, for lack of memory or for an id
  /// that is no token, the slots are empty afterwards.
  Tensor append(const TokenRows& tokens, std::span<const Index> slots) {
    const Sequences& sequences = tokens.sequences;
    require(sequences.size() == static_cast<Index>(slots.size()), "token decoder: ", sequences.size(),
            " sequences given for ", slots.size(), " slots");
    firsts_.clear();
    for (std::size_t n = 0; n < slots.size(); ++n) {
      const Index more = sequences.length(static_cast<Index>(n));
      require(more > 0, "token decoder: no tokens given for slot ", slots[n], ", at least one expected");
      require(more <= room(slots[n]), "token decoder: ", more, " tokens given for slot ", slots[n],
              ", which has room for ", room(slots[n]));
      for (std::size_t i = 0; i < n; ++i)
        require(slots[i] != slots[n], "token decoder: slot ", slots[n], " is named twice");
      firsts_.push_back(count(slots[n]));
    }
    for (const int id : tokens.ids)
      require(id >= 0 && id < vocab_size(), "token decoder: id ", id, " given, 0 to ", vocab_size() - 1, " expected");
    try {
      return context_.replayed([&] {
        Pass<Tensor> pass{sequences, Mask::causal(), {}, slots, firsts_};
        const Tensor rows = model_.hidden(context_, tokens.ids, std::move(pass), &state_);
        for (std::size_t n = 0; n < slots.size(); ++n)
          counts_[static_cast<std::size_t>(slots[n])] += sequences.length(static_cast<Index>(n));
        if (rows.rows() == sequences.size()) return model_.logits(context_, rows);
        Tensor last = context_.make(sequences.size(), rows.cols());
        lasts_.clear();
        for (Index n = 0; n < sequences.size(); ++n) lasts_.push_back({sequences.end(n) - 1, 1, n});
        context_.copy_rows(rows, last, lasts_);
        return model_.logits(context_, last);
      });
    } catch (...) {  // some layers may hold the tokens and others not
      for (const Index slot : slots) begin(slot);
      throw;
    }
  }

 private:
  static Index checked(const Model& model, const TokenDecoderConfig& config) {
    const Index max = model.config().max_positions;
    require(config.slots > 0 && config.slots <= 1 << 24, "token decoder: ", config.slots, " slots given, 1 to ",
            1 << 24, " expected");
    require(config.max_tokens >= 0 && config.max_tokens <= max, "token decoder: max_tokens ", config.max_tokens,
            " given, 1 to max_positions = ", max, " expected, or 0 for these");
    const Index tokens = config.max_tokens > 0 ? config.max_tokens : max;
    const Index bytes = Model::cache_bytes(model.config(), frames(tokens), config.storage);
    require(bytes <= (Index{1} << 50) / config.slots, "token decoder: ", config.slots, " slots of ", bytes,
            " bytes given, at most 2^50 bytes together expected");
    return tokens;
  }
  std::size_t checked_slot(Index slot) const {
    require(slot >= 0 && slot < slots(), "token decoder: slot ", slot, " given, 0 to ", slots() - 1, " expected");
    return static_cast<std::size_t>(slot);
  }

  Context& context_;
  const Model& model_;
  Index max_tokens_;
  typename Model::template State<Context> state_;
  std::vector<Index> counts_, firsts_;
  std::vector<RowRange> lasts_;  // the last rows of sequences
};

}  // namespace LACONIC_ABI
}  // namespace laconic
