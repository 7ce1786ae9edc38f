// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/core/extent.hpp>
#include <laconic/decode/ctc_word_score.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Holds the frames of a prefix's last two words.
struct CtcWordFrames {
  Index begin = 0, end = 0;                    ///< frames of the word that is not finished
  Index finished_begin = 0, finished_end = 0;  ///< frames of the word before it
};

/// Holds the prefixes of a beam search as a tree, whose nodes have one token each. Nodes that are neither live nor have
/// children are given back, and used again.
class CtcPrefixTree {
 public:
  using Id = std::uint32_t;
  static constexpr Id none = std::numeric_limits<Id>::max();
  static constexpr double never = -std::numeric_limits<double>::infinity();

  /// Holds a prefix. `blank` and `label` are log probabilities that the frames so far are this prefix and end in a
  /// blank, or in its last token; `next_` are those of the frame that is being added.
  struct Node {
    Id parent = none, child = none, sibling = none;
    int token = -1;
    bool live = false;
    std::uint64_t frame = 0;  ///< the frame, from 1, whose next values are valid
    double blank = never, label = never, total = never;
    double next_blank = never, next_label = never;
    double likeliest = never;  ///< the greatest part of the next values, whose word frames are kept
    double score = never;      ///< total and the scores of words
    CtcWordFrames frames{}, next_frames{};
    CtcWordScorer::State words{};
  };

  /// Makes a tree of the empty prefix.
  explicit CtcPrefixTree(const CtcWordScorer::State& start) { clear(start); }
  /// Forgets all but the empty prefix. Keeps the memory.
  void clear(const CtcWordScorer::State& start) {
    nodes_.clear();
    free_ = none;
    used_ = 0;
    root_ = make(none, -1, start);
  }

  /// Returns a node.
  Node& operator[](Id id) { return nodes_[id]; }
  /// Returns a node.
  const Node& operator[](Id id) const { return nodes_[id]; }
  /// Returns the prefix that all others begin with.
  Id root() const { return root_; }
  /// Returns the number of prefixes in memory.
  std::size_t size() const { return used_; }

  /// Returns the child with this token, or none.
  Id find(Id parent, int token) const {
    Id out = nodes_[parent].child;
    while (out != none && nodes_[out].token != token) out = nodes_[out].sibling;
    return out;
  }
  /// Makes a node. Allocates only where none was given back. References to nodes become invalid.
  Id make(Id parent, int token, const CtcWordScorer::State& words) {
    Id out = free_;
    if (out == none) {
      require(nodes_.size() < none, "ctc_beam_search: too many prefixes");
      out = static_cast<Id>(nodes_.size());
      nodes_.emplace_back();
    } else {
      free_ = nodes_[out].sibling;
      nodes_[out] = Node();
    }
    Node& node = nodes_[out];
    node.parent = parent;
    node.token = token;
    node.words = words;
    if (parent != none) {
      node.sibling = nodes_[parent].child;
      nodes_[parent].child = out;
    }
    ++used_;
    return out;
  }
  /// Gives back a node that is neither live nor has children, and then those above it. Does nothing for others.
  void release(Id id) {
    while (id != root_ && nodes_[id].token != released && !nodes_[id].live && nodes_[id].child == none) {
      const Id parent = nodes_[id].parent;
      Id* link = &nodes_[parent].child;
      while (*link != id) link = &nodes_[*link].sibling;
      *link = nodes_[id].sibling;
      give_back(id);
      id = parent;
    }
  }
  /// Makes a node that all live ones begin with the root, and gives back those above it.
  void set_root(Id id) {
    for (Id above = nodes_[id].parent; above != none;) {
      const Id parent = nodes_[above].parent;
      give_back(above);
      above = parent;
    }
    nodes_[id].parent = nodes_[id].sibling = none;
    root_ = id;
  }

 private:
  static constexpr int released = -2;

  void give_back(Id id) {
    nodes_[id].token = released;
    nodes_[id].sibling = free_;
    free_ = id;
    --used_;
  }

  std::vector<Node> nodes_;
  Id root_ = none, free_ = none;  // free_: the first node given back; siblings link them
  std::size_t used_ = 0;
};

}  // namespace detail

}  // namespace LACONIC_ABI
}  // namespace laconic
