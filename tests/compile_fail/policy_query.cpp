// Queries have costs, as keys have.
// expect: laconic: the query policy lacks what the concept QueryPolicy says: see attention/query.hpp
#include <laconic/attention/attention.hpp>

using namespace laconic;

struct NoCosts {
  static constexpr void set_ranks(const AttentionConfig&, AttentionDims&) {}
  template <class T>
  using Layer = FullQuery::Layer<T>;
};

constexpr auto dims = Attention<Heads<8>, FullRank, RelativePosition, NoCosts>::dims({512});
