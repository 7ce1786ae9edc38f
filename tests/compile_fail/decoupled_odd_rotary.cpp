// Rotary positions turn pairs of numbers.
// expect: laconic: a rotary key rotates pairs, so its width must be even, or `dyn`
#include <laconic/attention/attention.hpp>

using namespace laconic;

constexpr auto dims = MlaDecoupled<8, 64, 31>::dims({512});
