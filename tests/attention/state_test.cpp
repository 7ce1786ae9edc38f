// laconic: attention for speech models. SPDX-License-Identifier: MIT
// The states of single layers, which decoders keep: a slot that was forked goes on as the slot that it was copied from.
#include <laconic/attention/attention.hpp>

#include "gradient_check.hpp"

#include <array>

using namespace laconic;

TEMPLATE_LIST_TEST_CASE("a forked slot goes on as the one that it was copied from", "[attention][cache]",
                        Backends<float>) {
  using Policy = MlaSimple<2, 4, NoPosition>;
  AttentionLayer<Policy, float> layer(AttentionConfig{.d_model = 8}, 0, Seed(1));
  TestType context(1);
  context.prepare(layer);
  typename AttentionLayer<Policy, float>::template State<TestType> state(context, layer,
                                                                         {.slots = 2, .left_context = 16, .chunk = 1});
  Index row = 0;
  // The same new row for both slots; returns what each slot's row becomes.
  const auto step = [&] {
    const std::array<Index, 2> slots{0, 1}, firsts{row, row};
    Matrix<float> x(2, 8);
    x.rowwise() = random_matrix<float>(1, 8, static_cast<std::uint64_t>(10 + row++)).row(0);
    const Sequences sequences{1, 1};
    const Pass<typename TestType::Tensor> pass{sequences, Mask::causal(), {}, slots, firsts};
    return context.output(layer(context, context.input(std::move(x)), pass, &state));
  };
  // Slot 0 has heard three rows that slot 1 has not.
  for (Index slot = 0; slot < 2; ++slot) state.clear(context, slot);
  for (int i = 0; i < 3; ++i) step();
  state.clear(context, 1);
  const Matrix<float> apart = step();
  CHECK(apart.row(0) != apart.row(1));
  state.fork(context, 0, 1);
  for (int i = 0; i < 3; ++i) {
    const Matrix<float> together = step();
    CHECK(together.row(0) == together.row(1));
  }
}
