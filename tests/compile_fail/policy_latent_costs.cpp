// A latent says what its absorbed path costs, and what it looks like.
// expect: laconic: the key-value policy lacks what the concept KeyValuePolicy says: see attention/key_value.hpp
#include <laconic/attention/attention.hpp>

using namespace laconic;

struct ExpandedOnly : FullRank {
  static constexpr bool is_latent = true;
};

constexpr auto dims = Attention<Heads<8>, ExpandedOnly>::dims({512});
