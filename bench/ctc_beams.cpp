// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Times the prefix beam search over logits of CTC, with a language model of n-grams: laconic's side of
// bench/ctc_beams.py, which makes the files. It answers each line "run K" by K times of decoding all utterances, one
// after the other, on one thread, and by the texts. --block N pushes N frames at a time.
//   usage: ctc_beams --serve --logits FILE.safetensors [--model FILE.arpa] [--beam-width 100] [--prune-history]
#include <laconic/decode/ctc_beam_search.hpp>
#include <laconic/io/safetensors.hpp>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "serve.hpp"

using namespace laconic;

namespace {

struct Options : bench::Options {
  std::string logits, model;
  Index block = 0;
  CtcBeamConfig config;
};

int run(const Options& options) {
  const SafetensorsFile file(options.logits);
  const auto facts = bench::Json::parse(file.metadata().at("labels"));
  std::vector<Matrix<float>> utterances;
  for (const std::string& name : file.names()) {
    const TensorInfo& info = file.info(name);
    utterances.emplace_back(info.shape[0], info.shape[1]);
    file.read(name, std::span<float>(utterances.back().data(), static_cast<std::size_t>(utterances.back().size())));
  }
  std::shared_ptr<const NgramModel> model;
  const double loading = bench::seconds_of([&] {
    if (!options.model.empty()) model = std::make_shared<const NgramModel>(NgramModel::read(options.model));
  });
  CtcBeamSearch search({facts, Tokens::characters, 0}, options.config, model);
  std::vector<std::string> texts;
  const auto decode = [&] {
    texts.clear();
    for (const Matrix<float>& one : utterances) {
      const Index block = options.block > 0 ? options.block : one.rows();
      for (Index at = 0; at < one.rows(); at += block)
        search.push(one.middleRows(at, std::min(block, one.rows() - at)));
      texts.push_back(search.finish()[0].text);
    }
  };
  return bench::serve(options, [&](Index count) {
    std::vector<double> seconds;
    for (Index i = 0; i < count; ++i) seconds.push_back(bench::seconds_of(decode));
    return bench::Json{{"seconds", seconds},
                       {"texts", texts},
                       {"names", file.names()},
                       {"loading", loading},
                       {"version", LACONIC_ABI_NAME}};
  });
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("times the beam search for CTC");
  options.add_to(app);
  app.add_option("--logits", options.logits, "tensors (frames, classes); class 0 is the blank")->required();
  app.add_option("--model", options.model, "ARPA file");
  app.add_option("--block", options.block, "frames of a push; 0: all");
  app.add_option("--beam-width", options.config.beam_width, "prefixes")->capture_default_str();
  app.add_option("--beam-prune-logp", options.config.beam_prune_logp, "in nats")->capture_default_str();
  app.add_option("--token-min-logp", options.config.token_min_logp, "in nats")->capture_default_str();
  app.add_flag("--prune-history", options.config.prune_history, "keep the best prefix of each history");
  CLI11_PARSE(app, argc, argv);
  return bench::guarded([&] { return run(options); });
}
