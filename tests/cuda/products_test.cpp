// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Products of `Cuda` whose operands are rounded for tensor cores: their values are those of the rounded operands, and
// their bits do not depend on other rows.
#include "gradient_check.hpp"

#include <laconic/nn/linear.hpp>

#include <bit>
#include <cmath>

using namespace laconic;

namespace {

constexpr ProductPrecision precisions[] = {ProductPrecision::bf16, ProductPrecision::tf32};
constexpr double tolerance = 1e-5;  // tensor cores add in float, and round sums down

/// The values as products read them.
Matrix<double> rounded(const Matrix<float>& x, ProductPrecision precision) {
  Matrix<double> out(x.rows(), x.cols());
  for (Index i = 0; i < x.size(); ++i)
    out.data()[i] = precision == ProductPrecision::bf16 ? from_bf16(to_bf16(x.data()[i]))
                                                        : std::bit_cast<float>(cuda::tf32(x.data()[i]));
  return out;
}
/// The greatest difference, relative to what a sum of so many products of numbers about 1 may have.
double error(const Matrix<float>& got, const Matrix<double>& expected, Index depth) {
  REQUIRE((got.rows() == expected.rows() && got.cols() == expected.cols()));
  if (!got.allFinite()) return 1e300;
  if (got.size() == 0) return 0;
  return (got.cast<double>() - expected).cwiseAbs().maxCoeff() / (1 + std::sqrt(static_cast<double>(depth)));
}
Linear<float> layer(Index in, Index out) {
  Linear<float> made(in, out, Seed(1));
  made.weight.host() = random_matrix<float>(out, in, 3, 1);
  made.bias.host() = random_matrix<float>(1, out, 4, 1);
  return made;
}
Matrix<double> product(const Matrix<float>& x, const Matrix<float>& w, const Matrix<float>& bias,
                       ProductPrecision precision) {
  Matrix<double> y = rounded(x, precision) * rounded(w, precision).transpose();
  y.rowwise() += bias.cast<double>().row(0);
  return y;
}

}  // namespace

TEST_CASE("tensor cores multiply what is rounded, and their layouts are those of matrices", "[cuda]") {
  for (const ProductPrecision precision : precisions) {
    Cuda<float> gpu(CudaDevice{.precision = precision});
    for (const auto& [in, out] : {std::pair<Index, Index>{1, 1}, {7, 5}, {8, 64}, {33, 29}, {80, 130}, {300, 64}})
      for (const bool trains : {false, true}) {
        auto linear = layer(in, out);
        const Matrix<float> w = linear.weight.host(), bias = linear.bias.host();
        trains ? gpu.prepare_training(linear) : gpu.prepare(linear);
        const Matrix<float> x = random_matrix<float>(150, in, 5, 1);
        const Matrix<double> expected = product(x, w, bias, precision);
        const Matrix<float> all = gpu.output(linear(gpu, gpu.input(x)));
        INFO(to_name(precision) << ": " << in << " to " << out);
        CHECK(error(all, expected, in) < tolerance);
        // A product of other rows has tiles of another size.
        for (const Index rows : {0, 1, 16, 17, 64, 65}) {
          const Matrix<float> some = gpu.output(linear(gpu, gpu.input(Matrix<float>(x.topRows(rows)))));
          CHECK(some == all.topRows(rows));
        }
        // The bits are those of threads in the opposite order, so no step races.
#ifdef LACONIC_CUDA_EMULATED
        cuda::emulated_order() = cuda::Order::backward;
        CHECK(gpu.output(linear(gpu, gpu.input(x))) == all);
        cuda::emulated_order() = cuda::Order::forward;
#endif
        const Matrix<float> active = gpu.output(linear(gpu, gpu.input(x), Activation::relu));
        CHECK(active == all.cwiseMax(0.0f));
      }
  }
}

TEST_CASE("large tiles of tensor cores have the bits of small ones", "[cuda]") {
  for (const ProductPrecision precision : precisions) {
    Cuda<float> gpu(CudaDevice{.precision = precision});
    auto linear = layer(136, 1300);
    const Matrix<float> w = linear.weight.host(), bias = linear.bias.host();
    gpu.prepare(linear);
    const Matrix<float> x = random_matrix<float>(1200, 136, 5, 1);  // 110 tiles of 128 x 128
    const Matrix<float> all = gpu.output(linear(gpu, gpu.input(x)));
    CHECK(error(all, product(x, w, bias, precision), 136) < tolerance);
    CHECK(gpu.output(linear(gpu, gpu.input(Matrix<float>(x.bottomRows(70))))) == all.bottomRows(70));
    CHECK(gpu.output(linear(gpu, gpu.input(Matrix<float>(x.bottomRows(3))))) == all.bottomRows(3));
  }
}

TEST_CASE("tensor cores read stored weights, and int8 is multiplied in float", "[cuda]") {
  for (const ProductPrecision precision : precisions)
    for (const Storage storage : {Storage::bf16, Storage::int8})
      for (const Index in : {31, 64}) {
        Cuda<float> gpu(CudaDevice{.precision = precision});
        auto linear = layer(in, 40);
        const Matrix<float> bias = linear.bias.host(), x = random_matrix<float>(20, in, 5, 1);
        gpu.prepare(linear, storage);
        const Matrix<float> got = gpu.output(linear(gpu, gpu.input(x)));
        gpu.fetch(linear);
        const Matrix<float>& w = linear.weight.host();
        INFO(to_name(precision) << ", " << to_name(storage) << ", " << in);
        if (storage == Storage::bf16) {
          CHECK(rounded(w, ProductPrecision::bf16) == w.cast<double>());
          CHECK(error(got, product(x, w, bias, precision), in) < tolerance);
        } else {
          Matrix<double> expected = x.cast<double>() * w.cast<double>().transpose();
          expected.rowwise() += bias.cast<double>().row(0);
          CHECK(error(got, expected, in) < tolerance);
        }
      }
}

TEST_CASE("derivatives of products on tensor cores are those of rounded operands", "[cuda]") {
  for (const ProductPrecision precision : precisions) {
    Cuda<float> gpu(CudaDevice{.precision = precision});
    for (const auto& [rows, in, out] : {std::array<Index, 3>{1, 3, 5}, {40, 33, 29}, {2100, 8, 12}, {130, 140, 300}}) {
      auto linear = layer(in, out);
      const Matrix<float> w = linear.weight.host(), x = random_matrix<float>(rows, in, 5, 1),
                          dy = random_matrix<float>(rows, out, 6, 1);
      gpu.prepare_training(linear);
      const Matrix<float> dx =
          gpu.output(gpu.linear_backward(gpu.input(dy), gpu.input(x), linear.weight, &linear.bias, true));
      gpu.fetch(linear);
      INFO(to_name(precision) << ": " << rows << " rows, " << in << " to " << out);
      const Matrix<double> g = rounded(dy, precision);
      CHECK(error(dx, g * rounded(w, precision), out) < tolerance);
      CHECK(error(linear.weight.gradient(), g.transpose() * rounded(x, precision), rows) < tolerance);
      CHECK(error(linear.bias.gradient(), dy.cast<double>().colwise().sum(), rows) < tolerance);
    }
  }
}

TEST_CASE("matrices of heads are multiplied on tensor cores, whichever way they lie", "[cuda]") {
  for (const ProductPrecision precision : precisions)
    for (const HeadShape shape : {HeadShape{4, 1}, {4, 2}, {4, 4}, {4, 1, true}, {6, 2, true}, {4, 4, true}})
      for (const bool trains : {false, true}) {
        Cuda<float> gpu(CudaDevice{.precision = precision});
        constexpr Index out = 24, in = 17, rows = 33;
        Parameter<float> weight({shape.num_blocks * out, in});
        const Matrix<float> w = random_matrix<float>(shape.num_blocks * out, in, 3, 1);
        weight.host() = w;
        ParameterList<float> list({&weight});
        trains ? gpu.prepare_training(list) : gpu.prepare(list);
        const Index from = shape.transposed ? out : in, to = shape.transposed ? in : out;
        const Matrix<float> x = random_matrix<float>(rows, shape.num_heads * from, 5, 1);
        const Matrix<double> wide = rounded(w, precision), of_x = rounded(x, precision);
        Matrix<double> expected(rows, shape.num_heads * to);
        for (Index h = 0; h < shape.num_heads; ++h) {
          const Matrix<double> block = wide.middleRows(h / (shape.num_heads / shape.num_blocks) * out, out),
                               part = of_x.middleCols(h * from, from);
          expected.middleCols(h * to, to) =
              shape.transposed ? Matrix<double>(part * block) : Matrix<double>(part * block.transpose());
        }
        for (int again = 0; again < 2; ++again)  // the second time with what was kept
          CHECK(error(gpu.output(gpu.head_linear(gpu.input(x), weight, nullptr, shape)), expected, from) < tolerance);
      }
}

TEST_CASE("a weight keeps a packed form for each product that it is part of", "[cuda]") {
  for (const ProductPrecision precision : precisions) {
    Cuda<float> gpu(CudaDevice{.precision = precision});
    Parameter<float> weight({6, 1});  // its rows and its columns are both contiguous
    weight.host() << 1, 2, 3, 4, 5, 6;
    ParameterList<float> list({&weight});
    gpu.prepare(list);
    const Matrix<float> one = Matrix<float>::Ones(1, 1), six = Matrix<float>::Ones(1, 6);
    for (int again = 0; again < 2; ++again) {
      CHECK(gpu.output(gpu.head_linear(gpu.input(one), weight, nullptr, {1, 1})).sum() == 21);
      CHECK(gpu.output(gpu.head_linear(gpu.input(six), weight, nullptr, {1, 1, true}))(0, 0) == 21);
    }
  }
}

TEST_CASE("products of doubles are not rounded", "[cuda]") {
  CHECK_THROWS_WITH(Cuda<double>(CudaDevice{.precision = ProductPrecision::bf16}),
                    "Cuda: products in bf16 given with double, float expected");
}

TEST_CASE("convolutions on tensor cores are those of rounded operands", "[cuda]") {
  const Sequences from{9, 3, 40};
  for (const ProductPrecision precision : precisions)
    for (const Index channels : {1, 8, 24})
      for (const bool trains : {false, true}) {
        Cuda<float> gpu(CudaDevice{.precision = precision});
        Cpu<double> cpu(1);
        // The first layer's single channel is read value by value, which rounds nothing.
        const bool rounds = channels >= 8;
        const auto same = [&](const Matrix<float>& x) {
          return rounds ? rounded(x, precision) : Matrix<double>(x.cast<double>());
        };
        INFO(to_name(precision) << ", " << channels << " channels");
        const auto compare = [&](Index out, Index depth, std::initializer_list<Index> weight_shape, Index x_cols,
                                 const auto& convolve) {
          Parameter<float> weight(weight_shape), bias({out});
          weight.host() = random_matrix<float>(weight.rows(), weight.cols(), 3, 1);
          bias.host() = random_matrix<float>(1, out, 4, 1);
          Parameter<double> wide_weight(weight_shape), wide_bias({out});
          wide_weight.host() = same(weight.host());
          wide_bias.host() = bias.host().cast<double>();
          const Matrix<float> x = random_matrix<float>(from.rows(), x_cols, 5, 1);
          const Matrix<double> expected = cpu.output(convolve(cpu, cpu.input(same(x)), wide_weight, wide_bias));
          ParameterList<float> list({&weight, &bias});
          trains ? gpu.prepare_training(list) : gpu.prepare(list);
          for (int again = 0; again < 2; ++again)
            CHECK(error(gpu.output(convolve(gpu, gpu.input(x), weight, bias)), expected, depth) < tolerance);
        };
        const Conv2dShape two{.in_channels = channels, .out_channels = 21, .in_freqs = 9};
        const Sequences to2 = Sequences{4, 1, 19};
        compare(21, 9 * channels, {21, channels, 3, 3}, 9 * channels,
                [&](auto& context, const auto& x, const auto& weight, const auto& bias) {
                  return context.conv2d(x, weight, bias, two, from, to2, Activation::relu);
                });
        const Conv1dShape one{.in_channels = channels, .out_channels = 30, .kernel = 3, .stride = 2};
        compare(30, 3 * channels, {30, channels, 3}, channels,
                [&](auto& context, const auto& x, const auto& weight, const auto& bias) {
                  return context.conv1d(x, weight, &bias, one, from, to2);
                });
      }
}
