// Lesson 2: what attention costs. Costs are constant expressions, so a table from a paper can be a static_assert.
#include <laconic/attention/attention.hpp>

#include <cstdio>

using namespace laconic;

constexpr AttentionConfig conformer{.d_model = 1024};
constexpr double mib = 1 << 20;

// The published table for 24 layers and 1000 frames in single precision.
static_assert(24 * Mha<16>::cache_bytes(conformer, frames(1000)) / mib == 187.5);
static_assert(24 * MlaSimple<16, 1024>::cache_bytes(conformer, frames(1000)) / mib == 93.75);
static_assert(24 * Gqa<16, 2>::cache_bytes(conformer, frames(1000)) / mib == 23.4375);

template <class Attention>
void row(const char* name) {
  std::printf("%-22s %10.2f %12td %10.2f\n", name, 24 * Attention::cache_bytes(conformer, frames(1000)) / mib,
              Attention::parameter_count(conformer),
              static_cast<double>(Attention::flops(conformer, frames(1000))) * 1e-9);
}

int main() {
  std::printf("24 layers, 1000 frames: cache, MiB; one layer: parameters, GFLOP\n");
  row<Mha<16>>("Mha<16>");
  row<Gqa<16, 2>>("Gqa<16, 2>");
  row<Mqa<16>>("Mqa<16>");
  row<MlaSimple<16, 1024>>("MlaSimple<16, 1024>");
  row<MlaSimple<16, 512>>("MlaSimple<16, 512>");
  row<MlaSimple<16, 128>>("MlaSimple<16, 128>");
}
