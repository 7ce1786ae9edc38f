// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/latent/decoupled.hpp>
#include <laconic/attention/latent/head.hpp>
#include <laconic/attention/latent/input.hpp>
#include <laconic/attention/latent/shared.hpp>
#include <laconic/attention/latent/split.hpp>
#include <laconic/attention/latent/two_stage.hpp>
#include <laconic/attention/policy.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Multi-head attention (Vaswani et al. 2017). `Mha<dyn>` leaves both numbers of heads open, as `Gqa<dyn, dyn>` does,
/// and is MHA where the configuration gives num_kv_heads = 0.
template <Index H, class Position = RelativePosition>
using Mha = Attention<Heads<H, H>, FullRank, Position>;
/// Grouped-query attention of H query heads over G key-value heads (Ainslie et al. 2023).
template <Index H, Index G, class Position = RelativePosition>
using Gqa = Attention<Heads<H, G>, FullRank, Position>;
/// Multi-query attention: all query heads read one key-value head (Shazeer 2019).
template <Index H, class Position = RelativePosition>
using Mqa = Attention<Heads<H, 1>, FullRank, Position>;
/// Latent attention with a two-step expansion of every head from one latent of rank R.
template <Index H, Index R, class Position = RelativePosition>
using Mla = Attention<Heads<H, H>, TwoStageLatent<R>, Position>;
/// Latent attention with one latent of rank R (DeepSeek-V2 2024, without the rotary key).
template <Index H, Index R, class Position = RelativePosition>
using MlaSimple = Attention<Heads<H, H>, SharedLatent<R>, Position>;
/// Latent attention with one latent for keys and one for values (Palu, Chang et al. 2024).
template <Index H, Index RK, Index RV = RK, class Position = RelativePosition>
using MlaSplit = Attention<Heads<H, H>, SplitLatent<RK, RV>, Position>;
/// Latent attention with latents for every head, of rank R for keys and of rank ValueRank for values; 0: as for keys.
template <Index H, Index R, Index ValueRank = 0, class Position = RelativePosition>
using MlaHead = Attention<Heads<H, H>, HeadLatent<R, ValueRank>, Position>;
/// DeepSeek-V2's attention: one latent of rank R and one rotary key of RopeDim elements (2024, section 2.1).
template <Index H, Index R, Index RopeDim, class Query = FullQuery, template <class> class Norm = RmsNorm>
using MlaDecoupled = Attention<Heads<H, H>, DecoupledLatent<R, RopeDim, Norm>, Rotary<>, Query>;
/// Multi-head or grouped-query attention that caches the layer's input in place of keys and values.
template <Index H, Index G = H, class Position = RelativePosition>
using CachedInput = Attention<Heads<H, G>, InputLatent, Position>;
/// Linear attention, whose past is a state of fixed size (Katharopoulos et al. 2020).
template <Index H, Index G = H, class Position = NoPosition>
using LinearAttention = Attention<Heads<H, G>, FullRank, Position, FullQuery, LinearKernel>;

}  // namespace LACONIC_ABI
}  // namespace laconic
