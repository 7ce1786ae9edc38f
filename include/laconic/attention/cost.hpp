// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/key_value.hpp>
#include <laconic/core/rounding.hpp>

#include <algorithm>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds a number of encoder frames, to tell it from other numbers: `cache_bytes(config, frames(1000))`.
struct Frames {
  Index count;  ///< encoder frames
};
/// Returns `count` as a number of frames.
constexpr Frames frames(Index count) { return {count}; }

/// Chooses between the two exact evaluation orders of attention over a latent: expand keys and values of every head, or
/// absorb the expansion into queries and output.
enum class AttentionPath {
  by_cost,   ///< the order with fewer operations for this mask and cache; never depends on the batch
  expanded,  ///< keys and values are expanded
  absorbed   ///< queries and output absorb the expansion
};

/// Computes what one attention layer costs, as constant expressions. `Policy` is the `Attention` that derives from it.
template <class Policy>
struct AttentionCost {
  /// Returns the bytes that one layer caches for `n` frames. Linear attention has a state of fixed size instead, which
  /// is never stored rounded. Throws Error where type and configuration contradict each other.
  static constexpr Index cache_bytes(const AttentionConfig& config, Frames n, Storage storage = Storage::full) {
    const AttentionDims d = Policy::dims(config);
    if constexpr (Policy::Score::is_linear) return state_size(d) * 4;
    Index bytes = 0;
    for (const CachePart& part : Policy::KeyValue::parts(d))
      bytes += cache_row_bytes(part.positional ? Storage::full : storage, part.width);
    return n.count * bytes;
  }
  /// Returns the trained parameters of one layer. Throws Error where type and configuration contradict each other.
  static constexpr Index parameter_count(const AttentionConfig& config) {
    const AttentionDims d = Policy::dims(config);
    return Policy::Query::parameter_count(d) + Policy::KeyValue::parameter_count(d) +
           Policy::Position::parameter_count(d) + d.d_model * (d.q_dim() + d.bias);
  }
  /// Returns the floating-point operations (a multiply-add counts two) of one layer over one whole sequence of `n`
  /// frames, on the path that it takes. Throws Error where type and configuration contradict each other.
  static constexpr Index flops(const AttentionConfig& config, Frames n, const Mask& mask = {}) {
    const AttentionDims d = Policy::dims(config);
    const Index t = n.count;
    const Index projections =
        t * (Policy::Query::flops(d) + Policy::KeyValue::remember_flops(d) + 2 * d.q_dim() * d.d_model) +
        Policy::Position::flops(d, t);
    if constexpr (Policy::Score::is_linear)
      return projections + 2 * t * (d.num_heads + d.num_kv_heads) * d.head_dim * (d.head_dim + 1);
    else
      return projections + core_flops(d, masked_work(mask, t, t), absorbing_is_cheaper(d, whole_work(mask)));
  }

  /// Returns the floating-point operations of one layer over a stream's chunk of `chunk` frames after `kept` cached
  /// ones, on the path that it takes, without the term of position. Throws Error where type and configuration
  /// contradict each other.
  static constexpr Index stream_flops(const AttentionConfig& config, Index chunk, Index kept) {
    const AttentionDims d = Policy::dims(config);
    const Index projections =
        chunk * (Policy::Query::flops(d) + Policy::KeyValue::remember_flops(d) + 2 * d.q_dim() * d.d_model);
    if constexpr (Policy::Score::is_linear) {
      return projections + 2 * chunk * (d.num_heads + d.num_kv_heads) * d.head_dim * (d.head_dim + 1);
    } else {
      const Work work = stream_work(chunk, kept);
      return projections + core_flops(d, work, absorbing_is_cheaper(d, work));
    }
  }

  /// Counts what is to be attended.
  struct Work {
    Index q_rows;   ///< rows of queries
    Index kv_rows;  ///< rows of keys
    Index pairs;    ///< pairs of query and key that the mask shows
  };
  /// Returns the operations after the projections of x on the expanded path. The term of position, which is the same on
  /// both paths, is left out.
  static constexpr Index expanded_flops(const AttentionDims& d, const Work& work) {
    return work.kv_rows * Policy::KeyValue::expand_flops(d) +
           2 * d.num_heads * work.pairs * (2 * d.head_dim + d.qk_rope_head_dim);
  }
  /// Returns the operations after the projections of x on the absorbed path, without the term of position. Latents are
  /// read once for all heads, but their rows are wider than a head's.
  static constexpr Index absorbed_flops(const AttentionDims& d, const Work& work) {
    static_assert(Policy::KeyValue::is_latent, "laconic: only attention over a latent has an absorbed path");
    const AbsorbedShape a = Policy::KeyValue::absorbed(d);
    return work.q_rows * Policy::KeyValue::absorb_flops(d) +
           2 * d.num_heads * work.pairs * (a.key_width + a.value_width);
  }
  /// Returns whether the absorbed path has fewer operations than the expanded one.
  static constexpr bool absorbing_is_cheaper(const AttentionDims& d, const Work& work) {
    if constexpr (Policy::KeyValue::is_latent) return absorbed_flops(d, work) < expanded_flops(d, work);
    return false;
  }
  /// Returns the work that decides the path of whole sequences: one chunk under a mask of chunks with limited left
  /// context, and a long sequence otherwise, since short ones cost little on either path.
  static constexpr Work whole_work(const Mask& mask) {
    constexpr Index many = Index{1} << 16;
    if (mask.chunk == Mask::unlimited || mask.left_context == Mask::unlimited) return {many, many, many * many};
    return {mask.chunk, mask.chunk, mask.chunk * (mask.chunk + mask.left_context)};
  }
  /// Returns the work of a stream's chunk after `kept` cached frames: either path expands or reads all of them again.
  static constexpr Work stream_work(Index chunk, Index kept) { return {chunk, kept + chunk, chunk * (kept + chunk)}; }
  /// Returns the work of one sequence of which `queries` rows are new and `keys` rows can be seen, the last of them the
  /// new ones.
  static constexpr Work masked_work(const Mask& mask, Index queries, Index keys) {
    return {queries, keys, visible_pairs(mask, queries, keys)};
  }
  /// Returns the pairs of query and key that the mask shows in one sequence.
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

  /// Returns the elements of the state of linear attention.
  static constexpr Index state_size(const AttentionDims& d) { return d.num_kv_heads * d.head_dim * (d.head_dim + 1); }

 private:
  static constexpr Index core_flops(const AttentionDims& d, const Work& work, bool absorb) {
    if constexpr (Policy::KeyValue::is_latent) {
      if (absorb) return absorbed_flops(d, work);
    }
    return expanded_flops(d, work);
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
