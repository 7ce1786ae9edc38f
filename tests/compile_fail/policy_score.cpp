// A score is one of those that backends compute.
// expect: laconic: the score policy lacks what the concept ScorePolicy says: see attention/score.hpp
#include <laconic/attention/attention.hpp>

using namespace laconic;

struct Cosine {};

constexpr auto dims = Attention<Heads<8>, FullRank, RelativePosition, FullQuery, Cosine>::dims({512});
