// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// How long one live stream waits: pushes of a chunk to a Conformer of 12 x 256, with MHA and what keeps a quarter and
// an eighth of its cache, by left context, by how keys and values are stored, and by how weights are.
//   usage: push [--threads 1] [--left-context 250 1500] [--weights float|bf16|int8] [--pushes 60]
#include <laconic/attention/any.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/stream.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

using namespace laconic;

namespace {

struct Options {
  int threads = 1;
  std::vector<Index> left_contexts{250, 1500};
  std::string weights = "float";
  Index pushes = 60;
};

struct Choice {
  const char* name;
  AttentionName attention;
  Index kv_heads, latent;
};
constexpr std::array<Choice, 5> choices{{{"mha", AttentionName::mha, 4, 0},
                                         {"mla-simple, R 128", AttentionName::mla_simple, 4, 128},
                                         {"mla-simple, R 64", AttentionName::mla_simple, 4, 64},
                                         {"gqa, 1 head", AttentionName::gqa, 1, 0},
                                         {"linear", AttentionName::linear, 4, 0}}};

void run(const Options& o, const Choice& choice, Index left, Storage cache) {
  const bool forgets = choice.attention != AttentionName::linear;
  const EncoderConfig config{.num_mels = 80,
                             .d_model = 256,
                             .num_layers = 12,
                             .vocab_size = 29,
                             .attention = choice.attention,
                             .num_heads = 4,
                             .num_kv_heads = choice.kv_heads,
                             .kv_lora_rank = choice.latent,
                             .convolution = ConvolutionContext::causal,
                             .chunk = 8,
                             .left_context = forgets ? left : -1};
  Conformer<AnyAttention> model(config, Seed(1));
  pack_weights(model, from_name<Storage>(o.weights).value());
  Streams streams(model, {.capacity = 1, .storage = cache, .threads = o.threads});
  const std::array<Index, 1> id{streams.open()};
  const Matrix<float> features = Matrix<float>::Random(streams.chunk_rows(), config.num_mels);
  const Sequences block{features.rows()};
  const Index filling = left / config.chunk + 5;
  std::vector<double> ms;
  for (Index i = 0; i < filling + o.pushes; ++i) {
    const auto start = std::chrono::steady_clock::now();
    streams.push(id, features, block);
    const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (i >= filling) ms.push_back(1e3 * took);
  }
  std::ranges::sort(ms);
  const auto at = [&](double part) { return ms[static_cast<std::size_t>(part * static_cast<double>(ms.size() - 1))]; };
  std::printf("| %td | %s | %s | %.2f | %.2f [%.2f, %.2f] %.2f |\n", left, choice.name,
              std::string(to_name(cache)).c_str(), static_cast<double>(streams.attention_bytes()) / 1e6, at(0.5),
              at(0.25), at(0.75), at(0.95));
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app{"push: how long a chunk of 320 ms takes in one live stream"};
  app.add_option("--threads", o.threads, "CPU threads")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--left-context", o.left_contexts, "frames of 40 ms kept")->capture_default_str();
  app.add_option("--weights", o.weights, "how weights are stored")
      ->capture_default_str()
      ->check(CLI::IsMember({"float", "bf16", "int8"}));
  app.add_option("--pushes", o.pushes, "of each, once the cache is full")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    std::printf(
        "| left context | attention | cache as | cache, MB | ms: median [quartiles] 95%% |\n|---|---|---|---|---|\n");
    for (const Index left : o.left_contexts)
      for (const Storage cache : {Storage::full, Storage::int8})
        for (const Choice& choice : choices)
          if (cache == Storage::full || choice.attention != AttentionName::linear) run(o, choice, left, cache);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "push: %s\n", error.what());
    return 1;
  }
}
