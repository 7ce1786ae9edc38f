// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Speech that comes in pieces: features, decoding and evaluation are those of the whole; and training with chunks of
// many sizes.
#include <laconic/attention/any.hpp>
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/e_branchformer.hpp>
#include <laconic/recognition/evaluate_streamed.hpp>
#include <laconic/recognition/feature_stream.hpp>
#include <laconic/recognition/recognizer/beam.hpp>
#include <laconic/recognition/trainer.hpp>

#include "gradient_check.hpp"
#include "ridge_speech.hpp"
#include "temporary_folder.hpp"

#include <memory>
#include <set>

using namespace laconic;

namespace {

const EncoderConfig small{.num_mels = mels,
                          .d_model = 16,
                          .num_layers = 2,
                          .vocab_size = 5,
                          .ffn_expansion = 2,
                          .conv_kernel = 5,
                          .cgmlp_expansion = 2,
                          .subsampling = 2,
                          .subsampling_channels = 4,
                          .convolution = ConvolutionContext::chunk,
                          .chunk = 4,
                          .left_context = 6};

std::vector<float> noise(Index samples, std::uint64_t seed) {
  const Random random(Seed(seed), "noise");
  std::vector<float> out;
  for (Index i = 0; i < samples; ++i)
    out.push_back(static_cast<float>(0.2 * random.normal(static_cast<std::uint64_t>(i))));
  return out;
}

TrainConfig dynamic_config() {
  TrainConfig config;
  config.epochs = 2;
  config.batch_frames = 250;
  config.learning_rate = 5e-3;
  config.spec_augment = {
      .num_time_masks = 1, .max_time_width = 3, .max_time_fraction = 0.1, .num_freq_masks = 1, .max_freq_width = 1};
  config.dynamic_chunks = true;
  config.seed = 7;
  return config;
}

const auto silent = [](const TrainProgress&) {};

template <class Model>
void check_evaluation() {
  const Vocabulary vocabulary = Vocabulary::words(words);
  Cpu<float> cpu(1);
  Model model(small, Seed(1));
  Dataset data = corpus(17, Seed(2));
  TrainConfig config = dynamic_config();
  config.epochs = 25;
  Trainer(model, cpu, corpus(40, Seed(1)), data, vocabulary, config).run(silent);
  data.examples[4].features.resize(0, mels);  // nothing was said
  data.examples[9].features = Matrix<float>(data.examples[9].features.topRows(5));
  const Evaluation whole = evaluate(model, cpu, data, vocabulary);
  std::set<std::string> different(whole.hypotheses.begin(), whole.hypotheses.end());
  REQUIRE(different.size() > 8);  // there is something to compare
  const auto beams = detail::text_decoders(
      vocabulary, std::make_shared<const BeamDecoding>(BeamDecoding{
                      {.beam_width = 20, .beam_prune_logp = -40, .token_min_logp = -20, .hotword_weight = 8},
                      nullptr,
                      {words[1]}}));
  const Evaluation by_beams = evaluate(model, cpu, data, vocabulary, evaluation_frames, {}, beams);
  REQUIRE(by_beams.hypotheses != whole.hypotheses);  // hotwords make others likelier
  for (const Index capacity : {1, 5, 40})
    for (const Index block : {1, 7, 1000}) {
      INFO(capacity << " streams, blocks of " << block);
      const StreamedEvaluation streamed =
          evaluate_streamed(model, data, vocabulary, {.capacity = capacity, .threads = 1}, block);
      CHECK(streamed.hypotheses == whole.hypotheses);
      CHECK(streamed.wer() == whole.wer());
      const StreamedEvaluation streamed_beams =
          evaluate_streamed(model, data, vocabulary, {.capacity = capacity, .threads = 1}, block, beams);
      CHECK(streamed_beams.hypotheses == by_beams.hypotheses);
      CHECK(streamed_beams.wer() == by_beams.wer());
      CHECK(streamed.audio_seconds == whole.audio_seconds);
      CHECK((streamed.streams == capacity && streamed.chunk == 4 && streamed.left_context == 6));
      CHECK(streamed.attention_bytes == Model::cache_bytes(model.config(), frames(6)));
      CHECK(streamed.feature_bytes == 4 * mels * (7 + 3 * 2));
      CHECK(streamed.convolution_bytes > 0);
      CHECK(std::is_sorted(streamed.push_seconds.begin(), streamed.push_seconds.end()));
      CHECK(streamed.push_quantile(0) == streamed.push_seconds.front());
      CHECK(streamed.push_quantile(1) == streamed.push_seconds.back());
      CHECK(streamed.compute_seconds > 0);
    }
  CHECK_THROWS_WITH(evaluate_streamed(model, data, vocabulary, {}, 0),
                    "evaluate_streamed: blocks of 0 frames given, at least 1 expected");
  CHECK(StreamedEvaluation().push_quantile(0.5) == 0);
}

using Model = Conformer<Mha<2>>;

std::vector<Matrix<float>> values(const Model& model) {
  std::vector<Matrix<float>> out;
  model.parameters([&](std::string_view, const auto& p) { out.push_back(p.host()); });
  return out;
}

}  // namespace

TEST_CASE("features of pieces are those of the whole", "[stream]") {
  const FbankConfig configs[] = {
      {},
      {.sample_rate = 8000, .num_mels = 20},
      {.num_mels = 10, .frame_length_ms = 10, .frame_shift_ms = 10},
      {.num_mels = 10, .frame_length_ms = 10, .frame_shift_ms = 35}};  // with gaps between the frames
  for (const FbankConfig& fbank : configs) {
    FeatureConfig config{
        .kind = FeatureKind::fbank, .fbank = fbank, .normalization = Normalization::global, .statistics = {}};
    for (int m = 0; m < fbank.num_mels; ++m) {
      config.statistics.mean.push_back(static_cast<float>(m));
      config.statistics.inverse_std.push_back(1 / static_cast<float>(m + 1));
    }
    for (std::uint64_t n = 0; n < 12; ++n) {
      const Random random(Seed(n), "pieces");
      const std::vector<float> samples = noise(random.below(9000, 0), n);
      const Matrix<float> whole = FeatureExtractor(config)(samples);
      FeatureStream stream(config);
      Index rows = 0;
      const Index most = n % 3 == 0 ? 50 : n % 3 == 1 ? 700 : 6000;
      for (std::size_t at = 0, i = 1; at < samples.size(); ++i) {
        const std::size_t piece = std::min(samples.size() - at, static_cast<std::size_t>(random.below(most, i)));
        const Matrix<float> now = stream.push(std::span(samples).subspan(at, piece));
        REQUIRE(now.cols() == fbank.num_mels);
        at += piece;
        REQUIRE(now == whole.middleRows(rows, now.rows()));
        rows += now.rows();
        REQUIRE(rows == Fbank(fbank).num_frames(static_cast<Index>(at)));  // as soon as they are complete
      }
      CHECK(rows == whole.rows());
    }
  }
  CHECK_THROWS_WITH(FeatureStream(FeatureConfig{}),
                    "a stream cannot know the mean of an utterance that it has not heard: a model with global "
                    "normalization expected");
}

TEST_CASE("labels of pieces are those of the whole", "[stream][decode]") {
  for (const int blank : {0, 3})
    for (std::uint64_t n = 0; n < 20; ++n) {
      const Random random(Seed(n), "pieces");
      // Few classes and slow changes, so that runs go on from piece to piece.
      Matrix<float> logits = random_matrix<float>(random.below(60, 0), 4, n);
      for (Index t = 1; t < logits.rows(); ++t) logits.row(t) += logits.row(t - 1);
      GreedyCtc decoder(blank);
      std::vector<int> labels;
      for (Index at = 0, i = 1; at < logits.rows(); ++i) {
        const Index piece = std::min(logits.rows() - at, random.below(6, static_cast<std::uint64_t>(i)));
        decoder(matrix_view<const float>(logits.data() + at * 4, piece, 4), labels);
        at += piece;
      }
      CHECK(labels == greedy_ctc(view(std::as_const(logits)), blank));
    }
  // Classes of one label are one: 2 and 3 go on where the other ends.
  std::vector<int> labels;
  GreedyCtc(0, std::array{0, 1, 3, 3})(std::array<Index, 7>{2, 3, 3, 0, 2, 1, 3}, labels);
  CHECK(labels == std::vector{3, 3, 1, 3});
  GreedyCtc decoder;
  const Matrix<float> nan = Matrix<float>::Constant(1, 4, std::nanf(""));
  CHECK_THROWS_WITH(decoder(view(nan), labels), "greedy_ctc: frame 0, class 0 is NaN");
}

TEST_CASE("streams write what the whole pass writes", "[stream]") {
  check_evaluation<Conformer<Mha<2>>>();
  check_evaluation<Branchformer<Gqa<4, 2, Rotary<>>>>();
  check_evaluation<EBranchformer<Mqa<4, NoPosition>>>();
}

TEST_CASE("masks for training are chunks of all sizes, or none", "[stream][trainer]") {
  for (const bool limit_left : {false, true}) {
    Index whole = 0, limited = 0;
    std::set<Index> chunks, lefts;
    for (std::uint64_t n = 0; n < 4000; ++n) {
      const Random random(Seed(3), n);
      const Mask mask = dynamic_chunk_mask(200, limit_left, random),
                 again = dynamic_chunk_mask(200, limit_left, random);
      CHECK((mask.chunk == again.chunk && mask.left_context == again.left_context));
      REQUIRE(mask.is_valid());
      if (mask.chunk == Mask::unlimited) {
        ++whole;
        continue;
      }
      chunks.insert(mask.chunk);
      if (mask.left_context == Mask::unlimited) continue;
      ++limited;
      REQUIRE((mask.left_context % mask.chunk == 0 && mask.left_context < 200));
      lefts.insert(mask.left_context / mask.chunk);
    }
    CHECK(whole == Approx(2000).margin(130));  // four standard deviations
    CHECK((chunks.size() == 25 && *chunks.begin() == 1 && *chunks.rbegin() == 25));
    CHECK((limit_left ? limited == Approx((4000 - whole) / 2).margin(100) : limited == 0));
    if (limit_left) CHECK((*lefts.begin() == 0 && *lefts.rbegin() > 20));
  }
  for (Index longest = 0; longest < 80; ++longest)
    for (std::uint64_t n = 0; n < 50; ++n) {
      const Mask mask = dynamic_chunk_mask(longest, true, Random(Seed(4), n));
      REQUIRE(mask.is_valid());
      if (longest < 2) CHECK(mask.chunk == Mask::unlimited);
    }
}

TEST_CASE("training with chunks of many sizes, stopped and resumed", "[stream][trainer]") {
  const Dataset train = corpus(40, Seed(1)), valid = corpus(12, Seed(2));
  const Vocabulary vocabulary = Vocabulary::words(words);
  const TrainConfig config = dynamic_config();
  Cpu<float> cpu(1), two(2);
  TemporaryFolder folder;
  const auto run = [&](const TrainConfig& with, Cpu<float>& on, const std::filesystem::path& to = {}) {
    Model model(small, Seed(3));
    Trainer(model, on, train, valid, vocabulary, with, to).run(silent);
    return values(model);
  };
  const auto whole = run(config, cpu);
  CHECK(run(config, cpu) == whole);
  CHECK(run(config, two) == whole);
  TrainConfig other = config;
  other.dynamic_chunks = false;
  CHECK(run(other, cpu) != whole);
  other = config;
  other.seed = 8;
  CHECK(run(other, cpu) != whole);

  // After every single update, and in the middle of an epoch.
  for (const std::int64_t every : {1, 3}) {
    for (int part = 0;; ++part) {
      REQUIRE(part < 100);
      Model model(small, Seed(3));
      Trainer trainer(model, cpu, train, valid, vocabulary, config, folder / text(every));
      if (trainer.finished()) break;
      trainer.run(
          silent, [] {}, [&](const TrainState& s) { return s.step % every == 0; });
    }
    CHECK(run(config, cpu, folder / text(every)) == whole);
  }
  CHECK_THROWS_WITH(run(other, cpu, folder / "1"), Catch::Matchers::ContainsSubstring("other settings"));

  EncoderConfig centred = small;
  centred.convolution = ConvolutionContext::centred;
  centred.chunk = 0;
  centred.left_context = -1;
  Model model(centred, Seed(3));
  CHECK_THROWS_WITH(Trainer(model, cpu, train, valid, vocabulary, config).run(silent),
                    "conformer: a centred convolution cannot be streamed; causal or chunk expected");
}

TEST_CASE("a model trained with chunks of many sizes learns every latency", "[stream][trainer]") {
  const Dataset train = corpus(60, Seed(1)), valid = corpus(12, Seed(2));
  const Vocabulary vocabulary = Vocabulary::words(words);
  TrainConfig config = dynamic_config();
  config.epochs = 30;
  Cpu<float> cpu(1);
  Model model(small, Seed(3));
  Trainer(model, cpu, train, valid, vocabulary, config).run(silent);
  for (const Index chunk : {1, 4, 16}) {
    INFO("chunk " << chunk);
    CHECK(evaluate_streamed(model, valid, vocabulary, {.capacity = 4, .chunk = chunk, .left_context = 16, .threads = 1},
                            5)
              .wer() < 0.5);
  }
}

TEST_CASE("features that stay in files train, go on and stream like those in memory", "[stream][trainer]") {
  const TemporaryFolder folder;
  std::vector<Utterance> utterances;
  for (Index u = 0; u < 8; ++u) {
    const auto path = folder / text(u, ".wav");
    write_wav(path, {noise(3000 + 500 * u, static_cast<std::uint64_t>(u)), 8000});
    utterances.push_back({path, 0, u % 2 == 0 ? "ba da" : "ga", ""});
  }
  const Vocabulary vocabulary = Vocabulary::words(words);
  FeatureConfig config;
  config.normalization = Normalization::global;
  config.fbank.sample_rate = 8000;
  config.fbank.num_mels = static_cast<int>(mels);
  fit_normalization(utterances, config, 1);
  const Dataset kept = load_dataset(utterances, config, &vocabulary, 1),
                files = load_dataset(utterances, config, &vocabulary, 1, 0);
  Cpu<float> cpu(1);
  TrainConfig training = dynamic_config();
  training.batch_frames = 100;
  const auto trained = [&](const Dataset& data, const std::filesystem::path& run) {
    Model model(small, Seed(1));
    Trainer trainer(model, cpu, data, data, vocabulary, training, run);
    trainer.run(silent);
    return model;
  };
  const Model model = trained(kept, folder / "kept");
  CHECK(values(trained(files, folder / "files")) == values(model));
  CHECK(values(trained(files, folder / "kept")) == values(model));  // the same data, so it is the same run

  const auto expected = evaluate_streamed(model, kept, vocabulary, {.capacity = 3, .threads = 1}, 9),
             got = evaluate_streamed(model, files, vocabulary, {.capacity = 3, .threads = 1}, 9);
  CHECK(got.hypotheses == expected.hypotheses);
  CHECK(evaluate(model, cpu, files, vocabulary).losses == evaluate(model, cpu, kept, vocabulary).losses);
}
