// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/random.hpp>
#include <laconic/decode/sampler.hpp>
#include <laconic/decode/token_decoder.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how sequences are continued.
struct GenerationConfig {
  Index max_new_tokens = 100;        ///< tokens after the prompt; a slot without room ends a sequence sooner
  std::optional<int> end_token{};    ///< ends a sequence, and is its last token
  SamplingConfig sampling{0, 0, 1};  ///< how each token is drawn; greedy by default
  Seed seed{};                       ///< the source of all draws
};

/// Continues prompts by greedy decoding or sampling, as many at a time as the decoder has slots. Returns the new tokens
/// of each. What a sequence draws depends on the seed and on its number only, not on the others. A warm decoder takes
/// no memory for a token; the results are allocated. Throws Error for an empty prompt, and for one that has no room.
template <TokenPredictor Decoder>
std::vector<std::vector<int>> generate(Decoder& decoder, std::span<const std::vector<int>> prompts,
                                       const GenerationConfig& config = {}) {
  using T = typename Decoder::Context::Scalar;
  require(config.max_new_tokens >= 0, "generate: max_new_tokens ", config.max_new_tokens,
          " given, at least 0 expected");
  for (std::size_t n = 0; n < prompts.size(); ++n)
    require(!prompts[n].empty(), "generate: prompt ", n, " is empty, at least one token expected");
  const auto vocab = static_cast<std::size_t>(decoder.vocab_size()), slots = static_cast<std::size_t>(decoder.slots());
  Sampler sample(config.sampling, decoder.vocab_size());
  std::vector<std::vector<int>> out(prompts.size());
  std::vector<T> logits(slots * vocab);
  std::vector<Index> live, free;
  std::vector<std::size_t> sequence_of(slots);
  std::vector<int> ids;
  live.reserve(slots);
  ids.reserve(slots);
  for (std::size_t s = slots; s-- > 0;) free.push_back(static_cast<Index>(s));

  // Takes the next token of each of these slots from the logits. goes_on(slot) is called for those that do.
  const auto take = [&](std::span<const Index> slots_of_rows, const auto& tensor, auto&& goes_on) {
    const std::span<T> values(logits.data(), slots_of_rows.size() * vocab);
    decoder.context().read(tensor, values);
    for (std::size_t r = 0; r < slots_of_rows.size(); ++r) {
      const Index slot = slots_of_rows[r];
      const std::size_t n = sequence_of[static_cast<std::size_t>(slot)];
      const Random random(config.seed / static_cast<Index>(n), "generate");
      const int token = sample(std::span<const T>(values.subspan(r * vocab, vocab)), random.uniform(out[n].size()));
      out[n].push_back(token);
      const bool ends = token == config.end_token || static_cast<Index>(out[n].size()) >= config.max_new_tokens ||
                        decoder.room(slot) == 0;
      if (ends)
        free.push_back(slot);
      else
        goes_on(slot);
    }
  };

  std::size_t next = 0;
  while (next < prompts.size() || !live.empty()) {
    for (; next < prompts.size() && !free.empty(); ++next) {
      if (config.max_new_tokens == 0) continue;
      const std::array<Index, 1> slot{free.back()};
      free.pop_back();
      sequence_of[static_cast<std::size_t>(slot[0])] = next;
      decoder.begin(slot[0], static_cast<Index>(next));
      const auto tensor = decoder.append({prompts[next], Sequences{static_cast<Index>(prompts[next].size())}}, slot);
      out[next].reserve(static_cast<std::size_t>(std::min(config.max_new_tokens, decoder.room(slot[0]) + 1)));
      take(slot, tensor, [&](Index s) { live.push_back(s); });
    }
    if (live.empty()) continue;
    ids.clear();
    for (const Index slot : live) ids.push_back(out[sequence_of[static_cast<std::size_t>(slot)]].back());
    const Sequences ones =
        Sequences::make(decoder.context().arena(), static_cast<Index>(live.size()), [](Index) { return 1; });
    const auto tensor = decoder.append({ids, ones}, live);
    std::size_t kept = 0;
    take(live, tensor, [&](Index s) { live[kept++] = s; });
    live.resize(kept);
  }
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
