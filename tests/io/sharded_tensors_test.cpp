// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/io/folder.hpp>

#include "catch.hpp"
#include "message_of.hpp"
#include "temporary_folder.hpp"
#include "torch_parts.hpp"

using namespace laconic;

namespace {

struct Model : Module<Model> {
  Parameter<float> weight{2, 3}, bias{3};
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
  }
};

/// A safetensors file in which every tensor holds its number of values.
using Shapes = std::vector<std::pair<std::string, std::vector<Index>>>;
void write_safetensors(const std::filesystem::path& path, const Shapes& tensors) {
  const std::vector<float> values(100, 1.5F);
  SafetensorsWriter writer;
  for (const auto& [name, shape] : tensors) {
    Index size = 1;
    for (const Index extent : shape) size *= extent;
    writer.add(name, shape, std::span(values).first(static_cast<std::size_t>(size)));
  }
  writer.write(path);
}

/// A torch.save file of these tensors, which hold 0, 1, 2 ...
void write_torch(const std::filesystem::path& path, const Shapes& tensors) {
  std::string items;
  for (const auto& [name, shape] : tensors)
    items +=
        parts::string(name) + (shape.size() == 2 ? parts::tensor(parts::storage(6), 0, {2, 3}, {3, 1}) : parts::three);
  write_file(path, parts::file(parts::program("}(" + items + "u")));
}

void write_index(const std::filesystem::path& path, const nlohmann::json& weight_map) {
  write_json(path, {{"metadata", {{"total_size", 36}}}, {"weight_map", weight_map}});
}

const std::string safetensors_index = "model.safetensors.index.json", torch_index = "pytorch_model.bin.index.json";
const std::string first = "model-00001-of-00002.safetensors", second = "model-00002-of-00002.safetensors";

}  // namespace

TEST_CASE("a model in several files is read as one", "[io][sharded]") {
  const TemporaryFolder folder;
  write_safetensors(folder / first, {{"weight", {2, 3}}});
  write_safetensors(folder / second, {{"bias", {3}}});
  write_index(folder / safetensors_index, {{"weight", first}, {"bias", second}});
  const Tensors tensors = open_model_tensors(folder.path);
  CHECK(tensors.path() == (folder / safetensors_index).string());
  CHECK(tensors.path("weight") == (folder / first).string());
  CHECK(tensors.path("bias") == (folder / second).string());
  CHECK(tensors.names() == std::vector<std::string>{"weight", "bias"});
  CHECK(tensors.count_values() == 9);
  CHECK(tensors.contains("bias"));
  Model model;
  load_parameters(model, tensors);
  CHECK(model.weight.host().data()[5] == 1.5F);
  CHECK(model.bias.host().data()[2] == 1.5F);
  CHECK(message_of([&] { tensors.info("w"); }) == tensors.path() + ": no tensor 'w'");
  std::vector<float> two(2);
  CHECK(message_of([&] { tensors.read("bias", std::span<float>(two)); }) ==
        (folder / second).string() + ": tensor 'bias' has 3 values, 2 expected");

  write_safetensors(folder / second, {{"bias", {1, 3}}});
  CHECK(message_of([&] { load_parameters(model, open_model_tensors(folder.path)); }) ==
        (folder / second).string() + ": tensor 'bias' has shape (1, 3), (3) expected");
}

TEST_CASE("a model folder may hold what PyTorch writes", "[io][sharded]") {
  const TemporaryFolder folder;
  Model model;
  write_torch(folder / "a.bin", {{"weight", {2, 3}}});
  write_torch(folder / "b.bin", {{"bias", {3}}});
  write_index(folder / torch_index, {{"weight", "a.bin"}, {"bias", "b.bin"}});
  load_parameters(model, open_model_tensors(folder.path));
  CHECK(model.weight.host().data()[5] == 5);
  CHECK(model.bias.host().data()[2] == 2);
  // One file comes before several, and safetensors before PyTorch's: the others are not even looked at.
  write_torch(folder / "pytorch_model.bin", {{"weight", {2, 3}}, {"bias", {3}}});
  write_file(folder / torch_index, "{");
  CHECK(open_model_tensors(folder.path).path() == (folder / "pytorch_model.bin").string());
  load_parameters(model, open_model_tensors(folder.path));
  CHECK(model.weight.host().data()[4] == 4);
  write_safetensors(folder / first, {{"weight", {2, 3}}});
  write_index(folder / safetensors_index, {{"weight", first}});
  write_file(folder / "pytorch_model.bin", "");
  CHECK(open_model_tensors(folder.path).path() == (folder / safetensors_index).string());
  write_safetensors(folder / "model.safetensors", {{"weight", {2, 3}}});
  write_file(folder / safetensors_index, "{");
  CHECK(open_model_tensors(folder.path).path() == (folder / "model.safetensors").string());
}

TEST_CASE("an index whose files do not hold what it says is refused", "[io][sharded]") {
  const TemporaryFolder folder;
  const std::string index = (folder / safetensors_index).string();
  const auto message = [&](const nlohmann::json& weight_map) {
    write_index(index, weight_map);
    return message_of([&] { open_model_tensors(folder.path); });
  };
  write_safetensors(folder / first, {{"weight", {2, 3}}});
  const std::string one = (folder / first).string(), two = (folder / second).string();
  CHECK(message({{"weight", first}}) == "no error");
  CHECK(message(nlohmann::json::object()) == "no error");
  CHECK(message({{"weight", first}, {"bias", second}}) == index + ": 1 of its 2 files are missing: '" + second + "'");
  CHECK(message({{"weight", first}, {"bias", first}}) == one + ": no tensor 'bias', which " + index + " says is there");
  write_safetensors(folder / second, {{"bias", {3}}, {"scale", {3}}});
  CHECK(message({{"weight", first}, {"bias", second}}) == two + ": tensor 'scale' is not in " + index);
  write_safetensors(folder / second, {{"bias", {3}}, {"weight", {3}}});
  CHECK(message({{"weight", first}, {"bias", second}}) ==
        two + ": tensor 'weight' should be in '" + first + "', as " + index + " says");
  write_file(folder / second, "damaged");
  CHECK(message({{"weight", first}, {"bias", second}}) ==
        two + ": not a safetensors file: 7 bytes, at least 8 expected");
}

TEST_CASE("attack: an index that names what it should not", "[io][sharded]") {
  const TemporaryFolder folder;
  const std::string index = (folder / torch_index).string();
  const auto message = [&](const nlohmann::json& json) {
    write_json(index, json);
    const std::string out = message_of([&] { open_model_tensors(folder.path); });
    return out.starts_with(index + ": ") ? out.substr(index.size() + 2) : "the file is not named: " + out;
  };
  const auto named = [&](const nlohmann::json& shard) { return message({{"weight_map", {{"w", shard}}}}); };
  const std::string plain = " given for a file beside it, a plain name expected";
  CHECK(named("../a.bin") == "'../a.bin'" + plain);
  CHECK(named("/etc/passwd") == "'/etc/passwd'" + plain);
  CHECK(named("a/b.bin") == "'a/b.bin'" + plain);
  CHECK(named("a\\b.bin") == "'a\\b.bin'" + plain);
  CHECK(named(std::string("a\0b", 3)) == "'a?b'" + plain);
  CHECK(named("..") == "'..'" + plain);
  CHECK(named(".") == "'.'" + plain);
  CHECK(named("") == "''" + plain);
  CHECK(named(7) == "tensor 'w' is in 7, the name of a file expected");
  const std::string expected = "an object 'weight_map' of tensors and the files that they are in expected";
  CHECK(message(nlohmann::json::array()) == expected);
  CHECK(message({{"metadata", 1}}) == expected);
  CHECK(message({{"weight_map", {1, 2}}}) == expected);
  write_file(index, R"({"weight_map":{"w":"a.bin","w":"b.bin"}})");
  CHECK(message_of([&] { open_model_tensors(folder.path); }) == index + ": key 'w' appears twice in one JSON object");
  write_file(index, "{");
  CHECK(message_of([&] { open_model_tensors(folder.path); }).starts_with(index + ": not valid JSON: "));
}
