// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/core/matrix.hpp>
#include <laconic/decode/ctc_tokens.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the likeliest alignment of a text with the frames of a recording.
struct CtcAlignment {
  std::vector<CtcToken> tokens;  ///< the frames of each label; its confidence is their mean probability
  std::vector<float> log_probs;  ///< log probability of the label or blank that each frame gets

  /// Returns the min over 30 frames in a row (or all, if they are fewer) of the mean log probability in the frames
  /// [begin, end): the confidence of a segment of text in ctc-segmentation (Kurzinger et al. 2020, section 2.3).
  double score(Index begin, Index end) const {
    constexpr Index window = 30;
    require(0 <= begin && begin < end && end <= static_cast<Index>(log_probs.size()), "alignment: frames ", begin,
            " to ", end, " given, some of 0 to ", log_probs.size(), " expected");
    const Index width = std::min(window, end - begin);
    double sum = 0, least = 0;
    for (Index t = begin; t < end; ++t) {
      sum += static_cast<double>(log_probs[static_cast<std::size_t>(t)]);
      if (t - begin >= width) sum -= static_cast<double>(log_probs[static_cast<std::size_t>(t - width)]);
      if (t - begin >= width - 1) least = std::min(least, sum / static_cast<double>(width));
    }
    return least;
  }
};

/// Aligns known labels with the frames of a recording: finds the likeliest path of CTC that is read as these labels
/// (Viterbi; what `torchaudio.functional.forced_align` computes). Frames come in blocks. States whose path is `beam`
/// nats less likely than the best are dropped, and frames on whose path all others agree are decided, so that memory
/// does not grow with the square of the length.
class CtcAligner {
 public:
  /// Begins a recording. Throws `Error` for labels that are negative or the blank, and unless beam > 0. Allocates.
  explicit CtcAligner(std::vector<int> labels, int blank = 0, double beam = 2000)
      : labels_(std::move(labels)), blank_(blank), beam_(beam) {
    require(blank >= 0, "align: blank ", blank, " given, at least 0 expected");
    require(beam > 0, "align: a beam of ", beam, " given, more than 0 expected");
    for (const int one : labels_)
      require(one >= 0 && one != blank, "align: label ", one, " given, labels of 0 or more that are not the blank (",
              blank, ") expected");
    out_.tokens.reserve(labels_.size());
  }

  /// Takes the logits (frames, classes) that follow, normalised or not. Throws `Error` for labels that are no class, a
  /// frame that holds NaN, and where no path is left. Allocates.
  void operator()(MatrixView<const float> logits) {
    for (const int one : labels_)
      require(one < logits.cols(), "align: label ", one, " given for ", logits.cols(), " classes");
    require(blank_ < logits.cols(), "align: blank ", blank_, " given for ", logits.cols(), " classes");
    for (Index t = 0; t < logits.rows(); ++t) {
      step(log_softmax(logits.row(t)));
      if (frames_.size() % 1024 == 0) decide();
    }
  }
  /// Ends the recording. Throws `Error` where it has too few frames for the labels. Allocates.
  CtcAlignment finish() {
    Index needed = static_cast<Index>(labels_.size());
    for (std::size_t i = 1; i < labels_.size(); ++i) needed += labels_[i] == labels_[i - 1] ? 1 : 0;
    require(count_ >= std::max<Index>(1, needed), "align: ", count_, " frames given, at least ",
            std::max<Index>(1, needed), " expected for ", labels_.size(), " tokens");
    const Index last = states() - 1;
    constexpr auto lost = "align: the text does not fit the recording: no likely path ends with it";
    require(first_ + static_cast<Index>(scores_.size()) >= last, lost);
    Index state = last;
    if (last > 0 && (score(last) < score(last - 1))) state = last - 1;
    require(score(state) > lowest, lost);
    commit(frames_.size(), state);
    return std::move(out_);
  }

 private:
  static constexpr double lowest = -std::numeric_limits<double>::infinity();
  /// Holds a frame that is not decided.
  struct Frame {
    Index first;                     // the first state that has a path
    std::vector<std::uint8_t> from;  // how many states back the path of each comes from
    std::vector<float> log_probs;    // of the classes
  };

  /// Returns the number of states: a blank before, between and after the labels.
  Index states() const { return 2 * static_cast<Index>(labels_.size()) + 1; }
  /// Returns the class of a state.
  int class_of(Index state) const { return state % 2 == 0 ? blank_ : labels_[static_cast<std::size_t>(state / 2)]; }
  /// Returns the log probability of the best path to a state.
  double score(Index state) const {
    return state < first_ || state >= first_ + static_cast<Index>(scores_.size())
               ? lowest
               : scores_[static_cast<std::size_t>(state - first_)];
  }

  template <class Row>
  std::vector<float> log_softmax(const Row& logits) const {
    const double top = static_cast<double>(logits.maxCoeff());
    double sum = 0;
    for (Index c = 0; c < logits.size(); ++c) {
      require(!std::isnan(logits[c]), "align: frame ", count_, ", class ", c, " is NaN");
      sum += std::exp(static_cast<double>(logits[c]) - top);
    }
    std::vector<float> out(static_cast<std::size_t>(logits.size()));
    for (Index c = 0; c < logits.size(); ++c)
      out[static_cast<std::size_t>(c)] = static_cast<float>(static_cast<double>(logits[c]) - top - std::log(sum));
    return out;
  }

  /// Extends the paths by a frame.
  void step(std::vector<float> log_probs) {
    const bool begins = count_++ == 0;
    const Index first = begins ? 0 : first_,
                end = std::min(states(), begins ? 2 : first_ + static_cast<Index>(scores_.size()) + 2);
    std::vector<double> next(static_cast<std::size_t>(end - first));
    Frame frame{first, std::vector<std::uint8_t>(next.size()), std::move(log_probs)};
    double best = lowest;
    for (Index s = first; s < end; ++s) {
      double from = begins ? 0 : score(s);
      std::uint8_t back = 0;
      if (!begins && score(s - 1) > from) {
        from = score(s - 1);
        back = 1;
      }
      if (!begins && s % 2 == 1 && s >= 3 && class_of(s) != class_of(s - 2) && score(s - 2) > from) {
        from = score(s - 2);
        back = 2;
      }
      const auto i = static_cast<std::size_t>(s - first);
      next[i] = from + static_cast<double>(frame.log_probs[static_cast<std::size_t>(class_of(s))]);
      frame.from[i] = back;
      best = std::max(best, next[i]);
    }
    require(best > lowest, "align: frame ", count_ - 1, " has no path left");
    std::size_t kept = 0, kept_end = next.size();
    while (next[kept] < best - beam_) ++kept;
    while (next[kept_end - 1] < best - beam_) --kept_end;
    scores_.assign(next.begin() + static_cast<std::ptrdiff_t>(kept),
                   next.begin() + static_cast<std::ptrdiff_t>(kept_end));
    first_ = first + static_cast<Index>(kept);
    frames_.push_back(std::move(frame));
  }

  /// Returns the state before a state, that of a frame that is not decided.
  static Index back(const Frame& frame, Index state) {
    return state - frame.from[static_cast<std::size_t>(state - frame.first)];
  }
  /// Decides the frames whose state all paths share.
  void decide() {
    std::vector<Index> alive;
    for (std::size_t i = 0; i < scores_.size(); ++i)
      if (scores_[i] > lowest) alive.push_back(first_ + static_cast<Index>(i));
    for (std::size_t t = frames_.size(); t-- > 1;) {
      if (alive.size() == 1) {
        commit(t + 1, alive.front());
        return;
      }
      for (Index& state : alive) state = back(frames_[t], state);
      std::sort(alive.begin(), alive.end());
      alive.erase(std::unique(alive.begin(), alive.end()), alive.end());
    }
  }
  /// Takes the first `count` frames as decided, of which the last has this state.
  void commit(std::size_t count, Index state) {
    std::vector<Index> path(count);
    for (std::size_t t = count; t-- > 0;) {
      path[t] = state;
      state = back(frames_[t], state);
    }
    for (std::size_t t = 0; t < count; ++t, ++decided_) {
      const float log_prob = frames_[t].log_probs[static_cast<std::size_t>(class_of(path[t]))];
      out_.log_probs.push_back(log_prob);
      if (path[t] % 2 == 0) continue;
      if (static_cast<Index>(out_.tokens.size()) <= path[t] / 2)
        out_.tokens.push_back({class_of(path[t]), decided_, decided_, 0});
      CtcToken& one = out_.tokens.back();
      const auto length = static_cast<double>(decided_ - one.begin);
      one.confidence = (one.confidence * length + std::exp(static_cast<double>(log_prob))) / (length + 1);
      one.end = decided_ + 1;
    }
    frames_.erase(frames_.begin(), frames_.begin() + static_cast<std::ptrdiff_t>(count));
  }

  std::vector<int> labels_;
  int blank_;
  double beam_;
  Index count_ = 0, decided_ = 0, first_ = 0;  // frames, frames, a state
  std::vector<double> scores_;                 // of the paths to states first_ and on
  std::deque<Frame> frames_;                   // not decided yet
  CtcAlignment out_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
