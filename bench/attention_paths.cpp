// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Times the two exact evaluation orders of latent attention, expanded and absorbed, by the number of queries: where the
// measured times cross, and where the cost rule predicts it.
//   usage: attention_paths [THREADS] [KEYS]
#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

using namespace laconic;

namespace {

Matrix<float> noise(Index rows, Index cols) { return Matrix<float>::Random(rows, cols); }

double median_seconds(Index repeats, auto&& run) {
  std::vector<double> times;
  for (Index i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

/// Finds the number of queries at which the cheaper order changes. Between two measured numbers it interpolates the
/// logarithm of the cost ratio over the logarithm of the queries.
class Crossing {
 public:
  void add(Index queries, double absorbed, double expanded) {
    const double ratio = std::log(absorbed / expanded), x = std::log(static_cast<double>(queries));
    if (seen_ && !crossed_ && before_ < 0 && ratio >= 0) {
      at_ = std::exp(x_ + (x - x_) * before_ / (before_ - ratio));
      crossed_ = true;
    }
    seen_ = true;
    before_ = ratio;
    x_ = x;
  }
  void print(const char* what) const {
    if (crossed_)
      std::printf("%s %.0f", what, at_);
    else
      std::printf("%s %s", what,
                  before_ < 0 ? "nowhere, absorbed is always faster" : "nowhere, expanded is always faster");
  }

 private:
  bool seen_ = false, crossed_ = false;
  double before_ = 0, x_ = 0, at_ = 0;
};

/// Times cross-attention on both paths, which share the projections of queries and output.
template <class Policy>
void compare(const char* name, const AttentionConfig& config, Index keys, int threads) {
  const AttentionLayer<Policy, float> layer(config, 0, Seed(1));
  Cpu<float> cpu(threads);
  const Matrix<float> source = noise(keys, config.d_model);
  const Sequences sources{keys};
  const auto memory = layer.remember(cpu, cpu.input(source), sources);
  std::printf("%s, d_model %td, %td heads, latent %td, %td keys\n%8s %14s %14s %10s %10s\n", name, config.d_model,
              layer.dims().num_heads, layer.dims().kv_lora_rank, keys, "queries", "expanded, ms", "absorbed, ms",
              "measured", "predicted");
  Crossing measured, predicted;
  for (Index queries = 1; queries <= keys; queries = queries < 4 ? queries * 2 : queries * 3 / 2) {
    const Matrix<float> x = noise(queries, config.d_model);
    const Sequences rows{queries};
    const auto time = [&](AttentionPath path) {
      return median_seconds(queries < 100 ? 15 : 7,
                            [&] { layer.cross(cpu, cpu.input(x), rows, memory, sources, {}, path); });
    };
    time(AttentionPath::expanded);
    const double expanded = time(AttentionPath::expanded), absorbed = time(AttentionPath::absorbed);
    const typename Policy::Work work{queries, keys, queries * keys};
    const double both =
        2.0 * 2 * static_cast<double>(queries * config.d_model * config.d_model);  // projections of queries and output
    const double by_rule = (static_cast<double>(Policy::absorbed_flops(layer.dims(), work)) + both) /
                           (static_cast<double>(Policy::expanded_flops(layer.dims(), work)) + both);
    std::printf("%8td %14.3f %14.3f %10.2f %10.2f\n", queries, 1e3 * expanded, 1e3 * absorbed, absorbed / expanded,
                by_rule);
    measured.add(queries, absorbed, expanded);
    predicted.add(queries, by_rule, 1);
  }
  measured.print("crossing: measured at");
  predicted.print(", predicted at");
  std::printf("\n\n");
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const Index keys = argc > 2 ? std::atol(argv[2]) : 1024;
  if (threads < 1 || keys < 1) return std::fprintf(stderr, "usage: attention_paths [THREADS] [KEYS]\n"), 2;
  std::printf("%d threads; columns 4 and 5: absorbed / expanded, less than 1 if absorbed is faster\n\n", threads);
  const AttentionConfig published{.d_model = 1024};
  compare<MlaSimple<16, 256, NoPosition>>("MlaSimple", published, keys, threads);
  compare<MlaSimple<16, 512, NoPosition>>("MlaSimple", published, keys, threads);
  compare<MlaSimple<16, 1024, NoPosition>>("MlaSimple", published, keys, threads);
  compare<Mla<16, 512, NoPosition>>("Mla", published, keys, threads);
  compare<MlaSplit<16, 256, 256, NoPosition>>("MlaSplit", published, keys, threads);
  compare<MlaHead<16, 16, 0, NoPosition>>("MlaHead", published, keys, threads);
  compare<CachedInput<16, 16, NoPosition>>("CachedInput", published, keys, threads);
  compare<MlaSimple<8, 64, NoPosition>>("MlaSimple", {.d_model = 256}, keys, threads);
  return 0;
}
