// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/speech/english_numbers.hpp>
#include <laconic/speech/english_spelling.hpp>
#include <laconic/speech/unicode.hpp>
#include <laconic/speech/words.hpp>

#include <string>
#include <string_view>

// Texts as word error rates are published: without what two correct transcripts may write in different ways. The rules
// are those of Whisper (Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", appendix C),
// and results are those of transformers' BasicTextNormalizer and EnglishTextNormalizer with single spaces.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Replaces a part of a text that ends where a word ends.
struct TextRule {
  std::string_view from, to;
};

/// Lists words that say nothing.
inline constexpr TextRule filler_rules[] = {
    {"hmm", ""}, {"mm", ""}, {"mhm", ""}, {"mmm", ""}, {"uh", ""}, {"um", ""},
};
/// Lists contractions and titles that are replaced only as a whole, in order.
inline constexpr TextRule contraction_rules[] = {
    {"won't", "will not"},      {"can't", "can not"},      {"let's", "let us"},      {"ain't", "aint"},
    {"y'all", "you all"},       {"wanna", "want to"},      {"gotta", "got to"},      {"gonna", "going to"},
    {"i'ma", "i am going to"},  {"imma", "i am going to"}, {"woulda", "would have"}, {"coulda", "could have"},
    {"shoulda", "should have"}, {"ma'am", "madam"},        {"mr", "mister "},        {"mrs", "missus "},
    {"st", "saint "},           {"dr", "doctor "},         {"prof", "professor "},   {"capt", "captain "},
    {"gov", "governor "},       {"ald", "alderman "},      {"gen", "general "},      {"sen", "senator "},
    {"rep", "representative "}, {"pres", "president "},    {"rev", "reverend "},     {"hon", "honorable "},
    {"asst", "assistant "},     {"assoc", "associate "},   {"lt", "lieutenant "},    {"col", "colonel "},
    {"jr", "junior "},          {"sr", "senior "},         {"esq", "esquire "},
};
/// Lists ends of words that are replaced, in order.
inline constexpr TextRule ending_rules[] = {
    {"'d been", " had been"},
    {"'s been", " has been"},
    {"'d gone", " had gone"},
    {"'s gone", " has gone"},
    {"'d done", " had done"},
    {"'s got", " has got"},
    {"n't", " not"},
    {"'re", " are"},
    {"'s", " is"},
    {"'d", " would"},
    {"'ll", " will"},
    {"'t", " not"},
    {"'ve", " have"},
    {"'m", " am"},
};

/// Lists letters that are no letter with an accent to Unicode, and what stands for them.
inline constexpr std::string_view letters_with_strokes[][2] = {
    {"\u0153", "oe"}, {"\u0152", "OE"}, {"\u00f8", "o"}, {"\u00d8", "O"}, {"\u00e6", "ae"}, {"\u00c6", "AE"},
    {"\u00df", "ss"}, {"\u1e9e", "SS"}, {"\u0111", "d"}, {"\u0110", "D"}, {"\u00f0", "d"},  {"\u00d0", "D"},
    {"\u00fe", "th"}, {"\u00de", "th"}, {"\u0142", "l"}, {"\u0141", "L"},
};

/// Replaces all places of a text at which a rule fits.
inline void apply(const TextRule& rule, bool whole_words, std::string& text) {
  std::string out;
  std::size_t done = 0;
  for (std::size_t at = text.find(rule.from); at != std::string::npos; at = text.find(rule.from, at)) {
    const std::size_t end = at + rule.from.size();
    if ((whole_words && !is_word_boundary(text, at)) || !is_word_boundary(text, end)) {
      ++at;
      continue;
    }
    out.append(text, done, at - done) += rule.to;
    done = at = end;
  }
  if (done > 0) text = out.append(text, done);
}

/// Returns a text without what stands between brackets, from the first opening one to the first closing one.
/// `needs_content` keeps empty brackets.
inline std::string without_brackets(std::string_view text, std::string_view opening, std::string_view closing,
                                    bool needs_content) {
  std::string out;
  std::size_t done = 0;
  for (std::size_t at = text.find_first_of(opening); at != std::string_view::npos;
       at = text.find_first_of(opening, at)) {
    const std::size_t end = text.find_first_of(closing, at + 1);
    if (end == std::string_view::npos) break;
    if (needs_content && end == at + 1) {
      ++at;
      continue;
    }
    out += text.substr(done, at - done);
    done = at = end + 1;
  }
  return out += text.substr(done);
}

/// Says whether a character is white space in Unicode.
inline bool is_space(std::string_view character) {
  const auto code = code_point(character);
  const auto kind = utf8proc_category(std::max(0, code));
  return (code >= 9 && code <= 13) || (code >= 28 && code <= 32) || code == 0x85 ||
         (kind >= UTF8PROC_CATEGORY_ZS && kind <= UTF8PROC_CATEGORY_ZP);
}

/// Returns a text in small letters, spaces its only white space, without what stands in brackets: notes of sounds, of
/// speakers.
inline std::string spoken_part(std::string_view text) {
  std::string spaced;
  for (const std::string_view c : split_characters(text))
    spaced += is_space(c) ? " " : c == "\u0130" ? "i\u0307" : c;  // Python has no other small letter of two characters
  const std::string small = in_small_letters(spaced, [](std::string_view) { return false; });
  return without_brackets(without_brackets(small, "<[", ">]", false), "(", ")", true);
}

/// Says whether a character is a mark, punctuation or a symbol (categories M, P and S).
inline bool is_mark_or_symbol(std::string_view character) {
  const auto kind = utf8proc_category(std::max(0, code_point(character)));
  return (kind >= UTF8PROC_CATEGORY_MN && kind <= UTF8PROC_CATEGORY_ME) || is_punctuation(character);
}

/// Returns a text without the spaces before apostrophes.
inline std::string with_apostrophes_joined(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\'') out.erase(out.find_last_not_of(' ') + 1);
    out += c;
  }
  return out;
}
/// Returns a text without commas between digits and without periods that no digit follows.
inline std::string with_digits_joined(std::string_view text) {
  std::string joined;
  for (std::size_t i = 0; i < text.size(); ++i) {
    joined += text[i];
    if (!is_digit(text[i]) || !text.substr(i + 1).starts_with(',') || !has_digit(text, i + 2)) continue;
    joined += text[i += 2];  // the digit after a comma is none before one: "1,2,3" keeps its second comma
  }
  std::string out;
  for (std::size_t i = 0; i < joined.size(); ++i) {
    if (joined[i] != '.' || has_digit(joined, i + 1)) {
      out += joined[i];
      continue;
    }
    out += ' ';
    if (++i < joined.size()) out += joined[i];  // a period after a period stays
  }
  return out;
}
/// Returns a text without accents and symbols, but for those of numbers.
inline std::string without_accents_and_symbols(std::string_view text) {
  constexpr std::string_view kept = ".%$\u00a2\u00a3\u20ac";
  const std::string parts = mapped(text, UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
  std::string out;
  for (const std::string_view c : split_characters(parts)) {
    const auto* letter = std::find_if(std::begin(letters_with_strokes), std::end(letters_with_strokes),
                                      [&](const auto& pair) { return pair[0] == c; });
    if (letter != std::end(letters_with_strokes))
      out += (*letter)[1];
    else if (kept.find(c) != std::string_view::npos)
      out += c;
    else if (utf8proc_category(code_point(c)) != UTF8PROC_CATEGORY_MN)
      out += is_mark_or_symbol(c) ? std::string_view(" ") : c;
  }
  return out;
}
/// Returns a text without the symbols of numbers where no number is.
inline std::string without_lone_symbols(std::string_view text) {
  std::string joined;
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::size_t size = 0;
    for (const std::string_view one : {".", "$", "\u00a2", "\u00a3", "\u20ac"})
      if (text.substr(i).starts_with(one)) size = one.size();
    if (size == 0 || i + size == text.size() || has_digit(text, i + size)) {
      joined += text[i];
      continue;
    }
    joined += ' ';
    joined += text[i += size];
  }
  std::string out;
  for (std::size_t i = 0; i < joined.size(); ++i) {
    out += joined[i];
    if (is_digit(joined[i]) || !std::string_view(joined).substr(i + 1).starts_with('%')) continue;
    out += ' ';
    ++i;
  }
  return out;
}

}  // namespace detail

/// Returns a text as Whisper's normaliser for any language writes it: in small letters, without what stands in
/// brackets, a space for marks, punctuation and symbols, single spaces. In scripts whose vowels are marks it breaks
/// words. Throws `Error` for bytes that are not UTF-8. Time grows with the length of the text. Allocates.
inline std::string basic_normalized(std::string_view text) {
  const std::string composed = detail::mapped(detail::spoken_part(text), UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
  std::string out;
  for (const std::string_view c : detail::split_characters(composed))
    out += detail::is_mark_or_symbol(c) ? std::string_view(" ") : c;
  return detail::join_words(detail::in_small_letters(out, [](std::string_view) { return false; }));
}

/// Returns a text as Whisper's normaliser for English writes it: in small letters, without what stands in brackets,
/// fillers, punctuation and accents, contractions written out ("it's" is "it is", of a possessive, too), numbers in
/// digits, spelling American, single spaces. Throws `Error` for bytes that are not UTF-8. Time grows with the length of
/// the text. Allocates.
inline std::string whisper_normalized(std::string_view text) {
  std::string out = detail::spoken_part(text);
  for (const auto& rule : detail::filler_rules) detail::apply(rule, true, out);
  out = detail::with_apostrophes_joined(out);
  for (const auto& rule : detail::contraction_rules) detail::apply(rule, true, out);
  for (const auto& rule : detail::ending_rules) detail::apply(rule, false, out);
  out = detail::without_accents_and_symbols(detail::with_digits_joined(out));
  out = english_numbers_in_digits(out);
  std::string american;
  for (const std::string_view word : detail::split_words(out)) {
    if (!american.empty()) american += ' ';
    american += american_spelling(word);
  }
  return detail::join_words(detail::without_lone_symbols(american));
}

}  // namespace LACONIC_ABI
}  // namespace laconic
