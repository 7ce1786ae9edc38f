// A model of double cannot run on a context of float.
// expect: laconic: model and context compute with different number types; Cpu<double> runs models of double
// errors: 1
#include <laconic/backend/cpu.hpp>
#include <laconic/model/conformer.hpp>

using namespace laconic;

auto run(Cpu<>& cpu, const Conformer<Mha<8>, double>& model, const Matrix<double>& features) {
  return model(cpu, features, Sequences{100});
}
