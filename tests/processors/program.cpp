// laconic: attention for speech models. SPDX-License-Identifier: MIT
// A program for all processors: says which level runs, and that what differs between levels is not mixed.
#include <laconic/backend/cpu.hpp>
#include <laconic/nn/linear.hpp>

#include <iostream>
#include <map>
#include <string>

using namespace laconic;

namespace {
#define NAME_OF(x) #x
#define NAME(x) NAME_OF(x)
// A static object with a constructor.
const std::map<std::string, std::string> names{{"abi", NAME(LACONIC_ABI)}};
}  // namespace

int main(int argc, char** argv) {
  try {
    Cpu<float> cpu(1);
    Linear<float> layer(50, 70, Seed(1));
    const Matrix<float> x = Matrix<float>::Constant(3, 50, 0.5f);
    const auto y = layer(cpu, cpu.input(x));
    double sum = 0;
    for (Index i = 0; i < y.rows() * y.cols(); ++i) sum += static_cast<double>(y.data()[i]);
    std::cout << names.at("abi") << ' ' << sum << '\n';
    require(argc > 1, argv[0], ": no argument given");
  } catch (const Error& error) {
    std::cout << "caught: " << error.what() << '\n';
  }
}
