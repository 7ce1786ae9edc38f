// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/layer_concepts.hpp>
#include <laconic/attention/policy.hpp>
#include <laconic/backend/context_check.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <optional>
#include <type_traits>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes the attention of packed rows that the policy describes, (rows, d_model) to (rows, d_model). Parameter names
/// are those of the Hugging Face Conformer, and DeepSeek's where that has none. Construction allocates, and throws
/// Error where the sizes do not fit; calls take memory from the context's pool only.
template <class Policy_, class T>
class AttentionLayer : public Module<AttentionLayer<Policy_, T>> {
 public:
  using Scalar = T;                                            ///< the type of its parameters
  using Policy = Policy_;                                      ///< the `Attention` that it computes
  using KeyValue = typename Policy::KeyValue;                  ///< its key-value policy
  using Position = typename Policy::Position;                  ///< its position policy
  static constexpr bool is_linear = Policy::Score::is_linear;  ///< whether the past is a state of fixed size

  /// Makes a layer with random parameters; `dropout` is that of probabilities in training. Allocates. Throws Error
  /// where type and configuration contradict each other.
  AttentionLayer(const AttentionConfig& config, double dropout, Seed seed)
      : AttentionLayer(Resolved{Policy::dims(config)}, dropout, seed) {}

  /// Returns all sizes.
  const AttentionDims& dims() const { return dims_; }
  /// Returns whether a stream's state grows with the frames that it keeps.
  static constexpr bool keeps_frames() { return !is_linear; }

  /// Holds what streams keep of earlier frames. Takes memory at construction only.
  template <class Context>
  class State {
   public:
    /// Makes the state of `shape.slots` streams. Allocates.
    State(Context& context, const AttentionLayer& layer, const StateShape& shape) {
      if (shape.chunk) work_ = Policy::stream_work(*shape.chunk, shape.left_context);
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
        table_ = layer.position.prepared_table(context, d, shape.left_context + shape.chunk.value_or(0));
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
    /// Returns the bytes that the caches hold, all slots.
    Index cache_bytes() const {
      Index sum = 0;
      for (const auto& cache : caches_) sum += cache.bytes();
      return sum;
    }

   private:
    friend AttentionLayer;
    std::array<typename Context::Cache, static_cast<std::size_t>(is_linear ? 1 : KeyValue::num_parts)> caches_;
    typename Context::Tensor table_;
    std::optional<typename Policy::Work> work_;  // that of every chunk
  };

  /// Returns the rows as the position policy changes them once, before the first layer.
  template <class Context, class Tensor>
  Tensor enter(Context& context, Tensor x, const Pass<Tensor>& pass) const {
    return Position::enter(context, std::move(x), pass);
  }
  /// Returns the table of positions that all layers share, or an empty tensor: in a stream, relative positions have
  /// theirs in the state, and those of prepared weights have it in the context.
  template <class Context, class Tensor>
  Tensor table(Context& context, const Pass<Tensor>& pass) const {
    if (Position::is_relative && (!pass.slots.empty() || position.keeps_term(context))) return {};
    return Position::table(context, dims_, Policy::rotary_width(dims_), pass);
  }

  /// Returns the self-attention of x (rows, d_model) on the given path. With a pointer to a state, x follows what the
  /// state holds, which then holds x, too.
  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr,
                    AttentionPath path = AttentionPath::by_cost) const {
    static_assert(detail::is_context_of<Context, T>() && detail::computes_on<Policy, Context>());
    const Tensor rotated = rotated_input(context, x, pass);
    Queries<Tensor> q = query(context, rotated);
    auto memory = key_value.remember(context, rotated, x);
    if constexpr (Position::turns_keys) {
      rotate_queries(context, q, pass.table);
      rotate_keys(context, memory, pass.table);
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
      const auto with_cached = [&](Index first, const auto& fresh, const Sequences& sequences) {
        std::array<typename Context::CachedRows, std::tuple_size_v<decltype(memory)>> rows;
        const auto slots =
            pass.slots.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(sequences.size()));
        for (std::size_t i = 0; i < fresh.size(); ++i)
          rows[i] = context.with_cached(state->caches_[i], slots, fresh[i], sequences);
        return rows;
      };
      const Sequences seen = context.cached_lengths(with_cached(0, memory, pass.sequences)[0], pass.sequences);
      const auto absorbs_one = [&](Index n) {
        const Index rows = pass.sequences.length(n), all = seen.length(n);
        return absorbs(context, path, state->work_ ? *state->work_ : Policy::masked_work(pass.mask, rows, all));
      };
      const Tensor out = attend_each(context, q, memory, shape, pass.sequences, pass.sequences, seen,
                                     position.term_of(state->table_), absorbs_one, with_cached);
      for (std::size_t i = 0; i < memory.size(); ++i)
        context.append(state->caches_[i], pass.slots, memory[i], pass.sequences);
      return linear_out(context, out);
    } else {
      const auto term = position.term(context, dims_, pass);
      return linear_out(context, attend(context, q, memory, shape, pass.sequences, pass.sequences, term,
                                        absorbs(context, path, Policy::whole_work(pass.mask))));
    }
  }

  /// Returns the memory that `cross` needs of the rows (rows, d_model) of sources, such as an encoder's output. It is
  /// computed once for all queries. With `InputLatent` it is the rows themselves, which all layers of a decoder then
  /// share. Rotary keys are rotated by their position in their source. Throws Error for rows of another width.
  template <class Context, class Tensor>
  auto remember(Context& context, const Tensor& source, const Sequences& sources) const {
    static_assert(detail::is_context_of<Context, T>() && detail::computes_on<Policy, Context>());
    auto memory = key_value.remember(context, source, source);
    if constexpr (Position::turns_keys) rotate_keys(context, memory, table(context, Pass<Tensor>{sources}));
    return memory;
  }
  /// Returns the cross-attention of x (rows, d_model): its rows, in `queries`, see all rows of the source in the
  /// sequence of the same number. Hypotheses of a beam are rows of one sequence, since queries do not see each other.
  /// Rotary keys need the table of the positions of x, counted from the beginning of their own sequence (see `table`).
  /// The path of each source depends on its own rows and queries alone; a tape takes one for all. Throws Error for
  /// sizes that do not fit.
  template <class Context, class Tensor, class Memory>
  Tensor cross(Context& context, const Tensor& x, const Sequences& queries, const Memory& memory,
               const Sequences& sources, const Tensor& table = {}, AttentionPath path = AttentionPath::by_cost) const {
    static_assert(!Position::is_relative && !Position::turns_input,
                  "laconic: cross-attention has NoPosition, for there is no distance between frames of two sequences, "
                  "or a rotary key, which has a position in each");
    static_assert(!is_linear, "laconic: cross-attention is softmax attention");
    const auto absorbs_one = [&](Index n) {
      return absorbs(context, path, Policy::masked_work({}, queries.length(n), sources.length(n)));
    };
    Queries<Tensor> q = query(context, x);
    if constexpr (Position::turns_keys) {
      require(!table.empty(), "cross-attention: no table of positions given, that of the queries (`table`) expected");
      rotate_queries(context, q, table);
    }
    const AttendShape shape{dims_.num_heads, dims_.num_kv_heads, scale(), {}};
    return linear_out(context,
                      attend_each(context, q, memory, shape, queries, sources, sources, RelativeTerm<Tensor, T>{},
                                  absorbs_one, [](Index, const Memory& rows, const Sequences&) { return rows; }));
  }

  /// Returns the first weight that the layer's unchanged input is multiplied by.
  const Parameter<T>& input_weight() const {
    if constexpr (Position::turns_input) return key_value.value_weight();
    return query.input_weight();
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    std::remove_cvref_t<decltype(self.query)>::each_parameter(self.query, visit);
    std::remove_cvref_t<decltype(self.key_value)>::each_parameter(self.key_value, visit);
    visit("linear_out", self.linear_out);
    std::remove_cvref_t<decltype(self.position)>::each_parameter(self.position, visit);
  }

  typename Policy::Query::template Layer<T> query;  ///< from the input to queries
  typename KeyValue::template Layer<T> key_value;   ///< from the input to memory, keys and values
  Linear<T> linear_out;                             ///< from all heads to d_model
  typename Position::template Layer<T> position;    ///< the term that scores gain by positions

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

  /// Returns the scale of the scores, 1 / sqrt of the width that queries and keys have before any absorption.
  double scale() const { return 1 / std::sqrt(static_cast<double>(dims_.head_dim + dims_.qk_rope_head_dim)); }

  template <class Context, class Tensor>
  static void rotate_queries(Context& context, Queries<Tensor>& q, const Tensor& table) {
    Tensor& part = q.rope.empty() ? q.content : q.rope;
    part = context.rotate(std::move(part), table, Position::pairs);
  }
  template <class Context, class Memory, class Tensor>
  static void rotate_keys(Context& context, Memory& memory, const Tensor& table) {
    Tensor& part = memory[static_cast<std::size_t>(*KeyValue::rotary_part)];
    part = context.rotate(std::move(part), table, Position::pairs);
  }
  template <class Context, class Tensor>
  Tensor rotated_input(Context& context, const Tensor& x, const Pass<Tensor>& pass) const {
    if constexpr (Position::turns_input) return context.rotate(x, pass.table, Position::pairs);
    return x;
  }

  /// Returns whether to take the absorbed path. Dropout of probabilities is defined on the expanded path only, so
  /// training stays on that.
  template <class Context>
  bool absorbs(const Context& context, AttentionPath path, const typename Policy::Work& work) const {
    if (path != AttentionPath::by_cost) return path == AttentionPath::absorbed;
    return !context.training && Policy::absorbing_is_cheaper(dims_, work);
  }

  /// Attends, each sequence on its own path, so that its bits do not depend on the others. Neighbours on one path are
  /// attended together; nothing is copied where all take the same. `memory` has the rows of `fresh`, and
  /// view(first, rows, fresh) returns what `attend` reads for sequences from `first` on.
  template <class Context, class Tensor, class Memory, class Absorbs, class View>
  Tensor attend_each(Context& context, const Queries<Tensor>& q, const Memory& memory, const AttendShape& shape,
                     const Sequences& queries, const Sequences& fresh, const Sequences& keys,
                     const RelativeTerm<Tensor, T>& term, [[maybe_unused]] const Absorbs& absorbs_one,
                     const View& view) const {
    const auto together = [&](bool absorb) {
      return attend(context, q, view(0, memory, fresh), shape, queries, keys, term, absorb);
    };
    if constexpr (!KeyValue::is_latent) {
      return together(false);
    } else {
      const auto end_of = [&](Index begin, bool absorb) {
        Index end = begin + 1;
        while (end < queries.size() && absorbs_one(end) == absorb) ++end;
        return end;
      };
      const bool first = queries.size() > 0 && absorbs_one(0);
      if (queries.size() == 0 || end_of(0, first) == queries.size()) return together(first);
      if constexpr (!StreamingContext<Context>) {
        return together(false);  // tapes do not cut rows; both paths are exact
      } else {
        Tensor out = context.make(queries.rows(), dims_.q_dim());
        for (Index begin = 0, end = 0; begin < queries.size(); begin = end) {
          const bool absorb = absorbs_one(begin);
          end = end_of(begin, absorb);
          const auto cut = [&](const Sequences& all) {
            return Sequences::make(context.arena(), end - begin, [&](Index i) { return all.length(begin + i); });
          };
          const auto cut_rows = [&](const Tensor& x, const Sequences& all) {
            Tensor part;
            if (x.empty()) return part;
            part = context.make(all.end(end - 1) - all.begin(begin), x.cols());
            context.copy_rows(x, part, std::array{RowRange{all.begin(begin), part.rows(), 0}});
            return part;
          };
          Memory part;
          for (std::size_t i = 0; i < part.size(); ++i) part[i] = cut_rows(memory[i], fresh);
          const Tensor rows = attend(context, {cut_rows(q.content, queries), cut_rows(q.rope, queries)},
                                     view(begin, part, cut(fresh)), shape, cut(queries), cut(keys), term, absorb);
          context.copy_rows(rows, out, std::array{RowRange{0, rows.rows(), queries.begin(begin)}});
        }
        return out;
      }
    }
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

  /// Returns the memory as tensors, or unchanged where attention reads it in caches.
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
