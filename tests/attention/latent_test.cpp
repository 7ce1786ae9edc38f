// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Properties of all attention policies over random shapes: absorbed is expanded, a batch is its sequences, a stream is
// the whole; what caches hold, what attention costs, and cross-attention.
#include <laconic/attention/attention.hpp>

#include "golden.hpp"
#include "gradient_check.hpp"

#include <map>
#include <tuple>

using namespace laconic;

namespace {

constexpr Index unlimited = Mask::unlimited;
constexpr RotaryPairs next = RotaryPairs::interleaved, half = RotaryPairs::halves;
constexpr auto expanded = AttentionPath::expanded, absorbed = AttentionPath::absorbed, by_cost = AttentionPath::by_cost;

// Policies, all of whose numbers are drawn.
template <class KeyValue, class Position = NoPosition, class Query = FullQuery, class Score = Softmax>
using Open = Attention<Heads<dyn, dyn>, KeyValue, Position, Query, Score>;
using Shared = SharedLatent<dyn>;
using TwoStage = TwoStageLatent<dyn>;
using Split = SplitLatent<dyn>;
using PerHead = HeadLatent<dyn>;
using LowValue = HeadLatent<dyn, dyn>;
template <template <class> class Norm, RotaryPairs Pairs = next, class Query = FullQuery>
using Decoupled = Open<DecoupledLatent<dyn, dyn, Norm>, Rotary<Pairs>, Query>;
template <class Position>
using LinearOf = Open<FullRank, Position, FullQuery, LinearKernel>;

template <class KeyValue, class... More>
using Positions = std::tuple<Open<KeyValue>, Open<KeyValue, RelativePosition>, Open<KeyValue, Sinusoidal>, More...>;
using Latents = decltype(std::tuple_cat(
    Positions<Shared, Open<Shared, RelativePosition, LowRankQuery<dyn>>>(), Positions<TwoStage>(),
    Positions<InputLatent>(), Positions<Split, Open<Split, InputRotary<half>>, Open<Split, InputRotary<next>>>(),
    Positions<PerHead, Open<PerHead, InputRotary<half>>>(), Positions<LowValue, Open<LowValue, InputRotary<next>>>(),
    std::tuple<Decoupled<RmsNorm>, Decoupled<LayerNorm, half>, Decoupled<NoNorm>,
               Decoupled<RmsNorm, half, LowRankQuery<dyn>>, Decoupled<NoNorm, next, LowRankQuery<dyn, LayerNorm>>,
               Decoupled<LayerNorm, next, LowRankQuery<dyn, NoNorm>>>()));
using All = decltype(std::tuple_cat(
    Latents(), Positions<FullRank, Open<FullRank, Rotary<>>, Open<FullRank, Rotary<half>>,
                         Open<FullRank, InputRotary<half>>, LinearOf<NoPosition>, LinearOf<Sinusoidal>>()));
/// One of each way to cache.
using Cached = std::tuple<Open<Shared>, Open<TwoStage>, Open<Split>, Open<PerHead>, Open<LowValue>, Open<InputLatent>,
                          Decoupled<RmsNorm>, Open<FullRank>, Open<FullRank, Rotary<>>, LinearOf<NoPosition>>;

template <class A, class... B>
constexpr bool is = (std::is_same_v<A, B> || ...);

/// Numbers that depend on the draw and on nothing else.
struct Draw {
  explicit Draw(Index n) : random(Seed(7) / n, "draw") {}
  Index operator()(Index least, Index most) { return least + random.below(most - least + 1, at++); }
  Random random;
  std::uint64_t at = 0;
};

template <class Policy>
AttentionConfig draw_config(Draw& draw) {
  using KeyValue = typename Policy::KeyValue;
  using Position = typename Policy::Position;
  constexpr Index heads[][2] = {{1, 1}, {2, 2}, {2, 1}, {4, 4}, {4, 2}, {6, 3}, {3, 1}};
  const auto& number = heads[draw(0, 6)];
  const bool pairs = Position::turns_input || (Position::turns_keys && KeyValue::rotary_part == 0);
  Index head_dim = pairs ? 2 * draw(1, 4) : draw(2, 9);
  AttentionConfig c{.d_model = number[0] * head_dim, .num_heads = number[0], .num_kv_heads = number[1]};
  c.attention_bias = draw(0, 3) > 0;
  if (!pairs && draw(0, 3) == 0) c.head_dim = head_dim = draw(2, 9);
  if (is<KeyValue, Shared, TwoStage, Split> || KeyValue::rotary_part == 1) c.kv_lora_rank = draw(1, c.d_model);
  if (is<KeyValue, PerHead, LowValue>) c.kv_lora_rank = draw(2, head_dim);
  if (is<KeyValue, Split>) c.v_lora_rank = draw(0, c.d_model);
  if (is<KeyValue, LowValue>) c.v_lora_rank = draw(0, head_dim);
  if (KeyValue::rotary_part == 1) c.qk_rope_head_dim = 2 * draw(1, 3);
  if (!is<typename Policy::Query, FullQuery>) c.q_lora_rank = draw(1, c.d_model);
  return c;
}

/// Uneven ones, empty ones and single frames among them; some longer than a tile of the kernels.
Sequences draw_sequences(Draw& draw) {
  std::vector<Index> lengths;
  for (Index n = draw(1, 4); n > 0; --n)
    lengths.push_back(draw(0, 4) == 0 ? draw(0, 1) : draw(0, 9) == 0 ? draw(60, 80) : draw(2, 20));
  lengths.push_back(draw(1, 12));
  return Sequences(std::span<const Index>(lengths));
}

Mask draw_mask(Draw& draw, bool forgets) {
  const Index kind = draw(0, 3), chunk = draw(1, 6);
  return kind == 0   ? Mask::bidirectional()
         : kind == 1 ? Mask::causal()
                     : Mask::chunked(chunk, forgets ? draw(-1, 9) : unlimited);
}

template <class Policy, class T>
struct Case {
  explicit Case(Index n)
      : draw(n),
        config(draw_config<Policy>(draw)),
        layer(config, 0, Seed(3) / n),
        sequences(draw_sequences(draw)),
        mask(draw_mask(draw, !Policy::Score::is_linear)),
        x(random_matrix<T>(sequences.rows(), config.d_model, static_cast<std::uint64_t>(n))) {
    randomize(layer, 40);
  }
  Draw draw;
  AttentionConfig config;
  AttentionLayer<Policy, T> layer;
  Sequences sequences;
  Mask mask;
  Matrix<T> x;
};

/// A layer as a model runs it.
template <class Context, class Layer, class Tensor, class State = std::nullptr_t>
Tensor apply(Context& context, const Layer& layer, const Tensor& x, Pass<Tensor> pass, AttentionPath path = by_cost,
             State state = nullptr) {
  const Tensor entered = layer.enter(context, x, pass);
  pass.table = layer.table(context, pass);
  return layer(context, entered, pass, state, path);
}
template <class Layer, class T>
Matrix<T> run(const Layer& layer, const Matrix<T>& x, const Sequences& sequences, const Mask& mask,
              AttentionPath path = by_cost, int threads = 1) {
  Cpu<T> cpu(threads);
  return apply(cpu, layer, cpu.input(x), {sequences, mask}, path).view();
}

using Gradients = std::map<std::string, Matrix<double>>;
template <class Policy>
Gradients gradients(const Case<Policy, double>& c, AttentionPath path, int threads = 1) {
  c.layer.parameters([](std::string_view, const auto& p) { p.clear_gradient(); });
  Cpu<double> cpu(threads);
  Autodiff<Cpu<double>> tape(cpu);
  const auto x = tape.variable(c.x);
  const auto y = apply(tape, c.layer, x, {c.sequences, c.mask}, path);
  const auto mixed = tape.multiply(y, tape.input(random_matrix(y.rows(), y.cols(), 8)));
  tape.backward(tape.mean_finite(mixed), static_cast<double>(c.x.size()));
  Gradients out{{"input", tape.gradient(x).view()}};
  c.layer.parameters([&](std::string_view name, const auto& p) { out[std::string(name)] = p.gradient(); });
  return out;
}

/// The greatest difference of two sets of gradients, each tensor relative to itself or to a thousandth of the greatest
/// of all. Those of biases on keys that no position turns are zero but for rounding.
double gradient_difference(const Gradients& got, const Gradients& expected) {
  double greatest = 0, worst = 0;
  for (const auto& [name, g] : expected) greatest = std::max(greatest, g.cwiseAbs().maxCoeff());
  for (const auto& [name, g] : expected) {
    if (name == "linear_k.bias" ||
        (name.starts_with("linear_k_") && name.ends_with(".bias") && name != "linear_k_rope.bias"))
      CHECK(std::max(g.cwiseAbs().maxCoeff(), got.at(name).cwiseAbs().maxCoeff()) < 1e-12 * greatest);
    else
      worst = std::max(worst, difference<double>(got.at(name), g, 1e-3 * greatest));
  }
  return worst;
}

/// Returns the outputs of streams in the order of rows: first for -x, in new slots, then for x, in slots used before.
/// Each push takes a random set of streams in random order, and of each a random number of whole chunks.
template <class Policy, class T>
std::array<Matrix<T>, 2> stream(Case<Policy, T>& c, const Mask& mask, Storage storage, AttentionPath path = by_cost) {
  const Index most = std::max<Index>(1, 4 / mask.chunk), count = c.sequences.size();
  const Index capacity = mask.left_context == unlimited ? c.sequences.max_length() : mask.left_context;
  Cpu<T> cpu(c.draw(0, 5) > 0 ? 1 : 2);
  typename AttentionLayer<Policy, T>::template State<Cpu<T>> state(cpu, c.layer,
                                                                   {count + 1, capacity, most * mask.chunk, storage});
  std::vector<Index> order;
  for (Index n = 0; n < count; ++n) order.push_back(n);
  std::array<Matrix<T>, 2> outs;
  for (const Index round : {0, 1}) {
    const auto slot = [&](Index n) { return count - n - round; };
    for (Index n = 0; round > 0 && n < count; ++n) state.clear(cpu, slot(n));
    const Matrix<T> x = round > 0 ? c.x : Matrix<T>(-c.x);
    Matrix<T>& out = outs[static_cast<std::size_t>(round)] =
        Matrix<T>::Constant(x.rows(), x.cols(), std::numeric_limits<T>::quiet_NaN());
    std::vector<Index> done(order.size());
    for (Index left = x.rows(); left > 0;) {
      shuffle(order, Random(Seed(2), c.draw.at));
      std::vector<Index> slots, firsts, lengths, rows;
      for (const Index n : order) {
        if (c.draw(0, 2) == 0) continue;
        Index& first = done[static_cast<std::size_t>(n)];
        const Index frames = std::min(c.sequences.length(n) - first, mask.chunk * c.draw(0, most));
        slots.push_back(slot(n));
        firsts.push_back(first);
        lengths.push_back(frames);
        for (Index i = 0; i < frames; ++i) rows.push_back(c.sequences.begin(n) + first + i);
        first += frames;
        left -= frames;
      }
      const Sequences pieces{std::span<const Index>(lengths)};
      Matrix<T> piece(pieces.rows(), x.cols());
      for (std::size_t i = 0; i < rows.size(); ++i) piece.row(static_cast<Index>(i)) = x.row(rows[i]);
      const auto y = apply(cpu, c.layer, cpu.input(piece), {pieces, mask, {}, slots, firsts}, path, &state);
      for (std::size_t i = 0; i < rows.size(); ++i) out.row(rows[i]) = y.view().row(static_cast<Index>(i));
    }
  }
  return outs;
}

/// Checks one draw; gives whether the absorbed path is the cheaper one.
template <class Policy, class T>
bool check_paths(Index n, double tolerance) {
  const Case<Policy, T> c(n);
  const auto of = [&](AttentionPath path) { return run(c.layer, c.x, c.sequences, c.mask, path); };
  CHECK(difference<T>(of(absorbed), of(expanded)) < tolerance);
  const bool absorbs = Policy::absorbing_is_cheaper(c.layer.dims(), Policy::whole_work(c.mask));
  CHECK(of(by_cost) == of(absorbs ? absorbed : expanded));
  return absorbs;
}

template <class Typed, class Untyped>
void check_same(const AttentionConfig& typed, const AttentionConfig& open) {
  const AttentionLayer<Typed, double> a(typed, 0, Seed(3));
  const AttentionLayer<Untyped, double> b(open, 0, Seed(3));
  const Matrix<double> x = random_matrix(20, typed.d_model, 1);
  for (const AttentionPath path : {by_cost, expanded, absorbed})
    CHECK(run(a, x, {7, 0, 12, 1}, Mask::causal(), path) == run(b, x, {7, 0, 12, 1}, Mask::causal(), path));
}

/// Parameters of one layer, d = 512.
template <class Policy>
constexpr Index parameters_of = Policy::parameter_count({.d_model = 512});
static_assert(parameters_of<Mha<8, NoPosition>> == 1'050'624 && parameters_of<Gqa<8, 2, NoPosition>> == 656'640);
static_assert(parameters_of<CachedInput<8, 8, NoPosition>> == 1'050'624 &&
              parameters_of<LinearAttention<8>> == 1'050'624);
static_assert(parameters_of<MlaSimple<8, 256, NoPosition>> == 919'808 &&
              parameters_of<Mla<8, 256, NoPosition>> == 986'368);
static_assert(parameters_of<MlaSplit<8, 256, 256, NoPosition>> == 1'050'112 &&
              parameters_of<MlaHead<8, 32, 0, NoPosition>> == 792'064 &&
              parameters_of<MlaHead<8, 32, 16, NoPosition>> == 725'376);

// DeepSeek-V3: parameters, cached numbers, and operations for a cached frame on both paths.
using V3 = MlaDecoupled<128, 512, 64, LowRankQuery<1536>>;
constexpr AttentionConfig v3{.d_model = 7168, .head_dim = 128, .attention_bias = false};
static_assert(V3::parameter_count(v3) == 187'107'328 && V3::cache_bytes(v3, frames(1)) == 4 * 576);
static_assert(V3::cache_bytes(v3, frames(10), Storage::bf16) == 10 * (2 * 512 + 4 * 64));
static_assert(V3::cache_bytes(v3, frames(10), Storage::int8) == 10 * (512 + 4 + 4 * 64));
static_assert(V3::expanded_flops(V3::dims(v3), {1, 0, 1}) == 81'920 &&
              V3::expanded_flops(V3::dims(v3), {1, 1, 1}) == 33'636'352);
static_assert(V3::absorbed_flops(V3::dims(v3), {0, 1, 1}) == 278'528 &&
              HeadLatent<3>::expand_flops({16, 4, 2, 4, true, 3, 3}) == 96);

/// So many queries make expanding the cheaper path, where there are many keys.
template <class Policy>
constexpr Index crossover(const AttentionConfig& config) {
  constexpr Index keys = 1'000'000;
  Index queries = 1;
  while (Policy::absorbing_is_cheaper(Policy::dims(config), {queries, keys, queries * keys})) ++queries;
  return queries;
}
static_assert(crossover<V3>(v3) == 171 && crossover<MlaSimple<16, 256>>({1024}) == 86);
static_assert(crossover<MlaSimple<16, 512>>({1024}) == 74 && crossover<MlaSimple<16, 1024>>({1024}) == 69);

}  // namespace

TEMPLATE_LIST_TEST_CASE("absorbed attention is expanded attention", "[latent]", Latents) {
  for (Index n = 0; n < 16; ++n) {
    INFO("draw " << n);
    check_paths<TestType, double>(n, 1e-12);
    check_paths<TestType, float>(n, 1e-5);
    const Case<TestType, double> one(n);
    const Gradients latent = gradients(one, absorbed);
    CHECK(gradient_difference(latent, gradients(one, expanded)) < 1e-10);
    if (n == 0) CHECK(gradients(one, absorbed, 3) == latent);
  }
  const Sequences few{4, 0, 2, 1};
  Case<TestType, double> c(5);
  CHECK((GradientCheck{.samples = 6}({random_matrix(7, c.config.d_model, 1)}, weights_of(c.layer),
                                     [&](auto& tape, const auto& v) {
                                       return apply(tape, c.layer, v[0], {few, Mask::chunked(2, 3)}, absorbed);
                                     })) < 1e-6);
}

TEST_CASE("the path is chosen by cost, but in training, for the sake of dropout", "[latent]") {
  Index absorbing = 0;
  for (Index n = 0; n < 40; ++n) absorbing += check_paths<Open<Shared>, double>(n, 1e-12) ? 1 : 0;
  CHECK((absorbing > 4 && absorbing < 36));
  const AttentionLayer<MlaSimple<2, 1>, double> layer(AttentionConfig{8}, 0.5, Seed(1));
  const Sequences five{5};
  Cpu<double> cpu(1);
  Autodiff<Cpu<double>> tape(cpu);
  const auto x = tape.input(random_matrix(5, 8, 1));
  CHECK_NOTHROW(apply(tape, layer, x, {five}));
  CHECK_THROWS_WITH(apply(tape, layer, x, {five}, absorbed),
                    "attention: the absorbed path has no dropout of probabilities, which this layer trains with");
}

TEMPLATE_LIST_TEST_CASE("a batch is its sequences, on any number of threads, and a stream the whole pass",
                        "[latent][stream]", All) {
  using Layer = AttentionLayer<TestType, double>;
  const Mask limited[] = {Mask::chunked(1, 5), Mask::chunked(2, 4), Mask::chunked(3, 4), Mask::chunked(4, 0),
                          Mask::chunked(5, 7)};
  for (Index n = 0; n < 8; ++n) {
    Case<TestType, double> c(n);
    CHECK(c.layer.count_parameters() == TestType::parameter_count(c.config));
    if (n < 2) CHECK(gradients(c, expanded, 3) == gradients(c, expanded));
    for (const Mask& mask :
         {Mask::bidirectional(), c.mask, Mask::causal(), Mask::chunked(1 + n % 4, unlimited), limited[n % 5]})
      for (const AttentionPath path : {expanded, absorbed, by_cost}) {
        if (TestType::Score::is_linear && mask.left_context != unlimited) continue;
        INFO("draw " << n << ", chunk " << mask.chunk << ", left " << mask.left_context << ", path "
                     << static_cast<int>(path));
        const Matrix<double> whole = run(c.layer, c.x, c.sequences, mask, path);
        if (n < 3) CHECK(run(c.layer, c.x, c.sequences, mask, path, 3) == whole);
        for (Index i = 0; i < c.sequences.size(); ++i) {
          const Index first = c.sequences.begin(i), length = c.sequences.length(i);
          CHECK(run<Layer, double>(c.layer, c.x.middleRows(first, length), {length}, mask, path) ==
                whole.middleRows(first, length));
        }
        if (mask.chunk == unlimited) continue;
        const auto streams = stream(c, mask, Storage::full, path);
        CHECK(difference<double>(streams[0], run<Layer, double>(c.layer, -c.x, c.sequences, mask, path)) < 1e-12);
        CHECK(difference<double>(streams[1], whole) < 1e-12);
      }
  }
}

TEST_CASE("numbers in the type or in the configuration give the same attention", "[latent]") {
  check_same<MlaSimple<4, 5>, MlaSimple<dyn, dyn>>({16}, {16, 4, 0, 5});
  check_same<Mla<4, 5>, Mla<dyn, dyn>>({16}, {16, 4, 0, 5});
  check_same<MlaSplit<4, 5, 3>, MlaSplit<dyn, dyn, dyn>>({16}, {16, 4, 0, 5, 3});
  check_same<MlaSplit<4, 5, 5, InputRotary<>>, MlaSplit<dyn, dyn, dyn, InputRotary<>>>({16}, {16, 4, 0, 5});
  check_same<MlaHead<4, 3>, MlaHead<dyn, dyn>>({16}, {16, 4, 0, 3});
  check_same<MlaHead<4, 3, 3>, MlaHead<4, 3>>({16}, {16, 4, 0, 3, 3});
  check_same<Attention<Heads<4, 2>, HeadLatent<3, 2>>, Attention<Heads<dyn, dyn>, HeadLatent<dyn, dyn>>>(
      {16}, {16, 4, 2, 3, 2});
  check_same<Attention<Heads<4, 2>, HeadLatent<2, 3>>, Attention<Heads<dyn, dyn>, HeadLatent<dyn, 3>>>({16},
                                                                                                       {16, 4, 2, 2});
  check_same<CachedInput<4, 2>, CachedInput<dyn, dyn>>({16}, {16, 4, 2});
  check_same<MlaDecoupled<4, 5, 6, LowRankQuery<7>>, MlaDecoupled<dyn, dyn, dyn, LowRankQuery<dyn>>>(
      {16}, {.d_model = 16, .num_heads = 4, .kv_lora_rank = 5, .q_lora_rank = 7, .qk_rope_head_dim = 6});
}

TEST_CASE("the cheaper path is that of fewer operations", "[latent][cost]") {
  using Policy = Decoupled<RmsNorm>;
  for (Index n = 0; n < 100; ++n) {
    Draw draw(n);
    AttentionConfig config = draw_config<Policy>(draw);
    config.num_kv_heads = config.num_heads;
    const AttentionDims d = Policy::dims(config);
    const Index h = d.num_heads, r = d.kv_lora_rank, w = d.head_dim, rope = d.qk_rope_head_dim;
    const Policy::Work work{draw(1, 50), draw(1, 300), draw(1, 5000)};
    const Index expand = 2 * r * h * work.kv_rows * (w + w) + 2 * h * work.pairs * (w + rope + w);
    const Index absorb = 2 * r * h * work.q_rows * (w + w) + 2 * h * work.pairs * (2 * r + rope);
    CHECK((Policy::expanded_flops(d, work) == expand && Policy::absorbed_flops(d, work) == absorb));
    CHECK(Policy::absorbing_is_cheaper(d, work) == (absorb < expand));
  }
}

TEMPLATE_LIST_TEST_CASE("a state holds as many bytes as its policy says, and rounding changes little", "[latent][cost]",
                        Cached) {
  for (const Storage storage : {Storage::full, Storage::bf16, Storage::int8})
    for (Index n = 0; n < 8; ++n) {
      INFO("draw " << n << ", storage " << static_cast<int>(storage));
      Case<TestType, float> c(n), same(n);
      Cpu<float> cpu(1);
      const typename AttentionLayer<TestType, float>::template State<Cpu<float>> state(cpu, c.layer,
                                                                                       {3, 17, 4, storage});
      CHECK(state.cache_bytes() == 3 * TestType::cache_bytes(c.config, frames(17), storage));
      const AttentionDims& d = c.layer.dims();
      if (TestType::Score::is_linear)
        CHECK(state.cache_bytes() == 3 * 4 * d.num_kv_heads * d.head_dim * (d.head_dim + 1));
      const double change =
          difference(stream(c, Mask::causal(), storage)[1], stream(same, Mask::causal(), Storage::full)[1]);
      CHECK(change < 2e-2);
      if (c.sequences.max_length() > 4)
        CHECK((change > 0) == (storage != Storage::full && !TestType::Score::is_linear));
    }
}

TEST_CASE("what says where a frame is stays exact", "[latent][stream]") {
  const auto streamed = [](Storage storage) {
    Case<Decoupled<NoNorm>, float> c(3);
    REQUIRE(c.sequences.max_length() > 4);
    // A latent that is held without loss however it is stored: multiples of 1/128, 127 of them in each frame.
    c.layer.key_value.linear_kv_down.weight.host().setIdentity();
    for (Index i = 0; i < c.x.rows(); ++i)
      for (Index k = 0; k < c.config.kv_lora_rank; ++k)
        c.x(i, k) = static_cast<float>(k == 0 ? 127 : (37 * i + 91 * k) % 255 - 127) / 128;
    return stream(c, Mask::causal(), storage);
  };
  CHECK(streamed(Storage::bf16) == streamed(Storage::full));
  CHECK(streamed(Storage::int8) == streamed(Storage::full));
}

TEST_CASE("a row cache is a ring of rounded rows", "[cache]") {
  const auto read = [](const RowCache<float>& cache, Index slot) {
    Matrix<float> out(cache.count(slot), cache.width());
    cache.read(slot, out.data());
    return out;
  };
  const Matrix<float> x = random_matrix<float>(11, 3, 1);
  for (const Index capacity : {0, 1, 4, 20}) {
    RowCache<float> cache(3, capacity, 3);
    CHECK(cache.bytes() == 3 * capacity * 12);
    Index end = 0;
    for (const Index rows : {1, 0, 2, 5, 3}) {
      cache.append(1, rows, x.data() + 3 * end);
      end += rows;
      CHECK(cache.count(1) == std::min(end, capacity));
      CHECK(read(cache, 1) == x.middleRows(end - cache.count(1), cache.count(1)));
    }
    CHECK(cache.count(0) + cache.count(2) == 0);
    cache.fill_zeros(1);
    CHECK(read(cache, 1) == Matrix<float>::Zero(capacity, 3));
    cache.clear(1);
    cache.append(1, 11, x.data());
    CHECK(read(cache, 1) == x.bottomRows(std::min<Index>(11, capacity)));
  }
  Matrix<float> special(5, 3);
  special << 0, 0, 0, 1, NAN, 2, -INFINITY, 1, 2, 1e-40F, -1e-40F, 0, 3e38F, -3e38F, 1;
  for (const Storage storage : {Storage::bf16, Storage::int8}) {
    RowCache<float> cache(1, 11, 3, storage);
    CHECK(cache.bytes() == 11 * (storage == Storage::bf16 ? 6 : 7));
    cache.append(0, 11, x.data());
    const float steps = storage == Storage::bf16 ? 256 : 253;
    for (Index i = 0; i < 11; ++i)
      CHECK((read(cache, 0) - x).row(i).cwiseAbs().maxCoeff() <= x.row(i).cwiseAbs().maxCoeff() / steps);
    cache.append(0, 5, special.data());
    const Matrix<float> got = read(cache, 0).bottomRows(5);
    CHECK(got.row(0).isZero(0));
    CHECK((std::isnan(got(1, 1)) && !std::isfinite(got(2, 0))));
    if (storage == Storage::int8) CHECK(got.middleRows(1, 2).array().isNaN().all());  // the row is spoilt, and shows
    CHECK((got.row(3).cwiseAbs().maxCoeff() < 1e-37F && std::abs(got(4, 0) / 3e38F - 1) < 0.01F));
  }
}

TEST_CASE("all layers of a decoder share one source", "[latent][cross]") {
  const AttentionConfig config{.d_model = 12, .num_heads = 4, .num_kv_heads = 2};
  const Sequences sources{9, 30}, queries{5, 2};
  const Matrix<double> source = random_matrix(39, 12, 1), x = random_matrix(7, 12, 2);
  Cpu<double> cpu(2);
  const auto shared = cpu.input(source);
  for (const Index n : {1, 2, 3}) {
    const AttentionLayer<Open<InputLatent>, double> layer(config, 0, Seed() / n);
    const AttentionLayer<Open<FullRank>, double> full(config, 0,
                                                      Seed() / n);  // the same weights: they have the same names
    const auto memory = layer.remember(cpu, shared, sources);
    CHECK(memory[0].data() == source.data());
    const Matrix<double> expected =
        full.cross(cpu, cpu.input(x), queries, full.remember(cpu, shared, sources), sources).view();
    for (const AttentionPath path : {by_cost, expanded, absorbed}) {
      const Matrix<double> all = layer.cross(cpu, cpu.input(x), queries, memory, sources, {}, path).view();
      CHECK(difference(all, expected) < 1e-12);
      for (Index i = 0; i < 7; ++i) {  // each hypothesis, and each sequence, alone
        const Index of = i < 5 ? 0 : 1;
        const Matrix<double> row = x.row(i), own = source.middleRows(sources.begin(of), sources.length(of));
        const Matrix<double> alone =
            layer
                .cross(cpu, cpu.input(row), {1}, layer.remember(cpu, cpu.input(own), {own.rows()}), {own.rows()}, {},
                       path)
                .view();
        CHECK(difference<double>(alone, all.row(i)) < 1e-12);
        if (path != by_cost) CHECK(alone == all.row(i));
      }
    }
  }
}

TEST_CASE("a source is read on its own path, whatever the others are", "[latent][cross]") {
  using Policy = MlaSimple<4, 6, NoPosition>;
  const AttentionConfig config{.d_model = 16};
  const AttentionLayer<Policy, double> layer(config, 0, Seed(1));
  const Sequences sources{9, 2, 3, 8}, queries{1, 30, 30, 1};  // one query absorbs, 30 of 2 or 3 rows expand
  const Index rows = sources.rows();
  const Matrix<double> source = random_matrix(rows, 16, 1), x = random_matrix(queries.rows(), 16, 2);
  Cpu<double> cpu;
  const Matrix<double> all =
      layer.cross(cpu, cpu.input(x), queries, layer.remember(cpu, cpu.input(source), sources), sources).view();
  bool paths[2] = {};
  for (Index n = 0; n < sources.size(); ++n) {
    const Matrix<double> own = source.middleRows(sources.begin(n), sources.length(n)),
                         asks = x.middleRows(queries.begin(n), queries.length(n));
    const Sequences one{own.rows()}, few{asks.rows()};
    const auto memory = layer.remember(cpu, cpu.input(own), one);
    const auto of = [&](AttentionPath path) -> Matrix<double> {
      return layer.cross(cpu, cpu.input(asks), few, memory, one, {}, path).view();
    };
    const Matrix<double> part = all.middleRows(queries.begin(n), queries.length(n));
    CHECK(part == of(by_cost));
    CHECK((part == of(expanded)) != (part == of(absorbed)));
    paths[part == of(absorbed)] = true;
  }
  CHECK((paths[0] && paths[1]));
}

TEST_CASE("rotary positions are distances, those of the input are not", "[latent]") {
  const auto change = []<class Policy>(std::type_identity<Policy>) {
    const AttentionLayer<Policy, double> layer(AttentionConfig{24}, 0, Seed(3));
    const Sequences sequences{8, 5};
    const std::vector<Index> later{17, 3};
    const Matrix<double> x = random_matrix(13, 24, 1);
    Cpu<double> cpu(1);
    const auto moved = apply(cpu, layer, cpu.input(x), {.sequences = sequences, .firsts = later});
    return difference<double>(moved.view(), run(layer, x, sequences, {}));
  };
  CHECK(change(std::type_identity<Mha<4, Rotary<>>>()) < 1e-12);
  CHECK(change(std::type_identity<Gqa<4, 2, Rotary<half>>>()) < 1e-12);
  CHECK(change(std::type_identity<MlaDecoupled<4, 5, 6>>()) < 1e-12);
  CHECK(change(std::type_identity<Mha<4, InputRotary<>>>()) > 1e-3);
  CHECK(change(std::type_identity<MlaSplit<4, 5, 5, InputRotary<next>>>()) > 1e-3);
}
