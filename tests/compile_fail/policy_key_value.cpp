// Costs are part of a policy.
// expect: laconic: the key-value policy lacks what the concept KeyValuePolicy says: see attention/key_value.hpp
#include <laconic/attention/attention.hpp>

using namespace laconic;

struct NoCosts {
  static constexpr bool is_latent = false, one_input = false;
  static constexpr Index num_parts = 2;
  static constexpr std::optional<Index> rotary_part = 0;
  static constexpr void set_ranks(const AttentionConfig&, AttentionDims&) {}
  static constexpr std::array<CachePart, 2> parts(const AttentionDims& d) { return FullRank::parts(d); }
  static constexpr Index parameter_count(const AttentionDims& d) { return FullRank::parameter_count(d); }
  template <class T>
  using Layer = FullRank::Layer<T>;
};

constexpr auto dims = Attention<Heads<8>, NoCosts>::dims({512});
