// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/io/folder.hpp>
#include <laconic/io/hugging_face.hpp>
#include <laconic/recognition/recognizer.hpp>
#include <laconic/speech/vocabulary.hpp>

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

// What the JSON files of a folder of Hugging Face say of features and tokens. Transformers 5 writes
// processor_config.json where older versions wrote preprocessor_config.json, and keeps added and special tokens in
// tokenizer_config.json.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Returns the JSON in a file of a folder, an empty object if there is no such file. Throws `Error` for anything but an
/// object.
inline nlohmann::json object_in(const std::filesystem::path& path) {
  if (!is_listed(path)) return nlohmann::json::object();
  nlohmann::json out = read_json(path);
  require(out.is_object(), path.string(), ": ", shown(out), " given, an object expected");
  return out;
}

/// Returns the features of a model of samples: those of processor_config.json, or else of preprocessor_config.json, or
/// else the defaults of `Wav2Vec2FeatureExtractor`. Throws `Error`, naming the file, for other feature extractors. An
/// attention mask is not needed, for utterances are never padded.
inline FeatureConfig hugging_face_features(const std::filesystem::path& folder) {
  std::string where = (folder / "processor_config.json").string();
  nlohmann::json json = object_in(where);
  if (json.contains("feature_extractor")) {
    json = nlohmann::json(json["feature_extractor"]);
    require(json.is_object(), where, ": 'feature_extractor' is ", shown(json), ", an object expected");
  } else {
    where = (folder / "preprocessor_config.json").string();
    json = object_in(where);
  }
  const auto type = hugging_face_member<std::string>(json, "feature_extractor_type", where, "Wav2Vec2FeatureExtractor");
  require(type == "Wav2Vec2FeatureExtractor", where, ": 'feature_extractor_type' is ", in_quotes(type),
          ", 'Wav2Vec2FeatureExtractor' expected");
  const auto size = hugging_face_member<Index>(json, "feature_size", where, 1);
  require(size == 1, where, ": 'feature_size' is ", size, ", 1 expected: samples");
  const auto rate = hugging_face_member<int>(json, "sampling_rate", where, 16000);
  require(rate > 0, where, ": 'sampling_rate' is ", rate, ", more than 0 expected");
  const bool normalize = hugging_face_member(json, "do_normalize", where, true);
  return FeatureConfig::samples(rate, normalize ? Normalization::utterance : Normalization::none);
}

/// Collects the tokens of a folder of Hugging Face, with their indices.
class HuggingFaceTokens {
 public:
  /// Reads vocab.json, or else tokenizer.json, and the tokens that were added: added_tokens.json, and what
  /// tokenizer_config.json and special_tokens_map.json say. Throws `Error`, naming the file, for what does not fit.
  explicit HuggingFaceTokens(const std::filesystem::path& folder) {
    const std::string config_path = (folder / "tokenizer_config.json").string();
    const std::string special_path = (folder / "special_tokens_map.json").string();
    const nlohmann::json config = object_in(config_path);
    const nlohmann::json special = object_in(special_path);
    tokenizer.pad_token.clear();  // config.json may say which it is
    // Since transformers 4.34 the first file says all, before it the second overrides it.
    const bool complete = config.contains("added_tokens_decoder");
    if (complete) tokenizer.read(special, special_path);
    const nlohmann::json fast =
        is_listed(folder / "vocab.json") ? nlohmann::json::object() : object_in(folder / "tokenizer.json");
    tokenizer.read(config, config_path);
    if (!complete) tokenizer.read(special, special_path);
    if (config.contains("tokenizer_class") && config["tokenizer_class"] == "Wav2Vec2PhonemeCTCTokenizer")
      kind = Tokens::words;  // spaces between all tokens
    if (fast.empty())
      read_vocab(folder, config, config_path);
    else
      read_fast(fast, (folder / "tokenizer.json").string());
    for (const auto& [name, index] : json.items())
      if (index.is_number_integer()) taken_.insert(index.get<std::int64_t>());
    if (config.contains("added_tokens_decoder"))
      for (const auto& [index, token] : config["added_tokens_decoder"].items())
        add(TokenizerConfig::token(token, "added_tokens_decoder", config_path), number(index, config_path));
    const std::string added_path = (folder / "added_tokens.json").string();
    const nlohmann::json added = object_in(added_path);
    for (const auto& [name, index] : added.items()) add(name, json_value<std::int64_t>(index, added_path));
    if (fast.contains("added_tokens"))
      for (const auto& token : fast["added_tokens"])
        add(json_member<std::string>(token, "content", where), json_member<std::int64_t>(token, "id", where));
  }

  /// Returns the vocabulary of a model with this config.json, whose `pad_token_id` is the CTC blank; without one the
  /// tokenizer's pad token is. Throws `Error` if the model has no such class, and if the two are not the same: the
  /// model was trained with the one, and transformers leaves out the other.
  Vocabulary vocabulary(const nlohmann::json& config, const std::string& config_path, Index classes) {
    if (config.contains("pad_token_id") && !config["pad_token_id"].is_null()) {
      const auto blank = json_member<Index>(config, "pad_token_id", config_path);
      const auto pad = json.find(tokenizer.pad_token);
      require(tokenizer.pad_token.empty() || pad == json.end() || *pad == blank, config_path, ": 'pad_token_id' is ",
              blank, ", and the pad token of the tokenizer, ", in_quotes(tokenizer.pad_token), ", has index ",
              pad == json.end() ? "" : shown(*pad), "; the same expected: it is the CTC blank");
      blank_is(blank, config_path, classes);
    } else if (tokenizer.pad_token.empty())
      blank_is(0, config_path, classes);  // the default of transformers
    return Vocabulary::from_json(kind, json, where, &tokenizer, classes);
  }

  std::string where;  ///< path of the file that has most of the tokens
  Tokens kind = Tokens::characters;
  TokenizerConfig tokenizer;                       ///< names of the special tokens
  nlohmann::json json = nlohmann::json::object();  ///< index of each token

 private:
  /// Reads vocab.json, which has an object of tokens for each language if the tokenizer has a target language.
  void read_vocab(const std::filesystem::path& folder, const nlohmann::json& config, const std::string& config_path) {
    where = (folder / "vocab.json").string();
    json = read_model_vocab(folder);
    if (!config.contains("target_lang") || config["target_lang"].is_null()) return;
    const auto language = json_member<std::string>(config, "target_lang", config_path);
    require(json.contains(language) && json[language].is_object(), where, ": no tokens of ", in_quotes(language),
            ", which is the 'target_lang' of ", config_path);
    json = nlohmann::json(json[language]);
  }
  /// Reads tokenizer.json: the tokens of its model, by name or in order, and its CTC decoder.
  void read_fast(const nlohmann::json& fast, const std::string& path) {
    where = path;
    require(fast.contains("model") && fast["model"].is_object() && fast["model"].contains("vocab"), where,
            ": no 'model.vocab', the tokens expected there");
    const nlohmann::json& tokens = fast["model"]["vocab"];
    if (tokens.is_object()) json = tokens;
    for (std::size_t i = 0; tokens.is_array() && i < tokens.size(); ++i) {  // [["a", -1.5], ...]
      require(tokens[i].is_array() && !tokens[i].empty() && tokens[i][0].is_string(), where, ": 'model.vocab[", i,
              "]' is ", shown(tokens[i]), ", an array of a token and its score expected");
      json[tokens[i][0].get<std::string>()] = i;
    }
    require(fast.contains("decoder") && !fast["decoder"].is_null(), where, ": no 'decoder', one of type CTC expected");
    // In a sequence, "Fuse" only joins what the CTC decoder before it gives.
    nlohmann::json steps = fast["decoder"];
    if (json_member<std::string>(steps, "type", where) == "Sequence") {
      require(steps.contains("decoders") && steps["decoders"].is_array(), where, ": no array 'decoder.decoders'");
      steps = nlohmann::json(steps["decoders"]);
    } else {
      steps = nlohmann::json::array({steps});
    }
    std::string types;
    for (const nlohmann::json& one : steps)
      types += (types.empty() ? "" : ", ") + json_member<std::string>(one, "type", where);
    require(types == "CTC" || types == "CTC, Fuse", where, ": 'decoder.type' is ", in_quotes(types), ", CTC expected");
    tokenizer.read(steps[0], where);
    // How text is spelled, only the decoder says. Without cleanup the delimiter stays as it is.
    const bool cleanup = hugging_face_member(steps[0], "cleanup", where, true);
    tokenizer.replace_word_delimiter_char = cleanup ? " " : tokenizer.word_delimiter_token;
    tokenizer.do_lower_case = false;
  }
  /// Adds a token, unless it or its index has an entry already.
  void add(const std::string& name, std::int64_t index) {
    if (!json.contains(name) && taken_.insert(index).second) json[name] = index;
  }
  /// Makes a class the blank. A class without a token gets a name.
  void blank_is(Index blank, const std::string& config_path, Index classes) {
    require(blank >= 0 && blank < classes, config_path, ": 'pad_token_id' is ", blank, ", one of the classes 0 to ",
            classes - 1, " expected: it is the CTC blank");
    for (const auto& [name, index] : json.items())
      if (index == blank) {
        tokenizer.pad_token = name;
        return;
      }
    tokenizer.pad_token = json.contains("<pad>") ? text("<pad ", blank, '>') : "<pad>";
    json[tokenizer.pad_token] = blank;
  }
  /// Returns a number that is the key of an object.
  static std::int64_t number(const std::string& key, const std::string& path) {
    std::int64_t out = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), out);
    require(error == std::errc() && end == key.data() + key.size(), path, ": key ", in_quotes(key),
            " in 'added_tokens_decoder', an index expected");
    return out;
  }

  std::set<std::int64_t> taken_;
};

/// Returns the configuration of a model in a folder of Hugging Face, but for its tokens. Throws `Error`, naming the
/// file, for what laconic does not compute.
inline RecognizerConfig hugging_face_encoder(const std::filesystem::path& folder, const nlohmann::json& config,
                                             const std::string& where) {
  RecognizerConfig out;
  out.model = EncoderName::wav2vec2_conformer;
  out.encoder = wav2vec2_conformer_config(config, where);
  out.features = hugging_face_features(folder);
  return out;
}

/// Returns the configuration and the vocabulary of a model in a folder of Hugging Face. Throws `Error`, naming the
/// file, for what laconic does not compute.
inline std::pair<RecognizerConfig, Vocabulary> hugging_face_recognizer(const std::filesystem::path& folder,
                                                                       const nlohmann::json& config,
                                                                       const std::string& where) {
  RecognizerConfig out = hugging_face_encoder(folder, config, where);
  Vocabulary vocabulary = HuggingFaceTokens(folder).vocabulary(config, where, out.encoder.vocab_size);
  out.tokens = vocabulary.kind();
  return {std::move(out), std::move(vocabulary)};
}

/// Returns tokenizer_config.json of a vocabulary in a form that transformers reads.
inline nlohmann::json hugging_face_tokenizer(const Vocabulary& vocabulary) {
  nlohmann::json out = vocabulary.tokenizer().to_json();
  out["tokenizer_class"] = vocabulary.kind() == Tokens::words ? "Wav2Vec2PhonemeCTCTokenizer" : "Wav2Vec2CTCTokenizer";
  return out;
}

/// Returns the configuration and the vocabulary of a folder that laconic wrote, in which tokenizer_config.json may be
/// missing.
inline std::pair<RecognizerConfig, Vocabulary> own_recognizer(const std::filesystem::path& folder,
                                                              const nlohmann::json& config, const std::string& where) {
  auto out = json_value<RecognizerConfig>(config, where);
  const std::string path = (folder / "tokenizer_config.json").string();
  const nlohmann::json json = object_in(path);
  TokenizerConfig tokenizer;
  tokenizer.read(json, path);
  // Only vocabularies of Hugging Face are saved with a class of tokenizer, since laconic writes one at all.
  const bool is_plain = json.empty() || (tokenizer == TokenizerConfig::plain() && !json.contains("tokenizer_class"));
  auto vocabulary = Vocabulary::from_json(out.tokens, read_model_vocab(folder), (folder / "vocab.json").string(),
                                          is_plain ? nullptr : &tokenizer, is_plain ? 0 : out.encoder.vocab_size);
  return {std::move(out), std::move(vocabulary)};
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
