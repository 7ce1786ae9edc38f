// Linear attention weighs frames otherwise than softmax does.
// expect: laconic: no conversion is known between these two attentions
#include <laconic/convert/convert.hpp>
#include <laconic/model/conformer.hpp>

using namespace laconic;

void other(const Conformer<Mha<8, NoPosition>>& model) { convert<Conformer<LinearAttention<8>>>(model); }
