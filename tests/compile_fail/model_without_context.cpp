// What computes a model comes first.
// expect: laconic: the first argument of a model is the context that computes it, such as Cpu<> or Autodiff
// errors: 1
#include <laconic/model/conformer.hpp>

using namespace laconic;

auto run(const Conformer<Mha<8>>& model, const Matrix<float>& features) { return model(features, Sequences{100}); }
