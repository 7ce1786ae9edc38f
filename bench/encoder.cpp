// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Times whole Conformer encoders with CTC heads at inference, in float, with relative positions and kernel 31:
//   small     12 layers of 256, 4 heads, feed-forward 1024, subsampling by 4 with 256 channels, 80 mels, 29 tokens
//   medium    17 layers of 512, 8 heads, feed-forward 2048, subsampling by 4 with 512 channels, 80 mels, 29 tokens
//   large     wav2vec2-conformer: 24 layers of 1024, 16 heads, feed-forward 4096, from samples at 16 kHz, 32 tokens
// A batch is one utterance, or eight of uneven lengths whose mean is --seconds, packed end to end.
//
// The model is prepared (Cpu::prepare) unless --weights says otherwise.
//
//   build/release/bench/encoder --serve [--threads N] [--size small] [--seconds 10] [--batch 1|uneven] [--folder DIR]
//                               [--weights float|bf16|int8|plain]     for bench/peers/compare.py encoder
//   build/release/bench/encoder --prepare --folder DIR ...   writes the input of peers: config.json and
//   model.safetensors
//                                       (random; kept if they exist), inputs-SECONDS-BATCH.safetensors with logits
#include <laconic/io/folder.hpp>
#include <laconic/io/hugging_face.hpp>
#include <laconic/laconic.hpp>
#include <laconic/model/wav2vec2_conformer.hpp>

#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include "serve.hpp"

namespace {

using namespace laconic;
namespace fs = std::filesystem;

struct Options : bench::Options {
  std::string size = "small", batch = "1", folder, weights = "float";
  double seconds = 10;
  bool prepares = false;
};

EncoderConfig config_of(const std::string& size) {
  if (size == "large")
    return wav2vec2_conformer_config({{"model_type", "wav2vec2-conformer"},
                                      {"hidden_size", 1024},
                                      {"num_hidden_layers", 24},
                                      {"num_attention_heads", 16},
                                      {"intermediate_size", 4096},
                                      {"hidden_act", "swish"},
                                      {"conv_bias", true},
                                      {"feat_extract_norm", "layer"}},
                                     size);
  const bool small = size == "small";
  return {.d_model = small ? 256 : 512,
          .num_layers = small ? 12 : 17,
          .vocab_size = 29,
          .num_heads = small ? 4 : 8,
          .subsampling_channels = small ? 256 : 512};
}

/// Moves parameters that start at 0 or 1 away from it, so that a difference between programs would show.
template <class Model>
void make_uneven(Model& model) {
  model.parameters([](std::string_view name, Parameter<float>& p) {
    const auto ends_with_any = [&](auto... ends) { return (name.ends_with(ends) || ...); };
    const bool around_one = ends_with_any("norm.weight", "running_var");
    if (!around_one && !ends_with_any("norm.bias", "running_mean", "pos_bias_u", "pos_bias_v")) return;
    fill_uniform(p, 0.5, Random(Seed(3), name));
    if (around_one) p.host().array() += 1;
  });
}

/// Holds packed utterances: features of 100 frames a second, or 16000 samples a second.
struct Batch {
  Batch(const Options& o, const EncoderConfig& config) {
    static constexpr std::array uneven{1.8, 0.35, 1.05, 0.7, 1.5, 0.5, 1.25, 0.85};  // times the mean
    const bool takes_samples = !config.waveform.empty();
    std::vector<Index> lengths;
    for (const double factor : o.batch == "1" ? std::vector{1.0} : std::vector(uneven.begin(), uneven.end())) {
      // A window of 25 ms every 10 ms: 3 s are 298 frames.
      const auto rows = static_cast<Index>(factor * o.seconds * (takes_samples ? 16000 : 100));
      lengths.push_back(takes_samples ? rows : rows - 2);
      audio_seconds += factor * o.seconds;
    }
    sequences = Sequences(lengths);
    inputs.resize(sequences.rows(), config.num_mels);
    const Random random(Seed(2), 0);
    for (Index i = 0; i < inputs.size(); ++i)
      inputs.data()[i] = static_cast<float>(random.normal(static_cast<std::uint64_t>(i)));
  }

  Matrix<float> inputs;
  Sequences sequences;
  double audio_seconds = 0;
};

/// Writes the inputs and the logits of this model, utterance by utterance.
template <class Logits>
void write_inputs(const fs::path& path, const Batch& batch, const Logits& logits) {
  SafetensorsWriter writer;
  const auto add = [&](const char* name, Index n, const float* rows, const Sequences& sequences, Index cols) {
    const Index length = sequences.length(n);
    writer.add(text(name, n), std::vector<Index>{length, cols},
               std::span(rows + sequences.begin(n) * cols, static_cast<std::size_t>(length * cols)));
  };
  for (Index n = 0; n < batch.sequences.size(); ++n) {
    add("input", n, batch.inputs.data(), batch.sequences, batch.inputs.cols());
    add("logits", n, logits.rows.data(), logits.sequences, logits.rows.cols());
  }
  writer.write(path);
}

/// Runs the benchmark of a model. as_json(config) and from_json(json, where) convert the configuration to and from that
/// of a model folder.
template <class Model, class AsJson, class FromJson>
int run(const Options& o, AsJson&& as_json, FromJson&& from_json) {
  const fs::path folder = o.folder;
  const bool is_there = !o.folder.empty() && fs::exists(folder / "config.json");
  Model model(is_there ? from_json(read_model_config(folder), (folder / "config.json").string()) : config_of(o.size),
              Seed(1));
  if (is_there) {
    load_parameters(model, open_model_tensors(folder), "", is_unused_hugging_face_tensor, may_lack_hugging_face_tensor);
  } else {
    make_uneven(model);
    if (o.prepares) save_model_folder(folder, model, as_json(model.config()), nlohmann::json::object());
  }
  const Batch batch(o, model.config());
  Cpu cpu(o.threads);
  // Peers compare their logits with those of weights that are not rounded.
  const bool rounded = o.weights == "bf16" || o.weights == "int8";
  const auto write = [&] {
    write_inputs(folder / text("inputs-", o.seconds, '-', o.batch, ".safetensors"), batch,
                 model(cpu, batch.inputs, batch.sequences));
  };
  if (o.prepares && rounded) write();
  if (o.weights != "plain") Cpu<float>(o.threads).prepare(model, from_name<Storage>(o.weights).value());
  if (o.prepares && !rounded) write();
  if (!o.serves) return 0;
  bench::reset_peak();
  return bench::serve(o, [&](Index count) {
    bench::Json answer;
    answer["name"] = o.weights == "float" ? "laconic" : text("laconic, weights ", o.weights);
    answer["parameters"] = model.count_parameters();
    answer["audio_seconds"] = batch.audio_seconds;
    for (Index i = 0; i < count; ++i)
      answer["seconds"].push_back(bench::seconds_of([&] { model(cpu, batch.inputs, batch.sequences); }));
    answer["peak_mb"] = bench::memory_mb("VmHWM");
    return answer;
  });
}

int run(const Options& o) {
  require(!o.prepares || !o.folder.empty(), "encoder: --prepare without --folder");
  if (o.size == "large")
    return run<Wav2Vec2Conformer<Mha<dyn>>>(
        o, [](const EncoderConfig& config) { return hugging_face_config(config); }, wav2vec2_conformer_config);
  return run<Conformer<Mha<dyn>>>(o, to_json<EncoderConfig>, json_value<EncoderConfig>);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("whole Conformer encoders at inference");
  Options o;
  o.add_to(app);
  app.add_option("--size", o.size, "size of the encoder")
      ->capture_default_str()
      ->check(CLI::IsMember({"small", "medium", "large"}));
  app.add_option("--seconds", o.seconds, "mean length of an utterance")
      ->capture_default_str()
      ->check(CLI::Range(0.5, 3600.0));
  app.add_option("--batch", o.batch, "one utterance, or eight of uneven lengths")
      ->capture_default_str()
      ->check(CLI::IsMember({"1", "uneven"}));
  app.add_option("--folder", o.folder, "folder of a model; random weights without it");
  app.add_option("--weights", o.weights, "how laconic stores weights: packed as float, bf16 or int8, or plain")
      ->capture_default_str()
      ->check(CLI::IsMember({"float", "bf16", "int8", "plain"}));
  app.add_flag("--prepare", o.prepares, "write the input of peers to the folder");
  CLI11_PARSE(app, argc, argv);
  return bench::guarded([&] { return run(o); });
}
