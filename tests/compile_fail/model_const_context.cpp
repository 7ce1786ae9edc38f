// A context computes in memory of its own, so it changes.
// expect: laconic: a context changes while it computes, so no model runs on a const one: pass it as Cpu<>&
// errors: 1
#include <laconic/backend/cpu.hpp>
#include <laconic/model/conformer.hpp>

using namespace laconic;

auto run(const Cpu<>& cpu, const Conformer<Mha<8>>& model, const Matrix<float>& features) {
  return model(cpu, features, Sequences{100});
}
