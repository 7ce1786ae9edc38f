// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Models whose weights were packed against the same models as they were.
#include <laconic/laconic.hpp>

#include "gradient_check.hpp"

using namespace laconic;

namespace {

/// The largest difference between y and expected, as a part of the largest number expected.
double relative_error(const Matrix<float>& y, const Matrix<float>& expected) {
  return static_cast<double>((y - expected).cwiseAbs().maxCoeff() / expected.cwiseAbs().maxCoeff());
}

Matrix<float> matrix_of(const Tensor<float>& x) { return x.view(); }

Matrix<float> product(Cpu<float>& cpu, const Linear<float>& layer, const Matrix<float>& x) {
  return matrix_of(layer(cpu, cpu.input(x)));
}

struct Layers : Module<Layers> {
  Linear<float> linear;
  explicit Layers(Linear<float> one) : linear(std::move(one)) {}
  static void each_parameter(auto& self, auto&& visit) { visit("linear", self.linear); }
};

}  // namespace

TEST_CASE("a packed weight gives the very same product, whatever the rows and threads", "[packed]") {
  for (const Index in : {1, 17, 512, 600})
    for (const Index out : {1, 16, 49, 200}) {
      Layers layers(Linear<float>(in, out, Seed(1)));
      Layers packed = layers;
      pack_weights(packed);
      REQUIRE(packed.linear.weight.is_packed());
      REQUIRE(packed.linear.weight.value.size() == 0);
      REQUIRE(packed.count_parameters() == layers.count_parameters());
      const Matrix<float> x = random_matrix<float>(300, in, 2);
      Cpu<float> one(1), three(3);
      const Matrix<float> expected = product(one, layers.linear, x);
      for (const Index rows : {1, 8, 70, 300}) {
        CAPTURE(in, out, rows);
        REQUIRE(product(one, packed.linear, x.topRows(rows)) == expected.topRows(rows));
        REQUIRE(product(three, packed.linear, x.topRows(rows)) == expected.topRows(rows));
      }
    }
}

TEST_CASE("bf16 weights err as bf16 does, int8 weights by half a step of a scale", "[packed]") {
  for (const Index in : {5, 130, 600})
    for (const Index out : {3, 49, 200}) {
      CAPTURE(in, out);
      const Layers layers(Linear<float>(in, out, Seed(1)));
      const Matrix<float> x = random_matrix<float>(70, in, 2);
      Cpu<float> one(1), three(3);
      for (const Storage storage : {Storage::bf16, Storage::int8}) {
        Layers rounded = layers;  // as the formats round, in plain numbers
        Matrix<float>& w = rounded.linear.weight.value;
        for (Index o = 0; o < out; ++o) {
          const float scale = w.row(o).cwiseAbs().maxCoeff() / 127;
          for (Index i = 0; i < in; ++i)
            w(o, i) = storage == Storage::bf16 ? from_bf16(to_bf16(w(o, i)))
                                               : scale * static_cast<float>(std::lrint(w(o, i) / scale));
        }
        Layers packed = layers;
        pack_weights(packed, storage);
        const Matrix<float> y = product(one, packed.linear, x);
        REQUIRE(product(three, packed.linear, x) == y);
        for (const Index rows : {1, 9}) REQUIRE(product(one, packed.linear, x.topRows(rows)) == y.topRows(rows));
        // Activations are rounded too where the processor multiplies bytes: at most half of 1/127 of a row's largest.
        const bool exact = storage == Storage::bf16 || !LACONIC_VNNI;
        const Matrix<float> expected = product(one, rounded.linear, x);
        if (exact) {
          REQUIRE(relative_error(y, expected) < 2e-6);
          continue;
        }
        for (Index r = 0; r < x.rows(); ++r) {
          const float half_step = x.row(r).cwiseAbs().maxCoeff() / 127 / 2;
          for (Index o = 0; o < out; ++o)
            REQUIRE(std::abs(y(r, o) - expected(r, o)) <=
                    1.01f * half_step * rounded.linear.weight.value.row(o).cwiseAbs().sum() + 1e-5f);
        }
      }
    }
}

TEST_CASE("int8 products are those of whole numbers", "[packed]") {
  Layers layers(Linear<float>(70, 50, Seed(1)));
  Matrix<float>& w = layers.linear.weight.value;
  const Matrix<float> noise = random_matrix<float>(50, 70, 3);
  for (Index i = 0; i < w.size(); ++i) w.data()[i] = std::round(40 * noise.data()[i]);
  w = w.cwiseMax(-127).cwiseMin(127);
  w.col(0).setConstant(-127);  // the scale is 1 then
  Matrix<float> x = random_matrix<float>(20, 70, 4);
  x = (40 * x).array().round().matrix().cwiseMax(-127).cwiseMin(127);
  x.col(1).setConstant(127);
  layers.linear.bias.value.setZero();
  Cpu<float> cpu(2);
  const Matrix<float> expected = product(cpu, layers.linear, x);
  pack_weights(layers, Storage::int8);
  REQUIRE(relative_error(product(cpu, layers.linear, x), expected) < 1e-6);
}

TEST_CASE("what is not a number shows through packed weights", "[packed]") {
  for (const Storage storage : {Storage::full, Storage::bf16, Storage::int8}) {
    Layers layers(Linear<float>(40, 20, Seed(1)));
    pack_weights(layers, storage);
    Matrix<float> x = random_matrix<float>(3, 40, 2);
    x(1, 7) = std::numeric_limits<float>::quiet_NaN();
    x(2, 39) = std::numeric_limits<float>::infinity();
    Cpu<float> cpu(1);
    const Matrix<float> y = product(cpu, layers.linear, x);
    REQUIRE(y.row(0).allFinite());
    REQUIRE(!y.row(1).array().isFinite().any());
    REQUIRE(!y.row(2).array().isFinite().any());
  }
}

TEMPLATE_TEST_CASE("a packed encoder says what it said", "[packed]", Mha<4>, (MlaSimple<4, 16>), (Gqa<4, 2>)) {
  const EncoderConfig config{.num_mels = 16, .d_model = 32, .num_layers = 2, .vocab_size = 7, .conv_kernel = 7};
  Conformer<TestType> model(config, Seed(1));
  const Matrix<float> features = random_matrix<float>(160, 16, 2);
  const Sequences sequences{100, 60};
  Cpu<float> cpu(2);
  const Matrix<float> expected = matrix_of(model(cpu, features, sequences).rows);
  auto exact = model, int8 = model, bf16 = model;
  pack_weights(exact);
  REQUIRE(matrix_of(exact(cpu, features, sequences).rows) == expected);
  pack_weights(int8, Storage::int8);
  const Matrix<float> rounded = matrix_of(int8(cpu, features, sequences).rows);
  REQUIRE(relative_error(rounded, expected) < 0.1);
  Cpu<float> one(1);
  REQUIRE(matrix_of(int8(one, features, sequences).rows) == rounded);
  pack_weights(bf16, Storage::bf16);
  REQUIRE(relative_error(matrix_of(bf16(cpu, features, sequences).rows), expected) < 0.02);
}

TEST_CASE("packed models cannot be trained, packed again, or rounded in double", "[packed]") {
  Layers layers(Linear<float>(8, 4, Seed(1)));
  pack_weights(layers);
  REQUIRE_THROWS_WITH(pack_weights(layers), Catch::Matchers::ContainsSubstring("linear.weight is packed"));
  Cpu<float> cpu(1);
  Autodiff tape(cpu, Seed(1));
  const Matrix<float> x = random_matrix<float>(3, 8, 2);
  REQUIRE_THROWS_WITH(layers.linear(tape, tape.input(x)), Catch::Matchers::ContainsSubstring("packed weight"));
  Linear<double> in_double(8, 4, Seed(1));
  REQUIRE_THROWS_WITH(pack_weights(in_double, Storage::int8), Catch::Matchers::ContainsSubstring("not of float"));
}
