// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Linear attention against the plain formula, in pieces against the whole, and its derivative against differences.
#include <laconic/backend/cpu/kernels/linear_attention.hpp>

#include "gradient_check.hpp"

using namespace laconic;

namespace {

constexpr Index unlimited = Mask::unlimited;
const Sequences uneven{70, 0, 5, 129, 1};

/// Operands of one linear attention, all random.
template <class T>
struct Operands {
  Index num_heads, num_kv_heads, key_width, value_width;
  Sequences sequences;
  Index chunk;
  Matrix<T> q = random_matrix<T>(sequences.rows(), num_heads* key_width, 1);
  Matrix<T> k = random_matrix<T>(sequences.rows(), num_kv_heads* key_width, 2);
  Matrix<T> v = random_matrix<T>(sequences.rows(), num_kv_heads* value_width, 3);

  kernels::LinearAttendOperands<T> raw() const {
    return {num_heads,   num_kv_heads, {chunk, unlimited}, &sequences, key_width,
            value_width, q.data(),     k.data(),           v.data()};
  }
  Matrix<T> no_states() const { return Matrix<T>::Zero(sequences.size(), num_kv_heads * raw().state_size()); }
};

/// Returns a matrix of NaN, so that rows that are not written show.
template <class T>
Matrix<T> blank(Index rows, Index cols) {
  return Matrix<T>::Constant(rows, cols, std::numeric_limits<T>::quiet_NaN());
}

template <class T>
Matrix<T> run(const Operands<T>& in, int threads = 1, Matrix<T>* states = nullptr) {
  Arena arena;
  Matrix<T> out = blank<T>(in.sequences.rows(), in.num_heads * in.value_width);
  kernels::linear_attend(threads, arena, in.raw(), out.data(), states == nullptr ? nullptr : states->data());
  return out;
}

template <class T>
struct Gradients {
  Matrix<T> q, k, v;
};
template <class T>
Gradients<T> run_backward(const Operands<T>& in, const Matrix<T>& dout, int threads = 1) {
  Arena arena;
  Gradients<T> out{blank<T>(in.q.rows(), in.q.cols()), blank<T>(in.k.rows(), in.k.cols()),
                   blank<T>(in.v.rows(), in.v.cols())};
  kernels::linear_attend_backward(threads, arena, in.raw(), dout.data(), out.q.data(), out.k.data(), out.v.data());
  return out;
}

double phi(double x) { return x >= 0 ? x + 1 : std::exp(x); }

/// The formula, one number at a time.
template <class T>
Matrix<double> reference(const Operands<T>& in) {
  Matrix<double> out = Matrix<double>::Zero(in.q.rows(), in.num_heads * in.value_width);
  const Matrix<double> v = in.v.template cast<double>();
  const Matrix<double> phi_q = in.q.template cast<double>().unaryExpr(&phi),
                       phi_k = in.k.template cast<double>().unaryExpr(&phi);
  for (Index n = 0; n < in.sequences.size(); ++n)
    for (Index h = 0; h < in.num_heads; ++h)
      for (Index i = 0; i < in.sequences.length(n); ++i) {
        const Index g = h / (in.num_heads / in.num_kv_heads), row = in.sequences.begin(n) + i;
        double sum = 1e-6;
        for (Index j = 0; j < in.sequences.length(n); ++j) {
          if (in.chunk != unlimited && j / in.chunk > i / in.chunk) continue;
          const Index key = in.sequences.begin(n) + j;
          double weight = 0;
          for (Index c = 0; c < in.key_width; ++c)
            weight += phi_q(row, h * in.key_width + c) * phi_k(key, g * in.key_width + c);
          sum += weight;
          for (Index c = 0; c < in.value_width; ++c)
            out(row, h * in.value_width + c) += weight * v(key, g * in.value_width + c);
        }
        for (Index c = 0; c < in.value_width; ++c) out(row, h * in.value_width + c) /= sum;
      }
  return out;
}

/// The greatest difference, relative to the greatest number expected.
template <class A, class B>
double difference(const A& got, const B& expected) {
  const Matrix<double> e = expected.template cast<double>(), d = got.template cast<double>() - e;
  REQUIRE(d.allFinite());
  return d.size() == 0 ? 0 : d.cwiseAbs().maxCoeff() / e.cwiseAbs().maxCoeff();
}

/// Returns, for each step, the length of every sequence's piece: a multiple of `unit`, except for the last piece. A
/// piece may have no rows.
std::vector<std::vector<Index>> random_pieces(const Sequences& sequences, Index unit, std::uint64_t seed) {
  std::vector<std::vector<Index>> steps;
  for (Index n = 0; n < sequences.size(); ++n) {
    const Random random(Seed(seed), static_cast<std::uint64_t>(n));
    std::size_t step = 0;
    for (Index left = sequences.length(n); left > 0; ++step) {
      const Index piece = std::min(left, unit * random.below(std::max<Index>(2, 70 / unit), step));
      if (step == steps.size()) steps.emplace_back(static_cast<std::size_t>(sequences.size()), 0);
      steps[step][static_cast<std::size_t>(n)] = piece;
      left -= piece;
    }
  }
  return steps;
}

/// Runs the operands in pieces, with states in between, and returns the outputs in the order of the whole.
template <class T>
Matrix<T> run_in_pieces(const Operands<T>& whole, const std::vector<std::vector<Index>>& steps, Matrix<T>& states) {
  Matrix<T> out = blank<T>(whole.sequences.rows(), whole.num_heads * whole.value_width);
  std::vector<Index> done(static_cast<std::size_t>(whole.sequences.size()), 0);
  for (const auto& lengths : steps) {
    Operands<T> piece{whole.num_heads,   whole.num_kv_heads, whole.key_width,
                      whole.value_width, Sequences(lengths), whole.chunk};
    const auto each = [&](auto&& move) {
      for (Index n = 0; n < piece.sequences.size(); ++n)
        move(whole.sequences.begin(n) + done[static_cast<std::size_t>(n)], piece.sequences.begin(n),
             piece.sequences.length(n));
    };
    each([&](Index from, Index to, Index rows) {
      piece.q.middleRows(to, rows) = whole.q.middleRows(from, rows);
      piece.k.middleRows(to, rows) = whole.k.middleRows(from, rows);
      piece.v.middleRows(to, rows) = whole.v.middleRows(from, rows);
    });
    const Matrix<T> got = run(piece, 1, &states);
    each([&](Index to, Index from, Index rows) { out.middleRows(to, rows) = got.middleRows(from, rows); });
    for (std::size_t n = 0; n < lengths.size(); ++n) done[n] += lengths[n];
  }
  return out;
}

}  // namespace

TEST_CASE("the feature map is elu + 1, positive and exact", "[linear_attend]") {
  std::vector<float> x, y;
  for (int i = -80'000; i <= 20'000; ++i) x.push_back(static_cast<float>(i) / 1000);
  for (const float small : {-0.0F, 1e-7F, -1e-7F, 1e-30F, -1e-30F}) x.push_back(small);
  y.resize(x.size());
  const auto n = static_cast<Index>(x.size());
  const auto worst = [&](auto&& expected) {
    double error = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      REQUIRE(y[i] > 0);
      error = std::max(error, std::abs(static_cast<double>(y[i]) / expected(static_cast<double>(x[i])) - 1));
    }
    return error;
  };
  kernels::map_span(
      n, y.data(), [](auto a) { return kernels::elu_plus_one(a); }, x.data());
  CHECK(worst(phi) < 1e-6);
  kernels::map_span(
      n, y.data(), [](auto a) { return kernels::elu_plus_one_backward(decltype(a)(1.0F), a); }, x.data());
  CHECK(worst([](double a) { return a >= 0 ? 1 : std::exp(a); }) < 1e-6);

  const float odd[] = {std::numeric_limits<float>::quiet_NaN(), 1e30F, -1e30F};
  float mapped[3];
  kernels::map_span(
      3, mapped, [](auto a) { return kernels::elu_plus_one(a); }, odd);
  CHECK(std::isnan(mapped[0]));
  CHECK(mapped[1] == 1e30F);
  CHECK(mapped[2] == 0);
}

TEMPLATE_TEST_CASE("linear attention is the formula", "[linear_attend]", float, double) {
  const double tolerance = std::is_same_v<TestType, double> ? 1e-13 : 1e-5;
  for (const Index chunk :
       {unlimited, Index{1}, Index{5}, Index{16}, Index{63}, Index{64}, Index{65}, Index{100}, Index{1} << 62}) {
    INFO("chunk " << chunk);
    const Operands<TestType> all[] = {{4, 4, 8, 8, uneven, chunk},
                                      {6, 2, 5, 7, uneven, chunk},
                                      {3, 1, 17, 33, uneven, chunk},
                                      {2, 1, 3, 1, {64, 128, 200}, chunk}};
    for (const auto& in : all) {
      const Matrix<TestType> out = run(in);
      CHECK(difference(out, reference(in)) < tolerance);
      CHECK(run(in, 3) == out);
      Matrix<TestType> states = in.no_states(), again = states;
      CHECK(run(in, 1, &states) == out);
      CHECK(run(in, 3, &again) == out);
      CHECK(again == states);
    }
  }
}

TEST_CASE("long sums keep their precision", "[linear_attend]") {
  for (const Index chunk : {unlimited, Index{1}, Index{16}, Index{100}}) {
    Operands<float> in{2, 1, 16, 16, {2000}, chunk};
    CHECK(difference(run(in), reference(in)) < 1e-5);
    in.v.array() += 2;  // nothing cancels
    const Matrix<double> expected = reference(in);
    CHECK((run(in).cast<double>() - expected).cwiseQuotient(expected).cwiseAbs().maxCoeff() < 1e-4);
    in.q.array() -= 12;  // far where elu(x) + 1 would be 0
    in.k.array() += 6;
    CHECK(difference(run(in), reference(in)) < 1e-5);
  }
}

TEMPLATE_TEST_CASE("a sequence in pieces is the whole sequence", "[linear_attend]", float, double) {
  const double tolerance = std::is_same_v<TestType, double> ? 1e-13 : 1e-5;
  for (const Index chunk : {1, 5, 16, 64, 100})
    for (const std::uint64_t seed : {1U, 2U, 3U}) {
      INFO("chunk " << chunk << ", seed " << seed);
      const Operands<TestType> in{6, 2, 5, 7, {150, 0, 211, 33, 1}, chunk};
      Matrix<TestType> states = in.no_states(), states_of_pieces = states;
      const Matrix<TestType> out = run(in, 1, &states);
      const auto steps = random_pieces(in.sequences, chunk, seed);
      REQUIRE(steps.size() > 1);
      CHECK(difference(run_in_pieces(in, steps, states_of_pieces), out) < tolerance);
      CHECK(difference(states_of_pieces, states) < tolerance);
    }
  // Row by row.
  const Operands<TestType> in{2, 2, 4, 3, {130}, 1};
  Matrix<TestType> states = in.no_states();
  CHECK(difference(run_in_pieces(in, std::vector<std::vector<Index>>(130, {1}), states), reference(in)) < tolerance);
}

TEST_CASE("the state is the sum over all rows", "[linear_attend]") {
  for (const Index chunk : {unlimited, Index{1}, Index{16}, Index{100}}) {
    const Operands<double> in{4, 2, 5, 7, uneven, chunk};
    const Matrix<double> before = random_matrix(in.no_states().rows(), in.no_states().cols(), 9);
    Matrix<double> states = before, expected = before;
    run(in, 1, &states);
    for (Index n = 0; n < in.sequences.size(); ++n)
      for (Index row = in.sequences.begin(n); row < in.sequences.end(n); ++row)
        for (Index g = 0; g < 2; ++g)
          for (Index c = 0; c < 5; ++c)
            for (Index d = 0; d < 8; ++d)
              expected(n, (g * 5 + c) * 8 + d) += phi(in.k(row, g * 5 + c)) * (d == 7 ? 1 : in.v(row, g * 7 + d));
    CHECK(difference(states, expected) < 1e-13);
    CHECK(states.row(1) == before.row(1));  // that of no rows
  }
}

TEST_CASE("without chunks, rows see those of earlier calls and all of their own", "[linear_attend]") {
  const Operands<double> in{6, 2, 5, 7, {150, 70, 3}, unlimited};
  Matrix<double> states = in.no_states();
  const std::vector<Index> first{80, 0, 1}, second{70, 70, 2};
  const Matrix<double> out = run_in_pieces(in, {first, second}, states), expected = reference(in);
  for (std::size_t n = 0; n < 3; ++n) {
    const Index end = in.sequences.end(static_cast<Index>(n));
    CHECK(difference(out.middleRows(end - second[n], second[n]), expected.middleRows(end - second[n], second[n])) <
          1e-13);
  }
  const Operands<double> alone{6, 2, 5, 7, {80}, unlimited, in.q.topRows(80), in.k.topRows(80), in.v.topRows(80)};
  CHECK(difference(out.topRows(80), reference(alone)) < 1e-13);
}

TEST_CASE("memory does not grow with the rows", "[linear_attend]") {
  const auto peak = [](Index rows, Index chunk, bool backward) {
    const Operands<float> in{2, 2, 8, 8, {rows}, chunk};
    Matrix<float> out(rows, 16), dq = out, dk = out, dv = out, states = in.no_states();
    REQUIRE(states.size() == 2 * 8 * 9);
    Arena arena;
    if (backward)
      kernels::linear_attend_backward(1, arena, in.raw(), in.q.data(), dq.data(), dk.data(), dv.data());
    else
      kernels::linear_attend(1, arena, in.raw(), out.data(), states.data());
    return arena.peak_bytes();
  };
  for (const Index chunk : {unlimited, Index{1}, Index{16}, Index{1000}}) {
    CHECK(peak(5000, chunk, false) == peak(50, chunk, false));
    // The derivative keeps two numbers for each row and head; a block of the arena is at most a quarter greater.
    CHECK(peak(5000, chunk, true) - peak(50, chunk, true) <= 5000 * 2 * 2 * sizeof(float) * 5 / 4);
  }
}

TEST_CASE("derivatives of linear attention", "[linear_attend][gradient]") {
  for (const Index chunk : {unlimited, Index{1}, Index{5}, Index{16}, Index{64}, Index{100}})
    for (const Index num_heads : {6, 3, 1}) {
      Operands<double> in{num_heads, num_heads == 6 ? 2 : 1, 5, 7, {70, 0, 5, 129, 1}, chunk};
      CAPTURE(chunk, num_heads);
      const Matrix<double> dout = random_matrix(in.q.rows(), num_heads * 7, 4);
      const Gradients<double> got = run_backward(in, dout);
      const auto loss = [&] { return run(in).cwiseProduct(dout).sum(); };
      const auto check = [&](Matrix<double>& x, const Matrix<double>& derivative) {
        REQUIRE(derivative.allFinite());
        const Random random(Seed(8), "entries");
        constexpr double step = 1e-5;
        double worst = 0;
        for (std::uint64_t sample = 0; sample < 40; ++sample) {
          double& entry = x.data()[random.below(x.size(), sample)];
          const double kept = entry, given = derivative.data()[&entry - x.data()];
          entry = kept + step;
          const double above = loss();
          entry = kept - step;
          const double below = loss();
          entry = kept;
          worst = std::max(worst, std::abs((above - below) / (2 * step) - given));
        }
        return worst / derivative.cwiseAbs().maxCoeff();
      };
      CHECK(check(in.q, got.q) < 1e-8);
      CHECK(check(in.k, got.k) < 1e-8);
      CHECK(check(in.v, got.v) < 1e-8);
    }
}

TEST_CASE("derivatives of linear attention in float, and on several threads", "[linear_attend][gradient]") {
  for (const Index chunk : {unlimited, Index{1}, Index{5}, Index{16}, Index{65}, Index{100}}) {
    CAPTURE(chunk);
    const Operands<float> in{6, 2, 17, 33, {70, 0, 5, 400, 1}, chunk};
    const Matrix<float> dout = random_matrix<float>(in.q.rows(), 6 * 33, 4);
    const Operands<double> wide{
        6, 2, 17, 33, in.sequences, chunk, in.q.cast<double>(), in.k.cast<double>(), in.v.cast<double>()};
    const Gradients<double> expected = run_backward(wide, Matrix<double>(dout.cast<double>()));
    const Gradients<float> got = run_backward(in, dout), threaded = run_backward(in, dout, 3);
    CHECK(difference(got.q, expected.q) < 1e-5);
    CHECK(difference(got.k, expected.k) < 1e-5);
    CHECK(difference(got.v, expected.v) < 1e-5);
    CHECK(threaded.q == got.q);
    CHECK(threaded.k == got.k);
    CHECK(threaded.v == got.v);
  }
}
