// Heads are counted by the policy.
// expect: laconic: the first policy of an attention lacks what the concept HeadsPolicy says: see attention/heads.hpp
#include <laconic/attention/attention.hpp>

using namespace laconic;

struct EightHeads {
  static constexpr Index num_heads = 8;
};

constexpr auto dims = Attention<EightHeads, FullRank>::dims({512});
