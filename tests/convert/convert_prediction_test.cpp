// laconic: attention for speech models. SPDX-License-Identifier: MIT
// The error that a conversion predicts is the one that is measured.
#include "convert_factors.hpp"
#include "small_models.hpp"

using namespace laconic;
using namespace laconic::small;

namespace {

/// The heads' rows side by side: (head_dim, heads * d_model).
Matrix<double> side_by_side(const Matrix<double>& weight) {
  Matrix<double> out(head_dim, heads * d_model);
  for (Index h = 0; h < heads; ++h) out.middleCols(h * d_model, d_model) = weight.middleRows(h * head_dim, head_dim);
  return out;
}

}  // namespace

TEST_CASE("the predicted error is that of the weights' singular values", "[convert]") {
  const auto source = random_model<Model<Mha<heads>>>(4);
  const auto check = [&](const auto& conversion, auto discarded) {
    for (std::size_t i = 0; i < 2; ++i) {
      const Matrix<double>&k = source.layers[i].self_attn.key_value.linear_k.weight.host(),
            &v = source.layers[i].self_attn.key_value.linear_v.weight.host();
      const double expected = std::sqrt(discarded(k, v) / (k.squaredNorm() + v.squaredNorm()));
      CHECK(conversion.report.layers[i].predicted_error == Approx(expected).epsilon(1e-11));
    }
    check_prediction(conversion, source);
  };
  const auto joint = [](const Matrix<double>& k, const Matrix<double>& v, Index rank) {
    Matrix<double> both(2 * d_model, d_model);
    both << k, v;
    return tail(both, rank);
  };
  for (const Index rank : {1, 8, 30}) {
    INFO("rank " << rank);
    const ConversionConfig of_rank{.kv_lora_rank = rank};
    check(convert<Model<Open<SharedLatent<dyn>>>>(source, JointSvd{}, of_rank),
          [&](const auto& k, const auto& v) { return joint(k, v, rank); });
    check(convert<Model<Open<TwoStageLatent<dyn>>>>(source, JointSvd{}, of_rank),
          [&](const auto& k, const auto& v) { return joint(k, v, rank); });
    check(convert<Model<Open<SplitLatent<dyn>>>>(source, JointSvd{}, {.kv_lora_rank = rank, .v_lora_rank = 40 - rank}),
          [&](const auto& k, const auto& v) { return tail(k, rank) + tail(v, 40 - rank); });
  }
  for (const Index rank : {1, 4, 11}) {
    const auto discarded = [&](Index of_values) {
      return
          [=](const auto& k, const auto& v) { return tail(side_by_side(k), rank) + tail(side_by_side(v), of_values); };
    };
    check(convert<Model<Open<HeadLatent<dyn>>>>(source, JointSvd{}, {.kv_lora_rank = rank}), discarded(rank));
    check(convert<Model<Open<HeadLatent<dyn, dyn>>>>(source, JointSvd{},
                                                     {.kv_lora_rank = rank, .v_lora_rank = head_dim - rank}),
          discarded(head_dim - rank));
  }
  // Fewer heads and a latent at once.
  check_prediction(convert<Model<Open<SplitLatent<dyn>>>>(source, JointSvd{},
                                                          {.num_kv_heads = 2, .kv_lora_rank = 9, .v_lora_rank = 5}),
                   source);
  check_prediction(convert<Model<Open<HeadLatent<dyn, dyn>>>>(source, JointSvd{},
                                                              {.num_kv_heads = 2, .kv_lora_rank = 5, .v_lora_rank = 3}),
                   source);
  check_prediction(
      convert<Model<Open<TwoStageLatent<dyn>>>>(source, JointSvd{}, {.num_kv_heads = 1, .kv_lora_rank = 7}), source);
  check_prediction(convert<Model<Open<InputLatent>>>(source, JointSvd{}, {.num_kv_heads = 2}), source);
}

TEST_CASE("a latent of heads that were turned to agree", "[convert]") {
  const auto source = random_model<Model<Mha<heads>>>(4);
  const Calibration<double> speech{random_matrix(306, config.num_mels, 1), {161, 7, 138}};
  using Latent = Model<Open<SplitLatent<dyn>>>;
  for (const bool score_aware : {false, true}) {
    const ActivationPca<double> method{speech, score_aware};
    const auto small =
        convert<Latent>(source, method, {.num_kv_heads = 2, .kv_lora_rank = 15}, speech.features, speech.sequences);
    CHECK(small.report.predicted_error == Approx(small.report.key_value_error).epsilon(1e-6));
    const auto all = convert<Latent>(source, method, {.num_kv_heads = 2, .kv_lora_rank = 24});
    CHECK(difference(all.model, convert<Model<Gqa<heads, dyn>>>(source, method, {.num_kv_heads = 2}).model) < 1e-8);
  }
  const auto same = convert<Model<Gqa<heads, dyn>>>(source, ActivationPca<double>{speech}, {.num_kv_heads = heads});
  CHECK(difference(same.model, source) < 1e-13);
}
