// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/latent.hpp>
#include <laconic/attention/position.hpp>
#include <laconic/attention/query.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// A number of encoder frames, to tell it from other numbers: `cache_bytes(config, frames(1000))`.
struct Frames {
  Index count;
};
constexpr Frames frames(Index count) { return {count}; }

/// Scores as probabilities: softmax of scaled products.
struct Softmax {
  static constexpr bool is_linear = false;
};
/// Scores as products of features elu + 1, without softmax, so that what was heard is a state of fixed size
/// (Katharopoulos et al. 2020). It cannot forget: a limited left context is refused.
struct LinearKernel {
  static constexpr bool is_linear = true;
};

/// The two exact ways to compute attention over a latent: expand keys and values of every head, or absorb the expansion
/// into queries and output. `by_cost` takes the one of fewer operations, by what mask and cache are like, never by what
/// a batch is like: so a sequence has the same result in any company.
enum class AttentionPath { by_cost, expanded, absorbed };

template <class Policy, class T>
class AttentionLayer;

/// Attention as a choice of independent policies, with its costs known at compile time. The layer that computes it is
/// `Layer<T>`. Numbers that the type leaves open (`dyn`) come from the configuration.
template <class HeadsPolicy, KeyValuePolicy KeyValue_, PositionPolicy Position_ = RelativePosition,
          class Query_ = FullQuery, class Score_ = Softmax>
struct Attention {
  using Heads = HeadsPolicy;
  using KeyValue = KeyValue_;
  using Position = Position_;
  using Query = Query_;
  using Score = Score_;
  template <class T>
  using Layer = AttentionLayer<Attention, T>;

  static_assert(!(KeyValue::one_input && Position::turns_input),
                "laconic: one latent for keys and values does not go with InputRotary, which projects them from "
                "different inputs; a split one does");
  static_assert(!(Position::turns_keys && KeyValue::rotary_part < 0),
                "laconic: a rotary key differs from frame to frame and is no function of this latent; a decoupled "
                "latent has a key for it");
  static_assert(Position::turns_keys || KeyValue::rotary_part != 1,
                "laconic: a decoupled latent has a rotary key, so its position is Rotary");
  static_assert(
      !(Score::is_linear && KeyValue::is_latent),
      "laconic: linear attention caches a state, neither keys nor values, so a latent has no meaning with it");
  static_assert(
      !(Score::is_linear && (Position::is_relative || Position::turns_keys)),
      "laconic: linear attention never compares one query with one key, so their distance has no place in it");

  /// Throws where type and configuration contradict each other or the numbers do not fit.
  static constexpr AttentionDims dims(const AttentionConfig& config) {
    const Index heads = resolve<Heads::num_heads>(config.num_heads, "num_heads");
    const Index kv_heads = resolve<Heads::num_kv_heads>(
        Heads::num_kv_heads == dyn && config.num_kv_heads == 0 ? heads : config.num_kv_heads, "num_kv_heads");
    require(config.d_model > 0 && (config.head_dim > 0 || config.d_model % heads == 0), "num_heads: ", heads,
            " heads given, a divisor of d_model = ", config.d_model, " expected");
    require(heads % kv_heads == 0, "num_kv_heads: ", kv_heads,
            " key-value heads given, a divisor of num_heads = ", heads, " expected");
    AttentionDims d{config.d_model, heads, kv_heads, config.head_dim > 0 ? config.head_dim : config.d_model / heads,
                    config.attention_bias};
    KeyValue::set_ranks(config, d);
    Query::set_ranks(config, d);
    require(d.rope_pairs == config.rope_pairs, "rope_pairs: ", config.rope_pairs.size(),
            " configured for an attention without a rotary key of its own");
    if (Position::turns_input)
      require(d.q_dim() == d.d_model && d.head_dim % 2 == 0, "head_dim: ", d.head_dim, " given, an even one that ",
              heads, " heads fill d_model = ", d.d_model, " with expected");
    if (Position::turns_keys)
      require(rotary_width(d) % 2 == 0, "head_dim: ", d.head_dim, " given, an even one expected to turn pairs");
    return d;
  }

  /// Bytes that one layer caches for this many frames; linear attention has a state of fixed size instead, always
  /// stored in full.
  static constexpr Index cache_bytes(const AttentionConfig& config, Frames n, Storage storage = Storage::full) {
    const AttentionDims d = dims(config);
    if constexpr (Score::is_linear) return state_size(d) * 4;
    Index bytes = 0;
    for (const CachePart& part : KeyValue::parts(d))
      bytes += cache_row_bytes(part.positional ? Storage::full : storage, part.width);
    return n.count * bytes;
  }
  /// Trained numbers of one layer.
  static constexpr Index parameter_count(const AttentionConfig& config) {
    const AttentionDims d = dims(config);
    return Query::parameter_count(d) + KeyValue::parameter_count(d) + Position::parameter_count(d) +
           d.d_model * (d.q_dim() + d.bias);
  }
  /// Floating-point operations (a multiply-add counts two) of one layer over one whole sequence, on the path that it
  /// takes.
  static constexpr Index flops(const AttentionConfig& config, Frames n, const Mask& mask = {}) {
    const AttentionDims d = dims(config);
    const Index t = n.count;
    const Index projections =
        t * (Query::flops(d) + KeyValue::remember_flops(d) + 2 * d.q_dim() * d.d_model) + Position::flops(d, t);
    if constexpr (Score::is_linear)
      return projections + 2 * t * (d.num_heads + d.num_kv_heads) * d.head_dim * (d.head_dim + 1);
    else
      return projections + core_flops(d, {t, t, visible_pairs(mask, t, t)}, absorbing_is_cheaper(d, whole_work(mask)));
  }

  /// How much there is to attend: rows of queries and keys, and pairs of both that the mask shows.
  struct Work {
    Index q_rows, kv_rows, pairs;
  };
  /// Operations behind the projections of x, without the term of position, which is the same on both paths
  /// (attention over latents reads them once for all heads, but multiplies wider rows).
  static constexpr Index expanded_flops(const AttentionDims& d, const Work& work) {
    return work.kv_rows * KeyValue::expand_flops(d) +
           2 * d.num_heads * work.pairs * (2 * d.head_dim + d.qk_rope_head_dim);
  }
  static constexpr Index absorbed_flops(const AttentionDims& d, const Work& work) requires KeyValue::is_latent {
    const AbsorbedShape a = KeyValue::absorbed(d);
    return work.q_rows * KeyValue::absorb_flops(d) + 2 * d.num_heads * work.pairs * (a.key_width + a.value_width);
  }
  static constexpr bool absorbing_is_cheaper(const AttentionDims& d, const Work& work) {
    if constexpr (KeyValue::is_latent) return absorbed_flops(d, work) < expanded_flops(d, work);
    return false;
  }
  /// What a whole sequence is for the choice of a path: its chunks, where it has such with a limited left context, and
  /// a long one otherwise, for in short ones either path costs little.
  static constexpr Work whole_work(const Mask& mask) {
    constexpr Index many = Index{1} << 16;
    if (mask.chunk == Mask::unlimited || mask.left_context == Mask::unlimited) return {many, many, many * many};
    return {mask.chunk, mask.chunk, mask.chunk * (mask.chunk + mask.left_context)};
  }
  /// A chunk of a stream that keeps so many frames before it: all of them are expanded anew, or none.
  static constexpr Work stream_work(Index chunk, Index kept) { return {chunk, kept + chunk, chunk * (kept + chunk)}; }
  /// Pairs of query and key in one sequence.
  static constexpr Index visible_pairs(const Mask& mask, Index queries, Index keys) {
    if (mask.chunk == Mask::unlimited) return queries * keys;
    require(mask.chunk > 0, "mask: chunk ", mask.chunk, " given, at least 1 expected");
    Index pairs = 0;
    for (Index i = 0; i < queries; i += mask.chunk) {
      const auto seen = mask.keys(i, keys - queries, keys);
      pairs += std::min(mask.chunk, queries - i) * (seen.end - seen.begin);
    }
    return pairs;
  }

  /// Of what the position turns: a head, or its part that is set aside for this.
  static constexpr Index rotary_width(const AttentionDims& d) {
    return d.qk_rope_head_dim > 0 ? d.qk_rope_head_dim : d.head_dim;
  }
  /// Numbers of the state of linear attention.
  static constexpr Index state_size(const AttentionDims& d) { return d.num_kv_heads * d.head_dim * (d.head_dim + 1); }

 private:
  static constexpr Index core_flops(const AttentionDims& d, const Work& work, bool absorb) {
    if constexpr (KeyValue::is_latent) {
      if (absorb) return absorbed_flops(d, work);
    }
    return expanded_flops(d, work);
  }
};

// `Mha<dyn>` leaves both numbers of heads open: it is `Gqa<dyn, dyn>`, and MHA where the configuration gives
// num_kv_heads = 0.
template <Index H, class Position = RelativePosition>
using Mha = Attention<Heads<H, H>, FullRank, Position>;
template <Index H, Index G, class Position = RelativePosition>
using Gqa = Attention<Heads<H, G>, FullRank, Position>;
template <Index H, class Position = RelativePosition>
using Mqa = Attention<Heads<H, 1>, FullRank, Position>;
template <Index H, Index R, class Position = RelativePosition>
using Mla = Attention<Heads<H, H>, TwoStageLatent<R>, Position>;
template <Index H, Index R, class Position = RelativePosition>
using MlaSimple = Attention<Heads<H, H>, SharedLatent<R>, Position>;
template <Index H, Index RK, Index RV = RK, class Position = RelativePosition>
using MlaSplit = Attention<Heads<H, H>, SplitLatent<RK, RV>, Position>;
template <Index H, Index R, Index ValueRank = 0, class Position = RelativePosition>
using MlaHead = Attention<Heads<H, H>, HeadLatent<R, ValueRank>, Position>;
template <Index H, Index R, Index RopeDim, class Query = FullQuery, template <class> class Norm = RmsNorm>
using MlaDecoupled = Attention<Heads<H, H>, DecoupledLatent<R, RopeDim, Norm>, Rotary<>, Query>;
template <Index H, Index G = H, class Position = RelativePosition>
using CachedInput = Attention<Heads<H, G>, InputLatent, Position>;
template <Index H, Index G = H, class Position = NoPosition>
using LinearAttention = Attention<Heads<H, G>, FullRank, Position, FullQuery, LinearKernel>;

/// Attention of packed rows by the policy, (rows, d_model) to (rows, d_model). Parameter names are those of the Hugging
/// Face Conformer, and DeepSeek's where that has none.
template <class Policy_, class T>
class AttentionLayer : public Module<AttentionLayer<Policy_, T>> {
 public:
  using Policy = Policy_;
  using KeyValue = typename Policy::KeyValue;
  using Position = typename Policy::Position;
  static constexpr bool is_linear = Policy::Score::is_linear;

  AttentionLayer(const AttentionConfig& config, double dropout, Seed seed)
      : AttentionLayer(Resolved{Policy::dims(config)}, dropout, seed) {}

  const AttentionDims& dims() const { return dims_; }
  /// Whether a stream's state grows with the frames that it keeps.
  static constexpr bool keeps_frames() { return !is_linear; }

  /// What a stream keeps of earlier frames, for many streams. Takes memory at construction only.
  template <class Context>
  class State {
   public:
    State(Context& context, const AttentionLayer& layer, const StateShape& shape)
        : work_(Policy::stream_work(shape.chunk, shape.left_context)) {
      const AttentionDims& d = layer.dims();
      if constexpr (is_linear) {
        caches_[0] = context.make_cache(shape.slots, 1, Policy::state_size(d));
        for (Index slot = 0; slot < shape.slots; ++slot) clear(context, slot);
      } else {
        const auto parts = KeyValue::parts(d);
        for (std::size_t i = 0; i < parts.size(); ++i)
          caches_[i] = context.make_cache(shape.slots, shape.left_context, parts[i].width,
                                          parts[i].positional ? Storage::full : shape.storage);
      }
      if constexpr (Position::is_relative)
        table_ = layer.position.prepared_table(context, d, shape.left_context + shape.chunk);
    }
    /// Empties a slot for a new stream.
    void clear(Context& context, Index slot) {
      for (auto& cache : caches_) is_linear ? context.fill_zeros(cache, slot) : context.clear(cache, slot);
    }
    /// Fills a slot as if there had been frames of zeros before, as many as are kept.
    void fill_zeros(Context& context, Index slot) {
      for (auto& cache : caches_) context.fill_zeros(cache, slot);
    }
    /// Makes slot `to` hold what slot `from` holds.
    void fork(Context& context, Index from, Index to) {
      for (auto& cache : caches_) context.fork(cache, from, to);
    }
    /// Held for frames, all slots.
    Index cache_bytes() const {
      Index sum = 0;
      for (const auto& cache : caches_) sum += cache.bytes();
      return sum;
    }

   private:
    friend AttentionLayer;
    std::array<typename Context::Cache, static_cast<std::size_t>(is_linear ? 1 : KeyValue::num_parts)> caches_;
    typename Context::Tensor table_;
    typename Policy::Work work_;
  };

  /// What happens to the rows once before the first layer, and what all layers share of it.
  template <class Context, class Tensor>
  Tensor enter(Context& context, Tensor x, const Pass<Tensor>& pass) const {
    return Position::enter(context, std::move(x), pass);
  }
  /// In a stream, relative positions have their table in the state; packed ones have it in the context.
  template <class Context, class Tensor>
  Tensor table(Context& context, const Pass<Tensor>& pass) const {
    if (Position::is_relative && (!pass.slots.empty() || position.keeps_term(context))) return {};
    return Position::table(context, dims_, Policy::rotary_width(dims_), pass);
  }

  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr,
                    AttentionPath path = AttentionPath::by_cost) const {
    const Tensor turned = turned_input(context, x, pass);
    Queries<Tensor> q = query(context, turned);
    auto memory = key_value.remember(context, turned, x);
    if constexpr (Position::turns_keys) {
      Tensor& of_query = q.rope.empty() ? q.content : q.rope;
      of_query = context.rotate(std::move(of_query), pass.table, Position::pairs);
      Tensor& of_key = memory[static_cast<std::size_t>(KeyValue::rotary_part)];
      of_key = context.rotate(std::move(of_key), pass.table, Position::pairs);
    }
    const AttendShape shape{dims_.num_heads, dims_.num_kv_heads, scale(), pass.mask};
    if constexpr (is_linear) {
      const auto kv = key_value.expand(context, memory);
      if constexpr (has_state<S>) {
        Tensor out;
        context.update(state->caches_[0], pass.slots, [&](Tensor& states) {
          out = context.linear_attend(q.content, kv.k, kv.v, shape, pass.sequences, &states);
        });
        return linear_out(context, out);
      } else {
        return linear_out(context, context.linear_attend(q.content, kv.k, kv.v, shape, pass.sequences));
      }
    } else if constexpr (has_state<S>) {
      std::array<typename Context::CachedRows, std::tuple_size_v<decltype(memory)>> rows;
      for (std::size_t i = 0; i < memory.size(); ++i)
        rows[i] = context.with_cached(state->caches_[i], pass.slots, memory[i], pass.sequences);
      const Sequences seen = context.cached_lengths(rows[0], pass.sequences);
      const Tensor out = attend(context, q, rows, shape, pass.sequences, seen, position.term_of(state->table_),
                                absorbs(context, path, state->work_));
      for (std::size_t i = 0; i < memory.size(); ++i)
        context.append(state->caches_[i], pass.slots, memory[i], pass.sequences);
      return linear_out(context, out);
    } else {
      const auto term = position.term(context, dims_, pass);
      return linear_out(context, attend(context, q, memory, shape, pass.sequences, pass.sequences, term,
                                        absorbs(context, path, Policy::whole_work(pass.mask))));
    }
  }

  /// What `cross` needs of a source (rows, d_model), such as an encoder's output: computed once for all its queries.
  /// With `InputLatent` it is the source itself, which then all layers of a decoder share.
  template <class Context, class Tensor>
  auto remember(Context& context, const Tensor& source) const {
    return key_value.remember(context, source, source);
  }
  /// Cross-attention: rows of x, in `queries`, see all rows of the source in the sequence of the same number.
  /// Hypotheses of a beam are rows of one sequence, since queries do not see each other. The path follows from all
  /// queries and sources together.
  template <class Context, class Tensor, class Memory>
  Tensor cross(Context& context, const Tensor& x, const Sequences& queries, const Memory& memory,
               const Sequences& sources, AttentionPath path = AttentionPath::by_cost) const {
    static_assert(!Position::is_relative && !Position::turns_keys && !Position::turns_input,
                  "laconic: cross-attention has NoPosition, for there is no distance between frames of two sequences");
    static_assert(!is_linear, "laconic: cross-attention is softmax attention");
    typename Policy::Work work{queries.rows(), sources.rows(), 0};
    for (Index n = 0; n < queries.size(); ++n) work.pairs += queries.length(n) * sources.length(n);
    return linear_out(
        context, attend(context, query(context, x), memory, {dims_.num_heads, dims_.num_kv_heads, scale(), {}}, queries,
                        sources, RelativeTerm<Tensor, T>{}, absorbs(context, path, work)));
  }

  /// The first matrix that meets the layer's input as it is.
  const Parameter<T>& input_weight() const {
    if constexpr (Position::turns_input) return key_value.value_weight();
    return query.input_weight();
  }

  static void each_parameter(auto& self, auto&& visit) {
    std::remove_cvref_t<decltype(self.query)>::each_parameter(self.query, visit);
    std::remove_cvref_t<decltype(self.key_value)>::each_parameter(self.key_value, visit);
    visit("linear_out", self.linear_out);
    std::remove_cvref_t<decltype(self.position)>::each_parameter(self.position, visit);
  }

  typename Policy::Query::template Layer<T> query;
  typename KeyValue::template Layer<T> key_value;
  Linear<T> linear_out;
  typename Position::template Layer<T> position;

 private:
  struct Resolved {
    AttentionDims dims;
  };
  AttentionLayer(const Resolved& resolved, double dropout, Seed seed)
      : AttentionLayer(resolved, resolved.dims, dropout, seed) {}
  AttentionLayer(const Resolved&, const AttentionDims& d, double dropout, Seed seed)
      : query(d, seed),
        key_value(d, seed),
        linear_out(d.q_dim(), d.d_model, seed / "linear_out", bias_if(d.bias)),
        position(d, seed),
        dims_(d),
        dropout_(dropout) {}

  /// Of the width that queries and keys have before any absorption.
  double scale() const { return 1 / std::sqrt(static_cast<double>(dims_.head_dim + dims_.qk_rope_head_dim)); }

  template <class Context, class Tensor>
  Tensor turned_input(Context& context, const Tensor& x, const Pass<Tensor>& pass) const {
    if constexpr (Position::turns_input) return context.rotate(x, pass.table, Position::pairs);
    return x;
  }

  /// Dropout of probabilities is defined on the expanded path, on which training stays for that reason.
  template <class Context>
  bool absorbs(const Context& context, AttentionPath path, const typename Policy::Work& work) const {
    if (path != AttentionPath::by_cost) return path == AttentionPath::absorbed;
    return !context.training && Policy::absorbing_is_cheaper(dims_, work);
  }

  template <class Context, class Tensor, class Memory>
  Tensor attend(Context& context, const Queries<Tensor>& q, const Memory& memory, AttendShape shape,
                const Sequences& queries, const Sequences& keys, RelativeTerm<Tensor, T> term,
                [[maybe_unused]] bool absorb) const {
    const auto with_rope = [&](const Tensor& content) {
      return q.rope.empty() ? content : context.concat(content, q.rope, dims_.num_heads, dims_.num_heads);
    };
    if constexpr (KeyValue::is_latent) {
      if (absorb) {
        require(!(context.training && dropout_ > 0),
                "attention: the absorbed path has no dropout of probabilities, which this layer trains with");
        Tensor content = q.content;
        if (term.pos_bias_u != nullptr) content = context.add_row(content, *term.pos_bias_u);
        if (!term.table.empty()) term.query = q.content;
        term.pos_bias_u = nullptr;
        const auto [k, v] =
            key_value.latents(context, rows_of<KeyValue::latents_are_memory>(context, memory, queries, keys));
        shape.num_kv_heads = KeyValue::absorbed(dims_).num_kv_heads;
        return key_value.release(
            context, context.attend(with_rope(key_value.absorb(context, content)), k, v, shape, queries, keys, term));
      }
    }
    const auto [k, v] = key_value.expand(context, rows_of<!KeyValue::is_latent>(context, memory, queries, keys));
    return context.attend(with_rope(q.content), k, v, shape, queries, keys, term, dropout_);
  }

  /// Memory as tensors; or, where attention reads it as it is, in caches if it lies there.
  template <bool InPlace, class Context, class Memory>
  static auto rows_of(Context& context, const Memory& memory, const Sequences& fresh, const Sequences& all) {
    if constexpr (InPlace || std::is_same_v<typename Memory::value_type, typename Context::Tensor>) {
      return memory;
    } else {
      std::array<typename Context::Tensor, std::tuple_size_v<Memory>> out;
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = context.gathered(memory[i], fresh, all);
      return out;
    }
  }

  AttentionDims dims_;
  double dropout_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
