// laconic: attention for speech models. SPDX-License-Identifier: MIT
// What a model wrote, against what was said; in portions as at once.
#include "golden.hpp"
#include "message_of.hpp"
#include "ridge_speech.hpp"
#include "temporary_folder.hpp"
#include "thread_processes.hpp"

#include <laconic/attention/any.hpp>
#include <laconic/io/hugging_face.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/wav2vec2_conformer.hpp>
#include <laconic/recognition/evaluate.hpp>
#include <laconic/recognition/recognizer/hugging_face.hpp>

#include <set>

using namespace laconic;

namespace {

/// Hears in each frame the token that its features name.
struct Parrot {
  auto operator()(Cpu<float>& cpu, const Matrix<float>& features, const Sequences& sequences) const {
    auto rows = cpu.input(features);
    return Logits<decltype(rows)>{rows, sequences};
  }
};

/// A model that says `heard` where `text` was said.
Evaluation say(const Vocabulary& vocabulary, const std::vector<std::pair<std::string, std::string>>& text_and_heard) {
  Dataset data;
  for (const auto& [text, heard] : text_and_heard) {
    const auto tokens = vocabulary.encode(heard);
    Example e;
    e.text = text;
    e.features = Matrix<float>::Zero(2 * static_cast<Index>(tokens.size()), vocabulary.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      e.features(2 * static_cast<Index>(i), tokens[i]) = 1;
      e.features(2 * static_cast<Index>(i) + 1, 0) = 1;  // a blank between
    }
    data.examples.push_back(std::move(e));
  }
  Cpu<float> cpu(1);
  return evaluate(Parrot(), cpu, data, vocabulary);
}

/// Each portion alone and added up, as a program does that was stopped after each.
template <class Model>
Evaluation in_portions(const Model& model, const Dataset& data, const Vocabulary& vocabulary, std::size_t size) {
  Evaluation out;
  for (std::size_t begin = 0; begin < data.examples.size(); begin += size) {
    Dataset portion;
    for (std::size_t i = begin; i < std::min(begin + size, data.examples.size()); ++i)
      portion.examples.push_back(data.examples[i]);
    Cpu<float> cpu(1);
    out += evaluate(model, cpu, portion, vocabulary);
    out = json_value<Evaluation>(parse_json(to_json(out).dump(), "partial"), "partial");
  }
  return out;
}

template <class Model>
void check_portions(const Model& model, const Dataset& data, const Vocabulary& vocabulary) {
  Cpu<float> cpu(1);
  const Evaluation whole = evaluate(model, cpu, data, vocabulary, 100);
  CHECK(whole.losses.size() == data.examples.size());
  CHECK(whole.loss() > 0);
  REQUIRE(std::set<std::string>(whole.hypotheses.begin(), whole.hypotheses.end()).size() >
          1);                         // there is something to compare
  for (const int threads : {2, 3}) {  // which take batches of their own
    REQUIRE(static_cast<int>(length_buckets(data, 60 / threads, std::nullopt).size()) >= 2 * threads);
    Cpu<float> several(threads);
    const Evaluation dealt = evaluate(model, several, data, vocabulary, 60);
    CHECK(dealt.hypotheses == whole.hypotheses);
    CHECK(dealt.errors == whole.errors);
    CHECK(dealt.losses == whole.losses);
    CHECK(dealt.compute_seconds > 0);
  }
  for (const auto& [processes, threads] : {std::pair{2, 1}, {3, 2}, {40, 1}}) {  // some of 40 have nothing to do
    std::vector<Evaluation> all(static_cast<std::size_t>(processes));
    const auto errors = in_processes(processes, [&, threads = threads](ThreadProcess& process) {
      Cpu<float> own(process.rank() == 0 ? threads : 1);  // machines differ
      all[static_cast<std::size_t>(process.rank())] =
          evaluate(model, own, data, vocabulary, 60, AnyCommunicator(process));
    });
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
      CHECK(errors[rank].empty());
      CHECK(all[rank].hypotheses == whole.hypotheses);
      CHECK(all[rank].errors == whole.errors);
      CHECK(all[rank].losses == whole.losses);
    }
  }
  for (const std::size_t size : {std::size_t{1}, std::size_t{3}, std::size_t{100}}) {
    const Evaluation parts = in_portions(model, data, vocabulary, size);
    CHECK(parts.hypotheses == whole.hypotheses);
    CHECK(parts.errors == whole.errors);
    CHECK(parts.losses == whole.losses);
    CHECK(parts.loss() == Approx(whole.loss()).epsilon(1e-12));
    CHECK(parts.audio_seconds == Approx(whole.audio_seconds).epsilon(1e-12));
    CHECK(parts.compute_seconds > 0);
  }
}

}  // namespace

TEST_CASE("texts are compared as the vocabulary writes them", "[evaluate]") {
  const auto letters = [](std::string_view first_to_last) {
    nlohmann::json json{{"<pad>", 0}, {"<s>", 1}, {"</s>", 2}, {"<unk>", 3}, {"|", 4}, {"'", 5}};
    for (char c = first_to_last[0]; c <= first_to_last[1]; ++c) json[std::string(1, c)] = json.size();
    return Vocabulary::from_json(Tokens::characters, json);
  };
  for (const std::string_view range : {"AZ", "az"}) {  // LibriSpeech's texts are capitals
    const Evaluation e = say(letters(range), {{"IT'S  A DAY", "it's a day"}, {"He said so", "HE SAD SO"}, {"", "a"}});
    CHECK(e.errors[0] == WordErrors{.reference_words = 3});
    CHECK(e.errors[1] == WordErrors{.substitutions = 1, .reference_words = 3});
    CHECK(e.errors[2] == WordErrors{.insertions = 1});
    CHECK(e.hypotheses[0] == (range == "AZ" ? "IT'S A DAY" : "it's a day"));
  }
  // What the vocabulary cannot write it cannot hear: errors, no failure.
  const Evaluation e = say(letters("AZ"), {{"caf\u00e9 no. 7 | it\u2019s", "cafe no it's"}, {"\xff so", "so"}});
  CHECK(e.errors[0] == WordErrors{.substitutions = 3, .deletions = 2, .reference_words = 5});
  CHECK(e.errors[1] == WordErrors{.deletions = 1, .reference_words = 2});
  CHECK(e.wer() == Approx(6.0 / 7));
}

TEST_CASE("texts of Hugging Face's vocabularies are those of transformers", "[evaluate][hugging_face]") {
  const auto cases = read_json(std::filesystem::path(LACONIC_GOLDEN_DIR) / "hugging_face_tokens.json");
  REQUIRE(cases.size() == 17);
  for (const auto& one : cases) {
    INFO(one["name"]);
    const TemporaryFolder folder;
    for (const auto& [name, json] : one["files"].items()) write_json(folder / name, json);
    const auto frames = one["frames"].get<std::vector<Index>>();
    for (const nlohmann::json& config :
         {nlohmann::json{{"pad_token_id", one["pad_token_id"]}}, nlohmann::json{{"pad_token_id", nullptr}}}) {
      const Vocabulary v = detail::HuggingFaceTokens(folder.path).vocabulary(config, "config.json", one["classes"]);
      CHECK(v.size() == one["classes"]);
      CHECK(v.blank() == one["pad_token_id"]);
      std::vector<int> labels;
      GreedyCtc(v.blank(), v.labels())(frames, labels);
      CHECK(v.decode(labels) == one["text"]);
      // As a model folder of laconic has it.
      TokenizerConfig tokenizer;
      tokenizer.read(v.tokenizer().to_json(), "t");
      CHECK(Vocabulary::from_json(v.kind(), v.to_json(), "v", &tokenizer, v.size()) == v);
    }
  }
}

TEST_CASE("the files of a folder of Hugging Face that say of features and tokens", "[evaluate][hugging_face]") {
  const TemporaryFolder folder;
  const auto features = [&] { return detail::hugging_face_features(folder.path); };
  CHECK(features().normalization == Normalization::utterance);
  write_json(folder / "preprocessor_config.json", {{"do_normalize", false}, {"sampling_rate", 8000}});
  CHECK(features().normalization == Normalization::none);
  CHECK(features().fbank.sample_rate == 8000);
  const auto path = folder / "processor_config.json";
  write_json(path, {{"processor_class", "Wav2Vec2Processor"}});  // of transformers 4
  CHECK(features().normalization == Normalization::none);
  write_json(path, {{"feature_extractor", {{"do_normalize", true}, {"return_attention_mask", nullptr}}}});
  CHECK(features().normalization == Normalization::utterance);
  CHECK(features().fbank.sample_rate == 16000);
  write_json(path, {{"feature_extractor", {{"feature_extractor_type", "SeamlessM4TFeatureExtractor"}}}});
  CHECK(message_of(features) == path.string() +
                                    ": 'feature_extractor_type' is 'SeamlessM4TFeatureExtractor', "
                                    "'Wav2Vec2FeatureExtractor' expected");

  write_json(path, {{"feature_extractor", nullptr}});
  CHECK(message_of(features) == path.string() + ": 'feature_extractor' is null, an object expected");
  write_json(path, {{"feature_extractor", {{"sampling_rate", nullptr}}}});
  CHECK(message_of(features).starts_with(path.string() + ": 'sampling_rate' is null, an integer from "));
  std::filesystem::remove(path);
  std::filesystem::create_symlink("nothing", path);  // as where the cache of the Hub was emptied
  CHECK(message_of(features) == path.string() + ": cannot open: No such file or directory");

  const auto vocabulary = [&](const nlohmann::json& config, Index classes) {
    return detail::HuggingFaceTokens(folder.path).vocabulary(config, "config.json", classes);
  };
  CHECK(message_of([&] { vocabulary({}, 4); }).starts_with(folder.path.string() + ": no vocab.json: expected"));
  const nlohmann::json fast{{"model", {{"vocab", {{"<p>", 0}, {"a", 1}, {"-", 2}}}}},
                            {"added_tokens", {{{"id", 3}, {"content", "<x>"}}}},
                            {"decoder", {{"type", "CTC"}, {"pad_token", "<p>"}, {"word_delimiter_token", "-"}}}};
  write_json(folder / "tokenizer.json", fast);
  CHECK(vocabulary({{"pad_token_id", nullptr}}, 4).decode(std::vector{0, 1, 2, 1, 3}) == "a a<x>");
  auto other = fast;
  using nlohmann::json;
  other["model"]["vocab"] = json::array({json::array({"<p>", -1.5}), json::array({"a", -2})});  // Unigram
  write_json(folder / "tokenizer.json", other);
  CHECK(vocabulary({{"pad_token_id", 0}}, 2).token(1) == "a");
  other["decoder"] = {{"type", "Metaspace"}};
  write_json(folder / "tokenizer.json", other);
  CHECK(message_of([&] { vocabulary({}, 4); }) ==
        (folder / "tokenizer.json").string() + ": 'decoder.type' is 'Metaspace', CTC expected");
  other["decoder"] = {{"type", "Sequence"}, {"decoders", {{{"type", "CTC"}}, {{"type", "Replace"}}}}};
  write_json(folder / "tokenizer.json", other);
  CHECK(message_of([&] { vocabulary({}, 4); }) ==
        (folder / "tokenizer.json").string() + ": 'decoder.type' is 'CTC, Replace', CTC expected");
  other["decoder"] = nullptr;
  write_json(folder / "tokenizer.json", other);
  CHECK(message_of([&] { vocabulary({}, 4); }) ==
        (folder / "tokenizer.json").string() + ": no 'decoder', one of type CTC expected");
  write_json(folder / "vocab.json", {{"a", 0}, {"b", 1}});
  write_json(folder / "tokenizer_config.json", {{"pad_token", "b"}});
  CHECK(vocabulary({{"pad_token_id", 1}}, 2).blank() == 1);
  CHECK(message_of([&] {
          vocabulary({{"pad_token_id", 0}}, 2);
        }) ==
        "config.json: 'pad_token_id' is 0, and the pad token of the tokenizer, 'b', has index 1; the same expected: it "
        "is the CTC blank");
  std::filesystem::remove(folder / "tokenizer_config.json");
  CHECK(vocabulary({{"pad_token_id", 2}}, 3).token(2) == "<pad>");  // a class without a token is the blank
  CHECK(vocabulary(nlohmann::json::object(), 2).blank() == 0);
  CHECK(message_of([&] {
          vocabulary({{"pad_token_id", 3}}, 3);
        }) == "config.json: 'pad_token_id' is 3, one of the classes 0 to 2 expected: it is the CTC blank");
}

TEST_CASE("an evaluation in portions is that of all at once", "[evaluate]") {
  const EncoderConfig config{.num_mels = mels,
                             .d_model = 16,
                             .num_layers = 2,
                             .vocab_size = 5,
                             .num_heads = 2,
                             .conv_kernel = 5,
                             .subsampling_channels = 4};
  Dataset data = corpus(17, Seed(2));
  data.examples[4].features.resize(0, mels);  // nothing was said
  data.examples[5].labels.clear();
  const Vocabulary vocabulary = Vocabulary::words(words);
  const Conformer<MlaSimple<2, 4>> model(config, Seed(1));
  check_portions(model, data, vocabulary);
}

TEST_CASE("an evaluation of samples in portions is that of all at once", "[evaluate]") {
  const SafetensorsFile file = golden_file("wav2vec2_conformer.safetensors");
  const std::string name = GENERATE("case0", "case1");
  const EncoderConfig config = wav2vec2_conformer_config(parse_json(file.metadata().at(name + ".config"), name), name);
  Wav2Vec2Conformer<AnyAttention> model(config, Seed());
  load_parameters(model, file, name + ".param.");
  const Vocabulary vocabulary = Vocabulary::characters(std::vector<std::string>{"abcde f"});
  REQUIRE(vocabulary.size() == config.vocab_size);
  Dataset data;
  for (Index i = 0; i < 7; ++i) {
    Example e;
    e.features = random_matrix<float>(300 + 70 * (i % 3) + i, 1, static_cast<std::uint64_t>(i));
    e.text = "a bad cafe";
    e.labels = vocabulary.encode(i % 2 == 0 ? "ab" : "c");
    e.seconds = 0.01;
    data.examples.push_back(std::move(e));
  }
  check_portions(model, data, vocabulary);
}
