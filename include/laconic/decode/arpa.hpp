// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>

#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Gives the lines of a text in memory, one after the other, without their ends.
class TextLines {
 public:
  /// Begins at the first line. The text must outlive this object.
  explicit TextLines(std::string_view text) : left_(text) {}
  /// Writes the next line and returns true, or returns false after the last.
  bool operator()(std::string_view& line) {
    if (left_.empty()) return false;
    const std::size_t end = left_.find('\n');
    line = left_.substr(0, end);
    left_.remove_prefix(end == std::string_view::npos ? left_.size() : end + 1);
    return true;
  }

 private:
  std::string_view left_;
};

/// Holds one line of an ARPA file: an n-gram. Its words point into the line.
struct ArpaEntry {
  float log10_prob = 0,                 ///< log10 of the probability of the last word after the others
      log10_backoff = 0;                ///< log10 of the back-off weight; 0 where the file has none
  std::vector<std::string_view> words;  ///< the n words
};

/// Reads an ARPA file of n-grams, as SRILM and KenLM write them, line by line. Memory is that of one line. What the
/// header claims is compared with what follows, and nothing is allocated by it.
///
/// The header is "\data\" and a line "ngram 1=COUNT" for each order. A section follows for each, which begins with
/// "\1-grams:". Its lines have a log10 probability, the n words and, below the highest order, perhaps the log10 of the
/// back-off weight. "\end\" ends the file.
template <class NextLine>
class ArpaReader {
 public:
  /// Reads the header. `next_line(line)` writes the next line of the file `where` and returns false after the last.
  /// Throws `Error`, with the line's number, for what is no ARPA file.
  ArpaReader(std::string where, NextLine& next_line) : where_(std::move(where)), next_line_(next_line) {
    require(next(), where_, ": empty, an ARPA file expected");
    require(!line_.starts_with("mmap lm "), where_,
            ": a binary model of KenLM given, the ARPA file that it was built from expected");
    require(!line_.starts_with("\x1f\x8b"), where_, ": a gzip file given, an ARPA file expected");
    if (line_ != "\\data\\") fail("\\data\\");
    while (next() && line_.starts_with("ngram ")) {
      const std::string expected = text("ngram ", counts_.size() + 1, '=');
      std::uint64_t count = 0;
      const auto [end, error] =
          line_.starts_with(expected)
              ? std::from_chars(line_.data() + expected.size(), line_.data() + line_.size(), count)
              : std::from_chars_result{line_.data(), std::errc::invalid_argument};
      if (error != std::errc() || end != line_.data() + line_.size()) fail(text(expected, "COUNT"));
      counts_.push_back(count);
    }
    if (counts_.empty()) fail("ngram 1=COUNT");
  }

  /// Returns the highest order of the n-grams.
  std::size_t order() const { return counts_.size(); }
  /// Returns the number of the line that was read last; the first is 1.
  std::size_t line_number() const { return number_; }

  /// Calls `use(entry)` for each n-gram of the next order; sections follow each other from 1 to `order()`, and the last
  /// is followed by the end of the file. Throws `Error`, with the line's number, for a damaged line and for another
  /// number of n-grams than the header has.
  template <class Use>
  void read_section(Use&& use) {
    const std::size_t n = ++section_;
    const std::string head = text('\\', n, "-grams:");
    if (ended_ || line_ != head) fail(head);
    ArpaEntry entry;
    std::uint64_t count = 0;
    for (; next() && line_.front() != '\\'; ++count) {
      split(entry, n);
      use(std::as_const(entry));
    }
    require(ended_ || count == counts_[n - 1], where_, ": line ", number_, ": the end of ", count, ' ', n,
            "-grams given, ", counts_[n - 1], " expected, as \"ngram ", n, "=", counts_[n - 1], "\" says");
    if (n == order() && (ended_ || line_ != "\\end\\")) fail("\\end\\");
  }

  /// Throws `Error` for the line that was read last, which is none that was expected.
  [[noreturn]] void fail(std::string_view expected) const {
    if (ended_)
      throw Error(text(where_, ": the end of the file given after line ", number_, ", ", expected, " expected"));
    throw Error(text(where_, ": line ", number_, ": \"", line_.substr(0, 80), line_.size() > 80 ? "..." : "",
                     "\" given, ", expected, " expected"));
  }

 private:
  static constexpr std::string_view spaces = " \t\r";

  /// Goes to the next line that is not blank, and returns false if there is none.
  bool next() {
    while (!ended_) {
      if (!next_line_(line_)) {
        ended_ = true;
        break;
      }
      ++number_;
      const std::size_t begin = line_.find_first_not_of(spaces);
      if (begin == std::string_view::npos) continue;
      line_ = line_.substr(begin, line_.find_last_not_of(spaces) + 1 - begin);
      return true;
    }
    return false;
  }

  /// Splits the line of an n-gram.
  void split(ArpaEntry& entry, std::size_t n) const {
    fields_.clear();
    for (std::size_t begin = 0; begin < line_.size();) {
      const std::size_t end = std::min(line_.find_first_of(spaces, begin), line_.size());
      fields_.push_back(line_.substr(begin, end - begin));
      begin = std::min(line_.find_first_not_of(spaces, end), line_.size());
    }
    const bool highest = n == order();
    if (fields_.size() != n + 1 && (highest || fields_.size() != n + 2))
      fail(text("a log10 probability, ", n, n == 1 ? " word" : " words",
                highest ? "" : " and perhaps a log10 back-off weight"));
    entry.log10_prob = number(fields_.front());
    if (entry.log10_prob > 0) fail("a log10 probability of at most 0");
    entry.log10_backoff = fields_.size() == n + 2 ? number(fields_.back()) : 0;
    entry.words.assign(fields_.begin() + 1, fields_.begin() + 1 + static_cast<std::ptrdiff_t>(n));
  }
  float number(std::string_view field) const {
    float out = 0;
    const char* const end = field.data() + field.size();
    const auto result = std::from_chars(field.data(), end, out);
    if (result.ec != std::errc() || result.ptr != end || !std::isfinite(out))
      fail(text("a finite number in place of ", field.substr(0, 40)));
    return out;
  }

  std::string where_;
  NextLine& next_line_;
  std::string_view line_;
  std::size_t number_ = 0, section_ = 0;
  bool ended_ = false;
  std::vector<std::uint64_t> counts_;
  mutable std::vector<std::string_view> fields_;
};

}  // namespace detail

}  // namespace LACONIC_ABI
}  // namespace laconic
