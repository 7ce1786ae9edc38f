// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/graph.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Counts what became of recorded work.
struct GraphCounts {
  Index lists = 0;     ///< lists of work
  Index started = 0;   ///< lists that were started piece by piece
  Index made = 0;      ///< graphs that were made
  Index launched = 0;  ///< lists that a graph did
  Index changed = 0;   ///< nodes that had to be changed for a launch
};

/// Keeps the graphs of the lists of work that came last. A list whose shape comes for the second time gets a graph,
/// which later lists of that shape launch.
class GraphCache {
 public:
  static constexpr std::size_t max_graphs = 64;  ///< shapes that are kept
  /// Min pieces of a list that gets a graph. With fewer, a graph saves little; the number is a guess.
  static constexpr std::size_t min_works = 8;

  /// Does the work of a list: launches its graph if there is one, and otherwise starts one piece after the other.
  /// Allocates for a shape that comes for the second time. Throws `Error` if a call fails.
  void run(const DeviceQueue& queue, const WorkList& list) {
    ++counts_.lists;
    if (list.size() < min_works) return start(queue, list);
    const auto found = std::find_if(shapes_.begin(), shapes_.end(),
                                    [&](const Shape& one) { return one.seen && one.hash == list.hash(); });
    if (found == shapes_.end()) {
      std::rotate(shapes_.begin(), shapes_.end() - 1, shapes_.end());  // in place of what was not used for longest
      shapes_.front() = {true, list.hash(), nullptr};
      return start(queue, list);
    }
    std::rotate(shapes_.begin(), found, found + 1);  // the latest first
    std::unique_ptr<Graph>& graph = shapes_.front().graph;
    if (graph != nullptr && !graph->has_shape_of(list)) return start(queue, list);  // only the hashes are equal
    try {
      if (graph == nullptr) {
        graph = Graph::make(queue, list);
        ++counts_.made;
      }
      counts_.changed += graph->launch(queue, list);
      ++counts_.launched;
    } catch (...) {  // it may be half changed
      shapes_.front() = {};
      throw;
    }
  }
  /// Returns what became of recorded work.
  const GraphCounts& counts() const { return counts_; }

 private:
  struct Shape {
    bool seen = false;
    std::uint64_t hash = 0;
    std::unique_ptr<Graph> graph{};  // null: the shape came once
  };
  void start(const DeviceQueue& queue, const WorkList& list) {
    ++counts_.started;
    for (std::size_t i = 0; i < list.size(); ++i) queue.start(list[i], list.payload(i));
  }

  std::array<Shape, max_graphs> shapes_{};  // the latest first
  GraphCounts counts_{};
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
