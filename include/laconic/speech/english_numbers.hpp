// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/speech/english_number_words.hpp>
#include <laconic/speech/unicode.hpp>
#include <laconic/speech/words.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Numbers in words become digits, by the rules of Whisper's English normaliser (Radford et al. 2022, "Robust Speech
// Recognition via Large-Scale Weak Supervision", appendix C). Texts are in small letters, and spaces are the only white
// space.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Says whether a byte is a digit, 0 to 9.
inline bool is_digit(char c) { return c >= '0' && c <= '9'; }
/// Says whether a byte is a letter, a to z.
inline bool is_small_ascii(char c) { return c >= 'a' && c <= 'z'; }
/// Says whether byte i of a text exists and is a digit.
inline bool has_digit(std::string_view text, std::size_t i) { return i < text.size() && is_digit(text[i]); }

/// Says whether a word begins or ends at byte i of a text. Words are made of letters, numbers and underscores.
inline bool is_word_boundary(std::string_view text, std::size_t i) {
  const auto is_of_word = [](std::string_view character) {
    const auto code = code_point(character);
    const auto kind = utf8proc_category(std::max(0, code));
    return code == '_' || (kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO) ||
           (kind >= UTF8PROC_CATEGORY_ND && kind <= UTF8PROC_CATEGORY_NO);
  };
  std::size_t size = std::min<std::size_t>(i, 1);  // of the character before
  while (size < i && (static_cast<unsigned char>(text[i - size]) & 0xC0) == 0x80) ++size;
  return is_of_word(text.substr(i - size, size)) != is_of_word(text.substr(i));
}

/// Says whether a word is a number in digits: "20", "2.5".
inline bool is_in_digits(std::string_view word) {
  const std::size_t dot = word.find('.');
  return !word.empty() && has_digit(word, 0) && is_digit(word.back()) &&
         std::all_of(word.begin(), word.end(), [](char c) { return is_digit(c) || c == '.'; }) &&
         (dot == std::string_view::npos || word.find('.', dot + 1) == std::string_view::npos);
}

/// Returns a whole number in the digits of any script in those of ASCII, and any other word as it is.
inline std::string in_ascii_digits(std::string_view word) {
  if (is_ascii(word)) return std::string(word);
  std::string out;
  const auto is_decimal = [](utf8proc_int32_t code) { return utf8proc_category(code) == UTF8PROC_CATEGORY_ND; };
  for (std::size_t i = 0; i < word.size(); i += character_size(word, i)) {
    const auto code = code_point(word.substr(i));
    if (code < 0 || !is_decimal(code)) return std::string(word);
    int below = 0;  // digits of a script are ten in a row, from zero on
    while (is_decimal(code - below - 1)) ++below;
    out += static_cast<char>('0' + below % 10);
  }
  return out;
}

/// Holds a number that words make longer. It is a value, to which words add ("twenty", "one"), or it is spelled, and
/// words append their digits ("one", "oh", "one"). All operations take time that does not grow with the digits.
class GrowingNumber {
 public:
  /// Says whether there is no number.
  bool empty() const { return digits_.empty(); }
  /// Says whether the number ends in a decimal point.
  bool ends_in_point() const { return !empty() && digits_.back() == '.'; }
  /// Returns the number and leaves none.
  std::string take() { return std::exchange(*this, GrowingNumber()).digits_; }

  /// Makes the number one that is in digits: a value if it is whole.
  void set(std::string_view digits) {
    *this = GrowingNumber();
    append(digits);
    shift(0);
  }
  /// Appends digits, or a point. The number is spelled from then on.
  void append(std::string_view digits) {
    is_spelled_ = true;
    for (const char c : digits) {
      if (c == '.' && dot_ == std::string::npos)
        dot_ = digits_.size();
      else if (!is_digit(c))
        is_number_ = false;
      digits_ += c;
    }
  }
  /// Appends as `append`, but a value of 0 is forgotten.
  void append_nonzero(std::string_view digits) {
    if (is_zero()) digits_.clear();
    append(digits);
  }
  /// Adds one to nineteen, or twenty to ninety. Zeros give way to it; where there are none, and after a word that is
  /// `apart` from it, it is appended. `after_ten` says whether the word before was twenty to ninety.
  void add(std::string_view digits, bool apart, bool after_ten) {
    const bool is_placed = is_spelled_ || apart ? after_ten && digits.size() == 1 : has_zeros(digits.size());
    if (empty() || is_zero())
      digits_ = digits;
    else if (is_placed)
      digits_.replace(digits_.size() - digits.size(), digits.size(), digits);
    else
      append(digits);
  }
  /// Multiplies by a power of ten: a spelled number as a whole, of a value what is below a thousand. Returns false, and
  /// does nothing, if a spelled number is none or would keep a fraction.
  bool multiply(std::size_t zeros) {
    if (empty()) digits_ = "1";
    if (is_spelled_ || digits_.size() <= 3) return shift(zeros);
    std::array<int, 3> residual{};
    for (std::size_t k = 0; k < residual.size(); ++k)
      residual[k] = std::exchange(digits_[digits_.size() - 1 - k], '0') - '0';
    const std::size_t needed = zeros + residual.size() + 1;
    if (digits_.size() < needed) digits_.insert(0, needed - digits_.size(), '0');
    int carry = 0;
    for (std::size_t k = 0, at = digits_.size() - zeros; at-- > 0 && (k < residual.size() || carry > 0); ++k) {
      const int sum = digits_[at] - '0' + carry + (k < residual.size() ? residual[k] : 0);
      digits_[at] = static_cast<char>('0' + sum % 10);
      carry = sum / 10;
    }
    if (carry > 0) digits_.insert(digits_.begin(), static_cast<char>('0' + carry));
    drop_leading_zeros();
    return true;
  }

 private:
  /// Says whether the number is a value of 0.
  bool is_zero() const { return !is_spelled_ && digits_ == "0"; }
  /// Says whether the number ends in so many zeros.
  bool has_zeros(std::size_t count) const {
    return digits_.size() >= count && digits_.find_first_not_of('0', digits_.size() - count) == std::string::npos;
  }
  void drop_leading_zeros() { digits_.erase(0, std::min(digits_.find_first_not_of('0'), digits_.size() - 1)); }

  /// Moves the decimal point to the right and makes the number a value. Returns false, and does nothing, if it is no
  /// number or would keep a fraction.
  bool shift(std::size_t zeros) {
    if (!is_number_ || digits_ == ".") return false;
    if (dot_ != std::string::npos) {
      const std::size_t last = digits_.find_last_not_of('0');
      if (last > dot_ && last - dot_ > zeros) return false;
      digits_.erase(dot_, 1);
      digits_.resize(dot_ + zeros, '0');
      dot_ = std::string::npos;
    } else {
      digits_.append(zeros, '0');
    }
    is_spelled_ = false;
    drop_leading_zeros();
    return true;
  }

  std::string digits_;
  bool is_spelled_ = false;              // rather than a value
  bool is_number_ = true;                // rather than "1.2.3"
  std::size_t dot_ = std::string::npos;  // place of the decimal point
};

/// Writes the words of a text one after the other, the numbers among them in digits.
class NumberWriter {
 public:
  /// Returns the text of all words.
  std::string operator()(std::string_view text) {
    std::vector<std::string> words;
    for (const std::string_view word : split_words(text)) words.push_back(in_ascii_digits(word));
    const auto at = [&](std::size_t i) { return i < words.size() ? std::string_view(words[i]) : std::string_view(); };
    for (std::size_t i = 0; i < words.size(); ++i)
      if (read(words[i], i > 0 ? number_word(words[i - 1]) : nullptr, at(i + 1))) ++i;
    flush();
    return std::move(out_);
  }

 private:
  /// Takes a word, where `before` is what the word before is to a number. Returns whether the next word is taken, too.
  bool read(std::string_view word, const NumberWord* before, std::string_view next) {
    std::string_view symbol;
    for (const std::string_view one : {"$", "\u00a2", "\u00a3", "\u20ac"})
      if (word.starts_with(one)) symbol = one;
    if (const std::string_view digits = word.substr(symbol.size()); is_in_digits(digits)) {
      if (number_.ends_in_point()) {
        number_.append(word);
        return false;
      }
      flush();
      if (!symbol.empty()) prefix_ = symbol;
      number_.set(digits);
      return false;
    }
    const NumberWord* one = number_word(word);
    if (one == nullptr) return pass(word);
    const NumberWord* after = number_word(next);
    const auto is_before = [&](NumberRole role) { return before != nullptr && before->is(role); };
    const bool number_follows = after != nullptr || is_in_digits(next);
    using enum NumberRole;
    switch (one->role) {
      case zero:
        number_.append_nonzero(one->written);
        break;
      case unit:
      case ten:
        number_.add(one->written, one->role == unit && is_before(unit), is_before(ten));
        break;
      case power:
        if (!number_.multiply(one->count)) {
          flush();
          number_.multiply(one->count);
        }
        break;
      case sign:
        flush();
        if (number_follows)
          prefix_ = one->written;
        else
          write(word);
        break;
      case currency:
        if (number_.empty()) return pass(word);
        prefix_ = one->written;
        flush();
        break;
      case percent:
      case per:
        if (number_.empty() || (one->role == per && next != "cent")) return pass(word);
        write(number_.take() + one->written);
        return one->role == per;
      case join:
        if (!number_follows || !is_before(power)) pass(word);
        break;
      case repeat:
        if (after == nullptr || !(after->is(unit) || after->is(zero))) return pass(word);
        number_.append_nonzero("");
        for (std::size_t k = 0; k < one->count; ++k) number_.append(after->written);
        return true;
      case point:
        if (!number_follows)
          pass(word);
        else if (is_in_digits(next) || after->is_digits())
          number_.append_nonzero(one->written);
        break;
    }
    if (!one->suffix.empty()) write(number_.take() + one->suffix);
    return false;
  }

  /// Writes a word that is no part of a number, and returns false: the next word is not taken.
  bool pass(std::string_view word) {
    flush();
    write(word);
    return false;
  }
  /// Writes the number that was growing, if there is one.
  void flush() {
    if (!number_.empty()) write(number_.take());
  }
  /// Writes a word after the sign or symbol that waits for one.
  void write(std::string_view word) {
    if (!out_.empty()) out_ += ' ';
    out_ += std::exchange(prefix_, std::string());
    out_ += word;
  }

  std::string out_, prefix_;
  GrowingNumber number_;
};

/// Returns a text that reads "point five" for "and a half" after a word of a number.
inline std::string with_halves_as_decimals(std::string_view text) {
  constexpr std::string_view conjunction = "and";
  std::string out;
  const auto add = [&](std::string_view part) {
    if (!out.empty()) out += ' ';
    out += part;
  };
  std::size_t begin = 0;
  for (std::size_t at = text.find(conjunction); at != std::string_view::npos; at = text.find(conjunction, at)) {
    std::size_t end = at + conjunction.size();
    bool is_half = is_word_boundary(text, at);
    for (const std::string_view one : {std::string_view("a"), std::string_view("half")}) {
      const std::size_t next = std::min(text.find_first_not_of(' ', end), text.size());
      is_half = is_half && next > end && text.substr(next).starts_with(one);
      end = next + one.size();
    }
    if (!is_half || !is_word_boundary(text, end)) {
      at += conjunction.size();
      continue;
    }
    // A half at the very begin belongs to nothing, and the rules drop it.
    const std::string_view part = text.substr(begin, at - begin);
    if (const std::size_t last = part.find_last_not_of(' '); last != std::string_view::npos) {
      const std::size_t space = part.find_last_of(' ', last);
      const NumberWord* word = number_word(part.substr(space + 1, last - space));
      add(part);
      add(word != nullptr && (word->is_digits() || word->is(NumberRole::power)) ? "point five" : "and a half");
    }
    begin = at = end;
  }
  if (text.substr(begin).find_first_not_of(' ') != std::string_view::npos) add(text.substr(begin));
  return out;
}

/// Returns a text with a space between letters and digits, but none before what makes a number an ordinal or a plural.
inline std::string with_numbers_apart(std::string_view text) {
  std::string apart;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char before = i > 0 ? text[i - 1] : ' ';
    if ((is_small_ascii(before) && is_digit(text[i])) || (is_digit(before) && is_small_ascii(text[i]))) apart += ' ';
    apart += text[i];
  }
  std::string out;
  const std::string_view rest = apart;
  for (std::size_t i = 0; i < rest.size(); ++i) {
    if (rest[i] == ' ' && i > 0 && is_digit(rest[i - 1])) {
      const std::size_t next = std::min(rest.find_first_not_of(' ', i), rest.size());
      bool is_suffix = false;
      for (const std::string_view one : {"st", "nd", "rd", "th", "s"})
        is_suffix = is_suffix || (rest.substr(next).starts_with(one) && is_word_boundary(rest, next + one.size()));
      if (is_suffix) i = next;
    }
    out += rest[i];
  }
  return out;
}

/// Returns the number of digits at byte i of a text if they are one or two and end there, else 0.
inline std::size_t two_digits_at(std::string_view text, std::size_t i) {
  const std::size_t count = !has_digit(text, i) ? 0 : has_digit(text, i + 1) ? 2 : 1;
  return count > 0 && is_word_boundary(text, i + count) ? count : 0;
}
/// Returns the currency symbol at byte i of a text that has cents, empty if there is none.
inline std::string_view currency_with_cents_at(std::string_view text, std::size_t i) {
  for (const std::string_view one : {"$", "\u00a3", "\u20ac"})
    if (text.substr(i).starts_with(one)) return one;
  return {};
}
/// Returns a text with "$2.07" for "$2 and ¢7".
inline std::string with_cents_as_decimals(std::string_view text) {
  constexpr std::string_view conjunction = "and ", cent = "\u00a2";
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    out += text[i];
    const std::string_view symbol = currency_with_cents_at(text, i);
    if (symbol.empty()) continue;
    const std::size_t begin = i + symbol.size();
    out += text.substr(i + 1, symbol.size() - 1);
    i = begin - 1;
    const std::size_t space = std::min(text.find_first_not_of("0123456789", begin), text.size());
    std::size_t cents = space + 1;
    if (space == begin || space == text.size() || text[space] != ' ') continue;
    if (text.substr(cents).starts_with(conjunction)) cents += conjunction.size();
    if (!text.substr(cents).starts_with(cent)) continue;
    cents += cent.size();
    const std::size_t count = two_digits_at(text, cents);
    if (count == 0) continue;
    out += text.substr(begin, space - begin);
    out += count == 1 ? ".0" : ".";
    out += text.substr(cents, count);
    i = cents + count - 1;
  }
  return out;
}
/// Returns a text with "¢7" for "$0.07".
inline std::string with_bare_cents(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (const std::string_view symbol = currency_with_cents_at(text, i); !symbol.empty()) {
      const std::size_t point = i + symbol.size() + 1;  // any character may stand here
      const std::size_t cents = point < text.size() ? point + character_size(text, point) : point;
      const std::size_t count = two_digits_at(text, cents);
      if (point < text.size() && text[point - 1] == '0' && count > 0) {
        out += "\u00a2";
        out += text.substr(cents, count).substr(count == 2 && text[cents] == '0' ? 1 : 0);
        i = cents + count - 1;
        continue;
      }
    }
    out += text[i];
  }
  return out;
}
/// Returns a text with "one" and "ones" for "1" and "1s".
inline std::string with_one_as_word(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool plural = text.substr(i).starts_with("1s");
    const bool is_one = text[i] == '1' && is_word_boundary(text, i) && is_word_boundary(text, i + (plural ? 2 : 1));
    if (is_one)
      out += "one";
    else
      out += text[i];
  }
  return out;
}

}  // namespace detail

/// Returns a text with its English numbers in digits, as Whisper's normaliser writes them: "twenty one" is "21", "one
/// oh one" is "101", "two dollars and seven cents" is "$2.07". The text is in small letters, UTF-8, without punctuation
/// but in numbers. Time grows with the length of the text. Allocates.
inline std::string english_numbers_in_digits(std::string_view text) {
  std::string out = detail::with_numbers_apart(detail::with_halves_as_decimals(text));
  out = detail::NumberWriter()(out);
  return detail::with_one_as_word(detail::with_bare_cents(detail::with_cents_as_decimals(out)));
}

}  // namespace LACONIC_ABI
}  // namespace laconic
