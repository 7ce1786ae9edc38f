// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/speech/words.hpp>

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>

// The words of English numbers, as Whisper's normaliser knows them (english_numbers.hpp).

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Says what a word is to a number.
enum class NumberRole {
  zero,      ///< "oh"
  unit,      ///< one to nineteen
  ten,       ///< twenty to ninety
  power,     ///< "hundred", "million"
  sign,      ///< "minus"
  currency,  ///< "dollars"
  percent,   ///< "percent"
  per,       ///< "per", which "cent" may follow
  join,      ///< "and" within a number
  repeat,    ///< "double"
  point      ///< the decimal point
};
/// Holds a word of a number.
struct NumberWord {
  NumberRole role;
  std::string written{};  ///< digits or symbol; of a power of ten or a repetition empty
  std::size_t count = 0;  ///< zeros of a power of ten, times of a repetition
  std::string suffix{};   ///< "th" of an ordinal, "s" of a plural, which end a number

  /// Says whether the word is of this role and no ordinal or plural.
  bool is(NumberRole one) const { return role == one && suffix.empty(); }
  /// Says whether the word can follow a decimal point.
  bool is_digits() const { return suffix.empty() && role <= NumberRole::ten; }
};

/// Returns all words of numbers by their spelling.
inline std::unordered_map<std::string, NumberWord> english_number_words() {
  using enum NumberRole;
  std::unordered_map<std::string, NumberWord> out;
  const auto add = [&](NumberRole role, std::string_view written, std::string_view names) {
    for (const std::string_view name : split_words(names)) out[std::string(name)] = {role, std::string(written)};
  };
  add(zero, "0", "o oh zero");
  add(sign, "-", "minus negative");
  add(sign, "+", "plus positive");
  add(currency, "\u00a3", "pound pounds");
  add(currency, "\u20ac", "euro euros");
  add(currency, "$", "dollar dollars");
  add(currency, "\u00a2", "cent cents");
  add(percent, "%", "percent");
  add(per, "%", "per");
  add(join, "", "and");
  add(point, ".", "point");
  out["double"] = {repeat, "", 2};
  out["triple"] = {repeat, "", 3};

  // The rules make "nineth" of nine, so that "ninth" stays a word.
  out["zeroth"] = {unit, "0", 0, "th"};
  const std::unordered_map<std::size_t, std::string> ordinals{
      {1, "first"}, {2, "second"}, {3, "third"}, {5, "fifth"}, {12, "twelfth"}};
  constexpr std::array<std::string_view, 3> ends{"st", "nd", "rd"};
  const auto units = split_words(
      "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
      "eighteen nineteen");
  for (std::size_t i = 1; i <= units.size(); ++i) {
    const std::string name(units[i - 1]), digits = text(i);
    const auto named = ordinals.find(i);
    out[name] = {unit, digits};
    out[name + (name == "six" ? "es" : "s")] = {unit, digits, 0, "s"};
    out[named != ordinals.end() ? named->second : name + (name.back() == 't' ? "h" : "th")] = {
        unit, digits, 0, std::string(i <= ends.size() ? ends[i - 1] : "th")};
  }
  const auto tens = split_words("twenty thirty forty fifty sixty seventy eighty ninety");
  for (std::size_t i = 0; i < tens.size(); ++i) {
    const std::string stem(tens[i].substr(0, tens[i].size() - 1)), digits = text(10 * (i + 2));
    out[stem + "y"] = {ten, digits};
    out[stem + "ies"] = {ten, digits, 0, "s"};
    out[stem + "ieth"] = {ten, digits, 0, "th"};
  }
  const auto powers = split_words(
      "hundred thousand million billion trillion quadrillion quintillion sextillion septillion octillion nonillion "
      "decillion");
  for (std::size_t i = 0; i < powers.size(); ++i) {
    const std::string name(powers[i]);
    const std::size_t zeros = i == 0 ? 2 : 3 * i;
    out[name] = {power, "", zeros};
    out[name + "s"] = {power, "", zeros, "s"};
    out[name + "th"] = {power, "", zeros, "th"};
  }
  return out;
}
/// Returns what a word is to a number, null if it is nothing.
inline const NumberWord* number_word(std::string_view word) {
  static const auto words = english_number_words();
  const auto found = words.find(std::string(word));
  return found == words.end() ? nullptr : &found->second;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
