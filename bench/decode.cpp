// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Times decoding: one token more for each of some streams, by a language model of GPT-2's sizes (124M parameters at
// random values) with MHA and with MlaHead, in turns. The cache of each stream holds `contexts` tokens
// before the first step, and up to 200 more. With --serve it is laconic's side of `bench/peers/compare.py decode`.
//   usage: decode [--threads 2] [--streams 1 32] [--contexts 1000 4000] [--storage float|bf16|int8]
//                 [--attention mha mla-head] [--rounds 5]
#include <laconic/attention/any.hpp>
#include <laconic/decode/token_decoder.hpp>
#include <laconic/model/gpt.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "serve.hpp"

using namespace laconic;

namespace {

using Model = Gpt<AnyCausalAttention>;

struct Options : bench::Options {
  std::vector<Index> streams{1, 32}, contexts{1000, 4000};
  std::vector<std::string> attentions{"mha", "mla-head"};
  std::string storage = "float";
  Index rounds = 5;
};

/// Holds a model, and streams with a full cache.
class Work {
 public:
  Work(const Options& o, const std::string& kind, Index count, Index tokens)
      : name(text(count, count == 1 ? " stream" : " streams", ", context ", tokens)),
        attention(kind),
        streams(count),
        context(tokens),
        cpu_(o.threads),
        model_({.max_positions = context + 200,
                .attention = from_name<AttentionName>(kind).value(),
                .num_heads = 12,
                .kv_lora_rank = kind == "mla-head" ? 32 : 0},
               Seed(1)) {
    cpu_.prepare(model_);
    const Storage storage = o.storage == "bf16" ? Storage::bf16 : o.storage == "int8" ? Storage::int8 : Storage::full;
    decoder_ = std::make_unique<TokenDecoder<Model>>(
        cpu_, model_, TokenDecoderConfig{.slots = streams, .max_tokens = context + 200, .storage = storage});
    const Random random(Seed(2), "tokens");
    std::vector<int> prompt;
    for (Index i = 0; i < context; ++i)
      prompt.push_back(static_cast<int>(random.below(50257, static_cast<std::uint64_t>(i))));
    for (Index begin = 0; begin < context; begin += 250) {
      const Index part = std::min<Index>(250, context - begin);
      decoder_->append(
          {std::span(prompt).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(part)), Sequences{part}},
          std::array{Index{0}});
    }
    for (Index s = 0; s < streams; ++s) {
      slots_.push_back(s);
      if (s > 0) decoder_->fork(0, s);
    }
    step();  // warm
  }

  /// Appends one token to each stream and returns the seconds that this took.
  double step() {
    const std::vector<int> ids(slots_.size(), 11);
    const Sequences ones(std::vector<Index>(slots_.size(), 1));
    const auto begin = std::chrono::steady_clock::now();
    std::vector<Index> best(slots_.size());
    cpu_.argmax(decoder_->append({ids, ones}, slots_), best);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  Index cache_bytes() const { return decoder_->cache_bytes(); }

  std::string name, attention;
  Index streams, context;

 private:
  Cpu<float> cpu_;
  Model model_;
  std::unique_ptr<TokenDecoder<Model>> decoder_;
  std::vector<Index> slots_;
};

int run(const Options& o) {
  if (o.serves) require(o.attentions.size() == 1, "--attention: one expected with --serve");
  std::vector<std::unique_ptr<Work>> works;
  if (o.serves) {
    for (const Index streams : o.streams)
      for (const Index context : o.contexts)
        works.push_back(std::make_unique<Work>(o, o.attentions[0], streams, context));
    return bench::serve(o, [&](Index count) {
      bench::Json answer;
      for (const auto& work : works) {
        answer["cache_bytes"][work->name] = work->cache_bytes();
        for (Index k = 0; k < count; ++k) answer["seconds"]["laconic"][work->name].push_back(work->step());
      }
      return answer;
    });
  }
  std::printf("%-10s %-26s %12s %12s %12s %14s\n", "attention", "work", "tokens/s", "ms median", "ms min",
              "cache bytes");
  for (const Index streams : o.streams)
    for (const Index context : o.contexts) {
      works.clear();  // one piece of work at a time: caches are large
      for (const std::string& attention : o.attentions)
        works.push_back(std::make_unique<Work>(o, attention, streams, context));
      std::vector<std::vector<double>> seconds(works.size());
      for (Index r = 0; r < o.rounds; ++r)
        for (std::size_t n = 0; n < works.size(); ++n)
          for (int i = 0; i < 5; ++i) seconds[n].push_back(works[n]->step());
      for (std::size_t n = 0; n < works.size(); ++n) {
        std::sort(seconds[n].begin(), seconds[n].end());
        const double median = seconds[n][seconds[n].size() / 2];
        std::printf("%-10s %-26s %12.1f %12.2f %12.2f %14td\n", works[n]->attention.c_str(), works[n]->name.c_str(),
                    static_cast<double>(streams) / median, 1e3 * median, 1e3 * seconds[n].front(),
                    works[n]->cache_bytes());
        std::fflush(stdout);
      }
    }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("one token more for each of some streams");
  o.add_to(app);
  app.add_option("--streams", o.streams)->capture_default_str()->check(CLI::Range(1, 4096));
  app.add_option("--contexts", o.contexts, "tokens in the cache of each stream")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--attention", o.attentions)->capture_default_str()->check(CLI::IsMember({"mha", "mla-head"}));
  app.add_option("--storage", o.storage, "of keys, values and latents")
      ->capture_default_str()
      ->check(CLI::IsMember({"float", "bf16", "int8"}));
  app.add_option("--rounds", o.rounds, "of 5 tokens")->capture_default_str()->check(CLI::Range(1, 39));
  CLI11_PARSE(app, argc, argv);
  return bench::guarded([&] { return run(o); });
}
