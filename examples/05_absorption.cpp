// Lesson 5: absorption. A latent need not be expanded: q . (c B^T) = (q B) . c, so queries and output can absorb B.
// Both orders give the same. Look at their work: expanding costs for every row of the cache, absorbing for every query.
#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>

#include <cstdio>

using namespace laconic;

int main() {
  using Latent = MlaSimple<8, 64, NoPosition>;
  constexpr AttentionConfig config{.d_model = 256};
  constexpr AttentionDims dims = Latent::dims(config);
  constexpr Index cached = 400;
  const AttentionLayer<Latent, float> layer(config, /*dropout*/ 0, Seed(1));

  Cpu cpu;
  const Matrix<float> source = Matrix<float>::Random(cached, config.d_model);
  const Sequences asked{cached};
  const auto latents = layer.remember(cpu, cpu.input(source), asked);  // what a cache would hold
  std::printf("over %td cached latents of 64 elements, MFLOP\n", cached);
  std::printf("queries  expanded  absorbed  laconic picks  difference\n");
  for (const Index queries : {1, 8, 32, 128, 400}) {
    const Matrix<float> x = Matrix<float>::Random(queries, config.d_model);
    const Sequences asking{queries};
    const auto run = [&](AttentionPath path) {
      return cpu.output(layer.cross(cpu, cpu.input(x), asking, latents, asked, {}, path));
    };
    const Latent::Work work{queries, cached, queries * cached};
    std::printf("%7td %9.1f %9.1f  %-13s  %.0e\n", queries,
                static_cast<double>(Latent::expanded_flops(dims, work)) / 1e6,
                static_cast<double>(Latent::absorbed_flops(dims, work)) / 1e6,
                Latent::absorbing_is_cheaper(dims, work) ? "absorbed" : "expanded",
                (run(AttentionPath::expanded) - run(AttentionPath::absorbed)).cwiseAbs().maxCoeff());
  }
}
// prints: ^      1 +26.6 +0.9 +absorbed +([0-9]e-0[6-9]|0e\+00)
// prints: ^      8 .* absorbed +([0-9]e-0[6-9]|0e\+00)
// prints: ^    400 .* expanded +([0-9]e-0[6-9]|0e\+00)
