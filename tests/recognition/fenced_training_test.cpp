// laconic: attention for speech models. SPDX-License-Identifier: MIT
// A whole training run, distillation, evaluation and streams of a corpus behind the fence: with the bits of the context
// that is behind it.
#include <laconic/model/conformer.hpp>
#include <laconic/recognition/evaluate_streamed.hpp>
#include <laconic/recognition/trainer.hpp>

#include "backends.hpp"
#include "ridge_speech.hpp"
#include "temporary_folder.hpp"

using namespace laconic;

namespace {

using Model = Conformer<MlaSimple<2, 6>>;
Model small_model(std::uint64_t seed) {
  return Model({.num_mels = mels,
                .d_model = 16,
                .num_layers = 2,
                .vocab_size = 5,
                .ffn_expansion = 2,
                .conv_kernel = 5,
                .subsampling = 2,
                .subsampling_channels = 4,
                .dropout = 0.1,
                .convolution = ConvolutionContext::chunk,
                .chunk = 4,
                .left_context = 8},
               Seed(seed));
}

TrainConfig small_config() {
  TrainConfig config;
  config.epochs = 2;
  config.batch_frames = 250;
  config.accumulate = 2;
  config.learning_rate = 5e-3;
  config.dynamic_chunks = true;
  config.spec_augment = {
      .num_time_masks = 1, .max_time_width = 3, .max_time_fraction = 0.1, .num_freq_masks = 1, .max_freq_width = 1};
  config.distillation = {.weight = 0.3, .temperature = 2, .layer_weight = 0.1};
  config.seed = 7;
  return config;
}

struct Run {
  std::vector<Matrix<float>> values;
  std::string losses;
  std::vector<std::string> heard, heard_live;
  std::vector<double> example_losses;
};

/// Trains with a stop in between, then evaluates what came out.
template <class Backend>
Run run(const std::filesystem::path& folder) {
  const Dataset train = corpus(30, Seed(1)), valid = corpus(10, Seed(2));
  const Vocabulary vocabulary = Vocabulary::words(words);
  Backend backend(1);
  Model teacher = small_model(8);
  const auto taught_by = teacher_of(teacher, std::type_identity<Backend>());
  backend.prepare(teacher);
  Model model = small_model(3);
  Index better = 0;
  const auto count = [&] {
    ++better;
    REQUIRE(model.lm_head.weight.host().allFinite());  // it can be saved whenever it is the best so far
  };
  {
    Trainer trainer(model, backend, train, valid, vocabulary, small_config(), folder, taught_by);
    trainer.run([](const TrainProgress&) {}, count, [](const TrainState& state) { return state.step == 3; }, 2);
  }
  Model resumed = small_model(3);
  Trainer trainer(resumed, backend, train, valid, vocabulary, small_config(), folder, taught_by);
  trainer.run([](const TrainProgress&) {});
  Run out;
  resumed.parameters([&](std::string_view, const Parameter<float>& p) { out.values.push_back(p.host()); });
  out.losses = read_file(trainer.losses_path(), 1 << 20);
  backend.prepare(resumed);
  const Evaluation heard = evaluate(resumed, backend, valid, vocabulary);
  out.heard = heard.hypotheses;
  out.example_losses = heard.losses;
  out.heard_live =
      evaluate_streamed<Model, Backend>(resumed, valid, vocabulary, {.capacity = 3, .threads = 1}, 7).hypotheses;
  return out;
}

}  // namespace

TEST_CASE("a training run, its evaluation and its streams behind the fence have the same bits", "[fenced][trainer]") {
  TemporaryFolder folder;
  const Run expected = run<Cpu<float>>(folder / "plain"), got = run<Fenced<Cpu<float>>>(folder / "fenced");
  REQUIRE(got.values.size() == expected.values.size());
  for (std::size_t i = 0; i < got.values.size(); ++i) CHECK(got.values[i] == expected.values[i]);
  CHECK(got.losses == expected.losses);
  CHECK(got.heard == expected.heard);
  CHECK(got.heard_live == expected.heard_live);
  CHECK(got.example_losses == expected.example_losses);
}
