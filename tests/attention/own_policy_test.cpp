// The policy of docs/attention.md, with the checks that every policy should have. The page shows this file.
#include "gradient_check.hpp"

#include <laconic/laconic.hpp>

using namespace laconic;

/// Caches one latent of R elements a frame, from which one matrix expands keys and values, which are the same:
/// c = x A^T + b, K = V = c B^T.
template <Index R>
struct TiedLatent : LatentPolicy {         // a latent: is_latent, latents_are_memory, no part for a rotary position
  static constexpr bool one_input = true;  // keys and values need the same input
  static constexpr Index num_parts = 1;    // matrices that are cached

  // Sizes, from the type or from the configuration. What the policy does not have must not be configured.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) {
    d.kv_lora_rank = resolve_rank<R>(c.kv_lora_rank, "kv_lora_rank", c.d_model, "d_model");
    require_no_rank(c.v_lora_rank, "v_lora_rank");
    require_no_rank(c.qk_rope_head_dim, "qk_rope_head_dim");
  }
  static constexpr std::array<CachePart, 1> parts(const AttentionDims& d) { return {{{d.kv_lora_rank}}}; }

  // Costs: parameters of the layer, and operations (a multiply-add counts two) for each frame.
  static constexpr Index parameter_count(const AttentionDims& d) {
    return d.kv_lora_rank * (d.d_model + d.bias) + d.kv_dim() * d.kv_lora_rank;
  }
  static constexpr Index remember_flops(const AttentionDims& d) { return 2 * d.kv_lora_rank * d.d_model; }
  static constexpr Index expand_flops(const AttentionDims& d) { return 2 * d.kv_lora_rank * d.kv_dim(); }
  static constexpr Index absorb_flops(const AttentionDims& d) { return 2 * 2 * d.kv_lora_rank * d.q_dim(); }
  // Absorbed, it is attention of all query heads over one head of keys and values, both as wide as the latent.
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) { return {1, d.kv_lora_rank, d.kv_lora_rank}; }

  // AbsorbingLayer provides absorb, latents and release, for a layer that names its expansions.
  template <class T>
  class Layer : public Module<Layer<T>>, public AbsorbingLayer<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : AbsorbingLayer<Layer>({d.num_heads, d.num_kv_heads}),
          linear_down(d.d_model, d.kv_lora_rank, seed / "linear_down", bias_if(d.bias)),
          linear_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_up", Bias::no) {
      this->use_by_heads();
    }

    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context& context, const Tensor&, const Tensor& value_input) const {
      return {linear_down(context, value_input)};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 1>& memory) const {
      const Tensor both = linear_up(context, memory[0]);
      return {both, both};
    }
    static auto key_up(auto& self) { return std::array{&self.linear_up}; }
    static auto value_up(auto& self) { return std::array{&self.linear_up}; }
    const Parameter<T>& value_weight() const { return linear_down.weight; }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_down", self.linear_down);
      visit("linear_up", self.linear_up);
    }

    Linear<T> linear_down, linear_up;
  };
};
static_assert(KeyValuePolicy<TiedLatent<64>>);

/// Writes the absorbed order of the same policy by hand, as a latent needs it that AbsorbingLayer does not fit.
template <Index R>
struct TiedByHand : TiedLatent<R> {
  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : linear_down(d.d_model, d.kv_lora_rank, seed / "linear_down", bias_if(d.bias)),
          linear_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_up", Bias::no),
          expand_head{d.num_heads, d.num_kv_heads} {
      used_by_heads(linear_up);  // `prepare` then keeps it in a form that single heads can be multiplied by
    }

    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context& context, const Tensor&, const Tensor& value_input) const {
      return {linear_down(context, value_input)};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 1>& memory) const {
      const Tensor both = linear_up(context, memory[0]);
      return {both, both};
    }
    const Parameter<T>& value_weight() const { return linear_down.weight; }

    // q . (c B^T) = (q B) . c: from queries (rows, num_heads * head_dim) to (rows, num_heads * R).
    template <class Context, class Tensor>
    Tensor absorb(Context& context, const Tensor& q) const {
      const HeadShape transposed{expand_head.num_heads, expand_head.num_blocks, true};
      return context.head_linear(q, linear_up.weight, nullptr, transposed);
    }
    // Keys and values of attention over the latents, each (rows, R): the cached matrix itself.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> latents(Context&, const std::array<Tensor, 1>& memory) const {
      return {memory[0], memory[0]};
    }
    // From what attention over the latents returns, (rows, num_heads * R), to (rows, num_heads * head_dim).
    template <class Context, class Tensor>
    Tensor release(Context& context, const Tensor& out) const {
      return context.head_linear(out, linear_up.weight, nullptr, expand_head);
    }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_down", self.linear_down);
      visit("linear_up", self.linear_up);
    }

    Linear<T> linear_down, linear_up;
    HeadShape expand_head;  // query heads, and how many matrices they share: head h takes matrix h / (heads / matrices)
  };
};

namespace {

using Tied = Attention<Heads<2>, TiedLatent<4>>;
constexpr AttentionConfig config{.d_model = 8};
const Sequences sequences{7, 4};

}  // namespace

TEST_CASE("a policy's derivatives are those of finite differences") {
  AttentionLayer<Tied, double> layer(config, 0, Seed(1));
  randomize(layer, 2);
  const double error =
      GradientCheck{}({random_matrix(11, 8, 3)}, weights_of(layer), [&](auto& tape, const auto& inputs) {
        Pass<std::decay_t<decltype(inputs[0])>> pass{sequences, Mask::chunked(2, 3)};
        pass.table = layer.table(tape, pass);
        return layer(tape, inputs[0], pass);
      });
  CHECK(error < 1e-6);
}

TEST_CASE("a policy holds and costs what it says") {
  CHECK(AttentionLayer<Tied, float>(config, 0, Seed(1)).count_parameters() == Tied::parameter_count(config));
  CHECK(Tied::cache_bytes(config, frames(100)) == 100 * 4 * 4);
}

TEMPLATE_TEST_CASE("a latent's two paths agree", "", TiedLatent<4>, TiedByHand<4>) {
  Cpu<double> cpu;
  AttentionLayer<Attention<Heads<4, 2>, TestType>, double> layer(config, 0, Seed(1));
  randomize(layer, 2);
  const auto x = cpu.input(random_matrix(11, 8, 3));
  for (const bool prepared : {false, true}) {
    if (prepared) cpu.prepare(layer);
    const auto out = [&](AttentionPath path) {
      Pass<Cpu<double>::Tensor> pass{sequences};
      pass.table = layer.table(cpu, pass);
      return cpu.output(layer(cpu, x, pass, nullptr, path));
    };
    CHECK((out(AttentionPath::absorbed) - out(AttentionPath::expanded)).cwiseAbs().maxCoeff() < 1e-12);
  }
}

TEST_CASE("a stream gives what the whole utterance gives") {
  const EncoderConfig small{.num_mels = 20,
                            .d_model = 8,
                            .num_layers = 2,
                            .vocab_size = 5,
                            .conv_kernel = 3,
                            .subsampling_channels = 4,
                            .convolution = ConvolutionContext::causal,
                            .chunk = 4,
                            .left_context = 8};
  // These sizes run both orders: the whole utterance expands the latents, the stream absorbs.
  const AttentionDims dims = Tied::dims(config);
  CHECK(!Tied::absorbing_is_cheaper(dims, Tied::whole_work(Mask::chunked(4, 8))));
  CHECK(Tied::absorbing_is_cheaper(dims, Tied::stream_work(4, 8)));

  const Conformer<Tied> model(small, Seed(1));
  const Matrix<float> features = random_matrix<float>(100, 20, 4);
  Cpu cpu;
  const Matrix<float> whole = cpu.output(model(cpu, features, Sequences{100}).rows);

  Streams streams(model);
  const std::array<Index, 1> stream{streams.open()};
  const Matrix<float> first = cpu.output(streams.push(stream, features, Sequences{100}).rows);
  const Matrix<float> last = cpu.output(streams.finish(stream).rows);
  Matrix<float> streamed(first.rows() + last.rows(), first.cols());
  streamed << first, last;
  REQUIRE(streamed.rows() == whole.rows());
  CHECK((streamed - whole).cwiseAbs().maxCoeff() < 1e-4f);
}
