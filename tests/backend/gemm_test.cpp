// laconic: attention for speech models. SPDX-License-Identifier: MIT
// The matrix product against Eigen's, over every branch: several depth and column blocks, tails, transposes, threads.
#include <laconic/backend/cpu/kernels/gemm.hpp>

#include "gradient_check.hpp"

#include <array>

using namespace laconic;

namespace {

/// Returns normal numbers (rows, cols), the same for the same seed: drawing new ones for each product would take longer
/// than all products.
template <class T>
Matrix<T> numbers(Index rows, Index cols, unsigned seed) {
  static std::array<Matrix<T>, 5> drawn;
  Matrix<T>& all = drawn.at(seed);
  if (all.size() < rows * cols) all = random_matrix<T>(1, rows * cols, seed);
  return Eigen::Map<const Matrix<T>>(all.data(), rows, cols);
}

template <class T>
void check_product(Index m, Index n, Index k, bool a_transposed, bool b_transposed, bool accumulate, bool with_bias,
                   int threads) {
  CAPTURE(m, n, k, a_transposed, b_transposed, accumulate, with_bias, threads);
  const Matrix<T> a = numbers<T>(m, k, 1), b = numbers<T>(k, n, 2), bias = numbers<T>(1, n, 3);
  const Matrix<T> a_stored = a_transposed ? Matrix<T>(a.transpose()) : a,
                  b_stored = b_transposed ? Matrix<T>(b.transpose()) : b;
  const kernels::Operand<T> left{a_stored.data(), a_stored.cols()}, right{b_stored.data(), b_stored.cols()};
  const Index stride = n + 3;  // what lies between the rows stays as it is
  Matrix<T> c = numbers<T>(m, stride, 4);
  const Matrix<T> before = c;
  Matrix<T> expected = a * b;
  if (accumulate) expected += before.leftCols(n);
  if (with_bias) expected.rowwise() += bias.row(0);

  Arena arena;
  kernels::gemm<T>(threads, arena, m, n, k, a_transposed ? left.transposed() : left,
                   b_transposed ? right.transposed() : right, c.data(), stride, accumulate,
                   with_bias ? bias.data() : nullptr);
  const double tolerance =
      std::numeric_limits<T>::epsilon() * 4 * static_cast<double>(k + 16);  // of sums of k products of normal numbers
  REQUIRE(static_cast<double>((c.leftCols(n) - expected).cwiseAbs().maxCoeff()) < tolerance);
  REQUIRE(c.rightCols(3) == before.rightCols(3));
}

}  // namespace

TEMPLATE_TEST_CASE("the matrix product is the matrix product", "[gemm]", float, double) {
  using Tile = kernels::GemmTile<TestType>;
  for (const Index m : {Index{1}, Index{2}, Index{3}, Tile::rows, Tile::rows + 5, Tile::block_rows + 4})
    for (const Index n :
         {Index{1}, kernels::lanes<TestType>, Tile::cols + 1, Tile::block_cols, Tile::block_cols + Tile::cols + 7})
      for (const Index k : {Index{1}, Index{17}, Tile::depth, Tile::depth + 1, 2 * Tile::depth + 100})
        for (const int variant : {0, 1, 2, 3}) {
          const bool accumulate = variant == 1, with_bias = variant == 2;
          check_product<TestType>(m, n, k, false, false, accumulate, with_bias, 1);
          check_product<TestType>(m, n, k, variant % 2 == 1, true, accumulate, with_bias, 2);
          if (variant == 3) check_product<TestType>(m, n, k, true, false, false, false, 5);
        }
}

TEST_CASE("a product over nothing is the bias, or what was there", "[gemm]") {
  check_product<float>(5, 7, 0, false, false, false, true, 1);
  check_product<float>(5, 7, 0, false, false, false, false, 1);
  check_product<float>(5, 7, 0, false, false, true, false, 2);
}

TEMPLATE_TEST_CASE("a row has the same bits in every product", "[gemm]", float, double) {
  using Tile = kernels::GemmTile<TestType>;
  constexpr Index most = 2 * Tile::rows + 1, k = Tile::depth + 3, n = 9 * Tile::cols + 1;
  const Matrix<TestType> a = random_matrix<TestType>(most, k, 1), b = random_matrix<TestType>(k, n, 2);
  const auto product = [&](Index m) {
    Arena arena;
    Matrix<TestType> c(m, n);
    kernels::gemm<TestType>(1, arena, m, n, k, {a.data(), k}, {b.data(), n}, c.data(), n, false, nullptr);
    return c;
  };
  const Matrix<TestType> whole = product(most);
  for (Index m = 1; m < most; ++m) {
    CAPTURE(m);
    CHECK(product(m) == whole.topRows(m));
  }
}
