// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Vectors against the plain functions, number by number.
#include <laconic/backend/cpu/kernels/simd.hpp>

#include "catch.hpp"

#include <cmath>
#include <limits>
#include <vector>

using namespace laconic;

namespace {

template <class T>
T exp_of(T x) {
  return kernels::max_lanes<T>(kernels::exp<T>(kernels::Batch<T>(x)));
}

}  // namespace

TEST_CASE("exp is off by little more than a unit in the last place", "[simd]") {
  double worst = 0;
  std::vector<float> x(static_cast<std::size_t>(kernels::lanes<float>)), y(x.size());
  for (double at = -87.3; at < 88.3; at += 1.7e-3 * static_cast<double>(x.size())) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(at + 1.7e-3 * static_cast<double>(i));
    kernels::store(y.data(), kernels::exp<float>(kernels::load(x.data())));
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double exact = std::exp(static_cast<double>(x[i])),
                   unit = std::ldexp(1.0, static_cast<int>(std::floor(std::log2(exact))) - 23);
      worst = std::max(worst, std::abs(static_cast<double>(y[i]) - exact) / unit);
    }
  }
  CAPTURE(worst);
  CHECK(worst < 1.6);  // xsimd's own: 1.51; that of AVX-512: 1.22
}

TEST_CASE("exp at the ends", "[simd]") {
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(exp_of(-infinity) == 0.0f);
  CHECK(exp_of(-1000.0f) == 0.0f);
  CHECK(exp_of(0.0f) == 1.0f);
  CHECK(exp_of(infinity) == infinity);
  CHECK(exp_of(100.0f) == infinity);
  kernels::Local<float, kernels::lanes<float>> y;
  kernels::store(y, kernels::exp<float>(kernels::Batch<float>(std::numeric_limits<float>::quiet_NaN())));
  CHECK(std::isnan(y[0]));
}

TEMPLATE_TEST_CASE("parts of vectors", "[simd]", float, double) {
  using T = TestType;
  constexpr Index n = kernels::lanes<T>;
  for (Index count = 1; count < n; ++count) {
    CAPTURE(count);
    std::vector<T> from(static_cast<std::size_t>(n), T(0)), to(from);
    for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<T>(i) - T(1.5);
    const auto part = kernels::load_part(from.data(), count, T(-7));
    T sum = 0, most = -7;
    for (Index i = 0; i < n; ++i) sum += i < count ? from[static_cast<std::size_t>(i)] : T(-7);
    for (Index i = 0; i < count; ++i) most = std::max(most, from[static_cast<std::size_t>(i)]);
    CHECK(kernels::sum_lanes<T>(part) == sum);
    CHECK(kernels::max_lanes<T>(part) == most);
    kernels::store_part(to.data(), part, count);
    for (Index i = 0; i < n; ++i)
      CHECK(to[static_cast<std::size_t>(i)] == (i < count ? from[static_cast<std::size_t>(i)] : T(0)));
  }
}

TEMPLATE_TEST_CASE("sums of any length", "[simd]", float, double) {
  using T = TestType;
  for (const Index n : {0, 1, 5, 16, 63, 64, 65, 200}) {
    std::vector<T> x(static_cast<std::size_t>(n) + 1, T(0.5));
    CHECK(kernels::sum_span<T>(
              n, [](auto a) { return a; }, x.data()) == static_cast<T>(n) / 2);
  }
}
