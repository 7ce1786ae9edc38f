// What turns channels says which of them turn together.
// expect: laconic: the position policy lacks what the concept PositionPolicy says: see attention/position.hpp
#include <laconic/attention/attention.hpp>

using namespace laconic;

struct Turned : PlainPosition {
  static constexpr bool turns_keys = true;
};

constexpr auto dims = Attention<Heads<8>, FullRank, Turned>::dims({512});
