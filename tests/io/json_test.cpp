// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <cstdint>
#include <laconic/io/json.hpp>

#include "catch.hpp"
#include "message_of.hpp"
#include "temporary_folder.hpp"

using namespace laconic;

namespace {

enum class Norm { layer, batch };
constexpr auto enum_names(Norm) {
  return std::to_array<EnumName<Norm>>({{Norm::layer, "layer"}, {Norm::batch, "batch"}});
}

struct EncoderConfig {
  int num_layers = 4;
  double dropout = 0.1;
  Norm norm = Norm::batch;
  static constexpr void fields(auto& self, auto&& visit) {
    visit("num_layers", self.num_layers);
    visit("dropout", self.dropout);
    visit("norm", self.norm);
  }
};

struct ModelConfig {
  EncoderConfig encoder;
  std::string attention = "mha";
  std::uint64_t seed = 0;
  float scale = 0.1F;
  bool causal = false;
  std::vector<std::ptrdiff_t> ranks{64, 32};
  static constexpr void fields(auto& self, auto&& visit) {
    visit("encoder", self.encoder);
    visit("attention", self.attention);
    visit("seed", self.seed);
    visit("scale", self.scale);
    visit("causal", self.causal);
    visit("ranks", self.ranks);
  }
};

std::string parse_message(std::string_view source) {
  return message_of([&] { parse_json(source, "f.json"); });
}

/// Returns the message for a valid configuration in which `member` (a JSON pointer) has been set to `value`.
std::string config_message(const std::string& member, nlohmann::json value) {
  nlohmann::json json = to_json(ModelConfig{});
  json[nlohmann::json::json_pointer(member)] = std::move(value);
  return message_of([&] { json_value<ModelConfig>(json, "f.json"); });
}

std::string nested(std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

}  // namespace

TEST_CASE("JSON is read strictly", "[io][json]") {
  CHECK(parse_json(R"({"a": [1, {"b": null}], "c": {"a": 1}})", "f.json")["a"][0] == 1);
  CHECK(parse_message(R"({"a": 1, "b": {"a": 2, "a": 3}})") == "f.json: key 'a' appears twice in one JSON object");
  CHECK(parse_message(R"({"a": 1, "\u0061": 3})") == "f.json: key 'a' appears twice in one JSON object");
  CHECK(parse_message(nested(32)) == "no error");
  CHECK(parse_message(nested(33)) == "f.json: JSON nested more than 32 deep");
  CHECK(parse_message(std::string(2'000'000, '[')) == "f.json: JSON nested more than 32 deep");
  CHECK(parse_message("[1] x") ==
        "f.json: not valid JSON: parse error at line 1, column 5: syntax error while parsing value - invalid literal; "
        "last "
        "read: '1] x'; expected end of input");
  CHECK(parse_message("{\"a\":\n \"\xff\"}").starts_with("f.json: not valid JSON: parse error at line 2, column 3: "));
  CHECK(parse_message("[\"\xed\xa0\x80\"]").starts_with("f.json: not valid JSON: "));  // a surrogate is not UTF-8
  CHECK(parse_message(std::string_view("[1]\0 x", 6)) == "f.json: not valid JSON: a zero byte at byte 3");
  CHECK(parse_message("").starts_with("f.json: not valid JSON: parse error at line 1, column 1: "));
  CHECK(parse_message("[1,]").starts_with("f.json: not valid JSON: "));
  CHECK(parse_message("[NaN]").starts_with("f.json: not valid JSON: "));
  CHECK(parse_message("[1] // no").starts_with("f.json: not valid JSON: "));
  CHECK(parse_message("1e999") == "f.json: not valid JSON: number overflow parsing '1e999'");
  // A long token does not make a long message.
  CHECK(parse_message("[" + std::string(100'000, '1') + "x").size() < 300);
}

TEST_CASE("a pointer of Git LFS in the place of a JSON file is named", "[io][json]") {
  const TemporaryFolder folder;
  const auto path = folder / "config.json";
  write_file(path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2474\n");
  CHECK(message_of([&] { read_json(path); }) ==
        path.string() +
            ": a pointer of Git LFS given, the file that it stands for expected: run git lfs pull in its folder");
}

TEST_CASE("attack: many objects in one take time as their number, not as its square", "[io][json]") {
  constexpr std::size_t count = 500'000;  // at 0.3 s for 10'000 objects, the square was half an hour
  std::string object = "{", array = "[";
  for (std::size_t i = 0; i < count; ++i) {
    object += text(i > 0 ? "," : "", '"', i, "\":{}");
    array += i > 0 ? ",{}" : "{}";
  }
  CHECK(parse_json(object + "}", "f.json").size() == count);
  CHECK(parse_json(array + "]", "f.json").size() == count);
}

TEST_CASE("what a watch drops is null, and its key is known still", "[io][json]") {
  const auto parse = [](std::string_view source) {
    return detail::parse_json(
        source, "f.json", [](int depth, nlohmann::json::parse_event_t event, const nlohmann::json& value) {
          using Event = nlohmann::json::parse_event_t;
          return !(event == Event::object_end && depth == 1) && !(event == Event::value && value == 7);
        });
  };
  CHECK(parse(R"({"a": {"b": 1}, "c": [7, 8, [7]], "d": {}})").dump() == R"({"a":null,"c":[null,8,[null]],"d":null})");
  CHECK(message_of([&] { parse(R"({"a": {"b": 1}, "a": 2})"); }) == "f.json: key 'a' appears twice in one JSON object");
}

TEST_CASE("a configuration goes to JSON and back", "[io][json]") {
  ModelConfig config;
  config.encoder = {12, 1.0 / 3, Norm::layer};
  config.attention = "mla-simple \"ä\"";
  config.seed = ~std::uint64_t{0};
  config.causal = true;
  config.ranks = {};
  const TemporaryFolder folder;
  write_json(folder / "config.json", to_json(config));
  const auto back = json_value<ModelConfig>(read_json(folder / "config.json"), "f.json");
  CHECK(back.encoder.num_layers == 12);
  CHECK(back.encoder.dropout == 1.0 / 3);
  CHECK(back.encoder.norm == Norm::layer);
  CHECK(back.attention == config.attention);
  CHECK(back.seed == config.seed);
  CHECK(back.scale == 0.1F);
  CHECK(back.causal);
  CHECK(back.ranks.empty());
  CHECK(to_json(ModelConfig{}).dump() ==
        R"({"attention":"mha","causal":false,"encoder":{"dropout":0.1,"norm":"batch","num_layers":4},"ranks":[64,32],)"
        R"("scale":0.10000000149011612,"seed":0})");
}

TEST_CASE("a configuration that is wrong is refused, with its place", "[io][json]") {
  CHECK(config_message("/encoder/num_layers", 3) == "no error");
  CHECK(config_message("/encoder/num_layers", 3.0) ==
        "f.json: 'encoder.num_layers' is 3.0, an integer from -2147483648 to 2147483647 expected");
  CHECK(config_message("/encoder/num_layers", 1LL << 31) ==
        "f.json: 'encoder.num_layers' is 2147483648, an integer from -2147483648 to 2147483647 expected");
  CHECK(config_message("/encoder/num_layers", true) ==
        "f.json: 'encoder.num_layers' is true, an integer from -2147483648 to 2147483647 expected");
  CHECK(config_message("/seed", -1) == "f.json: 'seed' is -1, an integer from 0 to 18446744073709551615 expected");
  CHECK(config_message("/seed", parse_json("18446744073709551616", "f.json")) ==
        "f.json: 'seed' is 1.8446744073709552e+19, an integer from 0 to 18446744073709551615 expected");
  CHECK(config_message("/seed", parse_json("1e3", "f.json")) ==
        "f.json: 'seed' is 1000.0, an integer from 0 to 18446744073709551615 expected");
  CHECK(config_message("/ranks/1", "x") ==
        "f.json: 'ranks[1]' is 'x', an integer from -9223372036854775808 to 9223372036854775807 expected");
  CHECK(config_message("/ranks", 1) == "f.json: 'ranks' is 1, an array expected");
  CHECK(config_message("/encoder/norm", "group") == "f.json: 'encoder.norm' is 'group', one of layer, batch expected");
  CHECK(config_message("/encoder/norm", 1) == "f.json: 'encoder.norm' is 1, one of layer, batch expected");
  CHECK(config_message("/encoder/dropout", "0.1") == "f.json: 'encoder.dropout' is '0.1', a number expected");
  CHECK(config_message("/encoder/dropout", 1) == "no error");
  CHECK(config_message("/scale", 1e300) == "f.json: 'scale' is 1e+300, a number up to 3.4028235e+38 expected");
  CHECK(config_message("/causal", 1) == "f.json: 'causal' is 1, true or false expected");
  CHECK(config_message("/attention", nullptr) == "f.json: 'attention' is null, a string expected");
  CHECK(config_message("/encoder", nlohmann::json::array({1})) ==
        "f.json: 'encoder' is an array of 1, an object expected");
  CHECK(config_message("/encoder/layers", 1) ==
        "f.json: unknown key 'encoder.layers' (known: num_layers, dropout, norm)");
  nlohmann::json json = to_json(ModelConfig{});
  json["encoder"].erase("norm");
  CHECK(message_of([&] { json_value<ModelConfig>(json, "f.json"); }) == "f.json: 'encoder.norm' is missing");
  CHECK(message_of([] { json_value<ModelConfig>(3, "f.json"); }) == "f.json: 3 given, an object expected");
}

TEST_CASE("single members are checked alike", "[io][json]") {
  const auto json = parse_json(R"({"audio_filepath": "a.wav", "duration": 1.5})", "m:3");
  CHECK(json_member<std::string>(json, "audio_filepath", "m:3") == "a.wav");
  CHECK(json_member<double>(json, "duration", "m:3") == 1.5);
  CHECK(message_of([&] { json_member<std::string>(json, "text", "m:3"); }) == "m:3: 'text' is missing");
  CHECK(message_of([&] { json_member<std::string>(json, "duration", "m:3"); }) ==
        "m:3: 'duration' is 1.5, a string expected");
  CHECK(message_of([&] { json_member<int>(nlohmann::json(1), "text", "m:3"); }) == "m:3: 1 given, an object expected");
}

TEST_CASE("what JSON cannot hold is not written", "[io][json]") {
  const TemporaryFolder folder;
  ModelConfig config;
  config.encoder.dropout = std::numeric_limits<double>::quiet_NaN();
  CHECK(message_of([&] { to_json(config); }) == "JSON cannot hold the number nan");
  CHECK(message_of([&] { write_json(folder / "a", "\xff", NotUtf8::refused); }) ==
        (folder / "a").string() + ": cannot write as JSON: a string is not valid UTF-8");
  CHECK(message_of([&] { to_json(static_cast<Norm>(7)); }) == "no name for value 7 of an enumeration");
  CHECK(folder.names().empty());
  write_json(folder / "result.json", {"a\xff.wav"});  // the name of a file must not cost a result
  CHECK(read_json(folder / "result.json")[0] == "a\xef\xbf\xbd.wav");
}

TEST_CASE("names of enumerations", "[core]") {
  static_assert(to_name(Norm::batch) == "batch");
  static_assert(from_name<Norm>("layer") == Norm::layer);
  static_assert(!from_name<Norm>("Layer"));
  CHECK(all_names<Norm>() == "layer, batch");
}
