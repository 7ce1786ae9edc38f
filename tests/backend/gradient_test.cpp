// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Every primitive's derivative against central differences in double.
#include "gradient_check.hpp"

#include <laconic/nn/norm.hpp>

using namespace laconic;

namespace {

constexpr double tolerance = 1e-6;
const GradientCheck check;
template <class Backend>
const GradientCheckOn<Backend> on{};

/// All derivatives of attention for one choice of everything.
struct AttendCase {
  Index num_heads = 2, num_kv_heads = 2, key_width = 3, value_width = 3;
  Sequences q{4, 3}, kv = q;
  Mask mask = {};
  bool relative = false;
  double dropout = 0;
  Index longer_table = 0;
  int threads = 1;

  template <class Backend>
  double error() const {
    const Index cols = num_heads * key_width, span = kv.max_length() + longer_table;
    const AttendShape shape{num_heads, num_kv_heads, 0.7, mask};
    std::vector<Matrix<double>> inputs{random_matrix(q.rows(), cols, 1),
                                       random_matrix(kv.rows(), num_kv_heads * key_width, 2),
                                       random_matrix(kv.rows(), num_kv_heads * value_width, 3)};
    Parameter<double> u = random_parameter({num_heads, key_width}, 5, 0.5),
                      v = random_parameter({num_heads, key_width}, 6, 0.5);
    std::vector<Parameter<double>*> parameters;
    if (relative) {
      inputs.push_back(random_matrix(2 * span - 1, cols, 4, 0.5));
      parameters = {&u, &v};
    }
    return GradientCheckOn<Backend>{{.threads = threads}}(inputs, parameters, [&](auto& tape, const auto& x) {
      using Tensor = std::remove_cvref_t<decltype(x[0])>;
      const auto term = relative ? RelativeTerm<Tensor, double>{x[3], &u, &v} : RelativeTerm<Tensor, double>{};
      return tape.attend(x[0], x[1], x[2], shape, q, kv, term, dropout);
    });
  }
};

/// A backend whose GLU has one wrong number in its derivative.
struct WrongGlu : Cpu<double> {
  using Cpu::Cpu;
  Tensor glu_backward(const Tensor& dy, const Tensor& x) {
    Tensor dx = Cpu::glu_backward(dy, x);
    dx.row(2)[5] *= 1.001;
    return dx;
  }
};
/// One that forgets the half of a bias.
struct WrongBias : Cpu<double> {
  using Cpu::Cpu;
  Tensor linear_backward(const Tensor& dy, const Tensor& x, const Parameter<double>& weight,
                         const Parameter<double>* bias, bool needs_dx) {
    Tensor dx = Cpu::linear_backward(dy, x, weight, bias, needs_dx);
    if (bias != nullptr) bias->gradient().rightCols(1) *= 0.5;
    return dx;
  }
};

}  // namespace

TEST_CASE("the gradient check finds planted errors", "[gradient]") {
  const std::vector<Matrix<double>> x{random_matrix(4, 6, 1)};
  const auto glu = [](auto& tape, const auto& in) { return tape.glu(in[0]); };
  CHECK(check(x, {}, glu) < tolerance);
  CHECK(check.operator()<WrongGlu>(x, {}, glu) > 5 * tolerance);

  Parameter<double> weight = random_parameter({5, 6}, 2), bias = random_parameter({5}, 3);
  const auto linear = [&](auto& tape, const auto& in) { return tape.linear(in[0], weight, &bias); };
  CHECK(check(x, {&weight, &bias}, linear) < tolerance);
  CHECK(check.operator()<WrongBias>(x, {&weight, &bias}, linear) > 1e-2);

  // A value that depends on nothing that is checked is no success.
  Parameter<double> other = random_parameter({2}, 3);
  CHECK(check({}, {&other}, [&](auto& tape, const auto&) { return tape.linear(tape.input(x[0]), weight, &bias); }) > 1);
}

TEMPLATE_LIST_TEST_CASE("derivatives of linear layers", "[gradient]", Backends<double>) {
  for (const auto& [rows, in, out] :
       std::vector<std::tuple<Index, Index, Index>>{{1, 1, 1}, {7, 5, 11}, {19, 33, 26}, {70, 40, 37}}) {
    Parameter<double> weight = random_parameter({out, in}, 2, 0.3), bias = random_parameter({out}, 3);
    const std::vector<Matrix<double>> x{random_matrix(rows, in, 1)};
    INFO(rows << " rows, " << in << " to " << out);
    CHECK(on<TestType>(x, {&weight, &bias},
                       [&](auto& tape, const auto& v) { return tape.linear(v[0], weight, &bias); }) < tolerance);
    CHECK(on<TestType>(x, {&weight}, [&](auto& tape, const auto& v) { return tape.linear(v[0], weight, nullptr); }) <
          tolerance);
    CHECK((GradientCheckOn<TestType>{{.threads = 3}}(x, {&weight, &bias}, [&](auto& tape, const auto& v) {
            return tape.linear(v[0], weight, &bias);
          })) < tolerance);
  }
}

TEMPLATE_LIST_TEST_CASE("derivatives of activations", "[gradient]", Backends<double>) {
  const std::vector<Matrix<double>> x{random_matrix(5, 22, 1, 2)};
  for (const Activation kind : {Activation::relu, Activation::silu, Activation::gelu, Activation::gelu_new})
    CHECK(on<TestType>(x, {}, [&](auto& tape, const auto& v) { return tape.activation(kind, v[0]); }) < tolerance);
  CHECK(on<TestType>(x, {}, [&](auto& tape, const auto& v) { return tape.glu(v[0]); }) < tolerance);
  CHECK(on<TestType>(x, {}, [&](auto& tape, const auto& v) { return tape.log_softmax(v[0]); }) < tolerance);
}

TEMPLATE_LIST_TEST_CASE("derivatives of embeddings and cross entropies", "[gradient]", Backends<double>) {
  Parameter<double> weight = random_parameter({6, 70}, 1);
  const std::vector<int> ids{2, 5, 2, 0, 2, 2, 1}, targets{3, 0, -100, 69, 12, 3, 3};
  // The weight is read by rows and as a product, as tied embeddings are; row 3 and 4 have no derivative by the first.
  CHECK(on<TestType>({}, {&weight}, [&](auto& tape, const auto&) { return tape.embed(ids, weight); }) < tolerance);
  CHECK(on<TestType>({}, {&weight}, [&](auto& tape, const auto&) {
          return tape.linear(tape.embed(ids, weight), weight, nullptr);
        }) < tolerance);
  for (const CrossEntropyShape& shape :
       {CrossEntropyShape{}, CrossEntropyShape{.label_smoothing = 0.2, .ignored = 12}}) {
    std::vector<int> counted = targets;
    counted[2] = shape.ignored;
    CHECK(on<TestType>({random_matrix(7, 70, 3)}, {}, [&](auto& tape, const auto& v) {
            return tape.cross_entropy(v[0], counted, shape);
          }) < tolerance);
  }
}

TEMPLATE_LIST_TEST_CASE("derivatives of norms", "[gradient]", Backends<double>) {
  LayerNorm<double> layer(13);
  BatchNorm<double> batch(37);
  randomize(layer, 10);
  randomize(batch, 20);
  const std::vector<Matrix<double>> x{random_matrix(6, 13, 1)}, wide{random_matrix(6, 37, 1)};
  CHECK(on<TestType>(x, weights_of(layer), [&](auto& tape, const auto& v) { return layer(tape, v[0]); }) < tolerance);
  SequenceNorm<double> over_time(13);
  randomize(over_time, 30);
  const Sequences uneven{4, 0, 9};
  CHECK(on<TestType>({random_matrix(13, 13, 2)}, weights_of(over_time),
                     [&](auto& tape, const auto& v) { return over_time(tape, v[0], uneven); }) < tolerance);
  for (const bool training : {true, false}) {
    INFO("training " << training);
    CHECK((GradientCheckOn<TestType>{{.training = training}}(
              wide, weights_of(batch), [&](auto& tape, const auto& v) { return batch(tape, v[0]); })) < tolerance);
  }
}

TEMPLATE_LIST_TEST_CASE("derivatives of convolutions", "[gradient]", Backends<double>) {
  const Sequences from{9, 2, 14, 0, 3};
  for (const Index stride : {1, 2})
    for (const Index channels : {1, 3})
      for (const int threads : {1, 2}) {
        const Conv2dShape shape{channels, 5, 8, stride};
        std::vector<Index> lengths;
        for (Index n = 0; n < from.size(); ++n) lengths.push_back(shape.out_length(from.length(n)));
        const Sequences to{std::span<const Index>(lengths)};
        Parameter<double> weight = random_parameter({5, channels, 3, 3}, 2, 0.3), bias = random_parameter({5}, 3);
        INFO("stride " << stride << ", channels " << channels);
        CHECK((GradientCheckOn<TestType>{{.threads = threads}}(
                  {random_matrix(from.rows(), shape.in_cols(), 1)}, {&weight, &bias}, [&](auto& tape, const auto& v) {
                    return tape.conv2d(v[0], weight, bias, shape, from, to);
                  })) < tolerance);
      }

  for (const Index stride : {1, 2, 5})
    for (const int threads : {1, 2}) {
      const Conv1dShape shape{3, 5, 4, stride};
      std::vector<Index> lengths;
      for (Index n = 0; n < from.size(); ++n) lengths.push_back(shape.out_length(from.length(n)));
      const Sequences to{std::span<const Index>(lengths)};
      Parameter<double> weight = random_parameter({5, 3, 4}, 2, 0.3), bias = random_parameter({5}, 3);
      INFO("stride " << stride);
      CHECK((GradientCheckOn<TestType>{{.threads = threads}}({random_matrix(from.rows(), 3, 1)}, {&weight, &bias},
                                                             [&](auto& tape, const auto& v) {
                                                               return tape.conv1d(v[0], weight, &bias, shape, from, to);
                                                             })) < tolerance);
    }

  const Sequences sequences{7, 0, 1, 70};
  for (const DepthwiseShape shape : {DepthwiseShape{0}, DepthwiseShape{2}, DepthwiseShape{4}, DepthwiseShape{2, 3},
                                     DepthwiseShape{1, 1}, DepthwiseShape{0, 16}}) {
    Parameter<double> weight = random_parameter({11, 1, 5}, 2, 0.5), bias = random_parameter({11}, 3);
    INFO("left " << shape.left << ", chunk " << shape.chunk);
    CHECK(on<TestType>({random_matrix(78, 11, 1)}, {&weight, &bias}, [&](auto& tape, const auto& v) {
            return tape.depthwise_conv(v[0], weight, &bias, sequences, shape);
          }) < tolerance);
    CHECK(on<TestType>({random_matrix(78, 11, 1)}, {&weight}, [&](auto& tape, const auto& v) {
            return tape.depthwise_conv(v[0], weight, nullptr, sequences, shape);
          }) < tolerance);
  }
}

TEMPLATE_LIST_TEST_CASE("derivatives of attention", "[gradient][attention]", Backends<double>) {
  CHECK(AttendCase{}.template error<TestType>() < tolerance);
  CHECK(AttendCase{.num_heads = 6, .num_kv_heads = 2, .key_width = 4}.template error<TestType>() < tolerance);
  CHECK(AttendCase{.num_heads = 4, .num_kv_heads = 1, .key_width = 5, .value_width = 9}.template error<TestType>() <
        tolerance);
  CHECK(AttendCase{.relative = true}.template error<TestType>() < tolerance);
  CHECK(AttendCase{.relative = true, .longer_table = 4}.template error<TestType>() < tolerance);
  CHECK(AttendCase{.num_heads = 4, .num_kv_heads = 2, .value_width = 7, .relative = true, .threads = 3}
            .template error<TestType>() < tolerance);
  // Longer than one tile of queries.
  CHECK(AttendCase{.q{70, 5}}.template error<TestType>() < tolerance);
  CHECK(AttendCase{.num_heads = 4, .num_kv_heads = 2, .q{70, 0, 5}, .relative = true, .threads = 2}
            .template error<TestType>() < tolerance);
  CHECK(AttendCase{.q{130}, .relative = true}.template error<TestType>() < tolerance);
  // Keys that were there before the queries.
  CHECK(AttendCase{.q{3, 1}, .kv{8, 1}, .relative = true}.template error<TestType>() < tolerance);
  CHECK(AttendCase{.q{66, 1}, .kv{80, 4}, .mask = Mask::causal(), .relative = true}.template error<TestType>() <
        tolerance);
  // Other keys altogether.
  CHECK(AttendCase{.q{3, 2, 1}, .kv{2, 5, 0}}.template error<TestType>() < tolerance);
  // Sums over parts of many keys.
  CHECK(
      AttendCase{.q{3, 2}, .kv{1000, 400}, .mask = Mask::chunked(2, 500), .relative = true}.template error<TestType>() <
      tolerance);
}

TEMPLATE_LIST_TEST_CASE("derivatives of masked attention", "[gradient][attention]", Backends<double>) {
  for (const Mask mask : {Mask::causal(), Mask::chunked(1, 3), Mask::chunked(4, 0), Mask::chunked(4, 6),
                          Mask::chunked(3, Mask::unlimited)})
    for (const bool relative : {false, true}) {
      INFO("chunk " << mask.chunk << ", left " << mask.left_context << ", relative " << relative);
      CHECK(AttendCase{.q{70, 5}, .mask = mask, .relative = relative}.template error<TestType>() < tolerance);
      CHECK(AttendCase{.num_heads = 4, .num_kv_heads = 2, .key_width = 5, .q{9, 1}, .mask = mask, .relative = relative}
                .template error<TestType>() < tolerance);
    }
}

TEMPLATE_LIST_TEST_CASE("derivatives with dropout", "[gradient]", Backends<double>) {
  CHECK(AttendCase{.dropout = 0.3}.template error<TestType>() < tolerance);
  CHECK(AttendCase{.num_heads = 4, .num_kv_heads = 2, .q{70, 5}, .relative = true, .dropout = 0.2}
            .template error<TestType>() < tolerance);
  CHECK(
      AttendCase{.q{20, 5}, .mask = Mask::chunked(4, 3), .relative = true, .dropout = 0.2}.template error<TestType>() <
      tolerance);
  CHECK(AttendCase{.q{3}, .kv{1000}, .dropout = 0.2}.template error<TestType>() < tolerance);
  CHECK(on<TestType>({random_matrix(9, 21, 1)}, {},
                     [&](auto& tape, const auto& v) { return tape.dropout(v[0], 0.4); }) < tolerance);
}

TEMPLATE_LIST_TEST_CASE("derivatives of sums", "[gradient]", Backends<double>) {
  const std::vector<Matrix<double>> two{random_matrix(5, 9, 1), random_matrix(5, 9, 2)};
  for (const double scale : {1.0, 0.5, -3.0})
    CHECK(on<TestType>(two, {}, [&](auto& tape, const auto& v) { return tape.add(v[0], v[1], scale); }) < tolerance);
  // A value used several times gets the sum of what comes back, whatever shares memory.
  CHECK(on<TestType>(two, {}, [&](auto& tape, const auto& v) {
          const auto a = tape.add(v[0], v[0]), b = tape.add(a, v[1], 0.5);
          return tape.add(tape.add(b, a), tape.activation(Activation::silu, tape.add(a, b)), 2.0);
        }) < tolerance);
  CHECK(on<TestType>({two[0]}, {}, [&](auto& tape, const auto& v) {
          return tape.mean_finite(tape.activation(Activation::silu, v[0]));
        }) < tolerance);
}

TEMPLATE_LIST_TEST_CASE("derivatives of CTC", "[gradient][ctc]", Backends<double>) {
  const Sequences sequences{6, 1, 9, 2, 3, 0};
  const Labels labels{{1, 1, 3, 2, 3, 3, 1, 1, 2, 1}, Sequences{3, 0, 4, 3, 0, 0}};  // the fourth does not fit
  for (const int blank : {0, 4}) {
    CHECK(on<TestType>({random_matrix(21, 5, 1, 2)}, {}, [&](auto& tape, const auto& v) {
            return tape.mean_finite(tape.ctc(v[0], sequences, labels, blank));
          }) < tolerance);
    // Weighted unequally.
    const Labels fitting{{1, 1, 3, 2, 3, 3, 1}, Sequences{3, 0, 4, 0, 0, 0}};
    CHECK(on<TestType>({random_matrix(21, 5, 1, 2)}, {}, [&](auto& tape, const auto& v) {
            return tape.ctc(v[0], sequences, fitting, blank);
          }) < tolerance);
  }
}

TEST_CASE("a tape records only what is wanted", "[gradient]") {
  Cpu<double> cpu(1);
  Parameter<double> weight = random_parameter({5, 6}, 2), bias = random_parameter({5}, 3);
  const Matrix<double> x = random_matrix(4, 6, 1);
  weight.trainable = false;
  {
    Autodiff<Cpu<double>> tape(cpu);
    tape.backward(tape.mean_finite(tape.linear(tape.input(x), weight, &bias)));
    CHECK_FALSE(weight.has_gradient());
    CHECK((bias.gradient() - Matrix<double>::Constant(1, 5, 0.2)).cwiseAbs().maxCoeff() < 1e-15);
    // Gradients add up until they are cleared, by the weight of each loss.
    tape.clear();
    tape.backward(tape.mean_finite(tape.linear(tape.input(x), weight, &bias)), 3);
    CHECK((bias.gradient() - Matrix<double>::Constant(1, 5, 0.8)).cwiseAbs().maxCoeff() < 1e-15);
    bias.clear_gradient();
    CHECK(bias.gradient().cwiseAbs().maxCoeff() == 0);
  }
  bias.trainable = false;
  Autodiff<Cpu<double>> tape(cpu);
  const auto unused = tape.variable(x);
  CHECK_THROWS_WITH(tape.backward(tape.linear(unused, weight, &bias)), "backward: the loss is (4, 5), expected (1, 1)");
  CHECK_THROWS_WITH(tape.backward(tape.mean_finite(tape.linear(tape.input(x), weight, &bias))),
                    "backward: the loss does not depend on any trainable parameter or variable");
  const auto used = tape.variable(x);
  tape.backward(tape.mean_finite(used));
  CHECK(tape.gradient(unused).empty());
  CHECK(tape.gradient(used).view()(3, 5) == Approx(1.0 / 24));
}

TEST_CASE("a tape's memory returns to the arena", "[gradient]") {
  Cpu<double> cpu(1);
  Parameter<double> weight = random_parameter({6, 6}, 2), bias = random_parameter({6}, 3);
  const Matrix<double> x = random_matrix(40, 6, 1);
  {
    Autodiff<Cpu<double>> tape(cpu);
    auto y = tape.input(x);
    for (int i = 0; i < 5; ++i) y = tape.activation(Activation::silu, tape.linear(y, weight, &bias));
    CHECK(cpu.arena().used_bytes() > 10 * 40 * 6 * 8);
    tape.clear();
  }
  CHECK(cpu.arena().used_bytes() == 0);
}

TEST_CASE("batch norm gathers running statistics in the gradient slots", "[gradient]") {
  BatchNorm<double> norm(3);
  randomize(norm, 4);
  const Matrix<double> x = random_matrix(7, 3, 1);
  Cpu<double> cpu(1);
  Autodiff<Cpu<double>> tape(cpu);
  norm(tape, tape.input(x));
  for (Index c = 0; c < 3; ++c) {
    const double mean = x.col(c).mean(), unbiased = (x.col(c).array() - mean).square().sum() / 6;
    CHECK(norm.running_mean.gradient()(0, c) == Approx(0.1 * (mean - norm.running_mean.host()(0, c))).epsilon(1e-12));
    CHECK(norm.running_var.gradient()(0, c) == Approx(0.1 * (unbiased - norm.running_var.host()(0, c))).epsilon(1e-12));
  }
  BatchNorm<double> still(3);
  Autodiff<Cpu<double>> evaluation(cpu, Seed(), false);
  still(evaluation, evaluation.input(x));
  CHECK_FALSE(still.running_mean.has_gradient());
}
