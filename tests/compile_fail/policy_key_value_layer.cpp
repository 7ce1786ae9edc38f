// What is cached has as many parts as the policy says.
// expect: laconic: the layer of this key-value policy lacks remember, expand or value_weight, or they return other
// types
#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>

using namespace laconic;

struct KeysOnly : FullRank {
  static constexpr Index num_parts = 1;
  static constexpr std::array<CachePart, 1> parts(const AttentionDims& d) { return {{{d.kv_dim()}}}; }
};

Tensor<float> run(Cpu<>& cpu, const AttentionLayer<Attention<Heads<8>, KeysOnly>, float>& layer, const Tensor<float>& x,
                  const Sequences& sequences) {
  return layer(cpu, x, Pass<Tensor<float>>{sequences});
}
