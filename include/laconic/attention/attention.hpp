// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/key_value.hpp>
#include <laconic/attention/position.hpp>

namespace laconic::inline LACONIC_ABI {

/// A number of encoder frames, to tell it from other numbers: `cache_bytes(config, frames(1000))`.
struct Frames {
  Index count;
};
constexpr Frames frames(Index count) { return {count}; }

template <class Policy, class T>
class AttentionLayer;

/// Softmax attention as a choice of independent policies, with its costs known at compile time. The layer that computes
/// it is `Layer<T>`. Numbers that the type leaves open (`dyn`) come from the configuration.
template <class HeadsPolicy, class KeyValuePolicy, class PositionPolicy = RelativePosition>
struct Attention {
  using Heads = HeadsPolicy;
  using KeyValue = KeyValuePolicy;
  using Position = PositionPolicy;
  template <class T>
  using Layer = AttentionLayer<Attention, T>;

  /// Throws where type and configuration contradict each other or the numbers do not fit.
  static constexpr AttentionDims dims(const AttentionConfig& config) {
    const Index heads = resolve<Heads::num_heads>(config.num_heads, "num_heads");
    const Index kv_heads = resolve<Heads::num_kv_heads>(
        Heads::num_kv_heads == dyn && config.num_kv_heads == 0 ? heads : config.num_kv_heads, "num_kv_heads");
    require(config.d_model > 0 && config.d_model % heads == 0, "num_heads: ", heads, " heads given, a divisor of d_model = ",
            config.d_model, " expected");
    require(heads % kv_heads == 0, "num_kv_heads: ", kv_heads, " key-value heads given, a divisor of num_heads = ", heads, " expected");
    return {config.d_model, heads, kv_heads, KeyValue::resolved_rank(config)};
  }

  /// Bytes that one layer caches for this many frames.
  static constexpr Index cache_bytes(const AttentionConfig& config, Frames n, Index bytes_per_number = 4) {
    return KeyValue::cache_floats(dims(config)) * n.count * bytes_per_number;
  }
  /// Trained numbers of one layer.
  static constexpr Index parameter_count(const AttentionConfig& config) {
    const AttentionDims d = dims(config);
    return 2 * d.d_model * (d.d_model + 1) + KeyValue::parameter_count(d) + Position::parameter_count(d);
  }
  /// Floating-point operations (a multiply-add counts two) of one layer over one whole sequence, every frame seeing all.
  static constexpr Index flops(const AttentionConfig& config, Frames n) {
    const AttentionDims d = dims(config);
    const Index t = n.count;
    return t * (2 * 2 * d.d_model * d.d_model + KeyValue::flops(d)) + 4 * t * t * d.d_model + Position::flops(d, t);
  }
};

// `Mha<dyn>` leaves both numbers of heads open: it is `Gqa<dyn, dyn>`, and MHA where the configuration gives num_kv_heads = 0.
template <Index H, class Position = RelativePosition>
using Mha = Attention<Heads<H, H>, FullRank, Position>;
template <Index H, Index G, class Position = RelativePosition>
using Gqa = Attention<Heads<H, G>, FullRank, Position>;
template <Index H, class Position = RelativePosition>
using Mqa = Attention<Heads<H, 1>, FullRank, Position>;
template <Index H, Index R, class Position = RelativePosition>
using MlaSimple = Attention<Heads<H, H>, SharedLatent<R>, Position>;

/// Self-attention of packed rows, (rows, d_model) to (rows, d_model), by the policy. Parameter names are those of the
/// Hugging Face Conformer.
template <class Policy, class T>
class AttentionLayer : public Module<AttentionLayer<Policy, T>> {
 public:
  AttentionLayer(const AttentionConfig& config, double dropout, Seed seed)
      : AttentionLayer(Policy::dims(config), dropout, seed) {}

  const AttentionDims& dims() const { return dims_; }

  /// `table` is what Position::enter gave for these sequences.
  template <class Context, class Tensor>
  Tensor operator()(Context& context, const Tensor& x, const Sequences& sequences, const Tensor& table, const Mask& mask = {}) const {
    const auto [k, v] = key_value.expand(context, key_value.remember(context, x));
    const AttendShape shape{dims_.num_heads, dims_.num_kv_heads, 1 / std::sqrt(static_cast<double>(dims_.head_dim())), mask};
    const auto q = linear_q(context, x);
    const auto term = position.term(context, table);
    return linear_out(context, context.attend(q, k, v, shape, sequences, sequences, term, dropout_));
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("linear_q", self.linear_q);
    std::remove_cvref_t<decltype(self.key_value)>::each_parameter(self.key_value, visit);
    visit("linear_out", self.linear_out);
    std::remove_cvref_t<decltype(self.position)>::each_parameter(self.position, visit);
  }

  Linear<T> linear_q;
  typename Policy::KeyValue::template Layer<T> key_value;
  Linear<T> linear_out;
  typename Policy::Position::template Layer<T> position;

 private:
  AttentionLayer(const AttentionDims& d, double dropout, Seed seed)
      : linear_q(d.d_model, d.d_model, seed / "linear_q"), key_value(d, seed), linear_out(d.d_model, d.d_model, seed / "linear_out"),
        position(d, seed), dims_(d), dropout_(dropout) {}

  AttentionDims dims_;
  double dropout_;
};

}  // namespace laconic
