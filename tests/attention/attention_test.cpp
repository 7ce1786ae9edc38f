// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Softmax attention against the plain formula, and attention layers' derivatives.
#include <laconic/attention/attention.hpp>

#include "gradient_check.hpp"

using namespace laconic;

namespace {

/// Operands of one attention, all random.
template <class T>
struct Operands {
  Index num_heads, num_kv_heads, key_width, value_width;
  Sequences q_sequences, kv_sequences;
  Mask mask;
  Index span;  // 0: no relative positions
  double scale = 0.6;
  Matrix<T> q = random_matrix<T>(q_sequences.rows(), num_heads* key_width, 1);
  Matrix<T> k = random_matrix<T>(kv_sequences.rows(), num_kv_heads* key_width, 2);
  Matrix<T> v = random_matrix<T>(kv_sequences.rows(), num_kv_heads* value_width, 3);
  Matrix<T> table = random_matrix<T>(span > 0 ? 2 * span - 1 : 0, num_heads* key_width, 4, 0.5);
  Parameter<T> bias_u = random_parameter<T>({num_heads, key_width}, 5, 0.5);
  Parameter<T> bias_v = random_parameter<T>({num_heads, key_width}, 6, 0.5);
};

/// The formula, one number at a time: softmax_j of ((q_i + u) . k_j + (q_i + v) . p[i - j]) scale, times V.
template <class T>
Matrix<double> reference(const Operands<T>& in) {
  Matrix<double> out = Matrix<double>::Zero(in.q.rows(), in.num_heads * in.value_width);
  const auto at = [](const Matrix<T>& m, Index r, Index c) { return static_cast<double>(m(r, c)); };
  for (Index n = 0; n < in.q_sequences.size(); ++n) {
    const Index queries = in.q_sequences.length(n), keys = in.kv_sequences.length(n);
    for (Index h = 0; h < in.num_heads; ++h)
      for (Index i = 0; i < queries; ++i) {
        const Index g = h / (in.num_heads / in.num_kv_heads), position = keys - queries + i,
                    row = in.q_sequences.begin(n) + i;
        std::vector<double> p(static_cast<std::size_t>(keys), -std::numeric_limits<double>::infinity());
        for (Index j = 0; j < keys; ++j) {
          if (in.mask.chunk > 0) {
            const Index start =
                keys - queries + i / in.mask.chunk * in.mask.chunk;  // chunks are counted from the first query
            if (j >= start + in.mask.chunk) continue;
            if (in.mask.left_context >= 0 && j < start - in.mask.left_context) continue;
          }
          double score = 0;
          for (Index c = 0; c < in.key_width; ++c) {
            const double q = at(in.q, row, h * in.key_width + c);
            const bool relative = in.span > 0;
            score += (q + (relative ? at(in.bias_u.host(), h, c) : 0)) *
                     at(in.k, in.kv_sequences.begin(n) + j, g * in.key_width + c);
            if (relative)
              score +=
                  (q + at(in.bias_v.host(), h, c)) * at(in.table, in.span - 1 - (position - j), h * in.key_width + c);
          }
          p[static_cast<std::size_t>(j)] = score * in.scale;
        }
        double sum = 0;
        const double most = p.empty() ? 0 : *std::max_element(p.begin(), p.end());
        if (std::isinf(most)) continue;
        for (double& x : p) sum += x = std::exp(x - most);
        for (Index j = 0; j < keys; ++j)
          for (Index c = 0; c < in.value_width; ++c)
            out(row, h * in.value_width + c) +=
                p[static_cast<std::size_t>(j)] / sum * at(in.v, in.kv_sequences.begin(n) + j, g * in.value_width + c);
      }
  }
  return out;
}

template <class T>
Matrix<T> attend(const Operands<T>& in, int threads) {
  Cpu<T> cpu(threads);
  RelativeTerm<Tensor<T>, T> term;
  if (in.span > 0) term = {cpu.input(in.table), &in.bias_u, &in.bias_v};
  return cpu
      .attend(cpu.input(in.q), cpu.input(in.k), cpu.input(in.v), {in.num_heads, in.num_kv_heads, in.scale, in.mask},
              in.q_sequences, in.kv_sequences, term)
      .view();
}

template <class T>
double error_of(const Operands<T>& in, const Matrix<T>& out) {
  const Matrix<double> expected = reference(in);
  REQUIRE(out.rows() == expected.rows());
  REQUIRE(out.cols() == expected.cols());
  REQUIRE(out.allFinite());
  return (out.template cast<double>() - expected).cwiseAbs().maxCoeff();
}
template <class T>
double error_of(const Operands<T>& in, int threads = 1) {
  return error_of(in, attend(in, threads));
}

/// A layer as a model runs it.
template <class Context, class Layer, class Tensor>
Tensor apply(Context& context, const Layer& layer, const Tensor& x, const Sequences& sequences, const Mask& mask = {},
             AttentionPath path = AttentionPath::by_cost) {
  Pass<Tensor> pass{sequences, mask};
  const Tensor entered = layer.enter(context, x, pass);
  pass.table = layer.table(context, pass);
  return layer(context, entered, pass, nullptr, path);
}

template <class Policy>
void check_layer(const AttentionConfig& config, const Sequences& sequences) {
  for (const double dropout : {0.0, 0.2}) {
    AttentionLayer<Policy, double> layer(config, dropout, Seed(3));
    randomize(layer, 40);
    CHECK(layer.count_parameters() == Policy::parameter_count(config));
    const GradientCheck check{.samples = 16};
    CHECK(check({random_matrix(sequences.rows(), config.d_model, 1)}, weights_of(layer),
                [&](auto& tape, const auto& v) { return apply(tape, layer, v[0], sequences); }) < 1e-6);
  }
}

}  // namespace

TEMPLATE_TEST_CASE("attention is the formula", "[attention]", float, double) {
  const double tolerance = std::is_same_v<TestType, double> ? 1e-13 : 2e-5;
  const Mask masks[] = {Mask::bidirectional(), Mask::causal(), Mask::chunked(4, 0), Mask::chunked(16, 8),
                        Mask::chunked(5, Mask::unlimited)};
  for (const Mask mask : masks)
    for (const Index span : {0, 150})
      for (const int threads : {1, 3}) {
        INFO("chunk " << mask.chunk << ", left " << mask.left_context << ", span " << span << ", threads " << threads);
        const Sequences uneven{70, 0, 5, 129, 1};
        CHECK(error_of<TestType>({4, 4, 8, 8, uneven, uneven, mask, span}, threads) < tolerance);
        CHECK(error_of<TestType>({6, 2, 5, 7, uneven, uneven, mask, span}, threads) < tolerance);
        CHECK(error_of<TestType>({3, 1, 17, 33, uneven, uneven, mask, span}, threads) < tolerance);
        CHECK(error_of<TestType>({4, 2, 6, 6, {1, 66, 3}, {10, 140, 3}, mask, span}, threads) < tolerance);
      }
  // Two sequences that have nothing in common.
  CHECK(error_of<TestType>({4, 2, 6, 3, {70, 5, 2, 0}, {30, 80, 0, 4}, Mask::bidirectional(), 0}) < tolerance);
  // A table for just as many frames as there are.
  CHECK(error_of<TestType>({2, 2, 4, 4, {70}, {70}, Mask::bidirectional(), 70}) < tolerance);
  // More queries than keys: those before the first key see nothing, or the chunk that they share with it.
  for (const Mask mask : masks) {
    INFO("chunk " << mask.chunk << ", left " << mask.left_context);
    CHECK(error_of<TestType>({2, 2, 4, 4, {9, 70}, {5, 3}, mask, 0}) < tolerance);
  }
}

TEMPLATE_TEST_CASE("where few queries meet many keys, parts of these are tasks", "[attention]", float, double) {
  const double tolerance = std::is_same_v<TestType, double> ? 1e-13 : 2e-5;
  // Parts that no query sees or some do; sequences that are just cut or just not.
  const Mask masks[] = {Mask::bidirectional(), Mask::causal(), Mask::chunked(8, 70), Mask::chunked(1, 440)};
  const Sequences queries{8, 0, 3, 48, 49, 1, 2}, keys{1500, 0, 3, 960, 1000, 959, 60};
  for (const Mask mask : masks)
    for (const Index span : {0, 1600}) {
      INFO("chunk " << mask.chunk << ", left " << mask.left_context << ", span " << span);
      for (const Operands<TestType>& in :
           {Operands<TestType>{4, 4, 8, 8, queries, keys, mask, span}, {6, 1, 17, 33, queries, keys, mask, span}}) {
        const Matrix<TestType> out = attend(in, 1);
        CHECK(error_of(in, out) < tolerance);
        CHECK(attend(in, 3) == out);
        // Each sequence alone, on more threads than it has parts.
        for (Index n = 0; n < queries.size(); ++n) {
          Operands<TestType> alone = in;
          alone.q_sequences = {queries.length(n)};
          alone.kv_sequences = {keys.length(n)};
          alone.q = in.q.middleRows(queries.begin(n), queries.length(n));
          alone.k = in.k.middleRows(keys.begin(n), keys.length(n));
          alone.v = in.v.middleRows(keys.begin(n), keys.length(n));
          CHECK(attend(alone, 16) == out.middleRows(queries.begin(n), queries.length(n)));
        }
      }
    }
  // Great scores give no infinities, and what is not a number stays so, in one part or in all.
  Operands<TestType> in{2, 1, 4, 4, {8}, {1200}, Mask::bidirectional(), 0};
  in.k *= TestType(1e3);
  CHECK(error_of(in) < 1e3 * tolerance);
  in.q(3, 1) = std::numeric_limits<TestType>::quiet_NaN();
  const Matrix<TestType> out = attend(in, 2);
  CHECK(out.row(3).head(4).array().isNaN().all());
  CHECK(out.row(3).tail(4).allFinite());
  CHECK((out.topRows(3).allFinite() && out.bottomRows(4).allFinite()));
  in.k(700, 1) = in.q(3, 1);
  CHECK(attend(in, 2).array().isNaN().all());
}

TEMPLATE_TEST_CASE("rows are read where caches hold them, and a table as it was packed", "[attention][cache]", float,
                   double) {
  using T = TestType;
  // Values that are multiplied where they lie, or must be packed; the longest sequence is all that the table has.
  const Index value_width = GENERATE(36, 64);
  constexpr Index heads = 4, kv_heads = 2, key_width = 20, most_new = 141;
  // With 1000 kept, parts of the keys are tasks.
  const Index kept = GENERATE(100, 1000), span = kept + most_new;
  const AttendShape shape{heads, kv_heads, 0.4, Mask::chunked(8, kept)};
  const Matrix<T> table = random_matrix<T>(2 * span - 1, heads * key_width, 1);
  const Parameter<T> u = random_parameter<T>({heads, key_width}, 2), v = random_parameter<T>({heads, key_width}, 3);
  for (const Storage storage : {Storage::full, Storage::bf16, Storage::int8})
    for (const int threads : {1, 3}) {
      Cpu<T> cpu(threads);
      const auto packed = cpu.prepare_table(cpu.input(table), heads);
      typename Cpu<T>::Cache keys(3, kept, kv_heads * key_width, storage),
          values(3, kept, kv_heads * value_width, storage);
      const std::array<Index, 3> every{0, 1, 2};
      const Sequences before{kept - 60, kept - 20, kept - 40};
      cpu.append(keys, every, cpu.input(random_matrix<T>(before.rows(), kv_heads * key_width, 5)), before);
      cpu.append(values, every, cpu.input(random_matrix<T>(before.rows(), kv_heads * value_width, 6)), before);
      typename Cpu<T>::Cache other_keys = keys, other_values = values;
      const Random random(Seed(4), "lengths");
      for (std::uint64_t round = 0; round < 12; ++round) {  // rings go round; one slot rests now and then
        const std::vector<Index> slots = round % 3 == 2 ? std::vector<Index>{1, 0} : std::vector<Index>{2, 0, 1};
        std::vector<Index> lengths;
        for (std::size_t n = 0; n < slots.size(); ++n)
          lengths.push_back(round % 3 == 0 && round > 6 ? most_new - static_cast<Index>(n)
                                                        : random.below(14, 4 * round + n));
        const Sequences rows(lengths);
        const auto q = cpu.input(random_matrix<T>(rows.rows(), heads * key_width, 10 + round)),
                   k = cpu.input(random_matrix<T>(rows.rows(), kv_heads * key_width, 30 + round)),
                   x = cpu.input(random_matrix<T>(rows.rows(), kv_heads * value_width, 50 + round));
        const auto cached_keys = cpu.with_cached(keys, slots, k, rows),
                   cached_values = cpu.with_cached(values, slots, x, rows);
        const Sequences all = cpu.cached_lengths(cached_keys, rows);
        const auto got = cpu.attend(q, cached_keys, cached_values, shape, rows, all, {packed, &u, &v, {}, true});
        const auto plain = cpu.attend(q, cached_keys, cached_values, shape, rows, all);
        cpu.append(keys, slots, k, rows);
        cpu.append(values, slots, x, rows);
        const auto whole_keys = cpu.extend(other_keys, slots, k, rows),
                   whole_values = cpu.extend(other_values, slots, x, rows);
        REQUIRE(whole_keys.sequences.rows() == all.rows());
        CHECK(got.view() ==
              cpu.attend(q, whole_keys.rows, whole_values.rows, shape, rows, all, {cpu.input(table), &u, &v}).view());
        CHECK(plain.view() == cpu.attend(q, whole_keys.rows, whole_values.rows, shape, rows, all).view());
      }
    }
  Cpu<T> cpu(1);
  CHECK_THROWS_WITH(cpu.prepare_table(cpu.input(table), 3), "prepare_table: 80 channels given for 3 heads");
}

TEST_CASE("great scores give no infinities", "[attention]") {
  Operands<float> in{2, 2, 4, 4, {40}, {40}, Mask::causal(), 0};
  in.q *= 1e3F;
  in.k *= 1e3F;
  CHECK(error_of(in) < 1e-5);
}

TEST_CASE("attention refuses operands that do not fit", "[attention]") {
  Cpu<double> cpu(1);
  const Matrix<double> x = random_matrix(6, 8, 1), narrow = random_matrix(6, 7, 1), table = random_matrix(9, 8, 1);
  const Parameter<double> bias = random_parameter({2, 4}, 1);
  const Sequences six{4, 2}, five{5}, one{6};
  const auto attend = [&](const Matrix<double>& k, const Sequences& keys, AttendShape shape = {2, 2, 1}) {
    return cpu.attend(cpu.input(x), cpu.input(k), cpu.input(x), shape, six, keys);
  };
  CHECK_THROWS_WITH(attend(narrow, six),
                    "attend: q, k, v have 8, 7, 8 channels, which 2 heads over 2 key-value heads do not divide");
  CHECK_THROWS_WITH(attend(x, six, {2, 0, 1}),
                    "attend: q, k, v have 8, 8, 8 channels, which 2 heads over 0 key-value heads do not divide");
  CHECK_THROWS_WITH(attend(x, six, {3, 2, 1}),
                    "attend: q, k, v have 8, 8, 8 channels, which 3 heads over 2 key-value heads do not divide");
  CHECK_THROWS_WITH(attend(x, five), "attend: q, k, v have 6, 6, 6 rows; their sequences have 6 and 5");
  CHECK_THROWS_WITH(attend(x, one), "attend: q, k, v have 6, 6, 6 rows; their sequences have 6 and 6");
  CHECK_THROWS_WITH(attend(x, six, {2, 2, 1, Mask{0, 1}}),
                    "attend: a mask of chunk 0 and left context 1 given, at least 1 and 0 expected, or neither");
  CHECK_THROWS_WITH(attend(x, six, {2, 2, 1, Mask{4, -3}}),
                    "attend: a mask of chunk 4 and left context -3 given, at least 1 and 0 expected, or neither");
  const auto relative = [&](const Matrix<double>& k, const Sequences& keys, const Matrix<double>& p) {
    return cpu.attend(cpu.input(x), cpu.input(k), cpu.input(k), {2, 2, 1}, six, keys, {cpu.input(p), &bias, &bias});
  };
  CHECK_NOTHROW(relative(x, six, table));
  CHECK_THROWS_WITH(relative(x, six, random_matrix(5, 8, 1)),
                    "attend: the table of relative positions is (5, 8), expected (2 n - 1, 8) with n at least 4");
  CHECK_THROWS_WITH(relative(x, six, random_matrix(8, 8, 1)),
                    "attend: the table of relative positions is (8, 8), expected (2 n - 1, 8) with n at least 4");
  CHECK_THROWS_WITH(
      relative(random_matrix(5, 8, 1), {3, 2}, table),
      "attend: sequence 0 has 4 queries and 3 keys, at least as many keys expected with relative positions");
}

TEST_CASE("derivatives of attention layers", "[attention][gradient]") {
  const Sequences sequences{6, 0, 3, 1};
  check_layer<Mha<2>>({8}, sequences);
  check_layer<Mha<2, NoPosition>>({8}, sequences);
  check_layer<Mha<2, Sinusoidal>>({8}, sequences);
  check_layer<Mha<2, Rotary<>>>({8}, sequences);
  check_layer<Gqa<4, 2, Rotary<RotaryPairs::halves>>>({16}, sequences);
  check_layer<Mha<2, InputRotary<>>>({8}, sequences);
  check_layer<Gqa<4, 2>>({8}, sequences);
  check_layer<Gqa<4, 2, Sinusoidal>>({12}, sequences);
  check_layer<Mqa<4>>({8}, sequences);
  check_layer<Mqa<2, NoPosition>>({10}, sequences);
  check_layer<Mla<2, 3>>({8}, sequences);
  check_layer<MlaSimple<4, 3>>({8}, sequences);
  check_layer<MlaSimple<2, 5, NoPosition>>({8}, sequences);
  check_layer<MlaSimple<dyn, dyn, Sinusoidal>>({8, 2, 0, 5}, sequences);
  check_layer<MlaSplit<2, 3, 5>>({8}, sequences);
  check_layer<MlaSplit<2, 3, 5, InputRotary<>>>({8}, sequences);
  check_layer<MlaHead<2, 3>>({8}, sequences);
  check_layer<MlaHead<2, 3, 2>>({8}, sequences);
  check_layer<MlaHead<dyn, dyn, dyn>>({8, 2, 0, 2, 4}, sequences);
  check_layer<Attention<Heads<4, 2>, HeadLatent<2>, InputRotary<RotaryPairs::interleaved>>>({8}, sequences);
  check_layer<MlaDecoupled<2, 3, 4>>({8}, sequences);
  check_layer<MlaDecoupled<2, 3, 4, LowRankQuery<5>, LayerNorm>>({8}, sequences);
  check_layer<MlaDecoupled<2, 3, 4, LowRankQuery<5, NoNorm>, NoNorm>>(
      {.d_model = 8, .head_dim = 3, .attention_bias = false}, sequences);
  check_layer<CachedInput<2>>({8}, sequences);
  check_layer<CachedInput<4, 2, NoPosition>>({8}, sequences);
  check_layer<LinearAttention<2>>({8}, sequences);
  check_layer<LinearAttention<4, 2, Sinusoidal>>({8}, sequences);
}

TEST_CASE("relative positions depend on distance alone", "[attention]") {
  // With equal rows everywhere, the scores of a query are those of its distances; so the first sequence's frames see
  // the second's distances when the second begins earlier in a longer table.
  AttentionLayer<Mha<2>, double> layer(AttentionConfig{8}, 0, Seed(3));
  randomize(layer, 40);
  const Matrix<double> x = random_matrix(5, 8, 1);
  Cpu<double> cpu(1);
  Matrix<double> both(14, 8);
  both << x, random_matrix(9, 8, 2);
  const auto run = [&](const Matrix<double>& rows, const Sequences& sequences) {
    return Matrix<double>(apply(cpu, layer, cpu.input(rows), sequences).view().topRows(5));
  };
  CHECK((run(x, {5}) - run(both, {5, 9})).cwiseAbs().maxCoeff() < 1e-13);
}

TEST_CASE("sinusoids", "[attention]") {
  const auto sinusoid = [](double position, Index column, double d_model) {
    const double angle = position / std::pow(10000.0, static_cast<double>(column / 2 * 2) / d_model);
    return column % 2 == 0 ? std::sin(angle) : std::cos(angle);
  };
  Cpu<double> cpu(1);
  const Sequences three{3};
  const AttentionDims dims = Mha<2>::dims({8});
  const auto table = RelativePosition::table(cpu, dims, 4, Pass<Tensor<double>>{three});
  REQUIRE(table.rows() == 5);
  for (Index r = 0; r < 5; ++r)
    for (Index c = 0; c < 8; ++c)
      CHECK(table.view()(r, c) == Approx(sinusoid(static_cast<double>(2 - r), c, 8)).margin(1e-15));
  const Matrix<double> zero = Matrix<double>::Zero(3, 8);
  const Sequences uneven{0, 1, 0, 2};
  const std::vector<Index> firsts{7, 3, 0, 20};
  Pass<Tensor<double>> pass{uneven};
  for (const bool later : {false, true}) {
    if (later) pass.firsts = firsts;
    const auto absolute = Sinusoidal::enter(cpu, cpu.input(zero), pass);
    for (Index c = 0; c < 8; ++c) {
      CHECK(absolute.view()(0, c) == Approx(sinusoid(later ? 3 : 0, c, 8)).margin(1e-15));
      CHECK(absolute.view()(1, c) == Approx(sinusoid(later ? 20 : 0, c, 8)).margin(1e-15));
      CHECK(absolute.view()(2, c) == Approx(sinusoid(later ? 21 : 1, c, 8)).margin(1e-15));
    }
    const auto angles = Rotary<>::table(cpu, dims, 4, pass);
    for (Index m = 0; m < 2; ++m) {
      const double angle = (later ? 21 : 1) / std::pow(10000.0, static_cast<double>(2 * m) / 4);
      CHECK(angles.view()(2, m) == Approx(std::cos(angle)).margin(1e-15));
      CHECK(angles.view()(2, 2 + m) == Approx(std::sin(angle)).margin(1e-15));
    }
  }
}
