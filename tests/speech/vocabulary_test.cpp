// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/io/json.hpp>
#include <laconic/speech/vocabulary.hpp>

#include "catch.hpp"

#include <array>
#include <string>
#include <vector>

using namespace laconic;
using Ids = std::vector<int>;
using Texts = std::vector<std::string>;

TEST_CASE("a vocabulary of words", "[vocabulary]") {
  const auto words = Vocabulary::words(Texts{"two one", "three  two\t"});
  CHECK(words.kind() == Tokens::words);
  REQUIRE(words.size() == 4);
  CHECK(words.token(0) == "<blank>");
  CHECK(words.token(1) == "one");  // in byte order, whatever order the texts have
  CHECK(words == Vocabulary::words(Texts{"three", "two", "one"}));
  CHECK(words.encode("one two  two three ") == Ids{1, 3, 3, 2});
  CHECK(words.encode("").empty());
  CHECK(words.decode(Ids{1, 3, 0, 3, 2}) == "one two two three");
  CHECK_THROWS_WITH(words.encode("one four"),
                    "vocabulary: unknown token \"four\" in \"one four\"; known words: one three two");
  CHECK_THROWS_WITH(words.encode("<blank>"),
                    Catch::Matchers::StartsWith("vocabulary: unknown token \"<blank>\" in \"<blank>\"; "));
  CHECK_THROWS_WITH(words.decode(Ids{4}), "vocabulary: token 4 given, 0 to 3 expected");
  CHECK_THROWS_WITH(words.decode(Ids{-1}), "vocabulary: token -1 given, 0 to 3 expected");
  CHECK_THROWS_WITH(Vocabulary::words(Texts{"a <blank>"}),
                    "vocabulary: token \"<blank>\" occurs twice or is the blank's name");
}

TEST_CASE("a vocabulary of characters", "[vocabulary]") {
  const auto characters = Vocabulary::characters(Texts{"ab c", "d'a", "\u00e9"});
  CHECK(characters.kind() == Tokens::characters);
  REQUIRE(characters.size() == 8);  // blank, space, ', a, b, c, d, e acute
  CHECK(characters.token(1) == " ");
  CHECK(characters.token(7) == "\u00e9");  // a code point, not a byte
  for (const std::string one : {"ab c", "d'a", "\u00e9 \u00e9", ""})
    CHECK(characters.decode(characters.encode(one)) == one);
  CHECK(characters.encode("  a   b ") == characters.encode("a b"));
  CHECK(characters.decode(Ids{1, 3, 1, 0, 1, 4, 1}) == "a b");
  DecodedText parts;  // token by token
  const std::vector<std::string> texts{"", "a", "a", "a", "a", "a b", "a b"};
  for (std::size_t i = 0; const int label : Ids{1, 3, 1, 0, 1, 4, 1}) {
    characters.decode(std::array{label}, parts);
    CHECK(parts.text == texts[i++]);
  }
  CHECK_THROWS_WITH(characters.encode("abx"),
                    "vocabulary: unknown token \"x\" in \"abx\"; known characters: | ' a b c d \u00e9");
  CHECK_THROWS_WITH(characters.encode("a\xff"), "text: byte 1 is not UTF-8");
  CHECK_THROWS_WITH(characters.encode("\xc3"), "text: byte 0 is not UTF-8");
  CHECK_THROWS_WITH(Vocabulary::characters(Texts{"a|b"}),
                    "vocabulary: '|' stands for the space and may not occur in a text: \"a|b\"");
}

TEST_CASE("a text is written in the letters that the vocabulary has", "[vocabulary]") {
  const auto written = [](const Texts& tokens, std::string_view text, Tokens kind = Tokens::characters) {
    return Vocabulary::of(kind, tokens).written(text);
  };
  CHECK(written({"AB'C"}, " it's\ta Day ") == "IT'S A DAY");
  CHECK(written({"ab'c"}, " it's\ta Day ") == "it's a day");
  CHECK(written({"Ab"}, "it's  a Day") == "it's a Day");  // it tells them apart
  CHECK(written({"12"}, "Day 1") == "Day 1");
  CHECK(written({"\u00c9A"}, "caf\u00e9") == "CAF\u00c9");
  CHECK(written({"\u00e4\u00f6\u00fc\u00df"}, "\u00c4PFEL UND \u00dcBERGR\u00d6SSE") ==
        "\u00e4pfel und \u00fcbergr\u00f6sse");
  CHECK(written({"AUS"}, "Stra\u00dfe, \ufb01") == "STRASSE, FI");  // as Python's upper()
  CHECK(written({"A\u00df"}, "Stra\u00dfe") == "STRA\u00dfE");      // which is a token
  CHECK(written({"\u03b1\u03c2"}, "\u039b\u039f\u0393\u039f\u03a3 \u03a3\u0391\u03a3.") ==
        "\u03bb\u03bf\u03b3\u03bf\u03c2 \u03c3\u03b1\u03c2.");  // final sigmas
  CHECK(written({"\u0434\u0430"}, "\u0414\u0410 \u0419") == "\u0434\u0430 \u0439");
  CHECK(written({"\u00e9A"}, "e\u0301\u00a0 \u3000A") == "\u00e9 A");  // composed, and all white space is a space
  CHECK(written({"a"}, "A\xff  B") == "a\xff b");                      // no text
  CHECK(written({"one two"}, "ONE Three", Tokens::words) == "one three");
  CHECK(written({"ONE TWO"}, "one three", Tokens::words) == "ONE THREE");
  CHECK(written({"one Two"}, "ONE two", Tokens::words) == "ONE two");
  CHECK(Vocabulary().written("Any text") == "Any text");  // the blank has small letters that are never written

  const auto published =
      Vocabulary::from_json(Tokens::characters, {{"<pad>", 0}, {"<unk>", 1}, {"|", 2}, {"A", 3}, {"B", 4}});
  CHECK(published.written("a bad") == "A BAD");
  CHECK(published.encode("b a") == Ids{4, 2, 3});
  CHECK(published.decode(Ids{4, 0, 2, 3}) == "B A");
  CHECK_THROWS_WITH(published.encode("a bad"),
                    "vocabulary: unknown token \"D\" in \"A BAD\"; known characters: <unk> | A B");
  CHECK_THROWS_WITH(published.encode("<pad>"),
                    Catch::Matchers::StartsWith("vocabulary: unknown token \"<\" in \"<PAD>\"; "));
}

TEST_CASE("a vocabulary goes to vocab.json and back", "[vocabulary]") {
  const auto characters = Vocabulary::characters(Texts{"one two"});
  const auto words = Vocabulary::words(Texts{"one two"});
  CHECK(words.to_json() == nlohmann::json::parse(R"({"<blank>": 0, "one": 1, "two": 2})"));
  CHECK(characters.to_json().at("|") == 1);
  for (const Vocabulary& one : {characters, words})
    CHECK(Vocabulary::from_json(one.kind(), nlohmann::json::parse(one.to_json().dump())) == one);
  CHECK(Vocabulary::of(from_name<Tokens>("words").value(), Texts{"one two"}) == words);
  CHECK(to_name(words.kind()) == "words");
  CHECK(Vocabulary().size() == 1);

  const auto reading = [](const char* json, Tokens kind = Tokens::words) {
    return [=] { Vocabulary::from_json(kind, nlohmann::json::parse(json), "DIR/vocab.json"); };
  };
  CHECK_THROWS_WITH(reading("[1]")(), "DIR/vocab.json: an object of token to index expected, array given");
  CHECK_THROWS_WITH(reading("{}")(), "DIR/vocab.json: index 0 is missing, <blank> expected");
  CHECK_THROWS_WITH(reading(R"({"a": 0})")(), "DIR/vocab.json: index 0 is a, <blank> expected");
  CHECK_THROWS_WITH(reading(R"({"<blank>": 0, "a": "1"})")(),
                    "DIR/vocab.json: token \"a\" has string, an integer index expected");
  CHECK_THROWS_WITH(reading(R"({"<blank>": 0, "a": 2})")(),
                    "DIR/vocab.json: token \"a\" has index 2, 0 to 1 expected for 2 tokens");
  CHECK_THROWS_WITH(reading(R"({"<blank>": 0, "a": -1})")(),
                    "DIR/vocab.json: token \"a\" has index -1, 0 to 1 expected for 2 tokens");
  CHECK_THROWS_WITH(reading(R"({"<blank>": 0, "a": 1, "b": 1})")(),
                    "DIR/vocab.json: index 1 belongs to \"a\" and to \"b\"");
  CHECK_THROWS_WITH(reading(R"({"<blank>": 0, "a b": 1})")(), "DIR/vocab.json: token \"a b\" is not one of words");
  CHECK_THROWS_WITH(reading(R"({"<blank>": 0, "": 1})")(), "DIR/vocab.json: token \"\" is not one of words");
  CHECK_THROWS_WITH(reading(R"({"<blank>": 0, "ab": 1})", Tokens::characters)(),
                    "DIR/vocab.json: token \"ab\" is not one of characters");
  CHECK_THROWS_WITH(reading(R"({"<blank>": 0, " ": 1, "|": 2})", Tokens::characters)(),
                    "vocabulary: token \" \" occurs twice or is the blank's name");
}

TEST_CASE("letters with accents are one token or several", "[vocabulary]") {
  CHECK(Vocabulary::characters(Texts{"e\u0301"}).size() == 2);
  CHECK(Vocabulary::words(Texts{"e\u0301", "\u00e9"}).size() == 2);
  nlohmann::json json{{"<pad>", 0}, {"e", 1}, {"\u0301", 2}, {"|", 3}};
  const auto apart = Vocabulary::from_json(Tokens::characters, json);
  CHECK(apart.encode("\u00e9 e") == Ids{1, 2, 3, 1});
  CHECK(apart.errors("\u00c9", apart.decode(Ids{1, 2})) == WordErrors{.reference_words = 1});
  CHECK(apart.unknown("e\u00e8, x\u00e9x,").size() == 3);
  CHECK(apart.unknown("e").empty());
  CHECK(apart.without_punctuation("\u00ab E\u2019e, \u2013 e' \u00bb") == "Ee e");
  json["'"] = 4;
  CHECK(Vocabulary::from_json(Tokens::characters, json).without_punctuation("E\u2019e!") == "E'e");
}

TEST_CASE("a vocabulary of Hugging Face may have its blank anywhere, and tokens of several characters",
          "[vocabulary]") {
  TokenizerConfig names;
  names.read({{"pad_token", {{"content", "[PAD]"}}}, {"unk_token", "[UNK]"}, {"word_delimiter_token", "\u2581"}}, "t");
  const nlohmann::json json{{"\u2581", 0}, {"a", 1}, {"a\u026a", 2}, {"|", 3}, {"[UNK]", 5}, {"[PAD]", 4}, {"<s>", 9}};
  const auto read = [&](Index classes, const TokenizerConfig& t) {
    return Vocabulary::from_json(Tokens::characters, json, "DIR/vocab.json", &t, classes);
  };
  const Vocabulary v = read(8, names);
  CHECK(v.size() == 8);
  CHECK(v.blank() == 4);
  CHECK(v.encode("A a\u026a|a") == Ids{1, 0, 2, 3, 1});
  CHECK(v.decode(Ids{1, 0, 4, 2, 5, 3, 7}) == "a a\u026a[UNK]|[UNK]");
  CHECK(std::vector<int>(v.labels().begin(), v.labels().end()) == Ids{0, 1, 2, 3, 4, 5, 5, 5});
  for (const Index special : {4, 5, 6, 7}) CHECK(v.is_special(special));
  for (const Index text : {0, 1, 2, 3}) CHECK_FALSE(v.is_special(text));
  CHECK_THROWS_WITH(v.encode("[UNK]"), Catch::Matchers::StartsWith("vocabulary: unknown token \"[\" in \"[unk]\"; "));
  CHECK_THROWS_WITH(read(4, names),
                    "DIR/vocab.json: no token '[PAD]', which is the blank, in the 4 classes of the model");
  CHECK(read(0, names).size() == 10);
  TokenizerConfig again;
  again.read(nlohmann::json::parse(names.to_json().dump()), "t");
  CHECK(again == names);
  CHECK(Vocabulary::from_json(Tokens::characters, v.to_json(), "v", &again, 8) == v);

  names.do_lower_case = true;
  names.replace_word_delimiter_char = "_";
  const Vocabulary lower = read(8, names);
  CHECK(lower.written("\u00c4 A") == "\u00e4 a");
  CHECK(lower.decode(Ids{1, 0, 5}) == "a_[unk]");
  names.word_delimiter_token = "";
  CHECK(read(8, names).decode(Ids{1, 0, 1}) == "a\u2581a");
  CHECK_THROWS_WITH(names.read({{"pad_token", 3}}, "DIR/t.json"), "DIR/t.json: 'pad_token' is 3, a token expected");
  CHECK_THROWS_WITH(Vocabulary::from_json(Tokens::words, {{"<blank>", 0}, {"a\x1b[2J", 1}}, "DIR/vocab.json"),
                    "DIR/vocab.json: token 'a?[2J' has a control character, text expected");
}

TEST_CASE("of a large vocabulary an error shows the beginning", "[vocabulary]") {
  Texts many;
  for (int i = 100; i < 200; ++i) many.push_back("w" + std::to_string(i));
  CHECK_THROWS_WITH(Vocabulary::words(many).encode("x"), Catch::Matchers::EndsWith("w138 w139 ... (100 in all)"));
}
