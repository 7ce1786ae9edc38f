// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/io/folder.hpp>
#include <laconic/io/parameters.hpp>

#include "catch.hpp"
#include "message_of.hpp"
#include "temporary_folder.hpp"

#include <limits>

using namespace laconic;

namespace {

template <class T>
struct Layer : Module<Layer<T>> {
  Parameter<T> weight{3, 1, 2};
  Parameter<T> mean{Parameter<T>({3}, Role::statistic)};
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("mean", self.mean);
  }
};

template <class T>
struct Model : Module<Model<T>> {
  explicit Model(std::size_t num_layers = 2) : layers(num_layers) {}
  std::vector<Layer<T>> layers;
  Parameter<T> bias{4};
  static void each_parameter(auto& self, auto&& visit) {
    visit("layers", self.layers);
    visit("bias", self.bias);
  }
};

struct Rounded : Module<Rounded> {
  Parameter<float> weight{3, 70}, small{3, 1, 2}, bias{3};
  Rounded() { weight.use = small.use = WeightUse::conv1d; }
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("small", self.small);
    visit("bias", self.bias);
  }
};

/// A model whose every value is different.
template <class T>
Model<T> numbered(std::size_t num_layers = 2) {
  Model<T> model(num_layers);
  T next = T(0.5);
  model.parameters([&](std::string_view, auto& p) {
    for (Index i = 0; i < p.size(); ++i) p.host().data()[i] = next++;
  });
  return model;
}

template <class T>
std::vector<double> all_values(const Model<T>& model) {
  std::vector<double> out;
  model.parameters(
      [&](std::string_view, const auto& p) { out.insert(out.end(), p.host().data(), p.host().data() + p.size()); });
  return out;
}

}  // namespace

TEST_CASE("parameters go to a file and back", "[io][parameters]") {
  const TemporaryFolder folder;
  const auto model = numbered<float>();
  save_parameters(model, folder / "f", {{"format", "pt"}});
  const SafetensorsFile file(folder / "f");
  CHECK(file.names() ==
        std::vector<std::string>{"bias", "layers.0.mean", "layers.0.weight", "layers.1.mean", "layers.1.weight"});
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.info("layers.1.weight").shape == std::vector<Index>{3, 1, 2});
  Model<float> back;
  load_parameters(back, file);
  CHECK(all_values(back) == all_values(model));
  Model<double> wide;  // single precision in the file, double in the model, and back
  load_parameters(wide, file);
  CHECK(all_values(wide) == all_values(model));
  save_parameters(wide, folder / "d");
  Model<float> narrow;
  load_parameters(narrow, SafetensorsFile(folder / "d"));
  CHECK(all_values(narrow) == all_values(model));
}

TEST_CASE("a prefix picks a part of a file", "[io][parameters]") {
  const TemporaryFolder folder;
  const auto first = numbered<float>(1);
  const auto second = numbered<double>(3);
  SafetensorsWriter writer;
  append_parameters(writer, first, "first.");
  append_parameters(writer, second, "second.");
  writer.write(folder / "f");
  const SafetensorsFile file(folder / "f");
  Model<float> one(1);
  Model<double> three(3);
  load_parameters(one, file, "first.");
  load_parameters(three, file, "second.");
  CHECK(all_values(one) == all_values(first));
  CHECK(all_values(three) == all_values(second));
  CHECK(message_of([&] { load_parameters(one, file); }) ==
        file.path() +
            ": 3 of the model's 3 tensors are missing: 'layers.0.weight', 'layers.0.mean', 'bias'; the model does not "
            "have "
            "'second.bias', 'second.layers.0.mean', 'second.layers.0.weight', 'second.layers.1.mean', "
            "'second.layers.1.weight' and 5 more");
}

TEST_CASE("a file that does not fit the model is refused and the model kept", "[io][parameters]") {
  const TemporaryFolder folder;
  const auto path = folder / "f";
  auto model = numbered<float>(2);
  const auto before = all_values(model);
  const auto load_from = [&](const SafetensorsWriter& writer) {
    writer.write(path);
    const std::string message = message_of([&] { load_parameters(model, SafetensorsFile(path)); });
    CHECK(all_values(model) == before);
    return message;
  };
  const auto small = numbered<float>(1), large = numbered<float>(5);

  SafetensorsWriter missing;
  append_parameters(missing, small);
  CHECK(load_from(missing) ==
        path.string() + ": 2 of the model's 5 tensors are missing: 'layers.1.weight', 'layers.1.mean'");

  SafetensorsWriter unknown;
  append_parameters(unknown, large);
  CHECK(load_from(unknown) == path.string() +
                                  ": 6 tensors that the model does not have: 'layers.2.mean', 'layers.2.weight', "
                                  "'layers.3.mean', 'layers.3.weight', 'layers.4.mean' and 1 more");

  const std::vector<float> zeros(6);
  const auto with = [&](std::vector<Index> shape) {  // the model's tensors, one of them with another shape
    SafetensorsWriter writer;
    model.parameters([&](std::string_view name, const auto& p) {
      const bool other = name == "layers.1.weight";
      writer.add(name, other ? shape : p.shape(),
                 std::span<const float>(zeros).first(other ? zeros.size() : static_cast<std::size_t>(p.size())));
    });
    return writer;
  };
  CHECK(load_from(with({3, 2})) == path.string() + ": tensor 'layers.1.weight' has shape (3, 2), (3, 1, 2) expected");
  CHECK(load_from(with({2, 1, 3})) ==
        path.string() + ": tensor 'layers.1.weight' has shape (2, 1, 3), (3, 1, 2) expected");

  auto damaged = model;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    damaged.layers[1].weight.host()(1, 1) = bad;
    SafetensorsWriter writer;
    append_parameters(writer, damaged);
    CHECK(load_from(writer) == path.string() + ": tensor 'layers.1.weight' holds numbers that are not finite");
  }

  with({3, 1, 2}).write(path);
  std::string bytes = read_file(path, 10000);  // "F32" of the tensor becomes "I32": as many bytes, another meaning
  const auto at = bytes.find("F32", bytes.find("layers.1.weight"));
  bytes[at] = 'I';
  write_file(path, bytes);
  CHECK(message_of([&] { load_parameters(model, SafetensorsFile(path)); }) ==
        path.string() +
            ": tensor 'layers.1.weight' has dtype I32, one of F32, F64, F16, BF16 expected, or I8 with scales");
  CHECK(all_values(model) == before);
}

TEST_CASE("a model folder goes out and back", "[io][folder]") {
  const TemporaryFolder folder;
  const auto path = folder / "model";
  const auto model = numbered<float>();
  save_model_folder(path, model, {{"d_model", 4}}, nlohmann::json::array({"a", "b"}));
  CHECK(folder.names() == std::vector<std::string>{"model"});
  CHECK(read_model_config(path) == nlohmann::json{{"d_model", 4}});
  CHECK(read_model_vocab(path) == nlohmann::json::array({"a", "b"}));
  Model<float> back;
  load_parameters(back, open_model_tensors(path));
  CHECK(all_values(back) == all_values(model));

  // Replaced as a whole, beside what else the folder holds.
  write_file(path / "log.csv", "1");
  save_model_folder(path, numbered<float>(1), {{"d_model", 8}}, nlohmann::json::array({"c"}));
  CHECK(read_model_config(path)["d_model"] == 8);
  CHECK(read_model_vocab(path)[0] == "c");
  CHECK(open_model_tensors(path).names().size() == 3);
  CHECK(read_file(path / "log.csv", 10) == "1");
  CHECK(folder.names() == std::vector<std::string>{"model"});
}

TEST_CASE("a model folder that cannot be written leaves the older one", "[io][folder]") {
  const TemporaryFolder folder;
  const auto path = folder / "model";
  save_model_folder(path, numbered<float>(), {{"d_model", 4}}, nlohmann::json::array());
  CHECK(message_of([&] {
          save_model_folder(path, numbered<float>(1), {{"d_model", 8}}, "\xff");
        }).ends_with("vocab.json: cannot write as JSON: a string is not valid UTF-8"));
  CHECK(read_model_config(path)["d_model"] == 4);
  CHECK(folder.names() == std::vector<std::string>{"model"});
}

TEST_CASE("a folder that is no model folder is named", "[io][folder]") {
  const TemporaryFolder folder;
  const std::string path = folder.path.string(), none = (folder / "none").string();
  const std::string expected =
      ": expected a model folder written by `laconic train` or `laconic convert`, or one of Hugging Face with "
      "config.json, vocab.json and model.safetensors or pytorch_model.bin";
  CHECK(message_of([] { read_model_config("facebook/wav2vec2-conformer"); }) ==
        "facebook/wav2vec2-conformer: no such folder" + expected +
            "; if this is a model of the Hugging Face Hub, download it first: hf download facebook/wav2vec2-conformer "
            "--local-dir wav2vec2-conformer");
  CHECK(message_of([&] { read_model_config(none); }) == none + ": no such folder" + expected);
  CHECK(message_of([&] { read_model_config(path); }) == path + ": no config.json" + expected);
  CHECK(message_of([&] { read_model_vocab(path); }) == path + ": no vocab.json" + expected);
  CHECK(message_of([&] { open_model_tensors(none); }) == none + ": no such folder" + expected);
  CHECK(message_of([&] { open_model_tensors(path); }) ==
        path + ": no model.safetensors, no pytorch_model.bin and no index (.index.json) of either" + expected);
  write_file(folder / "config.json", "{");
  CHECK(message_of([&] {
          read_model_config(path);
        }).starts_with((folder / "config.json").string() + ": not valid JSON: "));
}

TEST_CASE("rounded weights come back as they were rounded, once and again", "[parameters]") {
  const TemporaryFolder folder;
  const auto path = folder.path / "model.safetensors", again = folder.path / "again.safetensors";
  Rounded model;
  for (Index i = 0; i < model.weight.size(); ++i)
    model.weight.host().data()[i] = std::sin(static_cast<float>(i * i)) * static_cast<float>(1 + i / 70);
  model.small.host().setConstant(0.3F);
  model.bias.host() << 0.1F, 0.2F, 0.7F;

  for (const Storage storage : {Storage::int8, Storage::bf16}) {
    save_parameters(model, path, {}, storage);
    const SafetensorsFile file(path);
    CHECK(file.info("weight").dtype == (storage == Storage::int8 ? Dtype::i8 : Dtype::bf16));
    CHECK(file.info("small").dtype == (storage == Storage::int8 ? Dtype::f32 : Dtype::bf16));
    CHECK(file.info("bias").dtype == Dtype::f32);
    Rounded loaded, twice;
    load_parameters(loaded, file);
    CHECK(loaded.bias.host() == model.bias.host());
    for (Index r = 0; r < 3; ++r) {
      const float most = model.weight.host().row(r).cwiseAbs().maxCoeff(),
                  error = (loaded.weight.host().row(r) - model.weight.host().row(r)).cwiseAbs().maxCoeff();
      CHECK(error > 0);
      CHECK(error <= 1.001F * most / (storage == Storage::int8 ? 254 : 256));
    }
    save_parameters(loaded, again, {}, storage);
    load_parameters(twice, SafetensorsFile(again));
    CHECK((twice.weight.host() - loaded.weight.host()).cwiseAbs().maxCoeff() < 1e-6F);
  }
}

TEST_CASE("bytes without their scales are refused", "[parameters]") {
  const TemporaryFolder folder;
  const auto path = folder.path / "f";
  const std::vector<std::int8_t> bytes(3 * 70, 5);
  const std::vector<float> scales(4, 0.1F), others(3 * 70, 0.1F);
  for (const std::size_t count : {std::size_t{0}, std::size_t{4}}) {
    SafetensorsWriter writer;
    writer.add("weight", std::array<Index, 2>{3, 70}, std::span(bytes));
    if (count > 0) writer.add("weight_scale", std::array<Index, 1>{4}, std::span(scales));
    writer.add("small", std::array<Index, 3>{3, 1, 2}, std::span<const float>(others).first(6));
    writer.add("bias", std::array<Index, 1>{3}, std::span<const float>(others).first(3));
    writer.write(path);
    Rounded model;
    CHECK_THROWS_WITH(load_parameters(model, SafetensorsFile(path)),
                      Catch::Matchers::ContainsSubstring(
                          count == 0 ? "has dtype I8, one of F32, F64, F16, BF16 expected, or I8 with scales"
                                     : "F32 and one for each row expected"));
  }
}
