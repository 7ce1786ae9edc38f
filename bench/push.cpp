// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Times the latency of one live stream: pushes of a chunk to a Conformer of 12 layers of 256, with MHA and with
// policies that keep a quarter and an eighth of its cache, in turns. It varies the left context and the storage of
// keys, values and weights.
//   usage: push [--threads 1] [--left-context 250 1500] [--weights float|bf16|int8] [--rounds 12]
#include <laconic/attention/any.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/stream.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <list>
#include <string>
#include <vector>

using namespace laconic;

namespace {

struct Options {
  int threads = 1;
  std::vector<Index> left_contexts{250, 1500};
  std::string weights = "float";
  Index rounds = 12;
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

EncoderConfig config_of(const Choice& choice, Index left) {
  return {.num_mels = 80,
          .d_model = 256,
          .num_layers = 12,
          .vocab_size = 29,
          .attention = choice.attention,
          .num_heads = 4,
          .num_kv_heads = choice.kv_heads,
          .kv_lora_rank = choice.latent,
          .convolution = ConvolutionContext::causal,
          .chunk = 8,
          .left_context = choice.attention == AttentionName::linear ? -1 : left};
}

/// Holds one stream with a full cache, and the latency of its pushes.
class LiveStream {
 public:
  LiveStream(const Options& o, const Choice& choice, Index left, Storage cache)
      : choice_(choice),
        left_(left),
        cache_(cache),
        model_(packed(config_of(choice, left), from_name<Storage>(o.weights).value())),
        streams_(model_, {.capacity = 1, .storage = cache, .threads = o.threads}),
        id_{streams_.open()},
        features_(Matrix<float>::Random(streams_.chunk_rows(), model_.config().num_mels)) {
    for (Index i = 0; i < left / model_.config().chunk + 5; ++i) push();
  }

  void time(Index pushes) {
    push();  // not timed: the other streams have filled the processor's caches
    for (Index i = 0; i < pushes; ++i) {
      const auto start = std::chrono::steady_clock::now();
      push();
      ms_.push_back(1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
  }
  void print() {
    std::ranges::sort(ms_);
    const auto at = [&](double part) {
      return ms_[static_cast<std::size_t>(part * static_cast<double>(ms_.size() - 1))];
    };
    std::printf("| %td | %s | %s | %.2f | %.2f [%.2f, %.2f] %.2f |\n", left_, choice_.name,
                std::string(to_name(cache_)).c_str(), static_cast<double>(streams_.attention_bytes()) / 1e6, at(0.5),
                at(0.25), at(0.75), at(0.95));
    std::fflush(stdout);
  }

 private:
  static Conformer<AnyAttention> packed(const EncoderConfig& config, Storage weights) {
    Conformer<AnyAttention> model(config, Seed(1));
    Cpu<float>().prepare(model, weights);
    return model;
  }
  void push() { streams_.push(id_, features_, Sequences{features_.rows()}); }

  const Choice& choice_;
  Index left_;
  Storage cache_;
  const Conformer<AnyAttention> model_;
  Streams<Conformer<AnyAttention>> streams_;
  std::array<Index, 1> id_;
  Matrix<float> features_;
  std::vector<double> ms_;
};

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app{"push: how long a chunk of 320 ms takes in one live stream"};
  app.add_option("--threads", o.threads, "CPU threads")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--left-context", o.left_contexts, "frames of 40 ms kept")->capture_default_str();
  app.add_option("--weights", o.weights, "how weights are stored")
      ->capture_default_str()
      ->check(CLI::IsMember({"float", "bf16", "int8"}));
  app.add_option("--rounds", o.rounds, "rounds of 10 pushes to each stream in turn, once their caches are full")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  try {
    std::printf(
        "| left context | attention | cache as | cache, MB | ms: median [quartiles] 95%% |\n|---|---|---|---|---|\n");
    std::list<LiveStream> streams;
    for (const Index left : o.left_contexts)
      for (const Storage cache : {Storage::full, Storage::int8})
        for (const Choice& choice : choices)
          if (cache == Storage::full || choice.attention != AttentionName::linear)
            streams.emplace_back(o, choice, left, cache);
    // In turns, so that all streams meet the same conditions.
    for (Index round = 0; round < o.rounds; ++round)
      for (LiveStream& stream : streams) stream.time(10);
    for (LiveStream& stream : streams) stream.print();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "push: %s\n", error.what());
    return 1;
  }
}
