// What linear attention keeps of the past has a fixed size already.
// expect: laconic: linear attention caches a state, neither keys nor values, so a latent has no meaning with it
#include <laconic/attention/attention.hpp>

using namespace laconic;

constexpr auto dims = Attention<Heads<8>, SharedLatent<64>, NoPosition, FullQuery, LinearKernel>::dims({512});
