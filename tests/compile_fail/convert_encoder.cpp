// A Branchformer has other parameters than a Conformer.
// expect: laconic: convert changes a model's attention, neither its kind nor its number type
#include <laconic/convert/convert.hpp>
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>

using namespace laconic;

void other(const Conformer<Mha<8>>& model) { convert<Branchformer<MlaSimple<8, 64>>>(model); }
