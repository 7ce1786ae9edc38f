// The key that a decoupled latent sets aside for positions would say nothing.
// expect: laconic: a decoupled latent has a rotary key, so its position is Rotary
#include <laconic/attention/attention.hpp>

using namespace laconic;

constexpr auto dims = Attention<Heads<8>, DecoupledLatent<64, 32>, NoPosition>::dims({512});
