// Lesson 7: a key-value policy of your own. This one caches only keys and uses them as values too, so a stream keeps
// half as much. Training, streams and costs follow from the policy.
#include <laconic/laconic.hpp>

#include <cstdio>
#include <optional>

using namespace laconic;

struct KeysAsValues {
  static constexpr bool is_latent = false, one_input = true;
  static constexpr Index num_parts = 1;
  static constexpr std::optional<Index> rotary_part = std::nullopt;
  static constexpr void set_ranks(const AttentionConfig& config, AttentionDims& dims) {
    FullRank::set_ranks(config, dims);
  }
  static constexpr std::array<CachePart, 1> parts(const AttentionDims& d) { return {{{d.kv_dim()}}}; }
  static constexpr Index parameter_count(const AttentionDims& d) { return d.kv_dim() * (d.d_model + 1); }
  static constexpr Index remember_flops(const AttentionDims& d) { return 2 * d.kv_dim() * d.d_model; }
  static constexpr Index expand_flops(const AttentionDims&) { return 0; }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed) : linear_k(d.d_model, d.kv_dim(), seed / "linear_k") {}

    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context& context, const Tensor& key_input, const Tensor&) const {
      return {linear_k(context, key_input)};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context&, const std::array<Tensor, 1>& memory) const {
      return {memory[0], memory[0]};
    }
    const Parameter<T>& value_weight() const { return linear_k.weight; }
    static void each_parameter(auto& self, auto&& visit) { visit("linear_k", self.linear_k); }

    Linear<T> linear_k;
  };
};
static_assert(KeyValuePolicy<KeysAsValues>);

int main() {
  constexpr EncoderConfig config{.num_mels = 20,
                                 .d_model = 32,
                                 .num_layers = 2,
                                 .vocab_size = 5,
                                 .conv_kernel = 7,
                                 .subsampling_channels = 8,
                                 .dropout = 0,
                                 .convolution = ConvolutionContext::causal,
                                 .chunk = 4,
                                 .left_context = 12};
  using Half = Conformer<Attention<Heads<4>, KeysAsValues>>;
  static_assert(2 * Half::cache_bytes(config, frames(1)) == Conformer<Mha<4>>::cache_bytes(config, frames(1)));

  Cpu cpu;
  Half model(config, Seed(1));
  AdamW optimizer(cpu);
  const Labels labels{{1, 2, 3}, Sequences{3}};
  const Matrix<float> features = Matrix<float>::Random(100, config.num_mels);
  double first = 0, last = 0;
  for (int step = 0; step < 30; ++step) {
    Autodiff tape(cpu);
    const auto loss = ctc_loss(tape, model(tape, features, Sequences{100}), labels);
    tape.backward(loss);
    optimizer.step(model, 2e-3);
    last = tape.number(loss);
    if (step == 0) first = last;
  }
  Streams streams(model);
  std::printf("%td parameters, loss %.3f to %.3f; a stream keeps %td bytes\n", model.count_parameters(), first, last,
              streams.attention_bytes());
  return last < 0.5 * first && model.count_parameters() == Half::parameter_count(config) ? 0 : 1;
}
