// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Sweeps 32 attentions of d_model 1024 at compile time and times each: a whole utterance of 1000 frames, and a chunk of
// 16 frames after 1000 cached ones. Counters: parameters, bytes of cache, operations, and the predicted time: the least
// that the operations (counted at compile time, without the term of position) and the bytes of weights and cache take
// on this machine, whose roofs are measured first. `bench/sweep.py` adds what compiling each takes, and plots.
//   usage: sweep [Google Benchmark's options]     --benchmark_format=json
#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>
#include <laconic/core/sweep.hpp>

#include <benchmark/benchmark.h>

#include <array>
#include <string>
#include <vector>

#include "roofs.hpp"

using namespace laconic;

namespace {

template <Index H>
using AttentionsOf =
    Types<Named<"mha", Mha<H>>, Named<"gqa/4", Gqa<H, 4>>, Named<"mqa", Mqa<H>>, Named<"cached-input", CachedInput<H>>>;
using Full = AttentionsOf<16>;
using FewHeads = AttentionsOf<8>;
using Latents =
    Types<Named<"mla/128", Mla<16, 128>>, Named<"mla/256", Mla<16, 256>>, Named<"mla/512", Mla<16, 512>>,
          Named<"mla/768", Mla<16, 768>>, Named<"mla-simple/128", MlaSimple<16, 128>>,
          Named<"mla-simple/256", MlaSimple<16, 256>>, Named<"mla-simple/512", MlaSimple<16, 512>>,
          Named<"mla-simple/768", MlaSimple<16, 768>>, Named<"mla-split/128", MlaSplit<16, 128>>,
          Named<"mla-split/256", MlaSplit<16, 256>>, Named<"mla-split/512", MlaSplit<16, 512>>,
          Named<"mla-split/768", MlaSplit<16, 768>>, Named<"mla-head/8", MlaHead<16, 8>>,
          Named<"mla-head/16", MlaHead<16, 16>>, Named<"mla-head/32", MlaHead<16, 32>>,
          Named<"mla-head/48", MlaHead<16, 48>>, Named<"mla-decoupled/128", MlaDecoupled<16, 128, 32>>,
          Named<"mla-decoupled/256", MlaDecoupled<16, 256, 32>>, Named<"mla-decoupled/512", MlaDecoupled<16, 512, 32>>,
          Named<"mla-decoupled/768", MlaDecoupled<16, 768, 32>>, Named<"8-heads/mla-simple/256", MlaSimple<8, 256>>,
          Named<"32-heads/mla-simple/256", MlaSimple<32, 256>>, Named<"32-heads/mha", Mha<32>>,
          Named<"linear", LinearAttention<16>>>;
static_assert(Full::size + FewHeads::size + Latents::size == 32);

constexpr AttentionConfig config{.d_model = 1024};
constexpr Index frames_whole = 1000, chunk = 16;

const bench::Roofs& roofs() {
  static const bench::Roofs all(hardware_threads(),
                                std::vector<float>(static_cast<std::size_t>(bench::Roofs::memory_bytes) / 4, 1.0f));
  return all;
}

template <class Policy>
void count(benchmark::State& state, Index flops) {
  const auto parameters = static_cast<double>(Policy::parameter_count(config)),
             cache = static_cast<double>(Policy::cache_bytes(config, frames(frames_whole)));
  state.counters["parameters"] = parameters;
  state.counters["cache_bytes"] = cache;
  state.counters["flop"] = static_cast<double>(flops);
  state.counters["predicted_ms"] =
      1e3 * roofs().bound({.flop = static_cast<double>(flops), .bytes = 4 * parameters + cache}).seconds;
}

/// Times a whole utterance.
template <class Policy>
void whole(benchmark::State& state) {
  Cpu cpu;
  AttentionLayer<Policy, float> layer(config, 0, Seed(1));
  cpu.prepare(layer);
  const auto x = cpu.input(Matrix<float>(Matrix<float>::Random(frames_whole, config.d_model)));
  const Sequences sequences{frames_whole};
  for (auto _ : state) {
    Pass<Tensor<float>> pass{sequences};
    pass.table = layer.table(cpu, pass);
    benchmark::DoNotOptimize(layer(cpu, x, pass));
  }
  count<Policy>(state, Policy::flops(config, frames(frames_whole)));
}

/// Times a chunk of a stream, with a full cache.
template <class Policy>
void stream(benchmark::State& state) {
  Cpu cpu;
  AttentionLayer<Policy, float> layer(config, 0, Seed(1));
  cpu.prepare(layer);
  typename AttentionLayer<Policy, float>::template State<Cpu<float>> kept(cpu, layer, {1, frames_whole, chunk});
  kept.fill_zeros(cpu, 0);
  const auto x = cpu.input(Matrix<float>(Matrix<float>::Random(chunk, config.d_model)));
  const Sequences sequences{chunk};
  const std::array<Index, 1> slots{0}, firsts{frames_whole};
  const Mask mask = Mask::chunked(chunk, Policy::Score::is_linear ? Mask::unlimited : frames_whole);
  for (auto _ : state) {
    Pass<Tensor<float>> pass{sequences, mask, {}, slots, firsts};
    pass.table = layer.table(cpu, pass);
    benchmark::DoNotOptimize(layer(cpu, x, pass, &kept));
  }
  count<Policy>(state, Policy::stream_flops(config, chunk, frames_whole));
}

template <class List>
void add(const std::string& prefix) {
  sweep<List>([&]<class V>(V) {
    const std::string name = prefix + std::string(V::name);
    benchmark::RegisterBenchmark(("whole/" + name).c_str(), whole<typename V::type>)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
    benchmark::RegisterBenchmark(("stream/" + name).c_str(), stream<typename V::type>)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
  });
}

}  // namespace

int main(int argc, char** argv) {
  add<Full>("");
  add<FewHeads>("8-heads/");
  add<Latents>("");
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
