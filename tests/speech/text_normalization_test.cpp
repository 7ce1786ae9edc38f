// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/io/json.hpp>
#include <laconic/speech/text_normalization.hpp>
#include <laconic/speech/wer.hpp>

#include "catch.hpp"

#include <filesystem>
#include <string>

using namespace laconic;

namespace {

nlohmann::json golden() { return read_json(std::filesystem::path(LACONIC_GOLDEN_DIR) / "normalize.json"); }
std::string text_of(const nlohmann::json& one, const char* name) { return one[name].get<std::string>(); }

}  // namespace

TEST_CASE("texts are normalised as by transformers", "[text_normalization]") {
  const auto json = golden();
  REQUIRE(json["texts"].size() > 400);
  for (const auto& one : json["texts"]) {
    INFO(one["text"]);
    CHECK(basic_normalized(text_of(one, "text")) == text_of(one, "basic"));
    CHECK(whisper_normalized(text_of(one, "text")) == text_of(one, "whisper"));
  }
}

TEST_CASE("word errors of normalised texts are those of jiwer", "[text_normalization]") {
  const auto json = golden();
  REQUIRE(json["pairs"].size() == 100);
  for (const auto& one : json["pairs"]) {
    INFO(one["reference"] << " " << one["hypothesis"]);
    const auto check = [&](const char* kind, auto&& normalized) {
      const WordErrors errors =
          word_errors(normalized(text_of(one, "reference")), normalized(text_of(one, "hypothesis")));
      CHECK(errors.errors() == one[kind][0]);
      CHECK(errors.reference_words == one[kind][1]);
    };
    check("basic", basic_normalized);
    check("whisper", whisper_normalized);
  }
}

TEST_CASE("British words become American ones, other words stay", "[text_normalization]") {
  CHECK(american_spelling("organisations") == "organizations");
  CHECK(american_spelling("four") == "four");
  CHECK(detail::american_spellings().size() == 1738);  // each word of the list once
}

TEST_CASE("digits of other scripts and numbers beyond 64 bits are numbers", "[text_normalization]") {
  CHECK(whisper_normalized("\u0661\u0662 thousand") == "12000");
  CHECK(whisper_normalized("\u0661\u0662 \u0e51") == "12 one");
  CHECK(whisper_normalized("nine decillion nine hundred decillion") == "909" + std::string(33, '0'));
}

TEST_CASE("bytes that are not UTF-8 have no normalised text", "[text_normalization]") {
  CHECK_THROWS_WITH(basic_normalized("a\xff"), "text: byte 1 is not UTF-8");
  CHECK_THROWS_WITH(whisper_normalized("a\xff"), "text: byte 1 is not UTF-8");
}
