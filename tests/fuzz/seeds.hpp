// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "targets.hpp"

// What fuzzing begins with: small files, good_ ones, which are accepted, and bad_ ones, which are refused. `fuzz_test
// "[.seeds]"` writes them into corpus/; they are committed, because FLAC and Opus come out otherwise on other machines.

namespace fuzz {

class Seeds {
 public:
  /// Writes all below this folder, one folder for each target.
  explicit Seeds(std::filesystem::path folder) : folder_(std::move(folder)) {
    safetensors();
    torch();
    pickle();
    sharded();
    config();
    manifest();
    transcripts();
    audio();
    arpa();
    tokens();
    normalized();
  }

 private:
  void put(const char* target, const std::string& name, std::string_view bytes) const {
    make_folder(folder_ / target);
    write_file(folder_ / target / name, bytes);
  }
  /// A good file, and the same cut short.
  void put_whole_and_half(const char* target, const std::string& name, const std::string& bytes) const {
    put(target, "good_" + name, bytes);
    put(target, "bad_half_" + name, std::string_view(bytes).substr(0, bytes.size() / 2));
  }

  void safetensors() const {
    const auto file = [](const std::string& header, std::size_t data_bytes, std::size_t lie = 0) {
      return parts::number(std::uint64_t{header.size() + lie}) + header + std::string(data_bytes, '\1');
    };
    const char* const target = "safetensors";
    put_whole_and_half(target, "file", read_file(LACONIC_GOLDEN_DIR "/safetensors_file.safetensors", 1 << 20));
    put(target, "good_empty", file("{}", 0));
    const std::string two =
        R"({"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[],"data_offsets":[8,10]}})";
    put(target, "good_two", file(two, 10));
    put(target, "good_scales",
        file(R"({"a":{"dtype":"I8","shape":[2,3],"data_offsets":[8,14]},)"
             R"("a_scale":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
             14));
    put(target, "good_scales_for_other_rows",
        file(R"({"a":{"dtype":"I8","shape":[3,2],"data_offsets":[8,14]},)"
             R"("a_scale":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
             14));
    put(target, "bad_length", file(two, 10, std::size_t{1} << 40));
    put(target, "bad_length_by_one", file(two, 10, 1));
    put(target, "bad_type", file(R"({"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}})", 8));
    put(target, "bad_overlap",
        file(
            R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
            6));
    put(target, "bad_overflow",
        file(R"({"a":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0));
    put(target, "bad_end", file(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,9223372036854775807]}})", 4));
  }

  void torch() const {
    const std::string pickle = parts::program(parts::dict({{"w", parts::three}}));
    put_whole_and_half("torch", "file", read_file(LACONIC_GOLDEN_DIR "/torch_file.bin", 1 << 20));
    put_whole_and_half("torch", "small", parts::file(pickle));
    put("torch", "good_zip64", parts::zip(parts::entries(pickle), true));
    put("torch", "bad_empty", parts::zip({}));
    put("torch", "bad_two_pickles", parts::zip({{"m/data.pkl", pickle}, {"n/data.pkl", pickle}}));
    put("torch", "bad_global",
        parts::file(parts::program(parts::global("os", "system") + parts::string("true") + "\x85R")));
  }

  void pickle() const {
    using namespace parts;
    const char* const target = "pickle";
    put_whole_and_half(target, "tensor", program(dict({{"w", three}})));
    put(target, "good_empty", program("}"));
    put(target, "good_types",
        program(dict({{"a", tensor(storage(12, "HalfStorage"), 2, {2, 3}, {3, 1})},
                      {"b", tensor(storage(3, "LongStorage"), 0, {}, {})},
                      {"c", tensor(storage(24, "BoolStorage"), 24, {0, 4}, {4, 1})}})));
    put(target, "good_parameter",
        program(
            dict({{"w", global("torch._utils", "_rebuild_parameter") + "(" + three + "\x88" + ordered_dict + "tR"}})));
    put(target, "good_metadata",
        program(ordered_dict + std::string("q\0", 2) + string("w") + three + "s}" + string("_metadata") + ordered_dict +
                "sb"));
    put(target, "good_strides", program(dict({{"w", tensor(storage(6), 0, {2, 3}, {1, 2})}})));
    put(target, "bad_offset", program(dict({{"w", tensor(storage(6), 5, {3}, {1})}})));
    put(target, "bad_shape", program(dict({{"w", tensor(storage(6), 0, {std::int64_t{1} << 62, 4}, {4, 1})}})));
    put(target, "bad_storage", program(dict({{"w", tensor(storage(7), 0, {3}, {1})}})));
    put(target, "bad_within_itself", program("}" + std::string("q\0", 2) + string("w") + std::string("h\0", 2) + "s"));
    put(target, "bad_stack", program("K\1K\2N\x88\x89)]\x86M\1\1J\1\1\1\1a"));
  }

  void sharded() const {
    const char* const target = "sharded";
    const std::string good =
        R"({"metadata": {"total_size": 24}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}})";
    put_whole_and_half(target, "index", good);
    put(target, "bad_missing", R"({"weight_map": {"a": "1.safetensors", "b": "3.safetensors"}})");
    put(target, "bad_tensor", R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "d": "2.safetensors"}})");
    put(target, "bad_folder", R"({"weight_map": {"a": "../1.safetensors"}})");
    put(target, "bad_kind", R"({"weight_map": {"a": 1}})");
  }

  void config() const {
    const char* const target = "config";
    const auto put_json = [&](const std::string& name, const nlohmann::json& json) { put(target, name, json.dump()); };
    EncoderConfig encoder{.d_model = 64, .num_layers = 2, .attention = AttentionName::mha, .num_heads = 4};
    put_whole_and_half(target, "encoder", to_json(encoder).dump(2));
    for (const EncoderConfig& one : quarter_caches(encoder))
      put_json("good_" + std::string(to_name(one.attention)), to_json(one));
    EncoderConfig ranks = encoder;
    ranks.attention = AttentionName::mla_simple;
    ranks.kv_lora_ranks = {16, 8};
    put_json("good_ranks", to_json(ranks));
    encoder.d_model = Index{1} << 62;
    put_json("bad_width", to_json(encoder));
    encoder.d_model = -64;
    put_json("bad_negative", to_json(encoder));

    const nlohmann::json foreign = parse_json(
        SafetensorsFile(LACONIC_GOLDEN_DIR "/wav2vec2_conformer.safetensors").metadata().at("case0.config"), "");
    put_json("good_hugging_face", hugging_face_config(wav2vec2_conformer_config(foreign, "")));
    put_json("good_hugging_face_defaults", {{"model_type", "wav2vec2-conformer"}});
    put_json("bad_hugging_face",
             {{"model_type", "wav2vec2-conformer"}, {"hidden_size", 0}, {"num_hidden_layers", 1e300}});
    put_json("good_features", to_json(FeatureConfig{}));
    put_json("good_samples", to_json(FeatureConfig::samples(16000, Normalization::none)));
    put_json("good_vocab", Vocabulary::characters(std::array{"ab c", "é"}).to_json());
    put_json("good_words", Vocabulary::words(std::array{"one two"}).to_json());
    put_json("bad_vocab", {{"<blank>", 0}, {"a", 2}});
    put(target, "bad_nested", std::string(40, '[') + std::string(40, ']'));
    put(target, "bad_twice", R"({"d_model": 1, "\u0064_model": 2})");
    put(target, "bad_number", R"({"d_model": 1e999})");
    put(target, "bad_text", "{\"d_model\": \"\xff\"}");
  }

  void manifest() const {
    const char* const target = "manifest";
    const std::string good =
        R"({"audio_filepath": "a.wav", "duration": 0.5, "text": "one \u00e9", "speaker": "s", "offset": 0})";
    put(target, "good_lines", good + "\r\n\n" + good + "\n");
    put(target, "bad_half", good.substr(0, good.size() / 2));
    put(target, "bad_empty", "\n\n");
    put(target, "bad_gone", R"({"audio_filepath": "gone.wav", "duration": 0.5, "text": ""})");
    put(target, "bad_duration", R"({"audio_filepath": "a.wav", "duration": -1, "text": ""})");
    put(target, "bad_offset", R"({"audio_filepath": "a.wav", "duration": 1, "text": "", "offset": -0.5})");
    put(target, "good_part",
        R"({"audio_filepath": "a.wav", "duration": null, "text": "", "offset": 1e-9, "speaker": 3})");
  }

  void transcripts() const {
    put("transcripts", "good_line", "1-2-0 ONE TWO\n");
    put("transcripts", "bad_gone", "1-2-0 ONE\n1-2-1 TWO\n");
    put("transcripts", "bad_twice", "1-2-0 ONE\n1-2-0 TWO\n");
    put("transcripts", "bad_no_text", "1-2-0\n");
  }

  void arpa() const {
    const char* const target = "arpa";
    const std::string good =
        "\\data\\\nngram 1=4\nngram 2=3\nngram 3=1\n\n\\1-grams:\n-99\t<s>\t-0.5\n-1\t</s>\n-1.5 "
        "<unk>\n-0.4\ta\t-0.3\n\n"
        "\\2-grams:\n-0.2\t<s> a\t-0.1\n-0.6\ta a\t-0.4\n-0.3\ta </s>\n\n\\3-grams:\n-0.05\t<s> a a\n\n\\end\\\n";
    const auto changed = [&](const std::string& from, const std::string& to) {
      std::string out = good;
      return out.replace(out.find(from), from.size(), to);
    };
    put_whole_and_half(target, "trigrams", good);
    put(target, "good_words_alone", "\\data\\\nngram 1=2\n\\1-grams:\n-9 <s>\n-1 </s>\n\\end\\");
    put(target, "good_no_trigrams", changed("ngram 3=1", "ngram 3=0").replace(good.find("-0.05"), 14, ""));
    put(target, "bad_empty", "");
    put(target, "bad_count", changed("ngram 2=3", "ngram 2=18446744073709551615"));
    put(target, "bad_order", changed("ngram 3=1", "ngram 3=1\nngram 4=1"));
    put(target, "bad_number", changed("-0.6", "-1e999"));
    put(target, "bad_positive", changed("-0.6", "0.6"));
    put(target, "bad_word", changed("a a\t", "a b\t"));
    put(target, "bad_context", changed("<s> a a", "</s> a a"));
    put(target, "bad_twice", changed("a </s>", "a a"));
    put(target, "bad_kenlm", "mmap lm http://kheafield.com/code format version 5\n");
  }

  void tokens() const {
    const char* const target = "tokens";
    const std::string vocab = R"({"vocab.json": {"<pad>": 0, "<unk>": 3, "|": 4, "e": 5, "t": 6})",
                      fast = R"({"tokenizer.json": {"model": {"type": "WordLevel", "unk_token": "<unk>",
  "vocab": {"<pad>": 0, "|": 1, "a": 2, "<unk>": 3}}, "decoder": {"type": "CTC", "pad_token": "<pad>",
  "word_delimiter_token": "|", "cleanup": true}})";
    put(target, "good_vocab", vocab + "}");
    put(target, "good_config", vocab + R"(, "tokenizer_config.json": {"pad_token": "<pad>", "do_lower_case": true,
  "word_delimiter_token": "|"}, "special_tokens_map.json": {"unk_token": {"content": "<unk>"}},
  "added_tokens.json": {"<s>": 7, "</s>": 8}, "config.json": {"pad_token_id": 0}})");
    put(target, "good_features",
        vocab + R"(, "processor_config.json": {"feature_extractor": {"sampling_rate": 8000}}})");
    put(target, "good_fast", fast + "}");
    put(target, "bad_decoder", fast.substr(0, fast.find("CTC")) + "ByteLevel\"}}}");
    put(target, "bad_blank", vocab + R"(, "config.json": {"pad_token_id": 16}})");
    put(target, "bad_twice", R"({"vocab.json": {"a": 1, "b": 1}})");
    put(target, "bad_index", R"({"vocab.json": {"a": 99999999999}})");
    put(target, "bad_none", "{}");
  }

  void normalized() const {
    const char* const target = "text";
    put(target, "good_numbers",
        "Twenty-one point five per cent of \u00a32,000,000, and a half; double oh seven minus one");
    put(target, "good_contractions", "[noise] Mr. O'Neil's won't (hmm) y'all've colour'd 1980s na\u00efve \ufb01");
    put(target, "good_empty", "");
    put(target, "bad_half_character", "a \xe2\x82");
  }

  /// Some samples through libsndfile.
  std::string recording(int format, int channels) const {
    const TemporaryFolder folder;
    SF_INFO info{};
    info.channels = channels;
    info.samplerate = 8000;
    info.format = format;
    SNDFILE* const file = sf_open((folder / "f").c_str(), SFM_WRITE, &info);
    demand(file != nullptr, "libsndfile cannot write this format");
    std::vector<float> samples;
    for (int i = 0; i < 200 * channels; ++i) samples.push_back(0.5F * std::sin(0.1F * static_cast<float>(i)));
    sf_write_float(file, samples.data(), static_cast<sf_count_t>(samples.size()));
    sf_close(file);
    return read_file(folder / "f", 1 << 20);
  }
  void audio() const {
    const char* const target = "audio";
    const std::string wav = recording(SF_FORMAT_WAV | SF_FORMAT_PCM_16, 1);
    put_whole_and_half(target, "wav", wav);
    put(target, "good_stereo.wav", recording(SF_FORMAT_WAV | SF_FORMAT_PCM_24, 2));
    put(target, "good_float.wav", recording(SF_FORMAT_WAV | SF_FORMAT_FLOAT, 1));
    put(target, "good_extensible.wav", recording(SF_FORMAT_WAVEX | SF_FORMAT_PCM_U8, 3));
    put(target, "good_adpcm.wav", recording(SF_FORMAT_WAV | SF_FORMAT_MS_ADPCM, 1));
    put(target, "good_rf64.wav", recording(SF_FORMAT_RF64 | SF_FORMAT_PCM_16, 1));
    put(target, "good_aiff", recording(SF_FORMAT_AIFF | SF_FORMAT_PCM_16, 1));
    put(target, "good_au", recording(SF_FORMAT_AU | SF_FORMAT_ULAW, 1));
    put(target, "good_caf", recording(SF_FORMAT_CAF | SF_FORMAT_PCM_16, 1));
    put_whole_and_half(target, "flac", recording(SF_FORMAT_FLAC | SF_FORMAT_PCM_16, 1));
    const std::string opus = recording(SF_FORMAT_OGG | SF_FORMAT_OPUS, 1),
                      mp3 = recording(SF_FORMAT_MPEG | SF_FORMAT_MPEG_LAYER_III, 1);
    put_whole_and_half(target, "opus", opus);
    put(target, "good_chain_opus", opus + opus);
    put(target, "good_mp3", mp3);
    put(target, "good_w64", recording(SF_FORMAT_W64 | SF_FORMAT_PCM_16, 1));
    put(target, "bad_empty", "");
    const auto changed = [&](std::size_t at, std::uint32_t value) {
      std::string out = wav;
      std::memcpy(out.data() + at, &value, sizeof value);
      return out;
    };
    put(target, "bad_length.wav", changed(40, 1000));
    put(target, "good_length_0.wav", changed(40, 0));
    put(target, "good_two_parts.wav", wav + wav.substr(36));
    put(target, "bad_channels.wav", changed(20, 0x00010001U * 0xff00U));
    put(target, "bad_rate.wav", changed(24, 0));
    std::string nan = recording(SF_FORMAT_WAV | SF_FORMAT_FLOAT, 1);
    nan.replace(nan.size() - 4, 4, parts::number(std::uint32_t{0x7fc00000}));
    put(target, "bad_nan.wav", nan);
  }

  std::filesystem::path folder_;
};

}  // namespace fuzz
