// Numbers that do not fit end a constant expression, and the compiler names what they break.
// expect inside: " heads given, a divisor of d_model = "
#include <laconic/attention/attention.hpp>

using namespace laconic;

constexpr Index bytes = MlaSimple<8, 64>::cache_bytes({.d_model = 252}, frames(1000));
