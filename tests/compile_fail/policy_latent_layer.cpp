// A latent's layer computes attention without expanding, too.
// expect: laconic: the layer of this latent lacks absorb, latents or release, or they return other types: see
#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>

using namespace laconic;

struct ExpandedOnly : InputLatent {
  template <class T>
  class Layer : public FullRank::Layer<T> {
   public:
    using FullRank::Layer<T>::Layer;
    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context&, const Tensor&, const Tensor& value_input) const {
      return {value_input};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 1>& memory) const {
      return {this->linear_k(context, memory[0]), this->linear_v(context, memory[0])};
    }
  };
};

Tensor<float> run(Cpu<>& cpu, const AttentionLayer<Attention<Heads<8>, ExpandedOnly>, float>& layer,
                  const Tensor<float>& x, const Sequences& sequences) {
  return layer(cpu, x, Pass<Tensor<float>>{sequences});
}
