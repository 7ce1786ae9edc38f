// The contract of contexts, and when a primitive may work in place.
#include "../../bench/cpu_with.hpp"
#include "gradient_check.hpp"

#include <laconic/laconic.hpp>
#include <laconic/train/adamw.hpp>
#include <laconic/train/ctc_loss.hpp>

using namespace laconic;

static_assert(StreamingContext<Cpu<float>> && TrainingContext<Cpu<float>>);
static_assert(StreamingContext<Cpu<double>> && TrainingContext<Cpu<double>>);
static_assert(Context<Autodiff<Cpu<float>>> && Context<Autodiff<Cpu<double>>>);
static_assert(!TrainingContext<Autodiff<Cpu<float>>>, "a tape cannot be recorded on a tape");

namespace {

constexpr EncoderConfig small{.num_mels = 16, .d_model = 8, .num_layers = 1, .vocab_size = 4, .conv_kernel = 3};

}  // namespace

TEST_CASE("a primitive works in place only where nobody else holds its argument") {
  Cpu cpu(1);
  const auto ones = [&] { return cpu.fill(3, 5, 1); };
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
  const Conformer<Mha<2>> model(small, Seed(1));
  const Matrix<float> features = Matrix<float>::Random(40, 16);
  const std::size_t before = cpu.arena().used_bytes();
  {
    Autodiff tape(cpu);
    const auto logits = model(tape, features, Sequences{40});
    const std::size_t recorded = cpu.arena().used_bytes();
    tape.clear();
    CHECK(cpu.arena().used_bytes() < recorded);
    CHECK(logits.rows.value.rows() == logits.sequences.rows());
    // What is from before is a constant now, also where its place has another value.
    const auto variable = tape.variable(features);
    tape.backward(tape.mean_finite(tape.add(tape.mean_finite(logits.rows), tape.mean_finite(variable))));
    CHECK(tape.gradient(variable).view()(0, 0) == Approx(1.0 / (40 * 16)));
    CHECK_THROWS_WITH(tape.backward(tape.mean_finite(logits.rows)),
                      "backward: the loss does not depend on any trainable parameter or variable");
  }
  CHECK(cpu.arena().used_bytes() == before);
}

TEST_CASE("values outlive their context") {
  const Conformer<Mha<2>> model(small, Seed(1));
  const auto run = [&] {
    Cpu cpu(1);
    return model(cpu, Matrix<float>(Matrix<float>::Ones(40, 16)), Sequences{40});
  };
  const auto logits = run();
  Cpu cpu(1);
  const Matrix<float> features = Matrix<float>::Ones(40, 16);
  const auto again = model(cpu, features, Sequences{40});
  CHECK(logits.sequences == again.sequences);
  CHECK(logits.rows.view() == again.rows.view());
}

TEST_CASE("a temporary input is kept, a matrix is borrowed") {
  Cpu cpu(1);
  const Matrix<float> all = Matrix<float>::Random(60, 16);
  const Eigen::MatrixXf columns = all.topRows(40);
  const Matrix<float> rows = all.topRows(40);
  CHECK(cpu.input(all).data() == all.data());
  CHECK(cpu.input(view(all)).view() == all);
  const Conformer<Mha<2>> model(small, Seed(1));
  const Labels labels{{1, 2}, Sequences{2}};
  const auto gradient = [&](const auto& features) {
    Autodiff tape(cpu, Seed(1));
    tape.backward(ctc_loss(tape, model(tape, features, Sequences{40}), labels));
    const Matrix<float> out = model.subsampling.conv0.weight.gradient();
    model.subsampling.conv0.weight.clear_gradient();
    return out;
  };
  const Matrix<float> expected = gradient(rows);
  CHECK(expected.norm() > 0);
  CHECK(gradient(columns) == expected);
  CHECK(gradient(all.topRows(40)) == expected);
}

TEST_CASE("a tape that is used wrongly says so") {
  Cpu cpu(1);
  Linear<float> layer(3, 1, Seed(1));
  Autodiff tape(cpu);
  const auto x = tape.variable(Matrix<float>::Ones(1, 3));
  const auto y = layer(tape, x);
  const auto loss = tape.mean_finite(y);
  tape.backward(loss);
  CHECK(tape.gradient(x).view() == layer.weight.host());
  CHECK_THROWS_WITH(tape.backward(loss), "backward: this value was used up by an earlier backward(); compute it again");
  CHECK_THROWS_WITH(tape.backward(tape.mean_finite(y)),
                    "backward: this value was used up by an earlier backward(); compute it again");
  CHECK_THROWS_WITH(tape.gradient(y), "gradient: of an intermediate value, which is not kept; of a variable expected");
  CHECK_THROWS_WITH(tape.gradient(tape.input(Matrix<float>::Ones(1, 3))),
                    "gradient: of a constant; of a variable expected");
  // New values on the same tape are another computation.
  tape.backward(tape.mean_finite(layer(tape, x)));
  CHECK(tape.gradient(x).view() == 2 * layer.weight.host());
  tape.clear();
  CHECK_THROWS_WITH(tape.gradient(x), "autodiff: a value of another tape, or from before clear()");
}

TEST_CASE("what is frozen costs no derivative") {
  Cpu cpu(1);
  Conformer<Mha<2>> model(small, Seed(1));
  model.parameters([](std::string_view name, auto& p) { p.trainable = name.starts_with("lm_head"); });
  const Matrix<float> features = Matrix<float>::Random(40, 16);
  Autodiff tape(cpu);
  const auto [x, out] = model.subsampling(tape, tape.input(features), Sequences{40});
  const auto encoded = model.encode(tape, x, out);
  CHECK(encoded.node == -1);
  CHECK(model.lm_head(tape, encoded).node >= 0);
  model.layers[0].self_attn.position.pos_bias_v.trainable = true;
  CHECK(model.encode(tape, x, out).node >= 0);
}

TEST_CASE("activations by their numbers") {
  Cpu<double> cpu(1);
  const auto value = [&](Activation kind, double x) {
    const Matrix<double> one = Matrix<double>::Constant(1, 1, x);
    return cpu.activation(kind, cpu.input(one)).view()(0, 0);
  };
  CHECK(value(Activation::relu, 1.5) == 1.5);
  CHECK(value(Activation::relu, -1.5) == 0);
  CHECK(value(Activation::silu, 1.5) == Approx(1.5 / (1 + std::exp(-1.5))).epsilon(1e-12));
  CHECK(value(Activation::silu, -40) == Approx(0).margin(1e-12));
  for (const double x : {-3.0, -0.5, 0.0, 1.0, 2.5}) {
    CHECK(value(Activation::gelu, x) == Approx(x * 0.5 * std::erfc(-x / std::sqrt(2.0))).margin(1e-10));
    const double tanh = std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x));
    CHECK(value(Activation::gelu_new, x) == Approx(x * 0.5 * (1 + tanh)).margin(1e-12));
  }
  CHECK(value(Activation::gelu_new, 1e20) == 1e20);
  CHECK(value(Activation::gelu_new, -1e20) == 0);
  for (const Activation kind : {Activation::relu, Activation::silu, Activation::gelu, Activation::gelu_new})
    CHECK(std::isnan(value(kind, std::numeric_limits<double>::quiet_NaN())));
}

TEST_CASE("a context has a sensible number of threads") {
  CHECK(Cpu<>(3).threads() == 3);
  CHECK(Cpu<>(0).threads() == hardware_threads());
  CHECK_THROWS_WITH(Cpu<>(-1), "threads: -1 given, 1 to 4096 expected, or 0 for all that the machine offers");
  CHECK_THROWS_WITH(Cpu<>(1000000), "threads: 1000000 given, 1 to 4096 expected, or 0 for all that the machine offers");
}

TEST_CASE("a mask has chunks of at least one frame") {
  CHECK_THROWS_WITH(Mask::chunked(0, 1), "mask: chunk 0 given, at least 1 expected");
  CHECK_THROWS_WITH(Mask::chunked(4, -3), "mask: left_context -3 given, at least 0 expected, or Mask::unlimited");
  CHECK_THROWS_WITH((Mha<2>::flops({.d_model = 4}, frames(8), Mask{0, 1})), "mask: chunk 0 given, at least 1 expected");
}

TEST_CASE("operands that do not fit are refused") {
  Cpu cpu(1);
  const auto x = cpu.zeros(4, 6);
  const Parameter<float> weight({3, 6}), short_bias({2}), six({6}), five({5});
  const Sequences four{4};
  CHECK_THROWS_WITH(cpu.linear(x, weight, &short_bias), "linear: a bias of 2 given for 3 channels");
  CHECK_THROWS_WITH(cpu.layer_norm(x, six, five, 1e-5),
                    "layer_norm: input has 6 channels, weight and bias expect 6 and 5");
  CHECK_THROWS_WITH(cpu.batch_norm(x, {six, six, six, five, 1e-5}),
                    "batch_norm: input has 6 channels, a parameter expects 5");
  const Parameter<float> taps({6, 1, 3});
  CHECK_THROWS_WITH(cpu.depthwise_conv(x, taps, &five, four, {1}), "depthwise_conv: a bias of 5 given for 6 channels");
  const Parameter<float> kernel({2, 1, 3, 3}), two({2});
  CHECK_THROWS_WITH(
      cpu.conv2d(x, kernel, two, {1, 3, 6, 2}, four, Sequences{1}),
      "conv2d: stride 2, a weight of (2, 9) and a bias of 2 given, a positive one, (3, 9) and 3 expected");
  CHECK_THROWS_WITH(cpu.conv2d(x, kernel, two, {1, 2, 6, 0}, four, Sequences{1}),
                    Catch::Matchers::StartsWith("conv2d: stride 0"));
  const auto table = cpu.zeros(7, 6);
  CHECK_THROWS_WITH(cpu.attend(x, x, x, {2, 2, 1.0}, four, four, {table, &five, &six}),
                    "attend: a position bias of 5 given, 6 expected");
  CHECK_THROWS_WITH(cpu.attend(x, x, x, {2, 2, 1.0, {.left_context = 2}}, four, four),
                    "attend: a mask of chunk -1 and left context 2 given, at least 1 and 0 expected, or neither");
  // Without position biases they are zeros.
  const Parameter<float> zeros({2, 3});
  const Matrix<float> some = Matrix<float>::Random(4, 6), places = Matrix<float>::Random(7, 6);
  const auto attend = [&](const Parameter<float>* bias) {
    return Matrix<float>(cpu.attend(cpu.input(some), cpu.input(some), cpu.input(some), {2, 2, 1.0}, four, four,
                                    {cpu.input(places), bias, bias})
                             .view());
  };
  CHECK(attend(nullptr) == attend(&zeros));
  CHECK_THROWS_WITH(cpu.make(-1, 4), "tensor: (-1, 4) given, sizes of at least 0 that fit the memory expected");
  CHECK_THROWS_WITH(cpu.make(Index{1} << 40, Index{1} << 40), Catch::Matchers::StartsWith("tensor: (1099511627776, "));
  CHECK_THROWS_AS(cpu.arena().allocate(std::numeric_limits<std::size_t>::max()), std::bad_alloc);
}

TEST_CASE("ten minutes of audio lose no digits in a norm over time", "[norm]") {
  constexpr Index rows = 1'920'000, cols = 2;  // 3200 a second, as the first norm of wav2vec2 sees them
  Matrix<float> x(rows, cols);
  const Random random(Seed(1), "audio");
  for (Index i = 0; i < x.size(); ++i)
    x.data()[i] = 0.1f + static_cast<float>(random.uniform(static_cast<std::uint64_t>(i)));
  const Matrix<double> exact = x.cast<double>();
  std::array<float, 2> mean{}, variance{};
  kernels::column_moments(2, rows, cols, x.data(), mean.data(), variance.data());
  for (Index c = 0; c < cols; ++c) {
    const double expected = exact.col(c).mean();
    const auto at = static_cast<std::size_t>(c);
    CHECK(std::abs(static_cast<double>(mean[at]) / expected - 1) < 2e-7);
    const double square = (exact.col(c).array() - expected).square().mean();
    CHECK(std::abs(static_cast<double>(variance[at]) / square - 1) < 2e-7);
  }
}

TEST_CASE("statistics of many batches before one update are those of as many updates") {
  Cpu<double> cpu(1);
  const auto batch = [](Index n) {
    return Matrix<double>(Matrix<double>::Random(6, 3).array() * (1 + static_cast<double>(n)) + static_cast<double>(n));
  };
  std::vector<Matrix<double>> batches;
  for (Index n = 0; n < 30; ++n) batches.push_back(batch(n));
  const auto gather = [&](bool at_once) {
    BatchNorm<double> norm(3);
    AdamW optimizer(cpu);
    for (const auto& x : batches) {
      Autodiff<Cpu<double>> tape(cpu);
      norm(tape, tape.input(x));
      if (!at_once) optimizer.step(norm, 0);
    }
    optimizer.step(norm, 0);
    return norm;
  };
  const auto once = gather(true), often = gather(false);
  CHECK((once.running_mean.host() - often.running_mean.host()).cwiseAbs().maxCoeff() < 1e-12);
  CHECK((once.running_var.host() - often.running_var.host()).cwiseAbs().maxCoeff() < 1e-10);
  CHECK(once.running_var.host().minCoeff() > 0);
}

TEST_CASE("attention's dropout has a mask of its own for every head and query") {
  Cpu cpu(1);
  constexpr Index frames = 40, heads = 2;
  // All scores are equal and the values a unit matrix, so that outputs are the dropped probabilities.
  const Matrix<float> q = Matrix<float>::Zero(frames, heads * frames);
  Matrix<float> v(frames, heads * frames);
  v << Matrix<float>::Identity(frames, frames), Matrix<float>::Identity(frames, frames);
  Autodiff tape(cpu, Seed(3));
  const Sequences one{frames};
  const Matrix<float> out =
      tape.attend(tape.input(q), tape.input(q), tape.input(v), {heads, heads, 1.0}, one, one, {}, 0.5).view();
  const Matrix<float> first = out.leftCols(frames), second = out.rightCols(frames);
  for (Index i = 0; i < frames; ++i) {
    CHECK(first.row(i) != second.row(i));
    if (i > 0) CHECK(first.row(i) != first.row(i - 1));
    for (Index j = 0; j < frames; ++j) CHECK((out(i, j) == 0 || out(i, j) == Approx(2.0 / frames)));
  }
  CHECK(out.mean() == Approx(1.0 / frames).epsilon(0.1));
}

TEMPLATE_TEST_CASE("another library may multiply", "[backend]", float, double) {
  using T = TestType;
  using Other = CpuWith<EigenProducts, T>;
  static_assert(TrainingContext<Other>);
  const Sequences sequences{40, 7, 29};
  const Labels labels{{1, 2, 3, 1}, Sequences{2, 0, 2}};
  const Matrix<T> x = random_matrix<T>(sequences.rows(), 20, 1);
  const auto step = [&](auto&& backend) {
    const EncoderConfig config{.num_mels = 20, .d_model = 24, .num_layers = 2, .vocab_size = 5, .conv_kernel = 5};
    Conformer<Mha<4>, T> model(config, Seed(2));
    Autodiff tape(backend, Seed(3));
    const auto logits = model(tape, x, sequences);
    tape.backward(tape.mean_finite(tape.ctc(logits.rows, logits.sequences, labels, 0)));
    std::vector<Matrix<T>> out{logits.rows.value.view()};
    model.parameters([&](std::string_view, const Parameter<T>& p) { out.push_back(p.gradient()); });
    Cpu<T>(1).prepare(model);
    out.push_back(model(backend, x, sequences).rows.view());
    return out;
  };
  const auto expected = step(Cpu<T>(1)), got = step(Other(2));
  REQUIRE(got.size() == expected.size());
  const double tolerance = 1e4 * static_cast<double>(std::numeric_limits<T>::epsilon());
  for (std::size_t i = 0; i < got.size(); ++i)
    CHECK(static_cast<double>((got[i] - expected[i]).cwiseAbs().maxCoeff()) < tolerance);
  CHECK(got.back() == expected.back());  // packed weights are laconic's

  Linear<T> layer(3, 2, Seed(1));
  Other cpu(1);
  CHECK_THROWS_WITH(layer(cpu, cpu.zeros(1, 4)), "linear: input has 4 channels and the bias 2, the weight is (2, 3)");
}
