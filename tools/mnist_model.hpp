// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "common/cli.hpp"
#include "common/idx.hpp"

#include <laconic/core/random.hpp>
#include <laconic/decode/generate.hpp>
#include <laconic/decode/source_decoder.hpp>
#include <laconic/io/folder.hpp>
#include <laconic/io/placed_parameters.hpp>
#include <laconic/model/encoder_decoder.hpp>
#include <laconic/model/patch_encoder.hpp>
#include <laconic/train/encoder_decoder.hpp>

#include <algorithm>
#include <filesystem>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

// The images, the models and the folders of `laconic mnist`.
namespace mnist_command {

using namespace laconic;

/// A digit d is token d + 1; token 0 begins and ends a sequence.
constexpr int boundary = 0;
constexpr Index vocab_size = 11;
constexpr Index side = 28;  ///< pixels of a digit's side

template <class Policy>
using Model = EncoderDecoder<PatchEncoder<Policy>, AttentionDecoder<Policy, Policy>>;
using FullModel = Model<Mha<dyn, NoPosition>>;
using LatentModel = Model<MlaDecoupled<dyn, dyn, dyn, LowRankQuery<dyn>>>;
using AnyModel = std::variant<FullModel, LatentModel>;

/// Lists what config.json of a model folder holds.
struct FolderConfig {
  std::string model_type = "laconic-mnist";
  Index grid = 1;   ///< digits of an image's side
  Index patch = 7;  ///< pixels of a patch's side
  AttentionName attention = AttentionName::mha;
  FullModel::Config model;  ///< both models have the same kind of sizes

  static constexpr void fields(auto& self, auto&& visit) {
    visit("model_type", self.model_type);
    visit("grid", self.grid);
    visit("patch", self.patch);
    visit("attention", self.attention);
    visit("model", self.model);
  }
  Index tokens() const { return grid * grid; }
  Index patches() const { return (side / patch * grid) * (side / patch * grid); }
};

/// Calls f(std::type_identity<M>(), config of M) with the model that a configuration names.
template <class F>
auto with_model(const FolderConfig& c, F&& f) {
  if (c.attention == AttentionName::mha) return f(std::type_identity<FullModel>(), c.model);
  require(c.attention == AttentionName::mla_decoupled, "mnist: attention ", to_name(c.attention),
          " given, mha or mla-decoupled expected");
  return f(std::type_identity<LatentModel>(),
           LatentModel::Config{{c.model.encoder.patch_size, c.model.encoder.blocks}, c.model.decoder});
}
inline AnyModel make_model(const FolderConfig& c, Seed seed) {
  return with_model(c, [&]<class M>(std::type_identity<M>, const typename M::Config& config) {
    return AnyModel(std::in_place_type<M>, config, seed);
  });
}
inline Index parameter_count(const FolderConfig& c) {
  return with_model(c, []<class M>(std::type_identity<M>, const typename M::Config& config) {
    return M::Encoder::parameter_count(config.encoder) + M::Decoder::parameter_count(config.decoder);
  });
}

struct Loaded {
  FolderConfig config;
  AnyModel model;
};

inline void save(const std::filesystem::path& folder, const Loaded& loaded) {
  nlohmann::json digits = nlohmann::json::object();
  digits["<>"] = boundary;
  for (int d = 0; d < 10; ++d) digits[std::to_string(d)] = d + 1;
  std::visit([&](const auto& model) { save_model_folder(folder, model, to_json(loaded.config), digits); },
             loaded.model);
}
inline Loaded load(const std::filesystem::path& folder) {
  const std::string where = (folder / "config.json").string();
  const auto config = json_value<FolderConfig>(read_model_config(folder), where);
  require(config.model_type == FolderConfig().model_type, where, ": 'model_type' is ",
          detail::in_quotes(config.model_type), ", ", detail::in_quotes(FolderConfig().model_type), " expected");
  require(config.grid >= 1 && config.grid <= 6, where, ": 'grid' is ", config.grid, ", 1 to 6 expected");
  require(config.patch >= 1 && side % config.patch == 0, where, ": 'patch' is ", config.patch, ", a divisor of ", side,
          " expected");
  require(config.model.encoder.patch_size == config.patch * config.patch, where, ": 'patch_size' is ",
          config.model.encoder.patch_size, ", ", config.patch * config.patch, " expected");
  require(config.model.decoder.text.vocab_size == vocab_size, where, ": 'vocab_size' is ",
          config.model.decoder.text.vocab_size, ", ", vocab_size, " expected");
  require(config.model.encoder.blocks.max_positions >= config.patches(), where, ": 'max_positions' of the encoder is ",
          config.model.encoder.blocks.max_positions, ", at least ", config.patches(), " patches expected");
  require(config.model.decoder.text.max_positions > config.tokens(), where, ": 'max_positions' of the decoder is ",
          config.model.decoder.text.max_positions, ", more than ", config.tokens(), " digits expected");
  const Tensors tensors = open_model_tensors(folder);
  detail::require_enough_values(tensors, parameter_count(config), where);
  Loaded out{config, make_model(config, Seed())};
  std::visit([&](auto& model) { load_parameters(model, tensors); }, out.model);
  return out;
}

/// Images of digits with their labels.
struct Digits {
  Index count = 0;
  std::vector<unsigned char> pixels, labels;
};
/// Reads the pair of files {name}-images-idx3-ubyte and {name}-labels-idx1-ubyte of a folder, gzipped or not.
inline Digits read_digits(const std::string& folder, const std::string& name) {
  const auto file = [&](const char* kind) {
    const std::string plain = (std::filesystem::path(folder) / (name + kind)).string();
    const std::string zipped = plain + ".gz";
    require(detail::is_there(plain) || detail::is_there(zipped), plain, ": no such file, nor ", zipped);
    return detail::is_there(plain) ? plain : zipped;
  };
  const std::string images_file = file("-images-idx3-ubyte"), labels_file = file("-labels-idx1-ubyte");
  IdxBytes images = read_idx(images_file, 3), labels = read_idx(labels_file, 1);
  require(images.shape[1] == side && images.shape[2] == side, images_file, ": images of ", images.shape[1], " x ",
          images.shape[2], " pixels given, 28 x 28 expected");
  require(images.shape[0] == labels.shape[0], images_file, ": ", images.shape[0], " images given, but ", labels_file,
          " has ", labels.shape[0], " labels");
  for (const unsigned char label : labels.values)
    require(label < 10, labels_file, ": label ", int{label}, " given, 0 to 9 expected");
  return {images.shape[0], std::move(images.values), std::move(labels.values)};
}

/// Makes images of grid x grid digits: digit i of image n is pick(n, i), moved by up to shift pixels each way.
class Grids {
 public:
  Grids(const FolderConfig& c, const Digits& digits) : grid_(c.grid), patch_(c.patch), digits_(digits) {}

  template <class Pick>
  EncoderDecoderBatch<float> operator()(Index images, Pick&& pick, Index shift, const Random& random,
                                        std::uint64_t first) const {
    const Index across = side * grid_ / patch_, rows = across * across, cells = grid_ * grid_;
    EncoderDecoderBatch<float> out;
    out.input.resize(images * rows, patch_ * patch_);
    out.input.setConstant((0 - mean) / deviation);
    out.sequences = Sequences(std::vector<Index>(static_cast<std::size_t>(images), rows));
    for (Index n = 0; n < images; ++n) {
      std::vector<int> tokens;
      for (Index i = 0; i < cells; ++i) {
        const Index digit = pick(n, i);
        tokens.push_back(digits_.labels[static_cast<std::size_t>(digit)] + 1);
        const std::uint64_t number = 2 * ((first + static_cast<std::uint64_t>(n)) * static_cast<std::uint64_t>(cells) +
                                          static_cast<std::uint64_t>(i));
        const Index dx = shift == 0 ? 0 : random.below(2 * shift + 1, number) - shift,
                    dy = shift == 0 ? 0 : random.below(2 * shift + 1, number + 1) - shift;
        for (Index y = std::max<Index>(0, dy); y < std::min(side, side + dy); ++y)
          for (Index x = std::max<Index>(0, dx); x < std::min(side, side + dx); ++x) {
            const auto value =
                digits_.pixels[static_cast<std::size_t>(digit * side * side + (y - dy) * side + (x - dx))];
            const Index py = i / grid_ * side + y, px = i % grid_ * side + x;
            out.input(n * rows + py / patch_ * across + px / patch_, py % patch_ * patch_ + px % patch_) =
                (static_cast<float>(value) / 255 - mean) / deviation;
          }
      }
      out.tokens.push_back(std::move(tokens));
    }
    return out;
  }
  /// Makes images of the digits from `first` on, one after the other.
  EncoderDecoderBatch<float> in_order(Index images, Index first) const {
    return (*this)(
        images, [&](Index n, Index i) { return first + n * grid_ * grid_ + i; }, 0, Random(Seed(), ""), 0);
  }

 private:
  static constexpr float mean = 0.1307f, deviation = 0.3081f;  // of the training set
  Index grid_, patch_;
  const Digits& digits_;
};

/// Returns what the model writes down of the images, `together` at a time, greedily.
template <class M>
std::vector<std::vector<int>> read_images(auto& context, const M& model, const Grids& grids, Index images, Index cells,
                                          Index together) {
  SourceDecoder decoder(context, model.decoder, {.slots = together, .max_tokens = cells + 1});
  std::vector<std::vector<int>> out;
  for (Index begin = 0; begin < images; begin += together) {
    const Index count = std::min(together, images - begin);
    const auto batch = grids.in_order(count, begin * cells);
    const auto [rows, sources] = model.encoder.hidden(context, batch.input, batch.sequences);
    decoder.listen(rows, sources);
    const std::vector<std::vector<int>> prompts(static_cast<std::size_t>(count), std::vector<int>{boundary});
    for (auto& tokens : generate(decoder, std::span(prompts), {.max_new_tokens = cells + 1, .end_token = boundary}))
      out.push_back(std::move(tokens));
  }
  return out;
}

/// Returns what should have been written: the labels of an image's digits, and the end.
inline std::vector<int> expected(const Digits& digits, Index image, Index cells) {
  std::vector<int> out;
  for (Index i = 0; i < cells; ++i) out.push_back(digits.labels[static_cast<std::size_t>(image * cells + i)] + 1);
  out.push_back(boundary);
  return out;
}

}  // namespace mnist_command
