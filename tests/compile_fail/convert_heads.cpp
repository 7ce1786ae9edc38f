// Query heads are not converted.
// expect: laconic: convert keeps the number of query heads
#include <laconic/convert/convert.hpp>
#include <laconic/model/conformer.hpp>

using namespace laconic;

void other(const Conformer<Mha<8>>& model) { convert<Conformer<MlaSimple<4, 64>>>(model); }
