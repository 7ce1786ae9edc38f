// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/any.hpp>
#include <laconic/decode/ngram.hpp>
#include <laconic/io/deepseek.hpp>
#include <laconic/io/gpt2.hpp>
#include <laconic/io/hugging_face.hpp>
#include <laconic/io/llama.hpp>
#include <laconic/io/safetensors.hpp>
#include <laconic/io/sharded_tensors.hpp>
#include <laconic/io/torch_file.hpp>
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/e_branchformer.hpp>
#include <laconic/model/gpt.hpp>
#include <laconic/model/llama.hpp>
#include <laconic/model/published.hpp>
#include <laconic/model/wav2vec2_conformer.hpp>
#include <laconic/recognition/recognizer/hugging_face.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/characters.hpp>
#include <laconic/speech/corpus.hpp>
#include <laconic/speech/features.hpp>
#include <laconic/speech/text_normalization.hpp>
#include <laconic/speech/vocabulary.hpp>

#include <fstream>
#include <numeric>

#include "temporary_folder.hpp"
#include "torch_parts.hpp"

// Every reader of files that may come from strangers, as a function of the file's bytes. It returns where the reader
// accepts them, and throws `laconic::Error` where it refuses. All else is a bug: other exceptions, crashes, hangs,
// memory without end. libFuzzer drives them (scripts/fuzz), and a test gives them the files of corpus/ (fuzz_test.cpp).

namespace fuzz {

using namespace laconic;

/// Reports a result that a reader must never return. It is no `Error`, which would be a refusal.
struct Violation : std::logic_error {
  using std::logic_error::logic_error;
};
inline void demand(bool condition, const std::string& what) {
  if (!condition) throw Violation(what);
}

/// Small tensors and recordings for the readers that look at files beside the one that is read.
inline void write_tensors(const std::filesystem::path& path, std::initializer_list<std::string_view> names) {
  const std::array<float, 2> values{1, -1};
  const std::array<Index, 1> shape{2};
  SafetensorsWriter writer;
  for (const std::string_view name : names) writer.add(name, shape, values);
  writer.write(path);
}

/// A folder of one process, in which a reader finds its file and those that the file may name.
class Folder {
 public:
  Folder() {
    write_tensors(folder_ / "1.safetensors", {"a"});
    write_tensors(folder_ / "2.safetensors", {"b", "c"});
    write_wav(folder_ / "1-2-0.flac", {{0.5F, -0.5F}, 16000});  // which format it is says the file, not its name
    write_wav(folder_ / "a.wav", {{0.5F, -0.5F}, 16000});
  }

  /// The path of a file that holds these bytes.
  std::filesystem::path with(std::string_view name, std::string_view bytes) const {
    auto path = folder_ / std::string(name);
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return path;
  }

 private:
  TemporaryFolder folder_;
};
inline const Folder& folder() {
  static const Folder out;
  return out;
}

/// Reads an accepted tensor to its last byte, and demands that it is as long as its shape says.
inline void use(const TensorInfo& tensor) {
  Index size = 0;
  demand(detail::checked_size(tensor.shape, size), "a shape whose size overflows");
  const std::size_t bytes = static_cast<std::size_t>(size) * dtype_bytes(tensor.dtype);
  demand(tensor.strides.empty() ? tensor.bytes.size() == bytes : tensor.bytes.size() >= bytes,
         "other bytes than the shape says");
  unsigned sum = 0;
  for (const std::byte b : tensor.bytes) sum += std::to_integer<unsigned>(b);
  volatile unsigned read = sum;  // must not be optimised away
  static_cast<void>(read);
}
inline void use(const Tensors& tensors) {
  demand(tensors.count_values() >= 0, "a negative number of values");
  for (const std::string& name : tensors.names()) {
    const TensorInfo& tensor = tensors.info(name);
    use(tensor);
    Index size = 0;
    detail::checked_size(tensor.shape, size);
    std::vector<float> values(static_cast<std::size_t>(size));
    try {
      tensors.read(name, std::span<float>(values));
    } catch (const Error&) {  // of whole numbers, or a number too large
    }
  }
}

/// Formats are read twice, first from memory: behind a mapped file are zeros until its page ends, and no sanitizer
/// minds that they are read; but what libFuzzer gives ends where it ends.
template <class Read>
void from_memory(Read&& read) {
  try {
    read();
  } catch (const Error&) {  // the file will be refused, too
  }
}

inline void safetensors(std::string_view bytes) {
  const std::string where = "f";
  from_memory([&] {
    const auto all = std::as_bytes(std::span(bytes));
    if (bytes.size() < 8) return;
    const auto size = detail::number_at<std::uint64_t>(all, 0);
    if (size > bytes.size() - 8) return;
    const detail::SafetensorsHeader header(where, bytes.substr(8, size), all.subspan(8 + size));
    for (const auto& entry : header.entries) use(entry.info);
  });
  use(SafetensorsFile(folder().with("f.safetensors", bytes)));
}

/// The pickle of a zip file in memory.
inline void use_torch(std::string_view zip) {
  const std::string where = "f";
  const detail::ZipDirectory directory(where, std::as_bytes(std::span(zip)));
  const std::string name = detail::torch_folder(where, directory);
  const detail::TorchPickle pickle(where, directory, name);
  for (const auto& [key, tensor] : pickle.tensors) use(tensor);
}
inline void torch(std::string_view bytes) {
  from_memory([&] { use_torch(bytes); });
  use(TorchFile(folder().with("f.bin", bytes)));
}
/// The bytes are those of data.pkl alone: a zip file around them is hard to mutate and yet be one.
inline void pickle(std::string_view bytes) { use_torch(parts::file(std::string(bytes))); }

/// The bytes are those of an index. It may name 1.safetensors, which holds a, and 2.safetensors, which holds b and c.
inline void sharded(std::string_view bytes) {
  use(ShardedTensors<SafetensorsFile>(folder().with("model.safetensors.index.json", bytes)));
}

/// Counts overflow nowhere: what a model takes is looked at before it is made.
template <class Model>
void count(const EncoderConfig& config) {
  try {
    demand(Model::parameter_count(config) > 0, "a model without parameters");
  } catch (const Error&) {  // not every encoder has this attention
  }
}
inline void use(const EncoderConfig& config) {
  config.checked();
  demand(to_json(json_value<EncoderConfig>(to_json(config), "back")) == to_json(config),
         "a configuration that changes when written");
  count<Conformer<AnyAttention>>(config);
  count<Branchformer<AnyAttention>>(config);
  count<EBranchformer<AnyAttention>>(config);
  count<Wav2Vec2Conformer<AnyAttention>>(config);
  demand(Conformer<AnyAttention>::cache_bytes(config, frames(1000)) > 0, "a model without a cache");
}
/// config.json, as laconic or Hugging Face writes it, features.json for the features in it, or vocab.json.
template <class Model>
void use(const LanguageModelConfig& config) {
  demand(Model::parameter_count(config) > 0, "a model without parameters");
  demand(Model::cache_bytes(config, frames(config.max_positions)) > 0, "a model without a cache");
  for (Index m = 0; m < 4; ++m) demand(std::isfinite(config.rope.rate(m, 8)), "a rate that is not finite");
}
inline void config(std::string_view bytes) {
  const std::string where = "f.json";
  const nlohmann::json json = parse_json(bytes, where);
  const auto type = is_hugging_face_config(json) && json["model_type"].is_string()
                        ? json["model_type"].get<std::string>()
                        : std::string();
  if (type == "gpt2")
    use<Gpt<Mha<dyn, NoPosition>>>(gpt2_config(json, where));
  else if (type == "llama" || type == "mistral")
    use<Llama<Gqa<dyn, dyn, Rotary<RotaryPairs::halves>>>>(llama_config(json, where));
  else if (type == "deepseek_v3")
    use<Llama<MlaDecoupled<dyn, dyn, dyn>>>(deepseek_config(json, where));
  else if (is_hugging_face_config(json))
    use(wav2vec2_conformer_config(json, where));
  else if (json.contains("max_positions"))
    use<Gpt<AnyCausalAttention>>(json_value<LanguageModelConfig>(json, where).checked());
  else if (json.contains("\n"))
    demand(Characters::from_json(json, where).size() > 0, "no characters");
  else if (json.contains("fbank"))
    FeatureExtractor(json_value<FeatureConfig>(json, where)).frame_shift();
  else if (json.contains("d_model"))
    use(json_value<EncoderConfig>(json, where));
  else
    demand(Vocabulary::from_json(json.contains("|") ? Tokens::characters : Tokens::words, json, where).size() > 0,
           "no tokens");
}

/// The bytes are those of a manifest, which may name a.wav.
inline void manifest(std::string_view bytes) {
  for (const Utterance& one : read_manifest(folder().with("m.jsonl", bytes))) {
    demand(one.audio_filepath.string().find('\0') == std::string::npos,
           "a path that the system sees the beginning of only");
    demand(detail::audio_duration(one.audio_filepath, one.part()) >= 0 && one.duration >= 0, "no duration");
  }
}
/// The bytes are those of a LibriSpeech folder's transcripts; 1-2-0.flac lies beside them.
inline void transcripts(std::string_view bytes) {
  for (const Utterance& one : read_librispeech(folder().with("1-2.trans.txt", bytes).parent_path()))
    demand(one.duration > 0, "no duration");
}

inline void audio(std::string_view bytes) {
  const auto path = folder().with("f.wav", bytes);
  const Audio whole = read_audio(path);
  demand(!whole.samples.empty() && whole.sample_rate > 0, "audio without samples");
  for (const float x : whole.samples) demand(std::isfinite(x), "a sample that is not finite");
  const double seconds = detail::audio_duration(path);
  demand(seconds > 0 && seconds < 1e9, "a duration of no recording");
  if (whole.samples.size() > 5000) return;  // resampling takes its time
  std::string note;
  demand(read_audio(path, 16000, &note).sample_rate == 16000, "another rate than was asked for");
}

/// The bytes are those of a language model of n-grams.
inline void arpa(std::string_view bytes) {
  const NgramModel model("f.arpa", detail::TextLines(bytes));
  demand(model.size() >= model.words().size(), "fewer n-grams than words");
  NgramModel::State state = model.begin();
  for (std::size_t i = 0; i < 200; ++i) {
    const auto word = static_cast<NgramModel::Word>(i * i % model.words().size());
    const auto [log_prob, next] = model.score(state, word);
    demand(std::isfinite(log_prob), "a log probability that is not finite");
    demand(model.words().find(model.words()[word]) == word, "a word that is not found");
    state = next;
  }
}

/// The bytes are a JSON object: the files of a folder of Hugging Face that tell tokens and features, with their
/// contents.
inline void tokens(std::string_view bytes) {
  static const TemporaryFolder files;
  const nlohmann::json json = parse_json(bytes, "f.json");
  for (const char* name : {"vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                           "tokenizer.json", "preprocessor_config.json", "processor_config.json"}) {
    std::filesystem::remove(files / name);
    if (json.contains(name)) std::ofstream(files / name) << json[name].dump();
  }
  const Index classes = 16;
  const Vocabulary vocabulary =
      detail::HuggingFaceTokens(files.path)
          .vocabulary(json.contains("config.json") ? json["config.json"] : nlohmann::json::object(), "config.json",
                      classes);
  demand(vocabulary.size() == classes, "another number of tokens than the head has");
  std::vector<int> all(static_cast<std::size_t>(classes));
  std::iota(all.begin(), all.end(), 0);
  const std::string text = vocabulary.decode(all);
  demand(detail::is_utf8(text), "a text that is not UTF-8");
  vocabulary.errors(text, text);
  demand(detail::hugging_face_features(files.path).fbank.sample_rate > 0, "no sample rate");
}
/// The bytes are a text to compare.
inline void normalized(std::string_view bytes) {
  for (const std::string& one : {basic_normalized(bytes), whisper_normalized(bytes)}) {
    demand(detail::is_utf8(one), "a text that is not UTF-8");
    demand(one.find("  ") == std::string::npos && !one.starts_with(' ') && !one.ends_with(' '), "spaces to spare");
  }
}

struct Target {
  std::string_view name;
  void (*read)(std::string_view bytes);
};
inline constexpr auto targets = std::to_array<Target>({{"safetensors", safetensors},
                                                       {"torch", torch},
                                                       {"pickle", pickle},
                                                       {"sharded", sharded},
                                                       {"config", config},
                                                       {"manifest", manifest},
                                                       {"transcripts", transcripts},
                                                       {"audio", audio},
                                                       {"arpa", arpa},
                                                       {"tokens", tokens},
                                                       {"text", normalized}});

/// Gives the bytes to a reader. True where it accepts them, and false where it refuses them with one clear line.
inline bool accepts(const Target& target, std::string_view bytes) {
  try {
    target.read(bytes);
    return true;
  } catch (const Error& error) {
    const std::string_view line = error.what();
    demand(!line.empty() && line.size() < 2100,
           "an error of " + std::to_string(line.size()) + " bytes: one line expected");
    for (const char c : line)
      demand(static_cast<unsigned char>(c) >= ' ' && c != '\x7f',
             "an error with control characters: " + std::string(line));
    return false;
  }
}

}  // namespace fuzz
