// laconic: attention for speech models. SPDX-License-Identifier: MIT
// A program for all processors: says which level runs, and that what differs between levels is not mixed.
#include <laconic/backend/cpu/kernels/gemm.hpp>
#include <laconic/core/arena.hpp>

#include <iostream>
#include <map>
#include <numeric>
#include <string>
#include <vector>

using namespace laconic;

namespace {
#define NAME_OF(x) #x
#define NAME(x) NAME_OF(x)
// A static object with a constructor.
const std::map<std::string, std::string> names{{"abi", NAME(LACONIC_ABI)}};
}  // namespace

int main(int argc, char** argv) {
  try {
    constexpr Index rows = 3, in = 50, out = 70;
    std::vector<float> x(rows * in), w(in * out), y(rows * out);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = 1 / static_cast<float>(i + 1);
    for (std::size_t i = 0; i < w.size(); ++i) w[i] = 1 / static_cast<float>(i + 3);
    Arena arena;
    kernels::gemm<float>(1, arena, rows, out, in, {x.data(), in}, {w.data(), out}, y.data(), out, false, nullptr);
    const double sum = std::accumulate(y.begin(), y.end(), 0.0);
    std::cout << names.at("abi") << ' ' << sum << '\n';
    require(argc > 1, argv[0], ": no argument given");
  } catch (const Error& error) {
    std::cout << "caught: " << error.what() << '\n';
  }
}
