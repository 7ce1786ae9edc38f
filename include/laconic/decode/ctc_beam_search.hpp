// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/ctc.hpp>
#include <laconic/core/hash.hpp>
#include <laconic/core/matrix.hpp>
#include <laconic/decode/ctc_hypothesis.hpp>
#include <laconic/decode/ctc_prefix_tree.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Decodes CTC by prefix beam search while frames come (Graves and Jaitly 2014, algorithm 1; Hannun et al. 2014,
/// algorithm 1). A prefix has the sum of the probabilities of all its alignments. It is ranked by the log of that plus
/// alpha times the log probability of its words by an n-gram model, beta for each word, and a bonus for hotwords. A
/// word that is not finished is ranked as pyctcdecode does: by the part of the shortest hotword that it is, and else
/// lower if no word of the model begins so. Spaces that follow each other are one, and those at the ends are none.
///
/// Results do not depend on how the frames are split into blocks. Memory does not grow with time but for the words:
/// what all prefixes agree on is kept as words only, and they must agree on words that ended `max_lag` frames ago.
/// Frames of words are those of a likely alignment.
///
///     CtcBeamSearch search(CtcClasses::of(vocabulary), {.beam_width = 50}, model, {"laconic"});
///     search.push(view(logits));                           // (frames, classes), any number of times
///     const std::string text = search.finish()[0].text;
///
/// Differences from pyctcdecode: it keeps alignments of one prefix that end in a blank and those that end in its last
/// token as two beams, which are pruned apart, so that its 100 beams are up to 50 prefixes, and its sums lack what was
/// pruned; a text that ends in a space, or is empty, gets the score of an unknown word there, and none here; and words
/// for which the ARPA file has no back-off weight are unknown there.
class CtcBeamSearch {
 public:
  /// Begins an utterance. The model may be null: then only hotwords change the order. Throws `Error` for numbers out of
  /// range, for a blank that is no class, and for a model none of whose words begin with a class. Allocates.
  explicit CtcBeamSearch(CtcClasses classes, const CtcBeamConfig& config = {},
                         std::shared_ptr<const NgramModel> model = nullptr,
                         const std::vector<std::string>& hotwords = {})
      : config_(checked(config)),
        classes_(std::move(classes)),
        scorer_(config, std::move(model), hotwords),
        tree_(scorer_.start()) {
    const auto size = static_cast<int>(classes_.tokens.size());
    require(classes_.blank >= 0 && classes_.blank < size, "ctc_beam_search: blank ", classes_.blank, " given for ",
            size, " classes");
    for (int c = 0; c < size; ++c) {
      const std::string& token = classes_.tokens[static_cast<std::size_t>(c)];
      characters_.push_back(
          static_cast<std::uint32_t>(c == classes_.blank ? 0 : detail::split_characters(token).size()));
      if (classes_.kind == Tokens::characters && c != classes_.blank && token == " ") space_ = c;
    }
    require(std::any_of(classes_.tokens.begin(), classes_.tokens.end(),
                        [this](const std::string& token) { return scorer_.may_begin(token); }),
            "ctc_beam_search: a language model given whose words begin with none of the classes, another one expected, "
            "perhaps in upper or lower case as the classes are");
    log_probs_.resize(classes_.tokens.size());
    begin();
  }

  /// Adds frames: logits (frames, classes) on the host, normalised or not. Allocates for words that get stable, and
  /// while there are more prefixes than ever before. Throws `Error` for another number of classes, and for a frame with
  /// NaN or whose largest value is not finite; the frames before that one are added.
  template <class Logits>
  requires requires(const Logits& logits) { logits(Index(), Index()); }
  void push(const Logits& logits) {
    require(static_cast<std::size_t>(logits.cols()) == log_probs_.size(), "ctc_beam_search: logits of ", logits.cols(),
            " classes given, ", log_probs_.size(), " expected");
    for (Index t = 0; t < logits.rows(); ++t) {
      read_frame(logits, t);
      add_frame();
    }
    settle();
  }

  /// Returns the number of frames so far.
  Index frames() const { return frames_; }
  /// Returns the number of frames at the end whose likeliest class is the blank.
  Index silent_frames() const { return silent_; }
  /// Says whether the best prefix so far has words, which may not be finished.
  bool has_words() const { return !settled_.empty() || tree_[live_.front()].token >= 0; }
  /// Returns the words on which all live prefixes agree, and which later frames will not change. They grow with `push`.
  std::span<const CtcWord> stable() const { return settled_; }
  /// Returns the best prefix so far as it stands: the last word may not be finished, and the end of the sentence is not
  /// scored. Allocates.
  CtcHypothesis best() const {
    const detail::CtcPrefixTree::Node& node = tree_[live_.front()];
    CtcHypothesis out = ending(live_.front(), node.words.words + node.words.partial);
    add_settled(out);
    return out;
  }
  /// Ends the utterance, begins another one, and returns the results, best first, at most `count`. There is at least
  /// one. Allocates. Throws `Error` if no result is wanted.
  std::vector<CtcHypothesis> finish(Index count = 1) {
    require(count > 0, "ctc_beam_search: ", count, " results wanted, at least 1 expected");
    std::vector<CtcHypothesis> out;
    std::unordered_map<std::string, std::size_t> places;
    for (const Id id : live_) {
      CtcHypothesis one = ending(id, scorer_.finish(tree_[id].words));
      const auto found = places.emplace(one.text, out.size());
      if (found.second) {
        out.push_back(std::move(one));
        continue;
      }
      // With a space at the end and without: one text.
      CtcHypothesis& other = out[found.first->second];
      other.log_prob = kernels::log_add(other.log_prob, one.log_prob);
      other.score = other.log_prob + other.word_score;
    }
    std::stable_sort(out.begin(), out.end(),
                     [](const CtcHypothesis& a, const CtcHypothesis& b) { return a.score > b.score; });
    if (static_cast<Index>(out.size()) > count) out.resize(static_cast<std::size_t>(count));
    for (CtcHypothesis& one : out) add_settled(one);
    reset();
    return out;
  }
  /// Forgets all frames and begins another utterance. Keeps the memory.
  void reset() {
    tree_.clear(scorer_.start());
    begin();
  }
  /// Returns the number of prefixes in memory: the live ones, and those that they share.
  std::size_t prefixes() const { return tree_.size(); }

 private:
  using Tree = detail::CtcPrefixTree;
  using Id = Tree::Id;
  static constexpr double never = Tree::never;
  static constexpr Index lag_interval = 32;                    // frames between looks at what is late
  static constexpr double min_log_prob = -34.538776394910684;  // ln 1e-15: a frame cannot forbid a class

  static const CtcBeamConfig& checked(const CtcBeamConfig& config) {
    require(config.beam_width > 0, "ctc_beam_search: beam_width ", config.beam_width, " given, at least 1 expected");
    require(config.beam_prune_logp <= 0, "ctc_beam_search: beam_prune_logp ", config.beam_prune_logp,
            " given, at most 0 expected");
    require(config.token_min_logp <= 0, "ctc_beam_search: token_min_logp ", config.token_min_logp,
            " given, at most 0 expected");
    require(config.max_lag > 0, "ctc_beam_search: max_lag ", config.max_lag, " given, at least 1 expected");
    for (const double x : {config.alpha, config.beta, config.unk_score_offset, config.hotword_weight})
      require(std::isfinite(x), "ctc_beam_search: a weight of ", x, " given, a finite number expected");
    return config;
  }

  void begin() {
    live_.assign(1, tree_.root());
    Tree::Node& root = tree_[tree_.root()];
    root.live = true;
    root.blank = root.total = root.score = 0;
    settled_.clear();
    frames_ = silent_ = 0;
  }

  /// Says whether a prefix is at the begin of a word: empty, or after a space.
  bool between_words(const Tree::Node& node) const { return node.token < 0 || node.token == space_; }

  /// Writes the log probabilities of a frame, and the classes that are worth a look.
  template <class Logits>
  void read_frame(const Logits& logits, Index t) {
    const auto size = static_cast<Index>(log_probs_.size());
    double max = never;
    double sum = 0;
    Index best = 0;
    for (Index c = 0; c < size; ++c) {
      const auto x = static_cast<double>(logits(t, c));
      require(!std::isnan(x), "ctc_beam_search: frame ", frames_, ", class ", c, " is NaN");
      log_probs_[static_cast<std::size_t>(c)] = x;
      if (x > max) best = c;
      max = std::max(max, x);
    }
    require(std::isfinite(max), "ctc_beam_search: frame ", frames_, ": the largest logit is ", max,
            ", a finite one expected");
    for (const double x : log_probs_) sum += std::exp(x - max);
    const double normaliser = max + std::log(sum);
    candidates_.clear();
    for (Index c = 0; c < size; ++c) {
      double& x = log_probs_[static_cast<std::size_t>(c)];
      x = std::clamp(x - normaliser, min_log_prob, 0.0);
      if (c == best || x >= config_.token_min_logp) candidates_.push_back(static_cast<int>(c));
    }
    silent_ = best == classes_.blank ? silent_ + 1 : 0;
  }

  /// Adds a part to the next log probability of a prefix. `half` is Node::next_blank or Node::next_label.
  void add(Id id, double Tree::Node::*half, double part, const detail::CtcWordFrames& frames) {
    Tree::Node& node = tree_[id];
    if (node.frame != stamp_) {
      node.frame = stamp_;
      node.next_blank = node.next_label = node.likeliest = never;
      touched_.push_back(id);
    }
    node.*half = kernels::log_add(node.*half, part);
    if (part > node.likeliest) {
      node.likeliest = part;
      node.next_frames = frames;
    }
  }
  /// Adds a part to the prefix that has one more token.
  void extend(Id parent, int token, double part) {
    const bool ends_word = token == space_;
    const bool begins_word = !ends_word && (classes_.kind == Tokens::words || between_words(tree_[parent]));
    detail::CtcWordFrames frames = tree_[parent].frames;
    if (ends_word || (begins_word && classes_.kind == Tokens::words)) {
      frames.finished_begin = frames.begin;
      frames.finished_end = frames.end;
    }
    if (begins_word) frames.begin = frames_;
    if (!ends_word) frames.end = frames_ + 1;
    Id child = tree_.find(parent, token);
    if (child == Tree::none) {
      detail::CtcWordScorer::State words = tree_[parent].words;
      const auto c = static_cast<std::size_t>(token);
      if (!ends_word) words = scorer_.append(words, classes_.tokens[c], characters_[c]);
      if (ends_word || classes_.kind == Tokens::words) words = scorer_.end_word(words);
      child = tree_.make(parent, token, words);
    }
    add(child, &Tree::Node::next_label, part, frames);
  }

  /// Goes on by one frame, whose log probabilities are read.
  void add_frame() {
    ++stamp_;
    touched_.clear();
    for (const Id id : live_) {
      const int last = tree_[id].token;
      const bool between = classes_.kind == Tokens::characters && between_words(tree_[id]);
      const double total = tree_[id].total;
      for (const int c : candidates_) {
        const double x = log_probs_[static_cast<std::size_t>(c)];
        if (c == classes_.blank) {
          add(id, &Tree::Node::next_blank, total + x, tree_[id].frames);
        } else if (between && c == space_) {
          add(id, &Tree::Node::next_label, total + x, tree_[id].frames);
        } else if (c == last) {  // the same token again, or another one after a blank
          if (tree_[id].label != never) {
            detail::CtcWordFrames frames = tree_[id].frames;
            frames.end = frames_ + 1;
            add(id, &Tree::Node::next_label, tree_[id].label + x, frames);
          }
          if (tree_[id].blank != never) extend(id, c, tree_[id].blank + x);
        } else {
          extend(id, c, total + x);
        }
      }
    }
    ++frames_;
    select();
  }

  /// Keeps the best of the prefixes that the frame has touched.
  void select() {
    double best = never;
    ranked_.clear();
    for (std::size_t i = 0; i < touched_.size(); ++i) {
      Tree::Node& node = tree_[touched_[i]];
      node.total = kernels::log_add(node.next_blank, node.next_label);
      node.score = node.total + node.words.words + node.words.partial;
      best = std::max(best, node.score);
    }
    // Equal scores keep their order, which does not depend on where nodes lie.
    for (std::size_t i = 0; i < touched_.size(); ++i)
      if (tree_[touched_[i]].score >= best + config_.beam_prune_logp)
        ranked_.emplace_back(-tree_[touched_[i]].score, static_cast<std::uint32_t>(i));
    const std::size_t kept = std::min(ranked_.size(), static_cast<std::size_t>(config_.beam_width));
    std::partial_sort(ranked_.begin(), ranked_.begin() + static_cast<std::ptrdiff_t>(kept), ranked_.end());

    for (const Id id : live_) tree_[id].live = false;
    dropped_.swap(live_);
    live_.clear();
    histories_.clear();
    for (std::size_t i = 0; i < kept; ++i) {
      const Id id = touched_[ranked_[i].second];
      Tree::Node& node = tree_[id];
      if (config_.prune_history && !is_new_history(node)) continue;
      node.live = true;
      node.blank = node.next_blank;
      node.label = node.next_label;
      node.frames = node.next_frames;
      live_.push_back(id);
    }
    for (const Id id : dropped_) tree_.release(id);
    for (const Id id : touched_) tree_.release(id);
    if (frames_ % lag_interval == 0) drop_late();
  }

  /// Drops prefixes that differ from the best one in a word that ended more than `max_lag` frames ago.
  void drop_late() {
    Id agreed = live_.front();
    while (agreed != tree_.root() && !(breaks(agreed) && tree_[agreed].frames.finished_end + config_.max_lag < frames_))
      agreed = tree_[agreed].parent;
    // Among words, a node is the word that goes on; the one before it has ended.
    if (agreed != tree_.root() && classes_.kind == Tokens::words) agreed = tree_[agreed].parent;
    if (agreed == tree_.root()) return;
    dropped_.clear();
    for (const Id id : live_) {
      Id above = id;
      while (above != agreed && above != tree_.root()) above = tree_[above].parent;
      if (above != agreed) dropped_.push_back(id);
    }
    for (const Id id : dropped_) {
      tree_[id].live = false;
      tree_.release(id);
    }
    std::erase_if(live_, [this](Id id) { return !tree_[id].live; });
  }

  /// Says whether no better prefix of this frame has the same history, and notes it.
  bool is_new_history(const Tree::Node& node) {
    const std::uint64_t history =
        Hash().add(scorer_.history(node.words)).add(static_cast<std::uint64_t>(node.token)).value();
    if (std::find(histories_.begin(), histories_.end(), history) != histories_.end()) return false;
    histories_.push_back(history);
    return true;
  }

  /// Turns what all live prefixes begin with into words, up to the last begin of a word.
  void settle() {
    Id boundary = tree_.root();
    for (Id id = boundary; !tree_[id].live; boundary = breaks(id) ? id : boundary) {
      id = tree_[id].child;
      if (tree_[id].sibling != Tree::none) break;
    }
    if (boundary == tree_.root()) return;
    append_words(boundary, false, settled_);
    tree_.set_root(boundary);
  }
  /// Says whether the words before a prefix's last token are finished.
  bool breaks(Id id) const { return classes_.kind == Tokens::words || tree_[id].token == space_; }

  /// Appends the words of a prefix that are not settled; the last one, which may not be finished, only if `all`.
  void append_words(Id last, bool all, std::vector<CtcWord>& out) const {
    std::vector<Id> path;
    for (Id id = last; id != Tree::none; id = tree_[id].parent)
      if (tree_[id].token >= 0) path.push_back(id);
    std::reverse(path.begin(), path.end());
    CtcWord word;
    for (std::size_t i = 0; i < path.size(); ++i) {
      const Tree::Node& node = tree_[path[i]];
      if (!word.text.empty() && breaks(path[i])) {
        word.begin = node.frames.finished_begin;
        word.end = node.frames.finished_end;
        out.push_back(std::exchange(word, {}));
      }
      if (node.token != space_) word.text += classes_.tokens[static_cast<std::size_t>(node.token)];
    }
    if (!all || word.text.empty()) return;
    word.begin = tree_[last].frames.begin;
    word.end = tree_[last].frames.end;
    out.push_back(std::move(word));
  }
  /// Returns a prefix as a result that lacks the settled words, which all have.
  CtcHypothesis ending(Id id, double word_score) const {
    const double log_prob = tree_[id].total;
    CtcHypothesis out{{}, log_prob + word_score, log_prob, word_score, {}};
    append_words(id, true, out.words);
    out.text = text_of(out.words);
    return out;
  }
  /// Puts the settled words before those of a result.
  void add_settled(CtcHypothesis& one) const {
    one.words.insert(one.words.begin(), settled_.begin(), settled_.end());
    one.text = text_of(one.words);
  }
  static std::string text_of(std::span<const CtcWord> words) {
    std::string out;
    for (const CtcWord& word : words) {
      if (!out.empty()) out += ' ';
      out += word.text;
    }
    return out;
  }

  CtcBeamConfig config_;
  CtcClasses classes_;
  detail::CtcWordScorer scorer_;
  detail::CtcPrefixTree tree_;
  std::vector<std::uint32_t> characters_;  // of each token
  int space_ = -3;                         // none
  std::vector<double> log_probs_;          // of the frame
  std::vector<int> candidates_;            // classes of the frame that are not skipped
  std::vector<Id> live_, dropped_, touched_;
  std::vector<std::pair<double, std::uint32_t>> ranked_;  // (-score, place in touched_)
  std::vector<std::uint64_t> histories_;                  // of the prefixes that are kept
  std::vector<CtcWord> settled_;
  std::uint64_t stamp_ = 0;
  Index frames_ = 0, silent_ = 0;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
