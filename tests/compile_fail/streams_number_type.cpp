// Streams compute in a context of their own, which must be of the model's numbers.
// expect: laconic: model and context compute with different number types; Cpu<double> runs models of double
#include <laconic/model/conformer.hpp>
#include <laconic/model/stream.hpp>

using namespace laconic;

Index push(Streams<Conformer<Mha<8>, double>, Cpu<float>>& streams) { return streams.open(); }
