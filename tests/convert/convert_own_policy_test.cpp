// laconic: attention for speech models. SPDX-License-Identifier: MIT
// A policy outside of laconic converts if its namespace says how (docs/conversion.md).
#include "../../examples/keys_as_values.hpp"
#include "small_models.hpp"

using namespace laconic;
using namespace laconic::small;

TEST_CASE("a policy of another namespace converts", "[convert]") {
  using Mine = Model<Attention<Heads<heads>, lesson::KeysAsValues>>;
  static_assert(detail::is_linear_map<lesson::KeysAsValues> && !detail::is_linear_map<DecoupledLatent<8, 4>>);
  const auto full = random_model<Model<Mha<heads>>>(1);
  check_prediction(convert<Mine>(full), full);
  check_lossless<Model<Mha<heads>>>(random_model<Mine>(2));
}
