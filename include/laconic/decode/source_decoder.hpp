// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/decode/token_decoder.hpp>
#include <laconic/model/language_model_config.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Runs an AttentionDecoder token by token. Each slot holds the earlier tokens of one sequence and reads one source;
/// slots that read the same source, such as the beams of a search, share its memory. `slots` of the configuration
/// counts all beams of all sources that are decoded together.
///
///     SourceDecoder decoder(cpu, model.decoder, {.slots = 4});
///     decoder.listen(encoded, sources);                       // the output of an encoder
///     auto best = beam_search(decoder, std::array{start}, config, 2);   // of source 2
///
/// `generate` gives prompt n source n. Construction and `listen` allocate; a warm `append` takes memory from the
/// context's pool only.
template <class Decoder, StreamingContext Context_ = Cpu<typename Decoder::Scalar>>
class SourceDecoder {
 public:
  using Context = Context_;                 ///< the context that computes
  using Tensor = typename Context::Tensor;  ///< the type of logits

  /// Makes empty slots and no sources. Context and decoder must outlive this. Allocates. Throws Error for sizes out of
  /// range.
  SourceDecoder(Context& context, const Decoder& decoder, const TokenDecoderConfig& config = {})
      : reader_{decoder}, tokens_(context, reader_, config) {
    reader_.source_of.assign(static_cast<std::size_t>(slots()), Reader::none);
    order_.reserve(static_cast<std::size_t>(slots()));
    sorted_.reserve(static_cast<std::size_t>(slots()));
    places_.reserve(static_cast<std::size_t>(slots()));
  }
  SourceDecoder(const SourceDecoder&) = delete;
  SourceDecoder& operator=(const SourceDecoder&) = delete;

  /// Takes the rows (rows, d_model) of new sources in place of the old ones, computes what the decoder needs of them,
  /// and empties all slots. Allocates. Throws Error for rows that do not fit and for a source without rows; the old
  /// sources then remain.
  void listen(const Tensor& rows, const Sequences& sources) {
    require(rows.rows() == sources.rows(), "source decoder: ", rows.rows(), " rows given, their sequences have ",
            sources.rows());
    for (Index n = 0; n < sources.size(); ++n)
      require(sources.length(n) > 0, "source decoder: source ", n, " has no rows, at least one expected");
    reader_.listen(context(), rows, sources);
    for (Index slot = 0; slot < slots(); ++slot) tokens_.begin(slot);
  }

  /// Returns the context that computes.
  Context& context() { return tokens_.context(); }
  /// Returns the number of slots.
  Index slots() const { return tokens_.slots(); }
  /// Returns the number of sources.
  Index sources() const { return reader_.sources.size(); }
  /// Returns the number of tokens that the decoder knows.
  Index vocab_size() const { return tokens_.vocab_size(); }
  /// Returns the tokens that a slot holds.
  Index count(Index slot) const { return tokens_.count(slot); }
  /// Returns the tokens that a slot can still take.
  Index room(Index slot) const { return tokens_.room(slot); }
  /// Returns the bytes that the slots hold, all layers.
  Index cache_bytes() const { return tokens_.cache_bytes(); }

  /// Empties a slot, which reads source n from now on. Throws Error for a source that does not exist.
  void begin(Index slot, Index n) {
    require(n >= 0 && n < sources(), "source decoder: source ", n, " given, ", sources(), " sources are there");
    tokens_.begin(slot);
    reader_.source_of[static_cast<std::size_t>(slot)] = n;
  }
  /// Makes slot `to` hold what slot `from` holds, and read its source.
  void fork(Index from, Index to) {
    tokens_.fork(from, to);
    reader_.source_of[static_cast<std::size_t>(to)] = reader_.source_of[static_cast<std::size_t>(from)];
  }

  /// Appends the tokens of sequence n to slots[n] and returns the logits that follow: see TokenDecoder. Throws Error,
  /// too, for a slot without a source.
  Tensor append(const TokenRows& tokens, std::span<const Index> slots) {
    for (const Index slot : slots)
      require(slot >= 0 && slot < this->slots() && reader_.source(slot) < sources(), "source decoder: slot ", slot,
              " given, one that has begun to read a source expected");
    const auto earlier = [&](Index a, Index b) { return reader_.source(a) < reader_.source(b); };
    if (std::is_sorted(slots.begin(), slots.end(), earlier)) return tokens_.append(tokens, slots);

    // Rows that read one source must lie together.
    require(tokens.sequences.size() == static_cast<Index>(slots.size()), "source decoder: ", tokens.sequences.size(),
            " sequences given for ", slots.size(), " slots");
    require(static_cast<Index>(tokens.ids.size()) == tokens.sequences.rows(), "source decoder: ", tokens.ids.size(),
            " tokens given, their sequences have ", tokens.sequences.rows());
    order_.resize(slots.size());
    for (std::size_t i = 0; i < slots.size(); ++i) order_[i] = static_cast<Index>(i);
    const auto place = [&](Index i) { return std::pair(reader_.source(slots[static_cast<std::size_t>(i)]), i); };
    std::sort(order_.begin(), order_.end(), [&](Index a, Index b) { return place(a) < place(b); });
    sorted_.clear();
    ids_.clear();
    for (const Index n : order_) {
      sorted_.push_back(slots[static_cast<std::size_t>(n)]);
      const auto own = tokens.ids.subspan(static_cast<std::size_t>(tokens.sequences.begin(n)),
                                          static_cast<std::size_t>(tokens.sequences.length(n)));
      ids_.insert(ids_.end(), own.begin(), own.end());
    }
    const Sequences sequences = Sequences::make(context().arena(), tokens.sequences.size(), [&](Index i) {
      return tokens.sequences.length(order_[static_cast<std::size_t>(i)]);
    });
    const Tensor logits = tokens_.append({ids_, sequences}, sorted_);
    Tensor out = context().make(logits.rows(), logits.cols());
    places_.clear();
    for (std::size_t i = 0; i < order_.size(); ++i) places_.push_back({static_cast<Index>(i), 1, order_[i]});
    context().copy_rows(logits, out, places_);
    return out;
  }

 private:
  /// The decoder with its sources, as the language model that TokenDecoder runs.
  struct Reader {
    using Scalar = typename Decoder::Scalar;
    using Memory = decltype(std::declval<const Decoder&>().remember(
        std::declval<Context&>(), std::declval<const Tensor&>(), std::declval<const Sequences&>()));
    template <class C>
    struct State : Decoder::template State<C> {
      State(C& context, const Reader& reader, const StateShape& shape)
          : Decoder::template State<C>(context, reader.decoder.text, shape) {}
    };

    explicit Reader(const Decoder& d) : decoder(d) {}

    void listen(Context& context, const Tensor& rows, const Sequences& given) {
      std::vector<Index> lengths;
      for (Index n = 0; n < given.size(); ++n) lengths.push_back(given.length(n));
      Sequences next(lengths);
      memory = decoder.remember(context, rows, next);
      sources = std::move(next);
      std::fill(source_of.begin(), source_of.end(), none);
    }
    Index source(Index slot) const { return source_of[static_cast<std::size_t>(slot)]; }

    const LanguageModelConfig& config() const { return decoder.text.config(); }
    static Index cache_bytes(const LanguageModelConfig& config, Frames n, Storage storage) {
      return Decoder::Text::cache_bytes(config, n, storage);
    }
    Tensor hidden(Context& c, std::span<const int> ids, Pass<Tensor> pass, State<Context>* state) const {
      const Sequences queries = Sequences::make(c.arena(), sources.size(), [&](Index n) {
        Index rows = 0;
        for (std::size_t i = 0; i < pass.slots.size(); ++i)
          if (source(pass.slots[i]) == n) rows += pass.sequences.length(static_cast<Index>(i));
        return rows;
      });
      return decoder.hidden(c, ids, std::move(pass), queries, memory, sources, state);
    }
    Tensor logits(Context& c, const Tensor& rows) const { return decoder.text.logits(c, rows); }

    static constexpr Index none = Index{1} << 60;  // more than any source
    const Decoder& decoder;
    Memory memory;
    Sequences sources;
    std::vector<Index> source_of;  // of each slot
  };

  Reader reader_;
  TokenDecoder<Reader, Context> tokens_;
  std::vector<Index> order_, sorted_;
  std::vector<int> ids_;
  std::vector<RowRange> places_;  // of logits, in the order that was asked for
};

}  // namespace LACONIC_ABI
}  // namespace laconic
