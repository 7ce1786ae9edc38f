// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/random.hpp>
#include <laconic/speech/words.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Counts the word errors of hypotheses. Summed over a corpus, `rate()` is the word error rate of the corpus, which is
/// not the mean of the utterances' rates.
struct WordErrors {
  Index substitutions = 0,    ///< words replaced
      deletions = 0,          ///< words of the reference that are missing
      insertions = 0;         ///< words that are not in the reference
  Index reference_words = 0;  ///< number of words in the references

  /// Returns the number of all errors.
  Index errors() const { return substitutions + deletions + insertions; }
  /// Returns the word error rate (S + D + I) / N as a fraction, which may exceed 1. Without reference words it is the
  /// number of insertions, as in jiwer.
  double rate() const {
    return static_cast<double>(errors()) / static_cast<double>(std::max<Index>(reference_words, 1));
  }

  /// Adds the counts of others.
  WordErrors& operator+=(const WordErrors& other) {
    substitutions += other.substitutions;
    deletions += other.deletions;
    insertions += other.insertions;
    reference_words += other.reference_words;
    return *this;
  }
  /// Says whether all counts are equal.
  friend bool operator==(const WordErrors&, const WordErrors&) = default;

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("substitutions", self.substitutions);
    visit("deletions", self.deletions);
    visit("insertions", self.insertions);
    visit("reference_words", self.reference_words);
  }
};

/// Holds a difference between a reference and a hypothesis, or a part that both have. The views point into the texts.
struct TextEdit {
  std::string_view reference,  ///< part of the reference; empty: inserted
      hypothesis;              ///< part of the hypothesis; empty: deleted

  /// Says whether both are the same.
  bool is_equal() const { return reference == hypothesis; }
};

namespace detail {

/// Returns the fewest edits that turn the parts of a reference into those of a hypothesis (Levenshtein), in order. Of
/// alignments of equal cost, one that prefers substitutions. Time and memory grow with the product of the lengths.
inline std::vector<TextEdit> edits(std::span<const std::string_view> r, std::span<const std::string_view> h) {
  const std::size_t width = h.size() + 1;
  std::vector<Index> cost((r.size() + 1) * width);  // cost[i * width + j]: first i of r, first j of h
  for (std::size_t j = 0; j < width; ++j) cost[j] = static_cast<Index>(j);
  for (std::size_t i = 1; i <= r.size(); ++i) {
    cost[i * width] = static_cast<Index>(i);
    for (std::size_t j = 1; j < width; ++j)
      cost[i * width + j] = std::min({cost[(i - 1) * width + j - 1] + (r[i - 1] == h[j - 1] ? 0 : 1),
                                      cost[(i - 1) * width + j] + 1, cost[i * width + j - 1] + 1});
  }

  std::vector<TextEdit> out;
  for (std::size_t i = r.size(), j = h.size(); i > 0 || j > 0;) {
    const Index here = cost[i * width + j];
    const bool both = i > 0 && j > 0;
    if (both && here == cost[(i - 1) * width + j - 1] + (r[i - 1] == h[j - 1] ? 0 : 1)) {
      out.push_back({r[--i], h[--j]});
    } else if (i > 0 && here == cost[(i - 1) * width + j] + 1) {
      out.push_back({r[--i], {}});
    } else {
      out.push_back({{}, h[--j]});
    }
  }
  std::reverse(out.begin(), out.end());
  return out;
}

/// Counts edits.
inline WordErrors count_edits(std::span<const TextEdit> edits) {
  WordErrors out;
  for (const TextEdit& one : edits) {
    out.reference_words += one.reference.empty() ? 0 : 1;
    if (one.is_equal()) continue;
    ++(one.reference.empty() ? out.insertions : one.hypothesis.empty() ? out.deletions : out.substitutions);
  }
  return out;
}

}  // namespace detail

/// Returns the fewest edits that turn the words of a reference into those of a hypothesis, both split at white space,
/// with the words that both have among them. Words are compared byte by byte: case and spelling are up to the caller.
/// Prefers substitutions among alignments of equal cost, so only the number of all errors is comparable with other
/// programs. Time and memory grow with (reference words) x (hypothesis words). Allocates.
inline std::vector<TextEdit> word_edits(std::string_view reference, std::string_view hypothesis) {
  return detail::edits(detail::split_words(reference), detail::split_words(hypothesis));
}
/// Returns the counts of `word_edits`. Allocates.
inline WordErrors word_errors(std::string_view reference, std::string_view hypothesis) {
  return detail::count_edits(word_edits(reference, hypothesis));
}
/// Returns the counts of errors by characters (code points), with single spaces between words; of such texts they are
/// those of jiwer's `cer`. `reference_words` is the number of characters. Time grows with the product of the lengths,
/// memory with their sum. Throws `Error` for a text that is not UTF-8. Allocates.
inline WordErrors character_errors(std::string_view reference, std::string_view hypothesis) {
  const std::string r_text = detail::join_words(reference), h_text = detail::join_words(hypothesis);
  const auto r = detail::split_characters(r_text), h = detail::split_characters(h_text);
  std::vector<WordErrors> row(h.size() + 1);  // of the first i characters of r, and the first j of h
  for (std::size_t j = 1; j < row.size(); ++j) row[j].insertions = static_cast<Index>(j);
  for (std::size_t i = 1; i <= r.size(); ++i) {
    WordErrors diagonal = row[0];
    row[0].deletions = static_cast<Index>(i);
    for (std::size_t j = 1; j < row.size(); ++j) {
      WordErrors replaced = diagonal, deleted = row[j], inserted = row[j - 1];
      replaced.substitutions += r[i - 1] == h[j - 1] ? 0 : 1;
      ++deleted.deletions;
      ++inserted.insertions;
      diagonal = row[j];
      row[j] = deleted.errors() < inserted.errors() ? deleted : inserted;
      if (replaced.errors() <= row[j].errors()) row[j] = replaced;
    }
  }
  row.back().reference_words = static_cast<Index>(r.size());
  return row.back();
}

/// Returns the sum over a corpus.
inline WordErrors total(std::span<const WordErrors> per_utterance) {
  WordErrors out;
  for (const WordErrors& one : per_utterance) out += one;
  return out;
}

/// Holds a confidence interval.
struct Interval {
  double low = 0,  ///< lower end
      high = 0;    ///< upper end
};

namespace detail {

/// Returns the percentile interval of `statistic(drawn)` over resamples, where `drawn(i)` is the i-th utterance drawn
/// with replacement. The draws depend on the seed and the number of utterances only. Throws `Error` in the name of
/// `who` for arguments that make no sense.
template <class Statistic>
Interval bootstrap(const char* who, std::size_t utterances, double level, int resamples, Seed seed,
                   Statistic&& statistic) {
  require(utterances > 0, who, ": no utterances given");
  require(level > 0 && level < 1, who, ": level ", level, " given, between 0 and 1 expected");
  require(resamples > 0, who, ": ", resamples, " resamples given, at least 1 expected");
  const Random random(seed, "bootstrap");
  const auto n = static_cast<Index>(utterances);
  std::vector<double> values;
  for (int resample = 0; resample < resamples; ++resample)
    values.push_back(statistic([&](Index i) {
      return static_cast<std::size_t>(random.below(n, static_cast<std::uint64_t>(resample * n + i)));
    }));
  std::sort(values.begin(), values.end());
  const auto quantile = [&](double q) {  // interpolates linearly, as numpy.percentile
    const double position = q * static_cast<double>(values.size() - 1);
    const auto below = static_cast<std::size_t>(position);
    const std::size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (position - static_cast<double>(below)) * (values[above] - values[below]);
  };
  return {quantile((1 - level) / 2), quantile((1 + level) / 2)};
}

}  // namespace detail

/// Returns the percentile bootstrap interval of a corpus' word error rate, a fraction; utterances are drawn with
/// replacement (Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation"). It
/// sees only the errors that were made: without any it is [0, 0], which says little about a small test set.
inline Interval bootstrap_interval(std::span<const WordErrors> per_utterance, double level = 0.95, int resamples = 1000,
                                   Seed seed = Seed(0)) {
  return detail::bootstrap("bootstrap_interval", per_utterance.size(), level, resamples, seed, [&](auto&& drawn) {
    WordErrors sum;
    for (std::size_t i = 0; i < per_utterance.size(); ++i) sum += per_utterance[drawn(static_cast<Index>(i))];
    return sum.rate();
  });
}

/// Returns the percentile bootstrap interval of the mean of one value for each utterance, such as its loss, or the
/// difference of two systems' losses.
inline Interval bootstrap_mean(std::span<const double> per_utterance, double level = 0.95, int resamples = 1000,
                               Seed seed = Seed(0)) {
  return detail::bootstrap("bootstrap_mean", per_utterance.size(), level, resamples, seed, [&](auto&& drawn) {
    double sum = 0;
    for (std::size_t i = 0; i < per_utterance.size(); ++i) sum += per_utterance[drawn(static_cast<Index>(i))];
    return sum / static_cast<double>(per_utterance.size());
  });
}

/// Returns the percentile bootstrap interval of the second system's word error rate less the first's, on the same
/// utterances. Each resample draws the same utterances for both, so that what is hard for both cancels out (Bisani and
/// Ney 2004). An interval without 0 tells the two systems apart on such speech; how much other training runs would
/// differ, it does not say. Throws `Error` unless both have the same utterances.
inline Interval bootstrap_difference(std::span<const WordErrors> first, std::span<const WordErrors> second,
                                     double level = 0.95, int resamples = 1000, Seed seed = Seed(0)) {
  require(first.size() == second.size(), "bootstrap_difference: ", first.size(), " and ", second.size(),
          " utterances given, the same ones expected");
  for (std::size_t i = 0; i < first.size(); ++i)
    require(first[i].reference_words == second[i].reference_words, "bootstrap_difference: utterance ", i, " has ",
            first[i].reference_words, " and ", second[i].reference_words,
            " reference words, the same utterance expected");
  return detail::bootstrap("bootstrap_difference", first.size(), level, resamples, seed, [&](auto&& drawn) {
    WordErrors one, other;
    for (std::size_t i = 0; i < first.size(); ++i) {
      const std::size_t at = drawn(static_cast<Index>(i));
      one += first[at];
      other += second[at];
    }
    return other.rate() - one.rate();
  });
}

}  // namespace LACONIC_ABI
}  // namespace laconic
