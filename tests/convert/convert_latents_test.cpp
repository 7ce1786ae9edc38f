// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Conversions of a Conformer between all ways to keep keys and values, in types.
#include "small_models.hpp"

#include <laconic/convert/convert.hpp>
#include <laconic/model/conformer.hpp>

using namespace laconic;
using namespace laconic::small;

namespace {

/// Back to keys and values, from a latent of any rank.
template <class Latent>
void check_back() {
  const auto model = random_model<Model<Latent>>(3);
  const auto full = convert<Model<Attention<Heads<heads, heads>, FullRank, typename Latent::Position>>>(model);
  CHECK(difference(full.model, model) < 1e-12);
  CHECK(full.report.predicted_error == 0);
  CHECK(full.report.logits_error < 1e-12);
}

}  // namespace

TEMPLATE_TEST_CASE("every latent that holds all loses nothing", "[convert]", NoPosition, RelativePosition) {
  using P = TestType;
  const auto full = random_model<Model<Mha<heads, P>>>(1);
  check_lossless<Model<CachedInput<heads, heads, P>>>(full);
  check_lossless<Model<MlaHead<heads, head_dim, 0, P>>>(full);
  // Two key-value heads: half of d_model is enough for each of two latents, and all of it for one.
  const auto grouped = random_model<Model<Gqa<heads, 2, P>>>(2);
  check_lossless<Model<Mla<heads, d_model, P>>>(grouped);
  check_lossless<Model<MlaSplit<heads, 24, 24, P>>>(grouped);
}

TEST_CASE("latents of fewer heads that hold all lose nothing", "[convert]") {
  const auto grouped = random_model<Model<Gqa<heads, 2>>>(2);
  check_lossless<Model<CachedInput<heads, 2>>>(grouped);
  check_lossless<Model<Open<SplitLatent<dyn>>>>(grouped, {.num_kv_heads = 2, .kv_lora_rank = 24});
  check_lossless<Model<Open<HeadLatent<dyn>>>>(grouped, {.num_kv_heads = 2, .kv_lora_rank = head_dim});
  check_lossless<Model<Open<TwoStageLatent<dyn>>>>(grouped, {.num_kv_heads = 2, .kv_lora_rank = d_model});
}

TEST_CASE("where positions turn the input, keys and values keep latents of their own", "[convert]") {
  const auto full = random_model<Model<Mha<heads, InputRotary<>>>>(1);
  check_lossless<Model<MlaSplit<heads, d_model, d_model, InputRotary<>>>>(full);
  check_lossless<Model<MlaHead<heads, head_dim, 0, InputRotary<>>>>(full);
  check_back<MlaSplit<heads, 7, 9, InputRotary<>>>();
  const auto grouped = random_model<Model<Gqa<heads, 2, InputRotary<>>>>(2);
  check_lossless<Model<MlaSplit<heads, 24, 24, InputRotary<>>>>(grouped);
  // Under rotary positions the heads may become fewer; as many are the same model.
  const auto rotary = random_model<Model<Mha<heads, Rotary<>>>>(3);
  CHECK(same_parameters(convert<Model<Gqa<heads, dyn, Rotary<>>>>(rotary).model, rotary));
  check_prediction(convert<Model<Gqa<heads, dyn, Rotary<>>>>(rotary, JointSvd{}, {.num_kv_heads = 2}), rotary);
}

TEST_CASE("keys and values come back from every latent", "[convert]") {
  check_back<CachedInput<heads>>();
  check_back<MlaSimple<heads, 9>>();
  check_back<Mla<heads, 9>>();
  check_back<MlaSplit<heads, 9, 5>>();
  check_back<MlaHead<heads, 5>>();
  check_back<MlaHead<heads, 5, 3>>();
  check_back<MlaHead<heads, 1, 12, NoPosition>>();
  check_back<Attention<Heads<heads, 2>, HeadLatent<5>>>();
  check_back<Attention<Heads<heads, 1>, SplitLatent<5, 3>, Sinusoidal>>();
}

TEST_CASE("latents of one kind and size are copied, others fitted", "[convert]") {
  const auto two_stage = random_model<Model<Mla<heads, 9>>>(5);
  CHECK(same_parameters(convert<Model<Open<TwoStageLatent<dyn>>>>(two_stage, JointSvd{}, {.kv_lora_rank = 9}).model,
                        two_stage));
  const auto simple = convert<Model<MlaSimple<heads, 9>>>(two_stage);  // the same functions in other parameters
  CHECK(difference(simple.model, two_stage) < 1e-12);
  CHECK(difference(convert<Model<Mla<heads, 9>>>(simple.model).model, two_stage) < 1e-12);
  const auto split = random_model<Model<MlaSplit<heads, 9, 5>>>(6);
  CHECK(same_parameters(
      convert<Model<Open<SplitLatent<dyn>>>>(split, JointSvd{}, {.kv_lora_rank = 9, .v_lora_rank = 5}).model, split));
  CHECK(difference(convert<Model<MlaSplit<heads, 9, 9>>>(split).model, split) < 1e-12);
  check_prediction(convert<Model<MlaSplit<heads, 9, 3>>>(split), split);
  const auto each = random_model<Model<MlaHead<heads, 5>>>(7);
  CHECK(same_parameters(convert<Model<Open<HeadLatent<dyn>>>>(each, JointSvd{}, {.kv_lora_rank = 5}).model, each));
  CHECK(same_parameters(convert<Model<Open<HeadLatent<dyn, dyn>>>>(each, JointSvd{}, {.kv_lora_rank = 5}).model, each));
  CHECK(difference(convert<Model<MlaHead<heads, 5, 7>>>(each).model, each) < 1e-12);
  check_prediction(convert<Model<MlaHead<heads, 3>>>(each), each);
  check_prediction(convert<Model<MlaHead<heads, 5, 2>>>(each), each);
}

TEST_CASE("queries of low rank stay as they are", "[convert]") {
  using Query = LowRankQuery<6>;
  const auto source = random_model<Model<Attention<Heads<heads, heads>, FullRank, RelativePosition, Query>>>(11);
  check_lossless<Model<Attention<Heads<heads, heads>, SharedLatent<d_model>, RelativePosition, Query>>>(source);
  CHECK_THROWS_WITH((convert<Model<MlaSimple<heads, 9>>>(source)),
                    "q_lora_rank: 6 configured for an attention that has none");
}
