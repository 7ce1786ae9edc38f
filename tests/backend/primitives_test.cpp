// laconic: attention for speech models. SPDX-License-Identifier: MIT
// The primitives that are neither layers nor attention by softmax: values, derivatives, refusals, threads; what streams
// are made of; and the memory under them.
#include "gradient_check.hpp"

using namespace laconic;

namespace {

constexpr double tolerance = 1e-6;
constexpr RotaryPairs both_pairs[] = {RotaryPairs::interleaved, RotaryPairs::halves};
const HeadShape head_shapes[] = {{1, 1}, {4, 1}, {4, 2}, {4, 4}, {4, 1, true}, {6, 2, true}, {4, 4, true}};
const Sequences uneven{5, 0, 1, 64};

/// The greatest difference to what is expected, relative to the greatest number expected.
template <class Backend>
double error(Backend& backend, const typename Backend::Tensor& tensor, const Matrix<double>& expected) {
  const auto got = backend.output(tensor);
  REQUIRE((got.rows() == expected.rows() && got.cols() == expected.cols()));
  if (expected.size() == 0) return 0;
  if (!got.allFinite()) return 1e300;
  return (got.template cast<double>() - expected).cwiseAbs().maxCoeff() / std::max(1.0, expected.cwiseAbs().maxCoeff());
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// Angles as any table of a rotary position has them: cosines of the pairs, then their sines.
template <class T>
Matrix<T> angles(Index rows, Index width) {
  Matrix<T> out(rows, width);
  for (Index r = 0; r < rows; ++r)
    for (Index i = 0; i < width / 2; ++i) {
      const double angle = 0.7 * static_cast<double>(r) / static_cast<double>(i + 1);
      out(r, i) = static_cast<T>(std::cos(angle));
      out(r, width / 2 + i) = static_cast<T>(std::sin(angle));
    }
  return out;
}

/// A parameter whose numbers are those of `random_parameter`, for head_linear: (blocks * out, in).
template <class T>
Parameter<T> head_weight(const HeadShape& shape, Index out, Index in) {
  return random_parameter<T>({shape.num_blocks * out, in}, 2, 0.5);
}

Matrix<double> head_reference(const Matrix<double>& x, const Matrix<double>& weight, const Matrix<double>* bias,
                              const HeadShape& shape) {
  const Index out = weight.rows() / shape.num_blocks, in = weight.cols(), from = shape.transposed ? out : in,
              to = shape.transposed ? in : out;
  Matrix<double> y(x.rows(), shape.num_heads * to);
  for (Index h = 0; h < shape.num_heads; ++h) {
    const Index block = h / (shape.num_heads / shape.num_blocks);
    const Matrix<double> w = weight.middleRows(block * out, out);
    const Matrix<double> x_h = x.middleCols(h * from, from);
    y.middleCols(h * to, to) = shape.transposed ? Matrix<double>(x_h * w) : Matrix<double>(x_h * w.transpose());
    if (bias != nullptr) y.middleCols(h * to, to).rowwise() += bias->row(0).segment(block * out, out);
  }
  return y;
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("primitives are their formulas", "[primitives]", AllBackends) {
  using T = typename TestType::Scalar;
  const double close = std::is_same_v<T, double> ? 1e-14 : 1e-6;
  const auto wide = [](const Matrix<T>& m) { return Matrix<double>(m.template cast<double>()); };
  for (const int threads : {1, 3})
    for (const auto& [rows, cols] : std::vector<std::pair<Index, Index>>{{0, 3}, {1, 1}, {7, 13}, {70, 40}}) {
      INFO(rows << " rows of " << cols << ", threads " << threads);
      TestType cpu(threads);
      const Matrix<T> x = random_matrix<T>(rows, cols, 1), y = random_matrix<T>(rows, cols, 2);
      const Parameter<T> row = random_parameter<T>({cols}, 3);
      const auto a = cpu.input(x), b = cpu.input(y);
      CHECK(error(cpu, cpu.add_row(a, resident(cpu, row)), wide(x).rowwise() + wide(row.host()).row(0)) < close);
      CHECK(error(cpu, cpu.multiply(a, b), wide(x).cwiseProduct(wide(y))) < close);
      CHECK(error(cpu, cpu.scale(a, -0.3), wide(x) * static_cast<double>(T(-0.3))) < close);
      for (Index first = 0; first < cols; first += 5)
        for (const Index count : {Index{1}, cols - first})
          CHECK(error(cpu, cpu.columns(a, first, count), wide(x).middleCols(first, count)) == 0);

      Matrix<double> normed = wide(x);
      for (Index r = 0; r < rows; ++r)
        normed.row(r) = normed.row(r).cwiseProduct(wide(row.host()).row(0)) /
                        std::sqrt(normed.row(r).squaredNorm() / static_cast<double>(cols) + 0.25);
      CHECK(error(cpu, cpu.rms_norm(a, resident(cpu, row), 0.25), normed) < close);
    }
  TestType cpu(2);
  const Matrix<T> x = random_matrix<T>(70, 6, 1), y = random_matrix<T>(70, 6, 2);
  Matrix<T> gate = random_matrix<T>(4, 1, 3);
  gate(3, 0) = -200;  // neither overflows nor leaves anything of x
  Matrix<double> mixed(70, 6);
  for (Index r = 0; r < 70; ++r) {
    const double g = sigmoid(static_cast<double>(gate(uneven.sequence_of(r), 0)));
    mixed.row(r) = g * wide(x).row(r) + (1 - g) * wide(y).row(r);
  }
  CHECK(error(cpu, cpu.mix(cpu.input(x), cpu.input(y), cpu.input(gate), uneven), mixed) < close);
}

TEMPLATE_LIST_TEST_CASE("embeddings are rows of their weight, packed or not", "[primitives]", AllBackends) {
  using T = typename TestType::Scalar;
  const std::vector<int> ids{3, 0, 99, 3, 64, 47, 48};
  for (const int threads : {1, 3}) {
    TestType backend(threads);
    ParameterList<T> list({});
    Parameter<T> weight = random_parameter<T>({100, 13}, 1);
    Matrix<T> expected(7, 13);
    for (std::size_t r = 0; r < 7; ++r) expected.row(static_cast<Index>(r)) = weight.host().row(ids[r]);
    const Matrix<T> none = backend.output(backend.embed(std::span<const int>(), resident(backend, weight)));
    CHECK((none.rows() == 0 && none.cols() == 13));
    CHECK(backend.output(backend.embed(ids, resident(backend, weight))) == expected);
    weight.use = WeightUse::linear;
    list.all = {&weight};
    backend.prepare(list);
    const auto rows = backend.embed(ids, weight);
    CHECK(backend.output(rows) == expected);
    std::vector<T> values(7 * 13);
    backend.read(rows, std::span<T>(values));
    CHECK(std::equal(values.begin(), values.end(), expected.data()));
  }
}

TEST_CASE("embeddings read rounded weights as products do") {
  for (const Storage storage : {Storage::bf16, Storage::int8}) {
    Cpu cpu;
    Parameter<float> weight = random_parameter<float>({100, 70}, 1);
    weight.use = WeightUse::linear;
    ParameterList<float> list({&weight});
    cpu.prepare(list, storage);
    const std::vector<int> ids{99, 0, 50};
    const Matrix<float> rows = cpu.output(cpu.embed(ids, weight));
    cpu.fetch(list);
    for (std::size_t r = 0; r < 3; ++r) CHECK(rows.row(static_cast<Index>(r)) == weight.host().row(ids[r]));
  }
}

TEMPLATE_LIST_TEST_CASE("cross entropies are their formula", "[primitives]", AllBackends) {
  using T = typename TestType::Scalar;
  for (const int threads : {1, 3})
    for (const Index classes : {1, 9, 100}) {
      TestType backend(threads);
      const Matrix<T> logits = random_matrix<T>(5, classes, 1, 3);
      const std::vector<int> targets{0, static_cast<int>(classes) - 1, -100, 0, static_cast<int>(classes / 2)};
      for (const double smoothing : {0.0, 0.3}) {
        Matrix<double> expected = Matrix<double>::Zero(5, 1);
        for (Index r = 0; r < 5; ++r) {
          const auto row = logits.row(r).template cast<double>();
          const double logsumexp = std::log(row.array().exp().sum());
          const int target = targets[static_cast<std::size_t>(r)];
          if (target >= 0)
            expected(r, 0) = (1 - smoothing) * (logsumexp - row(target)) + smoothing * (logsumexp - row.mean());
        }
        CHECK(error(backend, backend.cross_entropy(backend.input(logits), targets, {.label_smoothing = smoothing}),
                    expected) < 2e-6);
      }
    }
}

TEMPLATE_LIST_TEST_CASE("a row of heads times their matrices is the same in any company", "[primitives]", AllBackends) {
  using T = typename TestType::Scalar;
  TestType cpu(2);
  for (const HeadShape& shape : head_shapes)
    for (const auto& [out, in] : std::vector<std::pair<Index, Index>>{{3, 17}, {70, 530}}) {
      const Parameter<T> weight = head_weight<T>(shape, out, in),
                         bias = random_parameter<T>({shape.num_blocks * out}, 4);
      const Matrix<T> x = random_matrix<T>(130, shape.num_heads * (shape.transposed ? out : in), 1);
      const Parameter<T> here = resident(cpu, weight), of_heads = resident(cpu, bias);
      const Parameter<T>* const added = shape.transposed ? nullptr : &of_heads;
      const Matrix<T> all = cpu.output(cpu.head_linear(cpu.input(x), here, added, shape));
      for (const Index rows : {1, 7, 8, 9, 16, 17, 63, 65}) {
        INFO(rows << " rows");
        CHECK(cpu.output(cpu.head_linear(cpu.input(Matrix<T>(x.topRows(rows))), here, added, shape)) ==
              all.topRows(rows));
      }
    }
}

TEMPLATE_LIST_TEST_CASE("primitives of heads are their formulas", "[primitives]", AllBackends) {
  using T = typename TestType::Scalar;
  const double close = std::is_same_v<T, double> ? 1e-14 : 2e-6;
  const auto wide = [](const Matrix<T>& m) { return Matrix<double>(m.template cast<double>()); };
  for (const int threads : {1, 3})
    for (const Index rows : {0, 1, 9, 130}) {
      INFO(rows << " rows, threads " << threads);
      TestType cpu(threads);
      for (const HeadShape& shape : head_shapes)
        for (const auto& [out, in] : std::vector<std::pair<Index, Index>>{{1, 1}, {5, 3}, {3, 17}}) {
          const Parameter<T> weight = head_weight<T>(shape, out, in),
                             bias = random_parameter<T>({shape.num_blocks * out}, 4);
          const Matrix<T> x = random_matrix<T>(rows, shape.num_heads * (shape.transposed ? out : in), 1);
          const Matrix<double> b = wide(bias.host());
          CHECK(error(cpu, cpu.head_linear(cpu.input(x), resident(cpu, weight), nullptr, shape),
                      head_reference(wide(x), wide(weight.host()), nullptr, shape)) < close);
          const Parameter<T> added = resident(cpu, bias);
          if (!shape.transposed)
            CHECK(error(cpu, cpu.head_linear(cpu.input(x), resident(cpu, weight), &added, shape),
                        head_reference(wide(x), wide(weight.host()), &b, shape)) < close);
        }
      for (const RotaryPairs pairs : both_pairs)
        for (const Index width : {2, 6, 16})
          for (const Index heads : {1, 3}) {
            const Matrix<T> x = random_matrix<T>(rows, heads * width, 1), table = angles<T>(rows, width);
            Matrix<double> turned(rows, heads * width);
            for (Index r = 0; r < rows; ++r)
              for (Index h = 0; h < heads; ++h)
                for (Index i = 0; i < width / 2; ++i) {
                  const bool next = pairs == RotaryPairs::interleaved;
                  const Index one = h * width + (next ? 2 * i : i), two = next ? one + 1 : one + width / 2;
                  const double p = static_cast<double>(x(r, one)), q = static_cast<double>(x(r, two));
                  const double c = static_cast<double>(table(r, i)), s = static_cast<double>(table(r, width / 2 + i));
                  turned(r, one) = p * c - q * s;
                  turned(r, two) = p * s + q * c;
                }
            const auto there = cpu.rotate(cpu.input(x), cpu.input(table), pairs);
            CHECK(error(cpu, there, turned) < close);
            CHECK(error(cpu, cpu.rotate(there, cpu.input(table), pairs, -1), wide(x)) < 2 * close);
          }
      for (const Index heads : {1, 4})
        for (const Index b_heads : {Index{1}, heads}) {
          const Matrix<T> a = random_matrix<T>(rows, heads * 3, 1), b = random_matrix<T>(rows, b_heads * 5, 2);
          Matrix<double> beside(rows, heads * 8);
          for (Index h = 0; h < heads; ++h)
            beside.middleCols(h * 8, 8) << wide(a).middleCols(h * 3, 3),
                wide(b).middleCols(b_heads == 1 ? 0 : h * 5, 5);
          CHECK(error(cpu, cpu.concat(cpu.input(a), cpu.input(b), heads, b_heads), beside) == 0);
        }
    }
}

TEMPLATE_LIST_TEST_CASE("a depthwise convolution sees its chunk and what came before", "[primitives]", AllBackends) {
  using T = typename TestType::Scalar;
  const double close = std::is_same_v<T, double> ? 1e-14 : 1e-6;
  const Sequences sequences{9, 4, 70, 6};
  const Matrix<T> x = random_matrix<T>(89, 11, 1);
  const Parameter<T> weight = random_parameter<T>({11, 1, 5}, 2), bias = random_parameter<T>({11}, 3);
  for (const Index left : {0, 2, 4})
    for (const Index chunk : {Mask::unlimited, Index{1}, Index{3}, Index{64}})
      for (const Index past : {0, 2, 4})
        for (const int threads : {1, 3}) {
          INFO("left " << left << ", chunk " << chunk << ", past " << past << ", threads " << threads);
          Matrix<double> expected(89 - 4 * past, 11);
          Index row = 0;
          for (Index n = 0; n < sequences.size(); ++n)
            for (Index t = 0; t < sequences.length(n) - past; ++t, ++row)
              for (Index c = 0; c < 11; ++c) {
                double sum = static_cast<double>(bias.host()(0, c));
                for (Index k = 0; k < 5; ++k) {
                  const Index at = past + t + k - left;
                  if (at < 0 || at >= sequences.length(n) || (chunk > 0 && at - past >= (t / chunk + 1) * chunk))
                    continue;
                  sum += static_cast<double>(weight.host()(c, k)) * static_cast<double>(x(sequences.begin(n) + at, c));
                }
                expected(row, c) = sum;
              }
          TestType cpu(threads);
          const Parameter<T> added = resident(cpu, bias);
          CHECK(error(cpu,
                      cpu.depthwise_conv(cpu.input(x), resident(cpu, weight), &added, sequences, {left, chunk, past}),
                      expected) < close);
        }
}

TEST_CASE("derivatives of primitives", "[primitives][gradient]") {
  const GradientCheck check;
  const std::vector<Matrix<double>> two{random_matrix(6, 13, 1), random_matrix(6, 13, 2)};
  Parameter<double> row = random_parameter({13}, 3);
  CHECK(check({two[0]}, {&row}, [&](auto& tape, const auto& v) { return tape.add_row(v[0], row); }) < tolerance);
  CHECK(check({}, {&row}, [&](auto& tape, const auto&) { return tape.add_row(tape.input(two[0]), row); }) < tolerance);
  CHECK(check(two, {}, [&](auto& tape, const auto& v) { return tape.multiply(v[0], v[1]); }) < tolerance);
  CHECK(check(two, {}, [&](auto& tape, const auto& v) { return tape.multiply(v[0], tape.multiply(v[0], v[0])); }) <
        tolerance);
  CHECK(check({two[0]}, {}, [&](auto& tape, const auto& v) { return tape.scale(v[0], -1.7); }) < tolerance);
  for (const auto& part : std::vector<std::pair<Index, Index>>{{0, 13}, {0, 1}, {4, 6}, {12, 1}})
    CHECK(check({two[0]}, {}, [&](auto& tape, const auto& v) { return tape.columns(v[0], part.first, part.second); }) <
          tolerance);
  // Both halves of one value, as a gate has them.
  CHECK(check({random_matrix(6, 14, 1)}, {}, [&](auto& tape, const auto& v) {
          return tape.multiply(tape.columns(v[0], 0, 7), tape.columns(v[0], 7, 7));
        }) < tolerance);
  for (const Index cols : {1, 13, 37}) {
    Parameter<double> weight = random_parameter({cols}, 3);
    CHECK(check({random_matrix(6, cols, 1)}, {&weight},
                [&](auto& tape, const auto& v) { return tape.rms_norm(v[0], weight, 0.1); }) < tolerance);
  }
  CHECK(check({random_matrix(70, 3, 1), random_matrix(70, 3, 2), random_matrix(4, 1, 3)}, {},
              [&](auto& tape, const auto& v) { return tape.mix(v[0], v[1], v[2], uneven); }) < tolerance);
}

TEST_CASE("derivatives of primitives of heads", "[primitives][gradient]") {
  for (const int threads : {1, 3})
    for (const HeadShape& shape : head_shapes) {
      const GradientCheck check{.samples = 20, .threads = threads};
      Parameter<double> weight = head_weight<double>(shape, 5, 3), bias = random_parameter({shape.num_blocks * 5}, 4);
      const std::vector<Matrix<double>> x{
          random_matrix(threads == 1 ? 6 : 70, shape.num_heads * (shape.transposed ? 5 : 3), 1)};
      INFO(shape.num_heads << " heads, " << shape.num_blocks << " blocks, transposed " << shape.transposed);
      CHECK(check(x, {&weight}, [&](auto& tape, const auto& v) {
              return tape.head_linear(v[0], weight, nullptr, shape);
            }) < tolerance);
      CHECK(check({}, {&weight}, [&](auto& tape, const auto&) {
              return tape.head_linear(tape.input(x[0]), weight, nullptr, shape);
            }) < tolerance);
      if (shape.transposed) continue;
      const auto with_bias = [&](auto& tape, const auto& v) { return tape.head_linear(v[0], weight, &bias, shape); };
      CHECK(check(x, {&weight, &bias}, with_bias) < tolerance);
      weight.clear_gradient();
      weight.trainable = false;
      CHECK(check(x, {&bias}, with_bias) < tolerance);
      CHECK(weight.gradient().isZero(0));
    }
  const GradientCheck check{.samples = 20};
  for (const RotaryPairs pairs : both_pairs)
    CHECK(check({random_matrix(7, 18, 1)}, {}, [&](auto& tape, const auto& v) {
            return tape.rotate(v[0], tape.input(angles<double>(7, 6)), pairs);
          }) < tolerance);
  for (const Index heads : {1, 4})
    for (const Index b_heads : {Index{1}, heads})
      CHECK(check({random_matrix(7, heads * 3, 1), random_matrix(7, b_heads * 5, 2)}, {},
                  [&](auto& tape, const auto& v) { return tape.concat(v[0], v[1], heads, b_heads); }) < tolerance);
  for (const Mask mask :
       {Mask::bidirectional(), Mask::causal(), Mask::chunked(3, Mask::unlimited), Mask::chunked(66, Mask::unlimited)})
    for (const int threads : {1, 3}) {
      INFO("chunk " << mask.chunk);
      const Sequences sequences{70, 0, 5};
      CHECK((GradientCheck{.samples = 20, .threads = threads}(
                {random_matrix(75, 12, 1), random_matrix(75, 6, 2), random_matrix(75, 10, 3)}, {},
                [&](auto& tape, const auto& v) {
                  return tape.linear_attend(v[0], v[1], v[2], {4, 2, 1, mask}, sequences);
                })) < tolerance);
    }
}

TEST_CASE("primitives give the same on any number of threads", "[primitives]") {
  const Sequences sequences{100, 0, 37};
  const auto everything = [&](int threads) {
    Cpu<float> cpu(threads);
    Autodiff<Cpu<float>> tape(cpu);
    const Parameter<float> row = random_parameter<float>({24}, 1),
                           grouped = random_parameter<float>({2 * 7, 6}, 2, 0.5),
                           bias = random_parameter<float>({14}, 3), back = random_parameter<float>({4 * 7, 6}, 4, 0.5),
                           one = random_parameter<float>({7, 6}, 5, 0.5);
    const auto x = tape.variable(random_matrix<float>(137, 24, 6)), gate = tape.variable(random_matrix<float>(3, 1, 7));
    auto y = tape.rms_norm(tape.add_row(x, row), row, 1e-6);
    y = tape.mix(y, tape.multiply(x, y), gate, sequences);
    y = tape.rotate(y, tape.input(angles<float>(137, 6)), RotaryPairs::halves);
    y = tape.add(tape.head_linear(y, grouped, &bias, {4, 2}), tape.head_linear(y, one, nullptr, {4, 1}), 0.5);
    y = tape.head_linear(y, back, nullptr, {4, 4, true});
    y = tape.concat(y, tape.columns(x, 3, 5), 4, 1);
    y = tape.linear_attend(y, tape.columns(y, 0, 22), tape.columns(y, 5, 22), {4, 2, 1, Mask::causal()}, sequences);
    tape.backward(tape.mean_finite(tape.multiply(y, tape.scale(y, 0.5))));
    std::vector<Matrix<float>> out{y.value.view(), tape.gradient(x).view(), tape.gradient(gate).view()};
    for (const auto* p : {&row, &grouped, &bias, &back, &one}) out.push_back(p->gradient());
    return out;
  };
  const auto alone = everything(1);
  for (const auto& m : alone) CHECK((m.allFinite() && !m.isZero(0)));
  for (const int threads : {2, 3, 5}) CHECK(everything(threads) == alone);
}

TEST_CASE("primitives refuse operands that do not fit", "[primitives]") {
  Cpu<double> cpu(1);
  const auto of = [&](Index rows, Index cols) { return cpu.input(random_matrix(rows, cols, 1)); };
  const auto parameter = [](Index rows, Index cols) { return random_parameter({rows, cols}, 1); };
  const auto x = of(6, 8);
  const Sequences six{4, 2}, five{5}, one{6};
  const Parameter<double> seven = random_parameter({7}, 1);
  CHECK_THROWS_WITH(cpu.add_row(x, seven), "add_row: input has 8 channels, the row has 7");
  CHECK_THROWS_WITH(cpu.rms_norm(x, seven, 0), "rms_norm: input has 8 channels, the weight expects 7");
  const std::vector<int> ids{0, 6, 2}, negative{-1};
  CHECK_THROWS_WITH(cpu.embed(ids, parameter(6, 4)), "embed: id 6 given, 0 to 5 expected");
  CHECK_THROWS_WITH(cpu.embed(negative, parameter(6, 4)), "embed: id -1 given, 0 to 5 expected");
  CHECK_THROWS_WITH(cpu.cross_entropy(x, ids, {}), "cross_entropy: 3 targets given for 6 rows of logits");
  CHECK_THROWS_WITH(cpu.cross_entropy(of(1, 8), negative, {}),
                    "cross_entropy: target -1 given, expected 0 .. 7, or -100, which is ignored");
  CHECK_THROWS_WITH(cpu.cross_entropy(of(3, 8), ids, {.label_smoothing = 1}),
                    "cross_entropy: label_smoothing 1 given, expected from 0 to less than 1");
  std::vector<double> room(47);
  CHECK_THROWS_WITH(cpu.read(x, std::span<double>(room)), "read: room for 47 values given, (6, 8) expected");
  CHECK_THROWS_WITH(cpu.multiply(x, of(6, 7)), "multiply: (6, 8) and (6, 7) given, equal shapes expected");
  CHECK_THROWS_WITH(cpu.multiply(x, of(5, 8)), "multiply: (6, 8) and (5, 8) given, equal shapes expected");
  CHECK_THROWS_WITH(cpu.columns(x, 3, 6), "columns: 3 to 9 of 8 wanted");
  CHECK_THROWS_WITH(cpu.columns(x, -1, 6), "columns: -1 to 5 of 8 wanted");
  CHECK_THROWS_WITH(cpu.columns(x, 2, 0), "columns: 2 to 2 of 8 wanted");
  CHECK_THROWS_WITH(cpu.mix(x, x, of(3, 1), six),
                    "mix: (6, 8) and (6, 8) with gates (3, 1) given, 6 rows of equal width and (2, 1) expected");
  CHECK_THROWS_WITH(cpu.mix(x, of(6, 7), of(2, 1), six),
                    "mix: (6, 8) and (6, 7) with gates (2, 1) given, 6 rows of equal width and (2, 1) expected");
  CHECK_THROWS_WITH(cpu.mix(x, x, of(1, 1), five),
                    "mix: (6, 8) and (6, 8) with gates (1, 1) given, 5 rows of equal width and (1, 1) expected");
  CHECK_THROWS_WITH(cpu.mix(x, x, of(2, 2), six),
                    "mix: (6, 8) and (6, 8) with gates (2, 2) given, 6 rows of equal width and (2, 1) expected");

  const auto unfit = [&](Index rows, Index cols, const HeadShape& shape) {
    cpu.head_linear(x, parameter(rows, cols), nullptr, shape);
  };
  CHECK_THROWS_WITH(
      unfit(4, 3, {2, 2}),
      "head_linear: an input of 8 channels and a weight of (4, 3) given, which 2 heads with 2 matrices do not fit");
  CHECK_THROWS_WITH(
      unfit(5, 4, {2, 2}),
      "head_linear: an input of 8 channels and a weight of (5, 4) given, which 2 heads with 2 matrices do not fit");
  CHECK_THROWS_WITH(
      unfit(6, 4, {2, 3}),
      "head_linear: an input of 8 channels and a weight of (6, 4) given, which 2 heads with 3 matrices do not fit");
  CHECK_THROWS_WITH(
      unfit(6, 4, {2, 0}),
      "head_linear: an input of 8 channels and a weight of (6, 4) given, which 2 heads with 0 matrices do not fit");
  CHECK_THROWS_WITH(
      unfit(6, 4, {2, 2, true}),
      "head_linear: an input of 8 channels and a weight of (6, 4) given, which 2 heads with 2 matrices do not fit");
  CHECK_THROWS_WITH(cpu.head_linear(x, parameter(6, 4), &seven, {2, 2}), "head_linear: a bias of 7 given, 6 expected");
  const Parameter<double> eight = random_parameter({8}, 1);
  CHECK_THROWS_WITH(cpu.head_linear(x, parameter(8, 4), &eight, {2, 2, true}),
                    "head_linear: a bias of 8 given, 0 expected");

  const std::string table = ", as many rows and a multiple of an even number of columns expected";
  CHECK_THROWS_WITH(cpu.rotate(x, of(5, 4), RotaryPairs::halves),
                    "rotate: (6, 8) given with a table of (5, 4)" + table);
  CHECK_THROWS_WITH(cpu.rotate(x, of(6, 6), RotaryPairs::halves),
                    "rotate: (6, 8) given with a table of (6, 6)" + table);
  CHECK_THROWS_WITH(cpu.rotate(x, of(6, 1), RotaryPairs::halves),
                    "rotate: (6, 8) given with a table of (6, 1)" + table);
  CHECK_THROWS_WITH(cpu.rotate(x, of(6, 0), RotaryPairs::halves),
                    "rotate: (6, 8) given with a table of (6, 0)" + table);
  CHECK_THROWS_WITH(cpu.concat(x, of(5, 8)), "concat: (6, 8) and (5, 8) given for 1 and 1 heads");
  CHECK_THROWS_WITH(cpu.concat(x, x, 3, 3), "concat: (6, 8) and (6, 8) given for 3 and 3 heads");
  CHECK_THROWS_WITH(cpu.concat(x, x, 4, 2), "concat: (6, 8) and (6, 8) given for 4 and 2 heads");
  CHECK_THROWS_WITH(cpu.concat(x, of(6, 6), 4, 4), "concat: (6, 8) and (6, 6) given for 4 and 4 heads");
  CHECK_THROWS_WITH(cpu.concat(x, x, 0, 1), "concat: (6, 8) and (6, 8) given for 0 and 1 heads");

  const Parameter<double> taps = random_parameter({8, 1, 3}, 1);
  CHECK_THROWS_WITH(cpu.depthwise_conv(x, taps, nullptr, five, {1}),
                    "depthwise_conv: input is (6, 8), expected (5, 8)");
  CHECK_THROWS_WITH(cpu.depthwise_conv(x, taps, &seven, six, {1}), "depthwise_conv: a bias of 7 given for 8 channels");
  CHECK_THROWS_WITH(cpu.depthwise_conv(x, taps, nullptr, six, {1, 0}),
                    "depthwise_conv: chunk 0 and past 0 given, at least 1 and 0 expected");
  CHECK_THROWS_WITH(cpu.depthwise_conv(x, taps, nullptr, six, {1, 2, -1}),
                    "depthwise_conv: chunk 2 and past -1 given, at least 1 and 0 expected");
  CHECK_THROWS_WITH(cpu.depthwise_conv(x, taps, nullptr, six, {1, 2, 3}),
                    "depthwise_conv: sequence 1 has 2 rows, at least 3 expected");
  Autodiff<Cpu<double>> tape(cpu);
  const auto past = tape.depthwise_conv(tape.input(x.view()), taps, nullptr, six, {1, 2, 1});
  CHECK_THROWS_WITH(tape.backward(tape.mean_finite(past)),
                    "depthwise_conv: its derivative is known for whole sequences only, 1 past rows given");

  const auto linear = [&](const Tensor<double>& k, AttendShape shape, const Sequences& s,
                          Tensor<double>* states = nullptr) { cpu.linear_attend(x, k, k, shape, s, states); };
  CHECK_THROWS_WITH(linear(x, {3, 3, 1}, six),
                    "linear_attend: q, k, v have 8, 8, 8 channels, which 3 heads over 3 key-value heads do not divide");
  CHECK_THROWS_WITH(linear(x, {4, 2, 1}, six),
                    "linear_attend: q, k, v have 8, 8, 8 channels, which 4 heads over 2 key-value heads do not divide");
  CHECK_THROWS_WITH(linear(x, {2, 2, 1}, five), "linear_attend: q, k, v have 6, 6, 6 rows; their sequences have 5");
  CHECK_THROWS_WITH(linear(x, {2, 2, 1, Mask::chunked(2, 4)}, six),
                    "linear_attend: a mask of chunk 2 and left context 4 given; its state cannot forget, so an "
                    "unlimited left context is expected");
  auto states = cpu.zeros(2, 39);
  CHECK_THROWS_WITH(linear(x, {2, 2, 1}, six, &states), "linear_attend: states of (2, 39) given, (2, 40) expected");
}

TEST_CASE("caches give what they hold, then what came, and take it in", "[primitives][cache]") {
  const Matrix<float> x = random_matrix<float>(200, 3, 1);
  const Random random(Seed(2), "rows");
  for (const int threads : {1, 3}) {
    Cpu<float> cpu(threads);
    Cpu<float>::Cache cache(5, 4, 3), single(5, 1, 3);
    std::vector<std::vector<Index>> held(5);  // rows of x
    Index next = 0;
    for (std::uint64_t round = 0; round < 20; ++round) {
      std::vector<Index> slots{0, 1, 2, 3, 4}, lengths;
      shuffle(slots, Random(Seed(3), round));
      slots.resize(static_cast<std::size_t>(1 + random.below(5, 10 * round)));
      for (std::size_t n = 0; n < slots.size(); ++n) lengths.push_back(random.below(4, 10 * round + n + 1));
      const Sequences pieces(lengths);
      const auto [rows, sequences] =
          cpu.extend(cache, slots, cpu.input(Matrix<float>(x.middleRows(next, pieces.rows()))), pieces);
      for (std::size_t n = 0; n < slots.size(); ++n) {
        std::vector<Index>& own = held[static_cast<std::size_t>(slots[n])];
        for (Index i = 0; i < lengths[n]; ++i) own.push_back(next++);
        const Index at = static_cast<Index>(n);
        REQUIRE(sequences.length(at) == static_cast<Index>(own.size()));
        for (Index i = 0; i < sequences.length(at); ++i)
          REQUIRE(rows.view().row(sequences.begin(at) + i) == x.row(own[static_cast<std::size_t>(i)]));
        if (own.size() > 4) own.erase(own.begin(), own.end() - 4);
      }
    }
    for (Index slot = 0; slot < 5; ++slot) single.fill_zeros(slot);
    const std::vector<Index> some{3, 1};
    for (const float step : {1.0F, 2.0F})
      cpu.update(single, some, [&](Tensor<float>& rows) {
        CHECK(rows.view() == Matrix<float>::Constant(2, 3, step - 1));
        rows.view().array() += 1;
      });
    cpu.update(single, std::vector<Index>{0, 1}, [](Tensor<float>& rows) {
      CHECK((rows.view().row(0).isZero(0) && (rows.view().row(1).array() == 2).all()));
    });
    CHECK_THROWS_WITH(cpu.extend(cache, some, cpu.input(x), Sequences{200}),
                      "cache: (200, 3) in 1 sequences given, (200, 3) in 2 expected");
    CHECK_THROWS_WITH(cpu.extend(cache, some, cpu.input(x), {100, 99}),
                      "cache: (200, 3) in 2 sequences given, (199, 3) in 2 expected");
    const std::vector<Index> beyond{3, 5}, before{-1, 0};
    CHECK_THROWS_WITH(cpu.extend(cache, beyond, cpu.zeros(2, 3), {1, 1}), "cache: slot 5 given, 0 to 4 expected");
    CHECK_THROWS_WITH(cpu.update(single, before, [](auto&) {}), "cache: slot -1 given, 0 to 4 expected");
    CHECK_THROWS_WITH(cpu.extend(single, some, cpu.zeros(2, 4), {1, 1}),
                      "cache: (2, 4) in 2 sequences given, (2, 3) in 2 expected");
  }
}

TEST_CASE("sequences made in an arena are sequences", "[primitives]") {
  Arena arena;
  const auto squares = [&](Index size) { return Sequences::make(arena, size, [](Index n) { return n * n - 1; }); };
  CHECK(squares(0) == Sequences{});
  CHECK(squares(0).rows() == 0);
  CHECK(squares(4) == Sequences{0, 0, 3, 8});  // less than 0 is empty
  CHECK(arena.used_bytes() == 0);
  const std::size_t reserved = arena.reserved_bytes();
  {
    const Sequences a = squares(4), b = a;
    Sequences c{7};
    c = b;
    CHECK(c == a);
    CHECK(c.map_lengths(arena, [](Index n) { return 2 * n; }) == Sequences{0, 0, 6, 16});
    CHECK(arena.used_bytes() > 0);
  }
  CHECK(arena.used_bytes() == 0);
  CHECK(squares(5).rows() == 26);
  CHECK(arena.reserved_bytes() <= reserved + 256 + 64);  // small ones are all of one size
  // They outlive their arena.
  auto* gone = new Arena;
  const Sequences kept = Sequences::make(*gone, 3, [](Index n) { return n; });
  delete gone;
  CHECK(kept == Sequences{0, 1, 2});
}

TEST_CASE("a settled arena serves smaller requests in any order from what it has", "[primitives][allocation]") {
  const Random random(Seed(4), "sizes");
  for (std::uint64_t draw = 0; draw < 50; ++draw) {
    Arena arena;
    std::vector<std::size_t> sizes;
    for (std::uint64_t i = 0; i < 12; ++i)
      sizes.push_back(std::size_t{1} << random.below(20, 100 * draw + i) << random.below(2, 100 * draw + 20 + i));
    {
      std::vector<Buffer> all;
      for (const std::size_t size : sizes) all.push_back(arena.allocate(size));
    }
    const std::size_t before = arena.reserved_bytes();
    arena.settle();
    const std::size_t reserved = arena.reserved_bytes();
    CHECK(reserved == 2 * before);
    for (std::uint64_t round = 0; round < 10; ++round) {
      shuffle(sizes, Random(Seed(draw), round));
      // Twice as many blocks, each no larger than one of those; some freed in between.
      std::vector<Buffer> all;
      for (const std::uint64_t half : {0U, 1U})
        for (std::size_t i = 0; i < sizes.size(); ++i) {
          all.push_back(
              arena.allocate(std::max<std::size_t>(1, sizes[i] >> random.below(4, 1000 * round + 100 * half + i))));
          if (i % 3 == 2) all.erase(all.begin());
        }
      CHECK(arena.reserved_bytes() == reserved);
    }
    CHECK(arena.used_bytes() == 0);
    const Buffer larger = arena.allocate(std::size_t{1} << 22);
    CHECK(arena.reserved_bytes() > reserved);  // it is no limit
  }
}
