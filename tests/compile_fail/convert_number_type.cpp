// Conversion does not round float to double or back.
// expect: laconic: convert changes a model's attention, neither its kind nor its number type
#include <laconic/convert/convert.hpp>
#include <laconic/model/conformer.hpp>

using namespace laconic;

void other(const Conformer<Mha<8>, float>& model) { convert<Conformer<MlaSimple<8, 64>, double>>(model); }
