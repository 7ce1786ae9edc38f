// Latents are not turned back into full keys and values.
// expect: laconic: no conversion is known between these two key-value policies
#include <laconic/convert/convert.hpp>
#include <laconic/model/conformer.hpp>

using namespace laconic;

void back(const Conformer<MlaSimple<8, 64>>& model) { convert<Conformer<Mha<8>>>(model); }
