// The same sentence where an attention layer is called without a model.
// expect: laconic: model and context compute with different number types; Cpu<double> runs models of double
#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>

using namespace laconic;

Tensor<float> run(Cpu<>& cpu, const AttentionLayer<Mha<8>, double>& layer, const Tensor<float>& x,
                  const Sequences& sequences) {
  return layer(cpu, x, Pass<Tensor<float>>{sequences});
}
