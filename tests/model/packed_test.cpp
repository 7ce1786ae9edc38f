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
      Cpu<float>(1).prepare(packed);
      REQUIRE(packed.linear.weight.is_resident());
      REQUIRE_THROWS_WITH(packed.linear.weight.host(),
                          "parameter: values resident in Cpu given, values on the host expected (fetch)");
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
        Cpu<float>(1).prepare(packed, storage);
        const Matrix<float> y = product(one, packed.linear, x);
        REQUIRE(product(three, packed.linear, x) == y);
        for (const Index rows : {1, 9}) REQUIRE(product(one, packed.linear, x.topRows(rows)) == y.topRows(rows));
        // Activations are rounded too where whole numbers are multiplied: at most half of 1/127 of a row's largest.
        const bool exact = storage == Storage::bf16 || !LACONIC_WHOLE_PRODUCTS;
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
  Cpu<float>(1).prepare(layers, Storage::int8);
  REQUIRE(relative_error(product(cpu, layers.linear, x), expected) < 1e-6);
}

TEST_CASE("what is not a number shows through packed weights", "[packed]") {
  for (const Storage storage : {Storage::full, Storage::bf16, Storage::int8}) {
    Layers layers(Linear<float>(40, 20, Seed(1)));
    Cpu<float>(1).prepare(layers, storage);
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
  Cpu<float>(1).prepare(exact);
  REQUIRE(matrix_of(exact(cpu, features, sequences).rows) == expected);
  Cpu<float>(1).prepare(int8, Storage::int8);
  const Matrix<float> rounded = matrix_of(int8(cpu, features, sequences).rows);
  REQUIRE(relative_error(rounded, expected) < 0.1);
  Cpu<float> one(1);
  REQUIRE(matrix_of(int8(one, features, sequences).rows) == rounded);
  Cpu<float>(1).prepare(bf16, Storage::bf16);
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
    layers.weight.use = shape.stride == 2 ? WeightUse::conv2d_stride_2 : WeightUse::conv2d;
    const Matrix<float> expected = matrix_of(cpu.conv2d(cpu.input(x), layers.weight, layers.bias, shape, from, to));
    for (const auto& [storage, most] :
         {std::pair{Storage::full, 0.0}, std::pair{Storage::bf16, 0.01}, std::pair{Storage::int8, 0.03}}) {
      Convolutions packed = layers;
      Cpu<float>(1).prepare(packed, storage);
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
  packed.weight.use = WeightUse::conv1d;
  const Matrix<float> expected = matrix_of(cpu.conv1d(cpu.input(samples), packed.weight, nullptr, one, many, fewer));
  Cpu<float>(1).prepare(packed);
  REQUIRE(matrix_of(cpu.conv1d(cpu.input(samples), packed.weight, nullptr, one, many, fewer)) == expected);
}

TEST_CASE("a packed weight is not taken for another form", "[packed]") {
  Convolutions layers;
  layers.weight.use = WeightUse::conv2d_stride_2;
  Cpu<float>(1).prepare(layers);
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
  Cpu<float>(1).prepare(model);
  const auto refuses = Catch::Matchers::ContainsSubstring("is resident in Cpu (prepare)");
  REQUIRE_THROWS_WITH((convert<Conformer<Mha<4>>>(model)), refuses);
  REQUIRE_THROWS_WITH(key_value_spectra(model), refuses);
  REQUIRE_THROWS_WITH((truncate<Model>(model, {.kv_lora_rank = 8})), refuses);
  Cpu<float> cpu(1);
  AdamW optimizer(cpu);
  REQUIRE_THROWS_WITH(optimizer.step(model, 0.1), Catch::Matchers::ContainsSubstring("is prepared to run"));
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
  Cpu<float>(1).prepare(model);
  Cpu<float> cpu(1);
  for (std::size_t i = 0; i < lengths.size(); ++i) REQUIRE(logits(cpu, lengths[i]) == expected[i]);
}

TEST_CASE("packed models cannot be trained, packed again, or rounded in double", "[packed]") {
  Layers layers(Linear<float>(8, 4, Seed(1)));
  Cpu<float>(1).prepare(layers);
  REQUIRE_THROWS_WITH(
      Cpu<float>(1).prepare(layers),
      Catch::Matchers::ContainsSubstring("prepare: linear.weight is resident in Cpu (prepare), a model on the host"));
  Cpu<float> cpu(1);
  Autodiff tape(cpu, Seed(1));
  const Matrix<float> x = random_matrix<float>(3, 8, 2);
  REQUIRE_THROWS_WITH(layers.linear(tape, tape.input(x)),
                      Catch::Matchers::ContainsSubstring("a weight prepared to run given"));
  Linear<double> in_double(8, 4, Seed(1));
  REQUIRE_THROWS_WITH(Cpu<double>(1).prepare(in_double, Storage::int8),
                      Catch::Matchers::ContainsSubstring("not of float"));
}

TEST_CASE("fetching a model brings back what was prepared, or what it was rounded to", "[packed]") {
  const EncoderConfig config{.num_mels = 20, .d_model = 36, .num_layers = 2, .vocab_size = 7, .conv_kernel = 7};
  const Conformer<MlaSimple<4, 12>> model(config, Seed(3));
  Cpu<float> cpu(2);
  for (const Storage storage : {Storage::full, Storage::bf16, Storage::int8}) {
    auto there = model, copy = model;
    cpu.prepare(there, storage);
    copy = there;  // shares what is prepared
    cpu.fetch(there);
    const Matrix<float> features = random_matrix<float>(120, 20, 2);
    const auto ran = matrix_of(copy(cpu, features, Sequences{120}).rows);
    std::vector<const Parameter<float>*> before;
    model.parameters([&](std::string_view, const auto& p) { before.push_back(&p); });
    std::size_t i = 0;
    there.parameters([&](std::string_view name, const auto& p) {
      CAPTURE(name, to_name(storage));
      const Parameter<float>& was = *before[i++];
      REQUIRE(p.shape() == was.shape());
      REQUIRE(p.trainable == was.trainable);
      if (is_rounded(was, storage))
        REQUIRE((p.host() - was.host()).cwiseAbs().maxCoeff() <= 0.01f * was.host().cwiseAbs().maxCoeff());
      else
        REQUIRE(p.host() == was.host());
    });
    if (storage == Storage::full) REQUIRE(matrix_of(there(cpu, features, Sequences{120}).rows) == ran);
    cpu.prepare(there, storage);
    REQUIRE(relative_error(matrix_of(there(cpu, features, Sequences{120}).rows), ran) < 1e-5);
  }
}

TEST_CASE("convolutions of every form are fetched as they were", "[packed]") {
  Cpu<float> cpu(2);
  for (const WeightUse use : {WeightUse::conv2d, WeightUse::conv2d_stride_2}) {
    Convolutions layers;
    layers.weight.use = use;
    const Matrix<float> before = layers.weight.host();
    cpu.prepare(layers);
    cpu.fetch(layers);
    REQUIRE(layers.weight.host() == before);
  }
}

TEST_CASE("a model prepared for training has its gradients beside its values, and copies of its own", "[packed]") {
  Cpu<float> cpu(1);
  Layers layers(Linear<float>(8, 4, Seed(1)));
  layers.linear.weight.gradient().setConstant(2);
  const Layers before = layers;
  cpu.prepare_training(layers);
  REQUIRE(layers.linear.weight.can_train());
  REQUIRE_THROWS_WITH(layers.linear.weight.gradient(),
                      "parameter: values resident in Cpu given, values on the host expected (fetch)");
  const Layers copy = layers;
  AdamW optimizer(cpu);
  REQUIRE(optimizer.step(layers, 0.1) == Approx(std::sqrt(4.0 * 32)));
  cpu.fetch(layers);
  REQUIRE(layers.linear.weight.host() != before.linear.weight.host());
  REQUIRE(layers.linear.weight.gradient().isZero(0));
  Layers unchanged = copy;
  cpu.fetch(unchanged);
  REQUIRE(unchanged.linear.weight.host() == before.linear.weight.host());
  REQUIRE(unchanged.linear.weight.gradient() == before.linear.weight.gradient());
}
