// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "common/cli.hpp"
#include "eval_corpus.hpp"

#include <laconic/speech/wer.hpp>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

// What `laconic eval` says of a corpus and its errors besides the word error rate.

namespace eval_parts {

using namespace laconic;

/// Errors of a corpus by characters, speaker and word, for JSON and for a person.
class EvalDetails {
 public:
  EvalDetails(const ComparedTexts& texts, const EvalCorpus& corpus, const Evaluation& evaluation, bool with_characters)
      : with_characters_(with_characters) {
    for (std::size_t i = 0; i < corpus.utterances.size(); ++i) {
      const Utterance& u = corpus.utterances[i];
      if (!u.speaker.empty()) speakers_[u.speaker] += evaluation.errors[i];
      const std::string reference = texts.reference(u.text), hypothesis = texts.hypothesis(evaluation.hypotheses[i]);
      for (const TextEdit& one : word_edits(reference, hypothesis)) {
        if (one.is_equal()) continue;
        if (one.reference.empty())
          ++inserted_[std::string(one.hypothesis)];
        else if (one.hypothesis.empty())
          ++deleted_[std::string(one.reference)];
        else
          ++substituted_[text(one.reference, " -> ", one.hypothesis)];
      }
      if (!with_characters_) continue;
      try {
        characters_ += character_errors(reference, hypothesis);
      } catch (const Error&) {
        ++not_text_;  // not UTF-8: it has no characters
      }
    }
  }

  void add_to(nlohmann::json& result) const {
    if (with_characters_)
      result.update({{"cer", 100 * characters_.rate()}, {"reference_characters", characters_.reference_words}});
    if (not_text_ > 0) result["texts_not_utf8"] = not_text_;
    result["deleted_words"] = deleted_;
    result["inserted_words"] = inserted_;
    result["substituted_words"] = substituted_;
    for (const auto& [name, errors] : speakers_)
      result["speakers"].push_back({{"name", name},
                                    {"wer", 100 * errors.rate()},
                                    {"errors", errors.errors()},
                                    {"reference_words", errors.reference_words}});
  }
  /// Prints character errors, those of each speaker, and the words that are most often wrong.
  void print_wanted(bool cer, bool by_speaker, bool by_word) const {
    if (cer)
      print("CER ", fixed(100 * characters_.rate(), 2), "%  (", characters_.substitutions, " substitutions, ",
            characters_.deletions, " deletions, ", characters_.insertions, " insertions in ",
            characters_.reference_words, " characters)\n");
    if (by_speaker) {
      if (speakers_.empty()) print("no speaker is known\n");
      for (const auto& [name, errors] : speakers_)
        print("  ", name, ": WER ", fixed(100 * errors.rate(), 2), "% (", errors.errors(), " errors in ",
              errors.reference_words, " words)\n");
    }
    if (!by_word) return;
    print_most("missing", deleted_);
    print_most("too many", inserted_);
    print_most("others", substituted_);
  }

 private:
  using Counts = std::map<std::string, Index>;
  static void print_most(const char* what, const Counts& counts) {
    std::vector<std::pair<Index, std::string>> order;
    for (const auto& [word, count] : counts) order.emplace_back(-count, word);
    std::sort(order.begin(), order.end());
    std::string line;
    for (std::size_t i = 0; i < std::min<std::size_t>(10, order.size()); ++i)
      line += text(i > 0 ? ", " : " ", order[i].second, " (", -order[i].first, ')');
    print("  ", std::string_view(what), ":", line.empty() ? std::string(" none") : line, '\n');
  }

  bool with_characters_;
  WordErrors characters_;
  Index not_text_ = 0;
  std::map<std::string, WordErrors> speakers_;
  Counts deleted_, inserted_, substituted_;
};

}  // namespace eval_parts
