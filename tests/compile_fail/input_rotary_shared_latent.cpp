// Keys come from the turned input, values from the input as it is: one latent cannot hold both.
// expect: laconic: one latent for keys and values does not go with InputRotary, which projects them from different
// inputs; a split one does
#include <laconic/attention/attention.hpp>

using namespace laconic;

constexpr auto dims = MlaSimple<8, 64, InputRotary<>>::dims({512});
