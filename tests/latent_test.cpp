// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Properties of all attention policies over random shapes: absorbed is expanded, a batch is its sequences, a stream is the whole;
// what caches hold, what attention costs, and cross-attention.
#include <laconic/attention/attention.hpp>

#include "gradient_check.hpp"

#include <map>
#include <numeric>
#include <tuple>

using namespace laconic;

namespace {

constexpr Index unlimited = Mask::unlimited;
constexpr auto expanded = AttentionPath::expanded, absorbed = AttentionPath::absorbed, by_cost = AttentionPath::by_cost;

// -- Policies, all of whose numbers are drawn -------------------------------------------------------------------------

template <class KeyValue, class Position = NoPosition, class Query = FullQuery, class Score = Softmax>
using Open = Attention<Heads<dyn, dyn>, KeyValue, Position, Query, Score>;
using Shared = SharedLatent<dyn>;
using TwoStage = TwoStageLatent<dyn>;
using Split = SplitLatent<dyn>;
using PerHead = HeadLatent<dyn>;
using PerHeadLowValue = HeadLatent<dyn, 2>;
template <template <class> class Norm>
using Decoupled = DecoupledLatent<dyn, dyn, Norm>;
using Turned = InputRotary<>;
using TurnedNeighbours = InputRotary<RotaryPairs::interleaved>;

using Latents = std::tuple<
    Open<Shared>, Open<Shared, RelativePosition>, Open<Shared, Sinusoidal>, Open<Shared, RelativePosition, LowRankQuery<dyn>>,
    Open<TwoStage>, Open<TwoStage, RelativePosition>, Open<TwoStage, Sinusoidal>,
    Open<Split>, Open<Split, RelativePosition>, Open<Split, Sinusoidal>, Open<Split, Turned>, Open<Split, TurnedNeighbours>,
    Open<PerHead>, Open<PerHead, RelativePosition>, Open<PerHead, Sinusoidal>, Open<PerHead, Turned>,
    Open<PerHeadLowValue>, Open<PerHeadLowValue, RelativePosition>, Open<PerHeadLowValue, Sinusoidal>, Open<PerHeadLowValue, TurnedNeighbours>,
    Open<InputLatent>, Open<InputLatent, RelativePosition>, Open<InputLatent, Sinusoidal>,
    Open<Decoupled<RmsNorm>, Rotary<>>, Open<Decoupled<LayerNorm>, Rotary<RotaryPairs::halves>>, Open<Decoupled<NoNorm>, Rotary<>>,
    Open<Decoupled<RmsNorm>, Rotary<>, LowRankQuery<dyn>>, Open<Decoupled<NoNorm>, Rotary<RotaryPairs::halves>, LowRankQuery<dyn, LayerNorm>>,
    Open<Decoupled<LayerNorm>, Rotary<>, LowRankQuery<dyn, NoNorm>>>;
using Others = std::tuple<Open<FullRank>, Open<FullRank, RelativePosition>, Open<FullRank, Rotary<>>, Open<FullRank, Rotary<RotaryPairs::halves>>,
                          Open<FullRank, Turned>, Open<FullRank, NoPosition, FullQuery, LinearKernel>,
                          Open<FullRank, Sinusoidal, FullQuery, LinearKernel>>;
using All = decltype(std::tuple_cat(Latents(), Others()));

// -- Random shapes ----------------------------------------------------------------------------------------------------

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
  AttentionConfig c{.d_model = number[0] * head_dim, .num_heads = number[0], .num_kv_heads = number[1], .attention_bias = draw(0, 3) > 0};
  if (!pairs && draw(0, 3) == 0) c.head_dim = head_dim = draw(2, 9);
  if (std::is_same_v<KeyValue, Shared> || std::is_same_v<KeyValue, TwoStage> || std::is_same_v<KeyValue, Split> || KeyValue::rotary_part == 1)
    c.kv_lora_rank = draw(1, c.d_model);
  if (std::is_same_v<KeyValue, PerHead> || std::is_same_v<KeyValue, PerHeadLowValue>) c.kv_lora_rank = draw(2, head_dim);
  if (std::is_same_v<KeyValue, Split>) c.v_lora_rank = draw(0, c.d_model);
  if (KeyValue::rotary_part == 1) c.qk_rope_head_dim = 2 * draw(1, 3);
  if (!std::is_same_v<typename Policy::Query, FullQuery>) c.q_lora_rank = draw(1, c.d_model);
  return c;
}

/// Uneven ones, empty ones and single frames among them; some longer than a tile of the kernels.
Sequences draw_sequences(Draw& draw, Index most = 4) {
  std::vector<Index> lengths;
  for (Index n = draw(1, most); n > 0; --n) lengths.push_back(draw(0, 4) == 0 ? draw(0, 1) : draw(0, 9) == 0 ? draw(60, 80) : draw(2, 20));
  lengths.push_back(draw(1, 12));
  return Sequences(std::span<const Index>(lengths));
}

template <class Policy>
Mask draw_mask(Draw& draw) {
  const Index kind = draw(0, 3), chunk = draw(1, 6), left = Policy::Score::is_linear ? unlimited : draw(-1, 9);
  return kind == 0 ? Mask::bidirectional() : kind == 1 ? Mask::causal() : Mask::chunked(chunk, left);
}

template <class Policy, class T>
struct Case {
  explicit Case(Index n) : draw(n), config(draw_config<Policy>(draw)), layer(config, 0, Seed(3) / n), sequences(draw_sequences(draw)),
                           mask(draw_mask<Policy>(draw)), x(random_matrix<T>(sequences.rows(), config.d_model, static_cast<std::uint64_t>(n))) {
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
Tensor apply(Context& context, const Layer& layer, const Tensor& x, Pass<Tensor> pass, AttentionPath path = by_cost, State state = nullptr) {
  const Tensor entered = layer.enter(context, x, pass);
  pass.table = layer.table(context, pass);
  return layer(context, entered, pass, state, path);
}
template <class Layer, class T>
Matrix<T> run(const Layer& layer, const Matrix<T>& x, const Sequences& sequences, const Mask& mask, AttentionPath path = by_cost, int threads = 1) {
  Cpu<T> cpu(threads);
  return apply(cpu, layer, cpu.input(x), {sequences, mask}, path).view();
}

/// The greatest difference, relative to the greatest number expected or to `least`.
template <class T>
double difference(const Matrix<T>& got, const Matrix<T>& expected, double least = 0) {
  REQUIRE(got.rows() == expected.rows());
  REQUIRE(got.cols() == expected.cols());
  if (!got.allFinite()) return 1e300;
  if (got.size() == 0) return 0;
  return static_cast<double>((got - expected).cwiseAbs().maxCoeff()) / std::max({least, static_cast<double>(expected.cwiseAbs().maxCoeff()), 1e-300});
}

using Gradients = std::map<std::string, Matrix<double>>;

template <class Policy>
Gradients gradients(const Case<Policy, double>& c, AttentionPath path, int threads = 1) {
  c.layer.parameters([](std::string_view, const auto& p) { p.clear_gradient(); });
  Cpu<double> cpu(threads);
  Autodiff<Cpu<double>> tape(cpu);
  const auto x = tape.variable(c.x);
  const auto y = apply(tape, c.layer, x, {c.sequences, c.mask}, path);
  tape.backward(tape.mean_finite(tape.multiply(y, tape.input(random_matrix(y.rows(), y.cols(), 8)))), static_cast<double>(y.rows() * y.cols()));
  Gradients out{{"input", tape.gradient(x).view()}};
  c.layer.parameters([&](std::string_view name, const auto& p) { out[std::string(name)] = p.gradient(); });
  return out;
}

/// The greatest difference of two sets of gradients, each tensor relative to itself or to a thousandth of the greatest of all.
/// Those of biases on the keys are zero but for rounding.
double difference(const Gradients& got, const Gradients& expected) {
  double greatest = 0, worst = 0;
  for (const auto& [name, g] : expected) greatest = std::max(greatest, g.cwiseAbs().maxCoeff());
  for (const auto& [name, g] : expected) {
    const bool cancels = name.starts_with("linear_k_") && name.ends_with(".bias");
    INFO(name);
    if (cancels || name == "linear_k.bias")
      CHECK(std::max(g.cwiseAbs().maxCoeff(), got.at(name).cwiseAbs().maxCoeff()) < 1e-13 * greatest);
    else
      worst = std::max(worst, difference<double>(got.at(name), g, 1e-3 * greatest));
  }
  return worst;
}

// -- Streams ----------------------------------------------------------------------------------------------------------

/// What streams give that push their frames in random pieces of whole chunks, random ones in random order at a time, put together
/// as the whole pass has them: first of -x, in new slots, then of x, in slots used before.
template <class Policy, class T>
std::array<Matrix<T>, 2> stream(Case<Policy, T>& c, const Mask& mask, CacheStorage storage = CacheStorage::full, AttentionPath path = by_cost) {
  Draw& draw = c.draw;
  const Index most = std::max<Index>(1, 4 / mask.chunk), capacity = mask.left_context == unlimited ? c.sequences.max_length() : mask.left_context;
  Cpu<T> cpu(static_cast<int>(draw(1, 2)));
  typename AttentionLayer<Policy, T>::template State<Cpu<T>> state(
      cpu, c.layer, StateShape{.slots = c.sequences.size() + 1, .left_context = capacity, .chunk = most * mask.chunk, .storage = storage});
  std::vector<Index> order(static_cast<std::size_t>(c.sequences.size()));
  std::iota(order.begin(), order.end(), Index{0});
  const std::vector<Index> slot_of = [&] {
    std::vector<Index> slots(order.size() + 1);
    std::iota(slots.begin(), slots.end(), Index{0});
    shuffle(slots, Random(Seed(1), static_cast<std::uint64_t>(draw(0, 1000))));
    return slots;
  }();
  std::array<Matrix<T>, 2> outs;
  for (const bool again : {false, true}) {
    const auto slot = [&](Index n) { return slot_of[static_cast<std::size_t>(n + (again ? 1 : 0))]; };
    for (const Index n : order)
      if (again) state.clear(slot(n));
    const Matrix<T> x = again ? c.x : Matrix<T>(-c.x);
    Matrix<T>& out = outs[again ? 1 : 0];
    out.setConstant(x.rows(), c.config.d_model, std::numeric_limits<T>::quiet_NaN());
    std::vector<Index> done(order.size());
    for (Index left = x.rows(); left > 0;) {
      shuffle(order, Random(Seed(2), static_cast<std::uint64_t>(draw(0, 100000))));
      std::vector<Index> slots, firsts, lengths, from;
      for (const Index n : order) {
        if (draw(0, 2) == 0) continue;
        Index& first = done[static_cast<std::size_t>(n)];
        const Index frames = std::min(c.sequences.length(n) - first, mask.chunk * draw(0, most));
        slots.push_back(slot(n));
        firsts.push_back(first);
        lengths.push_back(frames);
        for (Index i = 0; i < frames; ++i) from.push_back(c.sequences.begin(n) + first + i);
        first += frames;
        left -= frames;
      }
      Matrix<T> piece(static_cast<Index>(from.size()), x.cols());
      for (std::size_t i = 0; i < from.size(); ++i) piece.row(static_cast<Index>(i)) = x.row(from[i]);
      const Sequences pieces{std::span<const Index>(lengths)};
      const auto y = apply(cpu, c.layer, cpu.input(piece), {.sequences = pieces, .mask = mask, .slots = slots, .firsts = firsts}, path, &state);
      for (std::size_t i = 0; i < from.size(); ++i) out.row(from[i]) = y.view().row(static_cast<Index>(i));
    }
  }
  return outs;
}

// -- Both paths -------------------------------------------------------------------------------------------------------

/// Whether the absorbed path is the cheaper one.
template <class Policy, class T>
bool check_paths(Index n, double tolerance) {
  const Case<Policy, T> c(n);
  const Matrix<T> all = run(c.layer, c.x, c.sequences, c.mask, expanded), latent = run(c.layer, c.x, c.sequences, c.mask, absorbed);
  CHECK(difference(latent, all) < tolerance);
  typename Policy::Work work{c.x.rows(), c.x.rows(), 0};
  for (Index i = 0; i < c.sequences.size(); ++i) work.pairs += Policy::visible_pairs(c.mask, c.sequences.length(i), c.sequences.length(i));
  const bool absorbs = Policy::absorbing_is_cheaper(c.layer.dims(), work);
  CHECK(run(c.layer, c.x, c.sequences, c.mask) == (absorbs ? latent : all));
  return absorbs;
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("absorbed attention is expanded attention", "[latent]", Latents) {
  for (Index n = 0; n < 16; ++n) {
    INFO("draw " << n);
    check_paths<TestType, double>(n, 1e-12);
    check_paths<TestType, float>(n, 1e-5);
    const Case<TestType, double> c(n);
    const Gradients latent = gradients(c, absorbed);
    CHECK(difference(latent, gradients(c, expanded)) < 1e-10);
    if (n == 0) CHECK(gradients(c, absorbed, 3) == latent);
  }
  const Case<TestType, double> drops(1);
  const AttentionLayer<TestType, double> layer(drops.config, 0.5, Seed(1));
  Cpu<double> cpu(1);
  Autodiff<Cpu<double>> tape(cpu);
  CHECK_NOTHROW(apply(tape, layer, tape.input(drops.x), {drops.sequences}));
  CHECK_THROWS_WITH(apply(tape, layer, tape.input(drops.x), {drops.sequences}, absorbed),
                    "attention: the absorbed path has no dropout of probabilities, which this layer trains with");
}

TEMPLATE_LIST_TEST_CASE("derivatives of absorbed attention", "[latent][gradient]", Latents) {
  Case<TestType, double> c(5);
  const Sequences few{4, 0, 2, 1};
  CHECK((GradientCheck{.samples = 6}({random_matrix(7, c.config.d_model, 1)}, weights_of(c.layer), [&](auto& tape, const auto& v) {
          return apply(tape, c.layer, v[0], {few, Mask::chunked(2, 3)}, absorbed);
        })) < 1e-6);
}

// -- Batches, threads, streams ----------------------------------------------------------------------------------------

TEMPLATE_LIST_TEST_CASE("a batch is its sequences, on any number of threads", "[latent][determinism]", All) {
  using Layer = AttentionLayer<TestType, double>;
  for (Index n = 0; n < 6; ++n) {
    INFO("draw " << n);
    const Case<TestType, double> c(n);
    CHECK(c.layer.count_parameters() == TestType::parameter_count(c.config));
    for (const Mask& mask : {Mask::bidirectional(), c.mask, Mask::chunked(3, unlimited)})
      for (const AttentionPath path : {expanded, absorbed}) {
        if (path == absorbed && !Layer::KeyValue::is_latent) continue;
        const Matrix<double> whole = run(c.layer, c.x, c.sequences, mask, path);
        CHECK(run(c.layer, c.x, c.sequences, mask, path, 3) == whole);
        for (Index i = 0; i < c.sequences.size(); ++i) {
          const Index first = c.sequences.begin(i), length = c.sequences.length(i);
          CHECK(run<Layer, double>(c.layer, c.x.middleRows(first, length), {length}, mask, path) == whole.middleRows(first, length));
        }
      }
    CHECK(gradients(c, expanded, 3) == gradients(c, expanded));
  }
}

TEMPLATE_LIST_TEST_CASE("a stream is the whole pass", "[latent][stream]", All) {
  using Layer = AttentionLayer<TestType, double>;
  const Mask limited[] = {Mask::chunked(1, 5), Mask::chunked(2, 4), Mask::chunked(3, 4), Mask::chunked(4, 0), Mask::chunked(5, 7)};
  for (Index n = 0; n < 8; ++n) {
    INFO("draw " << n);
    Case<TestType, double> c(n);
    const auto check = [&](const Mask& mask, AttentionPath path) {
      INFO("chunk " << mask.chunk << ", left " << mask.left_context);
      const auto [first, second] = stream(c, mask, CacheStorage::full, path);
      CHECK(difference<double>(first, run<Layer, double>(c.layer, -c.x, c.sequences, mask, path)) < 1e-12);
      CHECK(difference<double>(second, run(c.layer, c.x, c.sequences, mask, path)) < 1e-12);
    };
    for (const AttentionPath path : {by_cost, expanded, absorbed}) {
      check(Mask::causal(), path);
      check(Mask::chunked(1 + n % 4, unlimited), path);
      if constexpr (!TestType::Score::is_linear) check(limited[n % 5], path);
    }
  }
}

TEST_CASE("by_cost is now the one and now the other path", "[latent]") {
  Index absorbing = 0;
  for (Index n = 0; n < 40; ++n) absorbing += check_paths<Open<Shared>, double>(n, 1e-12) ? 1 : 0;
  CHECK(absorbing > 4);
  CHECK(absorbing < 36);
}

namespace {

template <class Typed, class Untyped>
void check_same(const AttentionConfig& typed, const AttentionConfig& open) {
  AttentionLayer<Typed, double> a(typed, 0, Seed(3));
  AttentionLayer<Untyped, double> b(open, 0, Seed(3));
  randomize(a, 40);
  randomize(b, 40);
  const Sequences sequences{7, 0, 12, 1};
  const Matrix<double> x = random_matrix(20, typed.d_model, 1);
  for (const AttentionPath path : {by_cost, expanded, absorbed})
    CHECK(run(a, x, sequences, Mask::causal(), path) == run(b, x, sequences, Mask::causal(), path));
}

}  // namespace

TEST_CASE("numbers in the type or in the configuration give the same attention", "[latent]") {
  check_same<MlaSimple<4, 5>, MlaSimple<dyn, dyn>>({16}, {16, 4, 0, 5});
  check_same<Mla<4, 5>, Mla<dyn, dyn>>({16}, {16, 4, 0, 5});
  check_same<MlaSplit<4, 5, 3>, MlaSplit<dyn, dyn, dyn>>({16}, {16, 4, 0, 5, 3});
  check_same<MlaSplit<4, 5, 5, InputRotary<>>, MlaSplit<dyn, dyn, dyn, InputRotary<>>>({16}, {16, 4, 0, 5});
  check_same<MlaHead<4, 3>, MlaHead<dyn, dyn>>({16}, {16, 4, 0, 3});
  check_same<Attention<Heads<4, 2>, HeadLatent<3, 2>>, Attention<Heads<dyn, dyn>, HeadLatent<dyn, 2>>>({16}, {16, 4, 2, 3});
  check_same<CachedInput<4, 2>, CachedInput<dyn, dyn>>({16}, {16, 4, 2});
  check_same<MlaDecoupled<4, 5, 6, LowRankQuery<7>>, MlaDecoupled<dyn, dyn, dyn, LowRankQuery<dyn>>>(
      {16}, {.d_model = 16, .num_heads = 4, .kv_lora_rank = 5, .q_lora_rank = 7, .qk_rope_head_dim = 6});
}

// -- Costs ------------------------------------------------------------------------------------------------------------

namespace {

// Parameters of one layer, d = 512, 8 heads, R = 256, or 32 for each head.
constexpr AttentionConfig wide{.d_model = 512};
static_assert(Mha<8, NoPosition>::parameter_count(wide) == 1'050'624);
static_assert(Gqa<8, 2, NoPosition>::parameter_count(wide) == 656'640);
static_assert(MlaSimple<8, 256, NoPosition>::parameter_count(wide) == 919'808);
static_assert(Mla<8, 256, NoPosition>::parameter_count(wide) == 986'368);
static_assert(MlaSplit<8, 256, 256, NoPosition>::parameter_count(wide) == 1'050'112);
static_assert(MlaHead<8, 32, 0, NoPosition>::parameter_count(wide) == 792'064);
static_assert(CachedInput<8, 8, NoPosition>::parameter_count(wide) == 1'050'624);
static_assert(LinearAttention<8>::parameter_count(wide) == 1'050'624);

// DeepSeek-V3: parameters, cached numbers, and operations for a cached frame on both paths.
using V3 = MlaDecoupled<128, 512, 64, LowRankQuery<1536>>;
constexpr AttentionConfig v3{.d_model = 7168, .head_dim = 128, .attention_bias = false};
static_assert(V3::parameter_count(v3) == 187'107'328);
static_assert(V3::cache_bytes(v3, frames(1)) == 4 * 576);
static_assert(V3::cache_bytes(v3, frames(10), CacheStorage::bf16) == 10 * (2 * 512 + 4 * 64));
static_assert(V3::cache_bytes(v3, frames(10), CacheStorage::int8) == 10 * (512 + 4 + 4 * 64));
static_assert(V3::expanded_flops(V3::dims(v3), {1, 0, 1}) == 81'920);
static_assert(V3::expanded_flops(V3::dims(v3), {1, 1, 1}) == 33'636'352);
static_assert(V3::absorbed_flops(V3::dims(v3), {0, 1, 1}) == 278'528);

/// So many queries make expanding the cheaper path, where there are many keys.
template <class Policy>
constexpr Index crossover(const AttentionConfig& config) {
  constexpr Index keys = 1'000'000;
  Index queries = 1;
  while (Policy::absorbing_is_cheaper(Policy::dims(config), {queries, keys, queries * keys})) ++queries;
  return queries;
}
static_assert(crossover<V3>(v3) == 171);
static_assert(crossover<MlaSimple<16, 256>>({1024}) == 86);
static_assert(crossover<MlaSimple<16, 512>>({1024}) == 74);
static_assert(crossover<MlaSimple<16, 1024>>({1024}) == 69);

}  // namespace

TEST_CASE("the cheaper path is that of fewer operations", "[latent][cost]") {
  using Policy = Open<Decoupled<RmsNorm>, Rotary<>>;
  for (Index n = 0; n < 100; ++n) {
    Draw draw(n);
    AttentionConfig config = draw_config<Policy>(draw);
    config.num_kv_heads = config.num_heads;
    const AttentionDims d = Policy::dims(config);
    const Index h = d.num_heads, r = d.kv_lora_rank, w = d.head_dim, rope = d.qk_rope_head_dim, queries = draw(1, 50), keys = draw(1, 300);
    const Index expand = 2 * r * h * keys * (w + w) + 2 * h * queries * keys * (w + rope + w);
    const Index absorb = 2 * h * r * queries * (w + w) + 2 * h * queries * keys * (2 * r + rope);
    const typename Policy::Work work{queries, keys, queries * keys};
    CHECK(Policy::expanded_flops(d, work) == expand);
    CHECK(Policy::absorbed_flops(d, work) == absorb);
    CHECK(Policy::absorbing_is_cheaper(d, work) == (absorb < expand));
  }
}

// -- What caches hold -------------------------------------------------------------------------------------------------

TEMPLATE_LIST_TEST_CASE("a state holds as many bytes as its policy says, and rounding changes little", "[latent][cost]", All) {
  using Layer = AttentionLayer<TestType, float>;
  for (const CacheStorage storage : {CacheStorage::full, CacheStorage::bf16, CacheStorage::int8})
    for (Index n = 0; n < 4; ++n) {
      INFO("draw " << n << ", storage " << static_cast<int>(storage));
      Case<TestType, float> c(n), same(n);
      Cpu<float> cpu(1);
      const typename Layer::template State<Cpu<float>> state(cpu, c.layer, {.slots = 3, .left_context = 17, .chunk = 4, .storage = storage});
      CHECK(state.cache_bytes() == 3 * TestType::cache_bytes(c.config, frames(17), storage));
      const AttentionDims& d = c.layer.dims();
      if (TestType::Score::is_linear) CHECK(state.cache_bytes() == 3 * 4 * d.num_kv_heads * d.head_dim * (d.head_dim + 1));
      const double change = difference(stream(c, Mask::causal(), storage)[1], stream(same, Mask::causal())[1]);
      const bool rounds = storage != CacheStorage::full && !TestType::Score::is_linear;
      CHECK((change > 0) == rounds);
      CHECK(change < 2e-2);
    }
}

TEST_CASE("what says where a frame is stays exact", "[latent][stream]") {
  // A latent that is stored without loss whatever the storage: a copy of columns that hold multiples of 1/128.
  using Policy = Open<Decoupled<NoNorm>, Rotary<>>;
  const AttentionConfig config{.d_model = 12, .num_heads = 2, .kv_lora_rank = 5, .qk_rope_head_dim = 4};
  AttentionLayer<Policy, float> layer(config, 0, Seed(3));
  layer.key_value.linear_kv_down.weight.value = Matrix<float>::Identity(5, 12);
  const Sequences sequences{9};
  Matrix<float> x = random_matrix<float>(9, 12, 1);
  for (Index i = 0; i < 9; ++i)
    for (Index c = 0; c < 5; ++c) x(i, c) = static_cast<float>(c == 0 ? 127 : (37 * i + 91 * c) % 255 - 127) / 128;
  const auto last = [&](CacheStorage storage, const Matrix<float>& input) {
    Cpu<float> cpu(1);
    AttentionLayer<Policy, float>::State<Cpu<float>> state(cpu, layer, {.slots = 1, .left_context = 9, .chunk = 1, .storage = storage});
    Matrix<float> out;
    for (Index i = 0; i < 9; ++i) {
      const Index slot = 0;
      const Sequences one{1};
      const Matrix<float> row = input.row(i);
      out = apply(cpu, layer, cpu.input(row), {.sequences = one, .slots = {&slot, 1}, .firsts = {&i, 1}}, by_cost, &state).view();
    }
    return out;
  };
  const Matrix<float> rough = random_matrix<float>(9, 12, 2);
  for (const CacheStorage storage : {CacheStorage::bf16, CacheStorage::int8}) {
    CHECK(last(storage, x) == last(CacheStorage::full, x));
    CHECK(last(storage, rough) != last(CacheStorage::full, rough));
  }
}

TEST_CASE("a row cache is a ring of rounded rows", "[cache]") {
  const auto read = [](const RowCache<float>& cache, Index slot) {
    Matrix<float> out(cache.count(slot), cache.width());
    cache.read(slot, out.data());
    return out;
  };
  const Matrix<float> x = random_matrix<float>(11, 3, 1);
  for (const Index capacity : {1, 4, 20}) {
    RowCache<float> cache(3, capacity, 3);
    CHECK(cache.bytes() == 3 * capacity * 12);
    Index begin = 0;
    for (const Index rows : {1, 0, 2, 5, 3}) {
      cache.append(1, rows, x.row(begin).data());
      begin += rows;
      const Index count = std::min(begin, capacity);
      CHECK(cache.count(1) == count);
      CHECK(read(cache, 1) == x.middleRows(begin - count, count));
    }
    CHECK(cache.count(0) + cache.count(2) == 0);
    cache.fill_zeros(1);
    CHECK(read(cache, 1) == Matrix<float>::Zero(capacity, 3));
    cache.clear(1);
    CHECK(cache.count(1) == 0);
    cache.append(1, 11, x.data());
    CHECK(read(cache, 1) == x.bottomRows(std::min<Index>(11, capacity)));
  }
  RowCache<float> nothing(2, 0, 3);
  nothing.append(1, 5, x.data());
  nothing.fill_zeros(1);
  CHECK(nothing.count(1) + nothing.bytes() == 0);

  constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  Matrix<float> special(5, 3);
  special << 0, 0, 0, 1, nan, 2, -inf, 1, 2, 1e-40F, -1e-40F, 0, 3e38F, -3e38F, 1;
  for (const CacheStorage storage : {CacheStorage::bf16, CacheStorage::int8}) {
    RowCache<float> cache(1, 11, 3, storage);
    CHECK(cache.bytes() == 11 * (storage == CacheStorage::bf16 ? 6 : 7));
    cache.append(0, 11, x.data());
    for (Index i = 0; i < 11; ++i) {
      const float most = x.row(i).cwiseAbs().maxCoeff();
      CHECK((read(cache, 0).row(i) - x.row(i)).cwiseAbs().maxCoeff() <= most / (storage == CacheStorage::bf16 ? 256 : 253));
    }
    cache.clear(0);
    cache.append(0, 5, special.data());
    const Matrix<float> got = read(cache, 0);
    CHECK(got.row(0).isZero(0));
    CHECK(std::isnan(got(1, 1)));
    CHECK_FALSE(std::isfinite(got(2, 0)));
    CHECK(got.row(3).cwiseAbs().maxCoeff() < 1e-37F);
    CHECK(std::abs(got(4, 0) / 3e38F - 1) < 0.01F);
    if (storage == CacheStorage::int8) CHECK((got.row(1).array().isNaN().all() && got.row(2).array().isNaN().all()));  // the row is spoilt, and shows
  }
}

// -- Cross-attention --------------------------------------------------------------------------------------------------

TEST_CASE("all layers of a decoder share one source", "[latent][cross]") {
  const AttentionConfig config{.d_model = 12, .num_heads = 4, .num_kv_heads = 2};
  const Sequences sources{9, 30}, queries{5, 2};
  const Matrix<double> source = random_matrix(39, 12, 1), x = random_matrix(7, 12, 2);
  Cpu<double> cpu(2);
  const auto shared = cpu.input(source);
  for (const std::uint64_t seed : {1, 2, 3}) {
    const AttentionLayer<Open<InputLatent>, double> layer(config, 0, Seed(seed));
    const AttentionLayer<Open<FullRank>, double> full(config, 0, Seed(seed));  // the same weights: they have the same names
    const auto memory = layer.remember(cpu, shared);
    CHECK(memory[0].data() == source.data());
    const Matrix<double> expected = full.cross(cpu, cpu.input(x), queries, full.remember(cpu, shared), sources).view();
    for (const AttentionPath path : {by_cost, expanded, absorbed}) {
      const Matrix<double> all = layer.cross(cpu, cpu.input(x), queries, memory, sources, path).view();
      CHECK(difference(all, expected) < 1e-12);
      // Each hypothesis, and each sequence, alone.
      for (Index i = 0; i < 7; ++i) {
        const Index n = i < 5 ? 0 : 1;
        const Matrix<double> row = x.row(i), own = source.middleRows(sources.begin(n), sources.length(n));
        const Matrix<double> alone = layer.cross(cpu, cpu.input(row), {1}, layer.remember(cpu, cpu.input(own)), {own.rows()}, path).view();
        CHECK(difference<double>(alone, all.row(i)) < 1e-12);
        if (path != by_cost) CHECK(alone == all.row(i));
      }
    }
  }
}

// -- Rotary positions -------------------------------------------------------------------------------------------------

TEST_CASE("rotary positions are distances, those of the input are not", "[latent]") {
  const Sequences sequences{8, 5};
  const Matrix<double> x = random_matrix(13, 24, 1);
  const auto change = [&]<class Policy>(std::type_identity<Policy>, const AttentionConfig& config) {
    AttentionLayer<Policy, double> layer(config, 0, Seed(3));
    randomize(layer, 40);
    const std::vector<Index> later{17, 3};
    Cpu<double> cpu(1);
    const Matrix<double> moved = apply(cpu, layer, cpu.input(x), {.sequences = sequences, .firsts = later}).view();
    return difference(moved, run(layer, x, sequences, Mask::bidirectional()));
  };
  CHECK(change(std::type_identity<Mha<4, Rotary<>>>(), {24}) < 1e-12);
  CHECK(change(std::type_identity<Gqa<4, 2, Rotary<RotaryPairs::halves>>>(), {24}) < 1e-12);
  CHECK(change(std::type_identity<MlaDecoupled<4, 5, 6>>(), {24}) < 1e-12);
  CHECK(change(std::type_identity<Mha<4, InputRotary<>>>(), {24}) > 1e-3);
  CHECK(change(std::type_identity<MlaSplit<4, 5, 5, InputRotary<RotaryPairs::interleaved>>>(), {24}) > 1e-3);
}
