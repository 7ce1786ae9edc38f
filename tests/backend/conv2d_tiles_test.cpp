// laconic: attention for speech models. SPDX-License-Identifier: MIT
// The convolution by tiles against the sum that defines it, and its derivatives against differences.
#include <laconic/laconic.hpp>

#include "gradient_check.hpp"

using namespace laconic;

namespace {

/// y[t, f, o] = bias[o] + sum over taps and channels, sequence after sequence.
Matrix<double> convolved(const Matrix<double>& x, const Parameter<double>& weight, const Parameter<double>& bias,
                         const Conv2dShape& s, const Sequences& from, const Sequences& to) {
  Matrix<double> y(to.rows(), s.out_cols());
  for (Index n = 0; n < from.size(); ++n)
    for (Index t = 0; t < to.length(n); ++t)
      for (Index f = 0; f < s.out_freqs(); ++f)
        for (Index o = 0; o < s.out_channels; ++o) {
          double sum = bias.host()(0, o);
          for (Index c = 0; c < s.in_channels; ++c)
            for (Index p = 0; p < 3; ++p)
              for (Index q = 0; q < 3; ++q)
                sum += weight.host()(o, (c * 3 + p) * 3 + q) *
                       x(from.begin(n) + 2 * t + p, (2 * f + q) * s.in_channels + c);
          y(to.begin(n) + t, f * s.out_channels + o) = sum;
        }
  return y;
}

struct Case {
  Conv2dShape shape;
  Sequences from, to;
  Parameter<double> weight, bias;
  Matrix<double> x;

  Case(Index channels, Index out, Index freqs, std::vector<Index> lengths)
      : shape{channels, out, freqs, 2},
        from(std::span<const Index>(lengths)),
        weight({out, channels, 3, 3}),
        bias({out}),
        x(random_matrix<double>(from.rows(), freqs * channels, 3)) {
    for (Index& length : lengths) length = shape.out_length(length);
    to = Sequences(std::span<const Index>(lengths));
    weight.host() = random_matrix<double>(out, channels * 9, 1);
    bias.host() = random_matrix<double>(1, out, 2);
  }
};

struct Only : Module<Only> {
  Parameter<double> weight;
  explicit Only(Parameter<double> w) : weight(std::move(w)) { weight.use = WeightUse::conv2d_stride_2; }
  static void each_parameter(auto& self, auto&& visit) { visit("weight", self.weight); }
};

}  // namespace

TEST_CASE("a convolution by tiles is the convolution", "[conv2d]") {
  for (const Index freqs : {3, 4, 5, 6, 7, 8, 13})
    for (const auto& [channels, out] : {std::pair<Index, Index>{16, 3}, {19, 16}, {33, 50}}) {
      CAPTURE(freqs, channels, out);
      Case c(channels, out, freqs, {3, 2, 9, 12, 0, 31});
      REQUIRE(kernels::is_tiled(c.shape));
      Cpu<double> one(1), three(3);
      const Matrix<double> y = one.conv2d(one.input(c.x), c.weight, c.bias, c.shape, c.from, c.to).view();
      REQUIRE((y - convolved(c.x, c.weight, c.bias, c.shape, c.from, c.to)).cwiseAbs().maxCoeff() < 1e-12);
      REQUIRE(three.conv2d(three.input(c.x), c.weight, c.bias, c.shape, c.from, c.to).view() == y);
      Only packed(c.weight);
      Cpu<double>(1).prepare(packed);
      REQUIRE(three.conv2d(three.input(c.x), packed.weight, c.bias, c.shape, c.from, c.to).view() == y);
    }
}

TEST_CASE("its derivatives are those of the convolution, in any number of threads", "[conv2d]") {
  Case narrow(16, 4, 2, {20});  // no frequency is left
  Cpu<double> plain(1);
  const Matrix<double> none_given(narrow.to.rows(), 0);
  CHECK(plain
            .conv2d_backward(plain.input(none_given), plain.input(narrow.x), narrow.weight, narrow.bias, narrow.shape,
                             narrow.from, narrow.to, true)
            .view()
            .isZero());
  // One panel of outputs and a row of many tiles; and several, with blocks that end where sequences do, for so many
  // threads that components are cut.
  for (Case c : {Case(17, 5, 11, {8, 25, 2, 800}), Case(33, 53, 40, {33, 33, 0, 101, 33})}) {
    const Matrix<double> dy = random_matrix<double>(c.to.rows(), c.shape.out_cols(), 5);
    // The convolution is linear in x and in the weight, so <dy, conv(d)> is the derivative in direction d, exactly.
    std::vector<Matrix<double>> dx, dweight;
    for (const int threads : {1, 3, 16}) {
      Cpu<double> cpu(threads);
      c.weight.clear_gradient();
      dx.push_back(
          cpu.conv2d_backward(cpu.input(dy), cpu.input(c.x), c.weight, c.bias, c.shape, c.from, c.to, true).view());
      dweight.push_back(c.weight.gradient());
      REQUIRE(dx[0] == dx.back());
      REQUIRE(dweight[0] == dweight.back());
    }
    Parameter<double> none({c.shape.out_channels});
    const Matrix<double> direction = random_matrix<double>(c.x.rows(), c.x.cols(), 6);
    const double by_x = dy.cwiseProduct(convolved(direction, c.weight, none, c.shape, c.from, c.to)).sum();
    CHECK(dx[0].cwiseProduct(direction).sum() == Approx(by_x).epsilon(1e-12));
    Parameter<double> turned = c.weight;
    turned.host() = random_matrix<double>(c.weight.rows(), c.weight.cols(), 7);
    const double by_weight = dy.cwiseProduct(convolved(c.x, turned, none, c.shape, c.from, c.to)).sum();
    CHECK(dweight[0].cwiseProduct(turned.host()).sum() == Approx(by_weight).epsilon(1e-12));
  }
}
