// laconic: attention for speech models. SPDX-License-Identifier: MIT
// A folder as Hugging Face publishes it, through the program: heard, converted, and written back.
#include <laconic/io/hugging_face.hpp>
#include <laconic/speech/corpus.hpp>

#include <sndfile.h>

#include "golden.hpp"
#include "temporary_folder.hpp"

using namespace laconic;

namespace {

const SafetensorsFile& file() {
  static const SafetensorsFile out = golden_file("wav2vec2_conformer.safetensors");
  return out;
}

/// config.json, vocab.json, preprocessor_config.json and model.safetensors of a golden case, with the tensors that take
/// no part. The names of tensors begin with `wrapper`; with one, a tensor that need not be there is not. A folder of
/// pretraining has no vocabulary and no head, but a quantizer.
void write_folder(const std::filesystem::path& folder, const std::string& name, const std::string& wrapper = "",
                  bool pretraining = false) {
  std::filesystem::create_directory(folder);
  auto config = parse_json(file().metadata().at(name + ".config"), name);
  write_json(folder / "config.json", config);
  if (!pretraining)
    write_json(folder / "vocab.json",
               {{"<pad>", 0}, {"<s>", 1}, {"</s>", 2}, {"<unk>", 3}, {"|", 4}, {"E", 5}, {"T", 6}, {"A", 7}});
  write_json(folder / "preprocessor_config.json", {{"sampling_rate", 16000}, {"do_normalize", false}});
  SafetensorsWriter writer;
  const std::vector<float> unused(6, 1);
  const std::array<Index, 2> shape{2, 3};
  writer.add(wrapper + "wav2vec2_conformer.encoder.pos_conv_embed.conv.weight_v", shape,
             std::span<const float>(unused));
  std::vector<std::pair<std::string, Matrix<float>>> values;
  const std::string prefix = name + ".param.";
  for (const std::string& one : file().names())
    if (one.starts_with(prefix)) values.emplace_back(one.substr(prefix.size()), tensor<float>(file(), one));
  for (const char* one : {"quantizer.codevectors", "project_hid.weight", "project_q.bias"})
    if (pretraining) writer.add(one, shape, std::span<const float>(unused));
  for (const auto& [key, value] : values)
    if ((wrapper.empty() || pretraining || key != "wav2vec2_conformer.masked_spec_embed") &&
        !(pretraining && key.starts_with("lm_head.")))
      writer.add(wrapper + key, file().info(prefix + key).shape,
                 std::span<const float>(value.data(), static_cast<std::size_t>(value.size())));
  writer.write(folder / "model.safetensors");
}

void write_sound(const std::filesystem::path& path, const Matrix<float>& samples, int format) {
  SF_INFO info{};
  info.samplerate = 16000;
  info.channels = 1;
  info.format = format;
  SNDFILE* out = sf_open(path.c_str(), SFM_WRITE, &info);
  REQUIRE(out != nullptr);
  CHECK(sf_write_float(out, samples.data(), samples.size()) == samples.size());
  sf_close(out);
}

/// As floating point, for these samples exceed 1.
void write_float_wav(const std::filesystem::path& path, const Matrix<float>& samples) {
  write_sound(path, samples, SF_FORMAT_WAV | SF_FORMAT_FLOAT);
}

/// Runs the program in a folder, and gives what it said on stderr where it failed.
std::string run(const TemporaryFolder& folder, const std::string& arguments) {
  const std::string command =
      "cd " + folder.path.string() + " && " LACONIC_PROGRAM " " + arguments + " --threads 1 > out.txt 2> err.txt";
  const int status = std::system(command.c_str());  // NOLINT
  return status == 0 ? "" : read_file(folder / "err.txt", 1 << 20);
}

Matrix<float> logits(const TemporaryFolder& folder, const std::string& name) {
  const SafetensorsFile written(folder / name);
  return tensor<float>(written, "speech.wav");
}

}  // namespace

TEST_CASE("a folder of Hugging Face is heard, converted and written back by the program", "[hugging_face]") {
  const std::string name = GENERATE("case0", "case1");
  const bool rotary = name == "case1";
  const TemporaryFolder folder;
  write_folder(folder / "hf", name);
  write_float_wav(folder / "speech.wav", tensor<float>(file(), name + ".input"));
  const Matrix<float> expected = tensor<float>(file(), name + ".output");

  CHECK(run(folder, "transcribe --model hf --logits hf.safetensors speech.wav") == "");
  CHECK(difference(logits(folder, "hf.safetensors"), expected) < 1e-4);

  // A latent as wide as the model loses nothing, and what is written back is what transformers would load.
  const std::string latent =
      rotary ? "--attention mla-split --latent-dim 24" : "--attention mla-simple --latent-dim 16";
  CHECK(run(folder, "convert --input hf --output mla " + latent) == "");
  CHECK(run(folder, "transcribe --model mla --logits mla.safetensors speech.wav") == "");
  CHECK(difference(logits(folder, "mla.safetensors"), expected) < 1e-4);
  CHECK(run(folder, "convert --input mla --output back --export-mha") == "");
  const auto config = read_json(folder / "back" / "config.json");
  CHECK(is_hugging_face_config(config));
  CHECK(to_json(wav2vec2_conformer_config(config, "back")) ==
        to_json(wav2vec2_conformer_config(read_json(folder / "hf" / "config.json"), "hf")));
  CHECK(read_json(folder / "back" / "vocab.json") == read_json(folder / "hf" / "vocab.json"));
  const SafetensorsFile before(folder / "hf" / "model.safetensors"), after(folder / "back" / "model.safetensors");
  for (const std::string& one : after.names()) {
    REQUIRE(before.contains(one));
    CHECK(before.info(one).shape == after.info(one).shape);
  }
  CHECK(after.names().size() + 1 == before.names().size());  // without what takes no part
  CHECK(run(folder, "transcribe --model back --logits back.safetensors speech.wav") == "");
  CHECK(difference(logits(folder, "back.safetensors"), expected) < 1e-4);
}

TEST_CASE("a folder as transformers 5 saves it after a tutorial is heard and converted", "[hugging_face]") {
  const TemporaryFolder folder;
  write_folder(folder / "hf", "case3", "module.");  // without positions
  std::filesystem::remove(folder / "hf" / "preprocessor_config.json");
  write_json(folder / "hf" / "processor_config.json", {{"feature_extractor", {{"do_normalize", false}}}});
  write_json(folder / "hf" / "vocab.json", {{"|", 0}, {"a", 1}, {"b", 2}, {"c", 3}, {"[UNK]", 4}, {"<blank>", 5}});
  write_json(folder / "hf" / "added_tokens.json", {{"<s>", 6}, {"</s>", 7}});
  write_json(folder / "hf" / "tokenizer_config.json",
             {{"pad_token", "<blank>"},  // laconic's own name for it, and no other names
              {"unk_token", nullptr},
              {"bos_token", nullptr},
              {"eos_token", nullptr},
              {"word_delimiter_token", "|"},
              {"target_lang", nullptr}});
  auto config = read_json(folder / "hf" / "config.json");
  config["pad_token_id"] = 5;
  write_json(folder / "hf" / "config.json", config);
  write_float_wav(folder / "speech.wav", tensor<float>(file(), "case3.input"));
  const Matrix<float> expected = tensor<float>(file(), "case3.output");
  const auto heard = [&](const char* model) {
    CHECK(run(folder, text("transcribe --model ", model, " --logits l.safetensors speech.wav")) == "");
    CHECK(difference(logits(folder, "l.safetensors"), expected) < 1e-4);
    return read_file(folder / "out.txt", 1 << 20);
  };
  const std::string said = heard("hf");
  CHECK(run(folder, "convert --input hf --output mla --attention mla-simple --latent-dim 8") == "");
  CHECK(heard("mla") == said);
  CHECK(run(folder, "convert --input mla --output back --export-mha") == "");
  CHECK(heard("back") == said);
  CHECK(read_json(folder / "back" / "config.json")["pad_token_id"] == 5);
  CHECK(read_json(folder / "back" / "config.json")["position_embeddings_type"].is_null());
  CHECK(read_json(folder / "back" / "tokenizer_config.json")["pad_token"] == "<blank>");
}

TEST_CASE("a model of Hugging Face learns on from samples", "[hugging_face]") {
  const TemporaryFolder folder;
  write_folder(folder / "hf", "case0");
  std::string manifest, transcript;
  std::filesystem::create_directories(folder / "LibriSpeech" / "1" / "2");
  for (const auto& [small, capitals] : {std::pair("tea eat", "TEA EAT"), std::pair("at a tea", "AT A TEA")}) {
    const auto name = text("1-2-", manifest.size());
    const auto file = text("LibriSpeech/1/2/", name, ".flac");
    write_sound(folder / file, random_matrix<float>(400, 1, manifest.size(), 0.2), SF_FORMAT_FLAC | SF_FORMAT_PCM_16);
    manifest += text(R"({"audio_filepath": ")", file, R"(", "duration": 0.025, "text": ")", small, "\"}\n");
    transcript += text(name, ' ', capitals, '\n');
  }
  write_file(folder / "speech.jsonl", manifest);
  write_file(folder / "LibriSpeech/1/2/1-2.trans.txt", transcript);
  CHECK(run(folder, "train --train speech.jsonl --valid speech.jsonl --init hf --out run --lr 5e-3 --epochs 150") ==
        "");
  for (const char* data : {"speech.jsonl", "LibriSpeech"}) {
    CHECK(run(folder, text("eval --model run --json eval.json --data ", data)) == "");
    const auto result = read_json(folder / "eval.json");
    CHECK(result["wer"] == 0);
    CHECK(result["reference_words"] == 5);
  }
  // Only who hears the samples can tell the two apart: masks meant for features would hide all of them half of the
  // time.
  const std::string losses = read_file(folder / "run" / "losses.csv", 1 << 20);
  INFO(losses);
  const auto epoch = losses.find(',', losses.rfind('\n', losses.size() - 2)) + 1;  // step,epoch,loss,...
  CHECK(std::stod(losses.substr(losses.find(',', epoch) + 1)) < 0.5);
}

TEST_CASE("a pretrained model of Hugging Face gets a head for the training texts", "[hugging_face]") {
  const TemporaryFolder folder;
  write_folder(folder / "hf", "case0");
  write_folder(folder / "pretrained", "case0", "module.", true);
  std::string manifest;
  for (const char* spoken : {"\u00f6l ist da", "da ist \u00f6l \u00f6l"}) {
    const auto name = text(manifest.size(), ".flac");
    write_sound(folder / name, random_matrix<float>(800, 1, manifest.size(), 0.2), SF_FORMAT_FLAC | SF_FORMAT_PCM_16);
    manifest += text(R"({"audio_filepath": ")", name, R"(", "text": ")", spoken, "\"}\n");
  }
  write_file(folder / "speech.jsonl", manifest);
  const std::string train = "train --train speech.jsonl --valid speech.jsonl --lr 5e-3 --epochs 1 --out ";
  CHECK_THAT(run(folder, train + "x --init hf"), Catch::Matchers::Contains("--new-head, which trains a new head"));
  CHECK_THAT(run(folder, train + "x --init pretrained"), Catch::Matchers::Contains("vocab.json"));
  for (const char* init : {"hf", "pretrained"})
    CHECK(run(folder, text(train, "of-", init, " --new-head --train-only lm_head --init ", init)) == "");
  const SafetensorsFile one(folder / "of-hf" / "model" / "model.safetensors"),
      other(folder / "of-pretrained" / "model" / "model.safetensors");
  for (const std::string& key : one.names()) {
    INFO(key);
    const auto values = tensor<float>(one, key);
    CHECK(values == tensor<float>(other, key));  // the head begins with the same random weights
    if (!key.starts_with("lm_head.")) CHECK(values == tensor<float>(file(), "case0.param." + key));
  }
  CHECK(one.info("lm_head.weight").shape[0] == 9);  // the blank, the space and a d i l s t \u00f6
  CHECK(run(folder, "eval --model of-hf --data speech.jsonl") == "");
}

TEST_CASE("a folder of Hugging Face that does not fit together is refused by the program", "[hugging_face][errors]") {
  const TemporaryFolder folder;
  write_folder(folder / "hf", "case0");
  write_float_wav(folder / "speech.wav", tensor<float>(file(), "case0.input"));
  const auto refused = [&](const char* what, const std::string& why) {
    INFO(what);
    CHECK_THAT(run(folder, "transcribe --model hf speech.wav"), Catch::Matchers::Contains(why));
    CHECK_THAT(read_file(folder / "out.txt", 1 << 20), Catch::Matchers::Equals(""));
  };
  const auto path = folder / "hf" / "config.json";
  const auto config = read_json(path);
  auto changed = config;
  changed["hidden_size"] = 32;
  write_json(path, changed);
  refused("other width", "hf/config.json: describes a model of at least");
  changed = config;
  changed["conv_stride"] = {2, 2, 2};
  write_json(path, changed);
  CHECK(run(folder, "transcribe --model hf speech.wav") == "");  // no tensor says the stride
  changed = config;
  changed["vocab_size"] = 9;
  write_json(path, changed);
  refused("other head", "tensor 'lm_head.weight' has shape (8, 16), (9, 16) expected");
  changed = config;
  changed["model_type"] = "wav2vec2";
  write_json(path, changed);
  refused("another model", "'model_type' is 'wav2vec2'");
  write_json(path, config);
  write_json(folder / "hf" / "preprocessor_config.json", {{"sampling_rate", 0}});
  refused("no rate", "'sampling_rate' is 0");
  CHECK_THAT(run(folder, "convert --input hf --output mla --export-mha --attention mla"),
             Catch::Matchers::Contains("--attention excludes --export-mha"));
}
