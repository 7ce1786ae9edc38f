// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Models whose weights were packed against the same models as they were.
#include <laconic/laconic.hpp>
#include <laconic/train/adamw.hpp>
#include <laconic/train/progressive.hpp>

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

struct Convolutions : Module<Convolutions> {
  Parameter<float> weight{20, 32, 3, 3}, bias{20};
  Convolutions() {
    weight.host() = random_matrix<float>(20, 32 * 9, 4);
    bias.host() = random_matrix<float>(1, 20, 5);
  }
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
  }
};

}  // namespace

TEST_CASE("a packed weight gives the very same product, whatever the rows and threads", "[packed]") {
  for (const Index in : {1, 17, 512, 600})
    for (const Index out : {1, 16, 49, 200}) {
      Layers layers(Linear<float>(in, out, Seed(1)));
      Layers packed = layers;
      pack_weights(packed);
      REQUIRE(packed.linear.weight.is_packed());
      REQUIRE(packed.linear.weight.host().size() == 0);
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
        Matrix<float>& w = rounded.linear.weight.host();
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
                    1.01f * half_step * rounded.linear.weight.host().row(o).cwiseAbs().sum() + 1e-5f);
        }
      }
    }
}

TEST_CASE("int8 products are those of whole numbers", "[packed]") {
  Layers layers(Linear<float>(70, 50, Seed(1)));
  Matrix<float>& w = layers.linear.weight.host();
  const Matrix<float> noise = random_matrix<float>(50, 70, 3);
  for (Index i = 0; i < w.size(); ++i) w.data()[i] = std::round(40 * noise.data()[i]);
  w = w.cwiseMax(-127).cwiseMin(127);
  w.col(0).setConstant(-127);  // the scale is 1 then
  Matrix<float> x = random_matrix<float>(20, 70, 4);
  x = (40 * x).array().round().matrix().cwiseMax(-127).cwiseMin(127);
  x.col(1).setConstant(127);
  layers.linear.bias.host().setZero();
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

TEST_CASE("tiled convolutions in every storage", "[packed]") {
  Convolutions layers;
  const Conv2dShape tiled{32, 20, 9, 2}, plain{32, 20, 9, 1};
  const Matrix<float> x = random_matrix<float>(21, 9 * 32, 2);
  const Sequences from{21};
  Cpu<float> cpu(2);
  for (const Conv2dShape& shape : {tiled, plain}) {
    CAPTURE(shape.stride);
    const Sequences to{shape.out_length(21)};
    layers.weight.packing = shape.is_tiled() ? Packing::tiles : Packing::taps;
    const Matrix<float> expected = matrix_of(cpu.conv2d(cpu.input(x), layers.weight, layers.bias, shape, from, to));
    for (const auto& [storage, most] :
         {std::pair{Storage::full, 0.0}, std::pair{Storage::bf16, 0.01}, std::pair{Storage::int8, 0.03}}) {
      Convolutions packed = layers;
      pack_weights(packed, storage);
      const Matrix<float> y = matrix_of(cpu.conv2d(cpu.input(x), packed.weight, layers.bias, shape, from, to));
      REQUIRE(relative_error(y, expected) <= most);
    }
  }
  const Conv1dShape one{32, 20, 9, 2};
  const Matrix<float> samples = random_matrix<float>(40, 32, 3);
  const Sequences many{40}, fewer{one.out_length(40)};
  Convolutions packed = layers;
  packed.weight = Parameter<float>({20, 32, 9});
  packed.weight.host() = layers.weight.host();
  packed.weight.packing = Packing::taps;
  const Matrix<float> expected = matrix_of(cpu.conv1d(cpu.input(samples), packed.weight, nullptr, one, many, fewer));
  pack_weights(packed);
  REQUIRE(matrix_of(cpu.conv1d(cpu.input(samples), packed.weight, nullptr, one, many, fewer)) == expected);
}

TEST_CASE("a packed weight is not taken for another form", "[packed]") {
  Convolutions layers;
  layers.weight.packing = Packing::tiles;
  pack_weights(layers);
  Cpu<float> cpu(1);
  const Matrix<float> x = random_matrix<float>(21, 9 * 32, 2);
  const Sequences from{21}, to{19};
  REQUIRE_THROWS_WITH(cpu.linear(cpu.input(x), layers.weight, nullptr),
                      Catch::Matchers::ContainsSubstring("of a convolution given"));
  REQUIRE_THROWS_WITH(cpu.conv2d(cpu.input(x), layers.weight, layers.bias, {32, 20, 9, 1}, from, to),
                      Catch::Matchers::ContainsSubstring("packed for tiles"));
}

TEST_CASE("what changes, saves or converts a model refuses a packed one", "[packed]") {
  using Model = Conformer<MlaSimple<4, dyn>>;
  Model model({.num_mels = 16, .d_model = 32, .num_layers = 1, .vocab_size = 7, .kv_lora_rank = 16, .conv_kernel = 7},
              Seed(1));
  pack_weights(model);
  const auto refuses = Catch::Matchers::ContainsSubstring("is packed");
  REQUIRE_THROWS_WITH((convert<Conformer<Mha<4>>>(model)), refuses);
  REQUIRE_THROWS_WITH(key_value_spectra(model), refuses);
  REQUIRE_THROWS_WITH((truncate<Model>(model, {.kv_lora_rank = 8})), refuses);
  AdamW<float> optimizer;
  REQUIRE_THROWS_WITH(optimizer.step(model, 0.1), refuses);
}

TEST_CASE("a context keeps what follows from packed weights, for any length", "[packed]") {
  Conformer<Mha<4>> model({.num_mels = 16, .d_model = 32, .num_layers = 2, .vocab_size = 7, .conv_kernel = 7}, Seed(1));
  const Matrix<float> features = random_matrix<float>(400, 16, 2);
  const auto logits = [&](Cpu<float>& cpu, Index rows) {
    return matrix_of(model(cpu, cpu.input(Matrix<float>(features.topRows(rows))), Sequences{rows}).rows);
  };
  std::vector<Matrix<float>> expected;
  const std::vector<Index> lengths{40, 200, 60, 210, 400, 40};
  for (const Index rows : lengths) {
    Cpu<float> fresh(1);
    expected.push_back(logits(fresh, rows));
  }
  pack_weights(model);
  Cpu<float> cpu(1);
  for (std::size_t i = 0; i < lengths.size(); ++i) REQUIRE(logits(cpu, lengths[i]) == expected[i]);
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
