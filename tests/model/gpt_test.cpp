// laconic: attention for speech models. SPDX-License-Identifier: MIT
// GPT: causal whatever the attention, derivatives, decoding with caches, and what it counts.
#include <laconic/decode/beam_search.hpp>
#include <laconic/decode/generate.hpp>
#include <laconic/model/gpt.hpp>
#include <laconic/train/cross_entropy_loss.hpp>

#include "gradient_check.hpp"
#include "message_of.hpp"

using namespace laconic;

namespace {

using Names = AttentionName;

LanguageModelConfig config_of(Names name, PositionEmbeddings position = PositionEmbeddings::learned) {
  LanguageModelConfig c{
      .vocab_size = 13, .max_positions = 24, .d_model = 16, .num_layers = 2, .attention = name, .num_heads = 4};
  c.position_embeddings_type = position;
  if (name == Names::gqa) c.num_kv_heads = 2;
  if (to_name(name).starts_with("mla")) c.kv_lora_rank = name == Names::mla_head ? 2 : 6;
  if (name == Names::mla_decoupled) c.qk_rope_head_dim = 4;
  return c;
}
std::vector<LanguageModelConfig> all_configs() {
  std::vector<LanguageModelConfig> out;
  for (const Names name :
       {Names::mha, Names::gqa, Names::mqa, Names::mla_simple, Names::mla_split, Names::mla_head, Names::mla_decoupled})
    out.push_back(config_of(name));
  out.push_back(config_of(Names::mla_head));
  out.back().v_lora_rank = 3;
  out.push_back(config_of(Names::mha, PositionEmbeddings::rotary));
  out.push_back(config_of(Names::gqa, PositionEmbeddings::rotary));
  out.front().tied_embeddings = false;
  return out;
}
std::string name_of(const LanguageModelConfig& c) {
  return text(to_name(c.attention), ", values of rank ", c.v_lora_rank, ", ", to_name(c.position_embeddings_type),
              " positions");
}
std::vector<int> some_tokens(Index count, std::uint64_t seed) {
  const Random random(Seed(seed), "tokens");
  std::vector<int> out;
  for (Index i = 0; i < count; ++i) out.push_back(static_cast<int>(random.below(13, static_cast<std::uint64_t>(i))));
  return out;
}
template <class T>
Gpt<AnyCausalAttention, T> model_of(const LanguageModelConfig& c) {
  Gpt<AnyCausalAttention, T> out(c, Seed(1));
  randomize(out, 3);
  return out;
}
/// Says whether attention takes the same path in a pass over all tokens and token by token.
bool is_exact(const LanguageModelConfig& c) { return !to_name(c.attention).starts_with("mla"); }

}  // namespace

TEST_CASE("a token never sees a later one") {
  for (const LanguageModelConfig& c : all_configs()) {
    INFO(name_of(c));
    const auto model = model_of<float>(c);
    Cpu cpu;
    const std::vector<int> tokens = some_tokens(20, 1);
    const Matrix<float> before = cpu.output(model(cpu, {tokens, Sequences{12, 8}}));
    for (const Index at : {0, 5, 11}) {
      std::vector<int> edited = tokens;
      for (Index i = at; i < 12; ++i) {
        int& token = edited[static_cast<std::size_t>(i)];
        token = (token + 1) % 13;
      }
      const Matrix<float> after = cpu.output(model(cpu, {edited, Sequences{12, 8}}));
      CHECK(after.topRows(at) == before.topRows(at));
      CHECK(after.row(at) != before.row(at));
      CHECK(after.bottomRows(8) == before.bottomRows(8));
    }
    CHECK(cpu.output(model(cpu, {std::span(tokens).subspan(12), Sequences{8}})) == before.bottomRows(8));
  }
}

TEMPLATE_LIST_TEST_CASE("derivatives of a GPT are those of finite differences", "[gpt]", Backends<double>) {
  LanguageModelConfig heads = config_of(Names::mla_head);
  heads.v_lora_rank = 3;
  for (const LanguageModelConfig& c : {config_of(Names::mha), heads, config_of(Names::mla_decoupled)}) {
    INFO(name_of(c));
    auto model = model_of<double>(c);
    const std::vector<int> tokens = some_tokens(9, 2), targets{1, 5, -100, 0, 2, 12, 3, -100, 4};
    const CrossEntropyShape shape{.label_smoothing = 0.1};
    CHECK(GradientCheck{.samples = 15}.operator()<TestType>({}, weights_of(model), [&](auto& tape, const auto&) {
      return cross_entropy_loss(tape, model(tape, {tokens, Sequences{5, 4}}), targets, shape);
    }) < 1e-6);
  }
}

TEST_CASE("a GPT holds and caches what it says") {
  for (const LanguageModelConfig& c : all_configs()) {
    INFO(name_of(c));
    const auto model = model_of<float>(c);
    CHECK(model.count_parameters() == Gpt<AnyCausalAttention>::parameter_count(c));
    Cpu cpu;
    const TokenDecoder decoder(cpu, model, {.slots = 3});
    CHECK(decoder.cache_bytes() == 3 * Gpt<AnyCausalAttention>::cache_bytes(c, frames(24)));
  }
  CHECK(Gpt<AnyCausalAttention>::parameter_count({.attention = Names::mha, .num_heads = 12}) ==
        124439808);  // GPT-2 124M, as published
}

TEMPLATE_TEST_CASE("tokens one by one give the logits of the whole sequence", "", Cpu<float>, Fenced<Cpu<float>>) {
  for (const LanguageModelConfig& c : all_configs()) {
    INFO(name_of(c));
    auto model = model_of<float>(c);
    TestType context;
    context.prepare(model);
    const std::vector<int> tokens = some_tokens(22, 4), other = some_tokens(9, 5);
    const Matrix<float> whole = context.output(model(context, {tokens, Sequences{22}})),
                        whole_other = context.output(model(context, {other, Sequences{9}}));
    TokenDecoder decoder(context, model, {.slots = 3});
    const auto close = [&](const Matrix<float>& got, const auto& expected) {
      const float error = (got - expected).cwiseAbs().maxCoeff();
      return is_exact(c) ? error == 0 : error < 1e-5f;
    };
    // A prompt of 5 tokens, then one at a time, next to another sequence; a copy goes on where its original was.
    CHECK(close(context.output(decoder.append({std::span(tokens).first(5), Sequences{5}}, std::array{Index{2}})),
                whole.row(4)));
    for (std::size_t i = 5; i < 14; ++i) {
      const std::array<int, 2> both{tokens[i], other[i - 5]};
      const Matrix<float> got = context.output(decoder.append({both, Sequences{1, 1}}, std::array{Index{2}, Index{0}}));
      CHECK(close(got.row(0), whole.row(static_cast<Index>(i))));
      CHECK(close(got.row(1), whole_other.row(static_cast<Index>(i) - 5)));
    }
    decoder.fork(2, 1);
    decoder.begin(0);
    CHECK(decoder.count(1) == 14);
    CHECK(decoder.room(0) == 24);
    CHECK(close(context.output(decoder.append({std::span(tokens).subspan(14), Sequences{8}}, std::array{Index{1}})),
                whole.row(21)));
    CHECK(close(context.output(decoder.append({std::span(tokens).subspan(14, 1), Sequences{1}}, std::array{Index{2}})),
                whole.row(14)));
  }
}

TEMPLATE_TEST_CASE("prompts and tokens in one pass have the bits of each alone", "", Cpu<float>, Fenced<Cpu<float>>) {
  for (const LanguageModelConfig& c : all_configs()) {
    INFO(name_of(c));
    auto model = model_of<float>(c);
    TestType context;
    context.prepare(model);
    TokenDecoder together(context, model, {.slots = 4}), alone(context, model);
    const std::vector<int> tokens = some_tokens(60, 6);
    const auto part = [&](Index first, Index count) {
      return std::span(tokens).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    };
    // Slots 1 and 3 have held a prompt; then they get a token each, slots 0 and 2 a prompt.
    together.append({part(0, 13), Sequences{7, 6}}, std::array{Index{1}, Index{3}});
    const Matrix<float> got = context.output(
        together.append({part(13, 30), Sequences{12, 1, 16, 1}}, std::array{Index{0}, Index{1}, Index{2}, Index{3}}));
    const auto expect = [&](Index row, std::initializer_list<std::pair<Index, Index>> parts) {
      alone.begin(0);
      Matrix<float> last;
      for (const auto& [first, count] : parts)
        last = context.output(alone.append({part(first, count), Sequences{count}}, std::array{Index{0}}));
      CHECK(got.row(row) == last.row(0));
    };
    expect(0, {{13, 12}});
    expect(1, {{0, 7}, {25, 1}});
    expect(2, {{26, 16}});
    expect(3, {{7, 6}, {42, 1}});
    CHECK(got.row(2) == context.output(model(context, {part(26, 16), Sequences{16}})).row(15));  // expanded, too
  }
}

TEST_CASE("generation is that of each sequence alone") {
  const auto model = model_of<float>(config_of(Names::mla_head));
  Cpu cpu;
  const std::vector<std::vector<int>> prompts{some_tokens(3, 1), some_tokens(1, 2), some_tokens(6, 3),
                                              some_tokens(2, 4)};
  TokenDecoder two(cpu, model, {.slots = 2}), one(cpu, model);
  for (const SamplingConfig& sampling : {SamplingConfig{.temperature = 0}, SamplingConfig{.temperature = 1.3},
                                         SamplingConfig{.top_k = 4, .top_p = 0.8}}) {
    const GenerationConfig config{.max_new_tokens = 12, .sampling = sampling, .seed = Seed(5)};
    const auto together = generate(two, std::span(prompts), config);
    CHECK(generate(one, std::span(prompts), config) == together);
    for (const auto& tokens : together) CHECK(tokens.size() == 12);
    // The first token that the second sequence draws, as the one that ends a sequence.
    const int end = together[1][0];
    auto ended = config;
    ended.end_token = end;
    const auto shorter = generate(two, std::span(prompts), ended);
    CHECK(shorter[1] == std::vector<int>{end});
    for (std::size_t n = 0; n < prompts.size(); ++n) {
      CHECK(std::equal(shorter[n].begin(), shorter[n].end(), together[n].begin()));
      CHECK((shorter[n].size() == 12 || shorter[n].back() == end));
    }
  }
  // Greedy tokens are the most probable ones of whole passes.
  const auto greedy = generate(two, std::span(prompts), {.max_new_tokens = 5});
  std::vector<int> tokens = prompts[0];
  for (const int token : greedy[0]) {
    const auto logits = model(cpu, {tokens, Sequences{static_cast<Index>(tokens.size())}});
    std::vector<Index> best(tokens.size());
    cpu.argmax(logits, best);
    CHECK(best.back() == token);
    tokens.push_back(token);
  }
  // The context ends a sequence, too.
  CHECK(generate(one, std::span(prompts).first(1), {.max_new_tokens = 100})[0].size() == 24 - 3 + 1);
}

TEST_CASE("a beam as wide as all sequences finds the most probable one") {
  LanguageModelConfig c = config_of(Names::mha);
  c.vocab_size = 4;
  auto model = Gpt<AnyCausalAttention>(c, Seed(1));
  randomize(model, 9);
  Cpu cpu;
  TokenDecoder decoder(cpu, model, {.slots = 64});
  const std::vector<int> prompt{1, 3};
  const auto found = beam_search(decoder, prompt, {.beams = 64, .max_new_tokens = 3});
  REQUIRE(found.size() == 64);
  double best = -1e300;
  std::vector<int> best_tokens;
  for (int i = 0; i < 64; ++i) {
    std::vector<int> tokens{1, 3, i / 16, i / 4 % 4, i % 4};
    const Matrix<float> log_probs = cpu.output(cpu.log_softmax(model(cpu, {tokens, Sequences{5}})));
    double sum = 0;
    for (Index t = 2; t < 5; ++t) sum += static_cast<double>(log_probs(t - 1, tokens[static_cast<std::size_t>(t)]));
    if (sum > best) {
      best = sum;
      best_tokens.assign(tokens.begin() + 2, tokens.end());
    }
  }
  CHECK(found[0].tokens == best_tokens);
  CHECK(std::abs(found[0].score - best / 3) < 1e-5);
  // One beam is greedy decoding.
  const std::vector<std::vector<int>> prompts{prompt};
  CHECK(beam_search(decoder, prompt, {.beams = 1, .max_new_tokens = 9})[0].tokens ==
        generate(decoder, std::span(prompts), {.max_new_tokens = 9})[0]);
}

TEST_CASE("a sampler keeps the tokens that it should") {
  const std::vector<float> logits{0.5f, 3, 2, -1, 2};
  const auto drawn = [&](const SamplingConfig& config) {
    Sampler sampler(config, 5);
    std::vector<int> out;
    for (const double u : {0.0, 0.2, 0.4, 0.6, 0.8, 0.999999})
      out.push_back(sampler(std::span<const float>(logits), u));
    return out;
  };
  CHECK(drawn({.temperature = 0}) == std::vector<int>{1, 1, 1, 1, 1, 1});
  CHECK(drawn({.top_k = 1}) == std::vector<int>{1, 1, 1, 1, 1, 1});
  CHECK(drawn({.top_k = 2}) == std::vector<int>{1, 1, 1, 1, 2, 2});  // 0.73 and 0.27: of equal logits, the first
  CHECK(drawn({.top_p = 0.5}) == std::vector<int>{1, 1, 1, 1, 1, 1});
  CHECK(drawn({.top_p = 0.6}) == std::vector<int>{1, 1, 1, 1, 2, 2});
  CHECK(drawn({}) == std::vector<int>{0, 1, 1, 2, 4, 4});  // by id: 0.04, 0.54, 0.20, 0.01 and 0.20
}

TEST_CASE("caches and weights may be rounded") {
  const LanguageModelConfig c = config_of(Names::mha);
  auto model = model_of<float>(c);
  Cpu cpu;
  const std::vector<int> tokens = some_tokens(20, 4);
  const Matrix<float> exact = cpu.output(model(cpu, {tokens, Sequences{20}}));
  const float scale = exact.cwiseAbs().maxCoeff();
  for (const Storage storage : {Storage::bf16, Storage::int8}) {
    TokenDecoder decoder(cpu, model, {.storage = storage});
    CHECK(decoder.cache_bytes() == Gpt<AnyCausalAttention>::cache_bytes(c, frames(24), storage));
    Matrix<float> got;
    for (const int token : tokens)
      got = cpu.output(decoder.append({std::array{token}, Sequences{1}}, std::array{Index{0}}));
    const float error = (got - exact.row(19)).cwiseAbs().maxCoeff() / scale;
    CHECK(error > 0);
    CHECK(error < 0.02f);
  }
  cpu.prepare(model, Storage::int8);  // the embeddings, too, which are read by rows and as a product
  const Matrix<float> rounded = cpu.output(model(cpu, {tokens, Sequences{20}}));
  CHECK((rounded - exact).cwiseAbs().maxCoeff() / scale < 0.05f);
}

TEST_CASE("a position that the attention does not have is refused") {
  LanguageModelConfig c{.vocab_size = 5, .max_positions = 8, .d_model = 16, .num_layers = 1, .num_heads = 4};
  CHECK(message_of([&] { Gpt<Mha<4, Rotary<>>>(c, Seed(1)); }) ==
        "language model: position_embeddings_type learned given, rotary expected for this attention");
  c.position_embeddings_type = PositionEmbeddings::rotary;
  CHECK(message_of([&] { Gpt<Mha<4, NoPosition>>(c, Seed(1)); }) ==
        "language model: position_embeddings_type rotary given, learned expected for this attention");
}

TEST_CASE("mistakes with tokens are said") {
  const auto model = model_of<float>(config_of(Names::mha));
  Cpu cpu;
  const std::vector<int> tokens{1, 13, 2};
  CHECK(message_of([&] { model(cpu, {tokens, Sequences{3}}); }) == "embed: id 13 given, 0 to 12 expected");
  CHECK(message_of([&] {
          model(cpu, {some_tokens(25, 1), Sequences{25}});
        }) == "language model: sequence 0 of 25 tokens given, at most max_positions = 24 expected");
  CHECK(message_of([&] {
          model(cpu, {some_tokens(3, 1), Sequences{2}});
        }) == "language model: 3 tokens given, their sequences have 2");
  TokenDecoder decoder(cpu, model, {.slots = 2, .max_tokens = 4});
  CHECK(message_of([&] {
          decoder.append({some_tokens(5, 1), Sequences{5}}, std::array{Index{1}});
        }) == "token decoder: 5 tokens given for slot 1, which has room for 4");
  CHECK(message_of([&] {
          decoder.append({some_tokens(2, 1), Sequences{1, 1}}, std::array{Index{1}, Index{1}});
        }) == "token decoder: slot 1 is named twice");
  CHECK(message_of([&] {
          decoder.append({std::span(tokens).first(2), Sequences{2}}, std::array{Index{0}});
        }) == "token decoder: id 13 given, 0 to 12 expected");
  CHECK(decoder.count(0) == 0);
  CHECK(message_of([&] {
          decoder.append({some_tokens(1, 1), Sequences{1}}, std::array{Index{2}});
        }) == "token decoder: slot 2 given, 0 to 1 expected");
  LanguageModelConfig relative = config_of(Names::mha);
  relative.position_embeddings_type = PositionEmbeddings::relative;
  CHECK(message_of([&] { Gpt<AnyCausalAttention>(relative, Seed(1)); }) ==
        "language model: position_embeddings_type relative given, learned or rotary expected");
  const std::vector<int> targets{0, 13, 1};
  CHECK(message_of([&] {
          cpu.cross_entropy(model(cpu, {some_tokens(3, 1), Sequences{3}}), targets, {});
        }) == "cross_entropy: target 13 given, expected 0 .. 12, or -100, which is ignored");
  Gpt<AnyCausalAttention> broken = model;
  broken.wte.weight.host()(3, 0) = std::numeric_limits<float>::quiet_NaN();
  TokenDecoder broken_decoder(cpu, broken);
  const std::vector<int> three{3};
  CHECK(message_of([&] { beam_search(broken_decoder, three, {.beams = 1}); }) ==
        "beam search: logits that are NaN given, numbers expected");
  const std::vector<std::vector<int>> some{{1}, {}};
  CHECK(message_of([&] { generate(decoder, std::span(some)); }) ==
        "generate: prompt 1 is empty, at least one token expected");
  CHECK(message_of([&] { Sampler({}, 0); }) == "sampler: 0 tokens given, at least 1 expected");
  CHECK(message_of([&] { Sampler({.top_p = 0}, 5); }) == "sampling: top_p 0 given, more than 0 and at most 1 expected");
}
