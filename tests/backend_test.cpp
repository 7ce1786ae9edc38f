// The contract of contexts, and when a primitive may work in place.
#include "catch.hpp"

#include <laconic/laconic.hpp>

using namespace laconic;

static_assert(Backend<Cpu<float>> && Backend<Cpu<double>>);
static_assert(Context<Autodiff<Cpu<float>>> && Context<Autodiff<Cpu<double>>>);
static_assert(!Backend<Autodiff<Cpu<float>>>, "a tape cannot be recorded on a tape");

TEST_CASE("a primitive works in place only where nobody else holds its argument") {
  Cpu cpu(1);
  const auto ones = [&] { return cpu.constant(3, 5, [](Index, Index) { return 1.0; }); };
  auto x = ones();
  const auto y = ones();
  const float* place = x.data();
  x = cpu.add(std::move(x), y, 2);
  CHECK(x.data() == place);
  CHECK(x.view()(2, 4) == 3);

  const auto kept = x;
  x = cpu.add(std::move(x), y, 2);
  CHECK(x.data() != place);
  CHECK(kept.view()(2, 4) == 3);
  CHECK(x.view()(2, 4) == 5);

  const Matrix<float> borrowed = Matrix<float>::Ones(3, 5);
  const auto sum = cpu.add(cpu.input(borrowed), y);
  CHECK(borrowed(0, 0) == 1);
  CHECK(sum.view()(0, 0) == 2);
}

TEST_CASE("a tensor that was moved from is empty") {
  Cpu cpu(1);
  auto x = cpu.zeros(2, 2);
  const auto y = std::move(x);
  CHECK(x.empty());
  CHECK(x.rows() == 0);
  CHECK_FALSE(y.empty());
}

TEST_CASE("values outlive their tape, and clearing it frees what it kept") {
  Cpu cpu(1);
  const Conformer<Mha<2>> model({.num_mels = 16, .d_model = 8, .num_layers = 1, .vocab_size = 4, .conv_kernel = 3}, Seed(1));
  const Matrix<float> features = Matrix<float>::Random(40, 16);
  const std::size_t before = cpu.arena().used_bytes();
  {
    Autodiff tape(cpu);
    const auto logits = model(tape, features, Sequences{40});
    const std::size_t recorded = cpu.arena().used_bytes();
    tape.clear();
    CHECK(cpu.arena().used_bytes() < recorded);
    CHECK(logits.rows.value.rows() == logits.sequences.rows());
  }
  CHECK(cpu.arena().used_bytes() == before);
}
