// Relative positions do not become absolute ones.
// expect: laconic: convert keeps the position policy
#include <laconic/convert/convert.hpp>
#include <laconic/model/conformer.hpp>

using namespace laconic;

void other(const Conformer<Mha<8>>& model) { convert<Conformer<MlaSimple<8, 64, Sinusoidal>>>(model); }
