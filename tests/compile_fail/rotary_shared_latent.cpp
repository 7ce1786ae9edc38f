// Turned keys are no function of the latent alone.
// expect: laconic: a rotary key differs from frame to frame and is no function of this latent; a decoupled latent has a
// key for it
#include <laconic/attention/attention.hpp>

using namespace laconic;

constexpr auto dims = MlaSimple<8, 64, Rotary<>>::dims({512});
