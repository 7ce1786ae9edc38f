// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Equal numbers, bit for bit, however the work is dealt out.
#include <laconic/backend/autodiff.hpp>
#include <laconic/backend/cpu.hpp>
#include <laconic/model/conformer.hpp>

#include "gradient_check.hpp"

using namespace laconic;

namespace {

const EncoderConfig config{.num_mels = 40,
                           .d_model = 48,
                           .num_layers = 2,
                           .vocab_size = 11,
                           .num_heads = 4,
                           .num_kv_heads = 2,
                           .ffn_expansion = 4,
                           .conv_kernel = 7,
                           .subsampling = 2,
                           .dropout = 0.1};
const Sequences sequences{190, 37, 3, 160};  // 92 rows of the encoder, 16, 0 and 77
const Labels labels{{1, 2, 2, 3, 4, 10, 9, 9, 9}, Sequences{5, 2, 0, 2}};

using Values = std::vector<std::vector<double>>;

template <class Matrix>
std::vector<double> numbers(const Matrix& m) {
  std::vector<double> out;
  for (Index r = 0; r < m.rows(); ++r)
    for (Index c = 0; c < m.cols(); ++c) out.push_back(static_cast<double>(m(r, c)));
  return out;
}

/// Logits, losses and every gradient of one training step.
template <class Policy, class T>
Values step(int threads, const EncoderConfig& numbers_of, Seed seed = Seed(4), bool input_too = true,
            bool recompute_blocks = false, std::size_t* memory = nullptr) {
  Conformer<Policy, T> model(numbers_of, Seed(3));
  const Matrix<T> features = random_matrix<T>(sequences.rows(), config.num_mels, 1);
  Cpu<T> cpu(threads);
  Autodiff<Cpu<T>> tape(cpu, seed);
  tape.recompute_blocks = recompute_blocks;
  const auto x = input_too ? tape.variable(features) : tape.input(features);
  const auto logits = model(tape, x, sequences);
  const auto losses = tape.ctc(logits.rows, logits.sequences, labels, 0);
  tape.backward(tape.mean_finite(losses));
  Values out{numbers(logits.rows.value.view()), numbers(losses.value.view())};
  if (input_too) out.push_back(numbers(tape.gradient(x).view()));
  model.parameters([&](std::string_view, const Parameter<T>& p) { out.push_back(numbers(p.gradient())); });
  if (memory != nullptr) *memory = cpu.arena().peak_bytes();
  return out;
}

/// Logits without training.
template <class Policy, class T>
Matrix<T> run(const Conformer<Policy, T>& model, const Matrix<T>& features, const Sequences& where, int threads = 1) {
  Cpu<T> cpu(threads);
  return model(cpu, features, where).rows.view();
}

}  // namespace

TEMPLATE_TEST_CASE("any number of threads gives the same numbers", "[determinism]", float, double) {
  const auto one = step<Gqa<4, 2>, TestType>(1, config);
  REQUIRE(one[0].size() == (92 + 16 + 77) * 11);
  for (const int threads : {2, 3, 4}) {
    const auto many = step<Gqa<4, 2>, TestType>(threads, config);
    REQUIRE(one.size() == many.size());
    for (std::size_t i = 0; i < one.size(); ++i) {
      INFO(threads << " threads, value " << i);
      CHECK(one[i] == many[i]);
    }
  }
  Conformer<Gqa<4, 2>, TestType> model(config, Seed(3));
  const Matrix<TestType> features = random_matrix<TestType>(sequences.rows(), config.num_mels, 1);
  CHECK(run(model, features, sequences, 1) == run(model, features, sequences, 3));
}

TEST_CASE("any number of threads gives the same derivative of convolutions", "[determinism]") {
  const Sequences from{101, 2, 60};
  for (const Index stride : {1, 2}) {
    const Conv2dShape shape{3, 5, 21, stride};
    const Sequences to{shape.out_length(101), 0, shape.out_length(60)};
    const Parameter<float> weight = random_parameter<float>({5, 3, 3, 3}, 2), bias = random_parameter<float>({5}, 3);
    const Matrix<float> x = random_matrix<float>(from.rows(), shape.in_cols(), 1),
                        dy = random_matrix<float>(to.rows(), shape.out_cols(), 4);
    const auto derivative = [&](int threads) {
      Cpu<float> cpu(threads);
      weight.clear_gradient();
      const auto dx = cpu.conv2d_backward(cpu.input(dy), cpu.input(x), weight, bias, shape, from, to, true);
      return std::pair{numbers(dx.view()), numbers(weight.gradient())};
    };
    const auto one = derivative(1);
    for (const int threads : {2, 3, 5}) CHECK(derivative(threads) == one);
  }
}

TEMPLATE_TEST_CASE("a batch gives what its utterances give one by one", "[determinism]", float, double) {
  Conformer<MlaSimple<4, 20>, TestType> model(
      [] {
        EncoderConfig c = config;
        c.num_kv_heads = 0;
        return c;
      }(),
      Seed(3));
  randomize(model, 7);
  const Matrix<TestType> features = random_matrix<TestType>(sequences.rows(), config.num_mels, 1);
  Cpu<TestType> cpu(1);
  const auto batch = model(cpu, features, sequences);
  for (Index n = 0; n < sequences.size(); ++n) {
    INFO("sequence " << n);
    const Matrix<TestType> part = features.middleRows(sequences.begin(n), sequences.length(n));
    const auto alone = model(cpu, part, Sequences{sequences.length(n)});
    REQUIRE(alone.rows.rows() == batch.sequences.length(n));
    CHECK(numbers(alone.rows.view()) ==
          numbers(batch.rows.view().middleRows(batch.sequences.begin(n), batch.sequences.length(n))));
  }
}

TEST_CASE("numbers in the type or in the configuration are the same", "[determinism]") {
  EncoderConfig open = config;
  const auto in_type = [&](auto change) {
    EncoderConfig c = config;
    change(c);
    return c;
  };
  const auto typed = in_type([](auto& c) { c.num_heads = c.num_kv_heads = 0; });
  CHECK(step<Gqa<4, 2>, float>(1, typed) == step<Gqa<dyn, dyn>, float>(1, open));
  CHECK(step<Gqa<4, 2>, float>(1, typed) == step<Gqa<4, dyn>, float>(1, open));
  open.num_kv_heads = 4;
  open.kv_lora_rank = 9;
  CHECK(step<MlaSimple<4, 9>, float>(1, typed) == step<MlaSimple<dyn, dyn>, float>(1, open));
}

TEMPLATE_TEST_CASE("blocks that are computed again give the same numbers in less memory", "[determinism]", float,
                   double) {
  EncoderConfig deep = config;
  deep.num_layers = 6;
  for (const bool input_too : {true, false}) {
    std::size_t kept = 0, again = 0;
    const auto expected = step<Mla<dyn, 16>, TestType>(2, deep, Seed(4), input_too, false, &kept);
    CHECK((step<Mla<dyn, 16>, TestType>(2, deep, Seed(4), input_too, true, &again) == expected));
    CHECK(again < kept / 2);
  }
}

TEST_CASE("the backward pass names each parameter once, when its gradient is complete", "[determinism]") {
  EncoderConfig deep = config;
  deep.num_layers = 3;
  Conformer<Mla<dyn, 16>, float> model(deep, Seed(3));
  model.layers[1].ffn1.output_dense.weight.trainable = false;
  const Matrix<float> features = random_matrix<float>(sequences.rows(), config.num_mels, 1);
  Cpu<float> cpu(2);
  for (const bool again : {false, true}) {
    model.parameters([](std::string_view, const Parameter<float>& p) { p.clear_gradient(); });
    Autodiff<Cpu<float>> tape(cpu, Seed(4));
    tape.recompute_blocks = again;
    auto logits = model(tape, features, sequences);
    // The first layer's weight is used at the end, too, so it is complete when its first use is passed.
    // What is recomputed without a result uses nothing.
    tape.recompute(logits.rows, [&](const auto& in) {
      (void)model.layers[0].ffn1.intermediate_dense(tape, tape.fill(1, 48, 1));
      return in;
    });
    const auto wide = tape.columns(tape.concat(logits.rows, tape.fill(logits.rows.rows(), 48, 1)), 0, 48);
    logits.rows = tape.add(logits.rows, tape.columns(model.layers[0].ffn1.intermediate_dense(tape, wide), 0, 11));
    std::vector<std::pair<const Parameter<float>*, Matrix<float>>> named;
    tape.backward(tape.mean_finite(tape.ctc(logits.rows, logits.sequences, labels, 0)), 1, [&](auto parameters) {
      for (const Parameter<float>* p : parameters) named.emplace_back(p, p->gradient());
    });
    std::size_t expected = 0;
    model.parameters([&](std::string_view name, const Parameter<float>& p) {
      const auto count = std::ranges::count(named, &p, [](const auto& one) { return one.first; });
      INFO(name);
      CHECK(count == (p.trainable && p.role() == Role::weight));
      expected += static_cast<std::size_t>(count);
    });
    CHECK(named.size() == expected);
    for (const auto& [p, gradient] : named) CHECK(gradient == p->gradient());
    // The head comes long before the subsampling.
    CHECK((named.front().first == &model.lm_head.weight || named.front().first == &model.lm_head.bias));
  }
}

TEST_CASE("what is computed again may be so in parts, used elsewhere, and use other values", "[determinism]") {
  Cpu<double> cpu(1);
  const Matrix<double> x = random_matrix<double>(5, 4, 1), y = random_matrix<double>(5, 4, 2);
  const auto gradients = [&](bool again) {
    Autodiff<Cpu<double>> tape(cpu, Seed(1));
    const auto a = tape.variable(x), b = tape.variable(y);
    const auto run = [&](const auto& in, const auto& f) { return again ? tape.recompute(in, f) : f(in); };
    const auto inner = [&tape, b](const auto& in) {
      return tape.dropout(tape.multiply(tape.activation(Activation::silu, in), b), 0.3);
    };
    const auto outer = [&tape, run, inner](const auto& in) {
      return tape.add(run(tape.scale(in, 0.5), inner), tape.dropout(in, 0.2));
    };
    const auto h = tape.scale(a, 0.7);
    auto sum = run(h, outer);
    sum = tape.add(sum, tape.multiply(h, b));                        // h has a derivative before that of `outer`
    sum = tape.add(sum, run(h, [](const auto& in) { return in; }));  // nothing is computed
    sum = tape.add(sum, run(h, [&](const auto&) { return tape.scale(b, 3); }));  // h is not used
    tape.backward(tape.mean_finite(sum));
    return Values{numbers(tape.gradient(a).view()), numbers(tape.gradient(b).view())};
  };
  CHECK(gradients(true) == gradients(false));
}

TEST_CASE("dropout is a function of the seed", "[determinism]") {
  const auto first = step<Gqa<4, 2>, float>(1, config, Seed(4), false);
  CHECK(first == step<Gqa<4, 2>, float>(2, config, Seed(4), false));
  CHECK(first != step<Gqa<4, 2>, float>(1, config, Seed(5), false));

  const Matrix<float> x = Matrix<float>::Ones(500, 40);
  Cpu<float> cpu(1);
  const auto dropped = [&](Seed seed) {
    Autodiff<Cpu<float>> tape(cpu, seed);
    const Matrix<float> one = tape.dropout(tape.input(x), 0.3).value.view(),
                        two = tape.dropout(tape.input(x), 0.3).value.view();
    CHECK(one != two);  // each call has numbers of its own
    return one;
  };
  const Matrix<float> y = dropped(Seed(1));
  CHECK(y == dropped(Seed(1)));
  CHECK(y != dropped(Seed(2)));
  // Survivors are scaled so that the mean stays.
  const float scale = y.maxCoeff();
  CHECK(scale == Approx(1 / 0.7).epsilon(1e-4));
  CHECK(((y.array() == 0) || (y.array() == scale)).all());
  CHECK(y.mean() == Approx(1).margin(4 * std::sqrt(0.3 / 0.7 / 20000)));
  CHECK_THROWS_WITH(Autodiff(cpu).dropout({cpu.input(x), -1}, 1.0),
                    "dropout: probability 1 given, expected from 0 to less than 1");
  // Outside training nothing is dropped.
  Autodiff<Cpu<float>> evaluation(cpu, Seed(1), false);
  CHECK(evaluation.dropout(evaluation.input(x), 0.3).value.view() == x);
}

TEST_CASE("dropout in vectors is its definition", "[determinism]") {
  for (const double probability : {0.1, 0.5, 0.9999999}) {
    const DropoutMask mask(probability, Random(Seed(3), 5));
    for (const std::uint64_t first : {std::uint64_t{0}, std::uint64_t{5}, std::uint64_t{127}, std::uint64_t{9} << 24})
      for (const Index n : {1, 7, 73, 128, 129, 300}) {
        const std::vector<double> x(static_cast<std::size_t>(n), 2.0);
        std::vector<double> y(x.size(), -1.0);
        mask.apply(n, first, x.data(), y.data());
        for (std::size_t i = 0; i < y.size(); ++i) REQUIRE(y[i] == (mask.keeps(first + i) ? 2 * mask.scale() : 0.0));
      }
  }
}

TEST_CASE("gathering micro-batches is gathering gradients", "[determinism]") {
  // Two backward passes into the same gradients equal the sum of two alone.
  Linear<double> layer(5, 3, Seed(1));
  Cpu<double> cpu(1);
  const auto pass = [&](std::uint64_t seed) {
    const Matrix<double> x = random_matrix(4, 5, seed);
    Autodiff<Cpu<double>> tape(cpu);
    tape.backward(tape.mean_finite(tape.activation(Activation::silu, layer(tape, tape.input(x)))));
  };
  pass(1);
  const Matrix<double> one = layer.weight.gradient();
  layer.weight.clear_gradient();
  pass(2);
  const Matrix<double> two = layer.weight.gradient();
  layer.weight.clear_gradient();
  pass(1);
  pass(2);
  CHECK((layer.weight.gradient() - one - two).cwiseAbs().maxCoeff() < 1e-15);
}
