// A program that uses laconic's core and nothing else.
#include <laconic/laconic.hpp>

#include <cstdio>

int main() {
  const laconic::Sequences sequences{3, 2};
  const laconic::Matrix<float> ones = laconic::Matrix<float>::Ones(sequences.rows(), 4);
  const float sum = laconic::view(ones).sum();
  std::printf("laconic %d.%d.%d: %d rows, sum %g\n", LACONIC_VERSION_MAJOR, LACONIC_VERSION_MINOR,
              LACONIC_VERSION_PATCH, static_cast<int>(sequences.rows()), static_cast<double>(sum));
  return sum == 20.0F ? 0 : 1;
}
