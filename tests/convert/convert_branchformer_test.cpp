// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Conversions of Branchformers and E-Branchformers.
#include "small_models.hpp"

#include <laconic/model/branchformer.hpp>
#include <laconic/model/e_branchformer.hpp>

using namespace laconic;
using namespace laconic::small;

TEST_CASE("Branchformers convert like Conformers", "[convert]") {
  const auto branch = random_model<Branchformer<Mha<heads>, double>>(8);
  check_lossless<Branchformer<MlaSimple<heads, d_model>, double>>(branch);
  check_lossless<Branchformer<MlaHead<heads, head_dim>, double>>(branch);
  check_prediction(convert<Branchformer<MlaSplit<heads, 9, 5>, double>>(branch), branch);
  EncoderConfig chunked = config;
  chunked.merge = BranchMerge::learned_average;
  check_lossless<Branchformer<CachedInput<heads>, double>>(random_model<Branchformer<Mha<heads>, double>>(9, chunked));
  chunked.convolution = ConvolutionContext::causal;
  chunked.chunk = 4;
  chunked.left_context = 3;
  const auto e_branch = random_model<EBranchformer<Gqa<heads, 2>, double>>(10, chunked);
  check_lossless<EBranchformer<Mla<heads, d_model>, double>>(e_branch);
  check_lossless<EBranchformer<MlaSplit<heads, 24, 24>, double>>(e_branch);
  const auto small = convert<EBranchformer<MlaHead<heads, 5>, double>>(e_branch);
  check_prediction(small, e_branch);
  CHECK(small.report.layers[1].layer == "layers.1.attn");
  CHECK((small.model.config().chunk == 4 && small.model.config().left_context == 3));
}
