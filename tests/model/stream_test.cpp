// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Streams of every encoder and attention: however the features come, what comes out is the whole pass under the mask of
// chunks.
#include <laconic/attention/any.hpp>
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/e_branchformer.hpp>
#include <laconic/model/stream.hpp>

#include "backends.hpp"
#include "golden.hpp"
#include "gradient_check.hpp"

#include <array>
#include <limits>
#include <optional>
#include <tuple>

using namespace laconic;

namespace {

using Names = AttentionName;

/// Numbers that depend on the draw and on nothing else.
struct Draw {
  explicit Draw(Index n) : random(Seed(7) / n, "draw") {}
  Index operator()(Index least, Index most) { return least + random.below(most - least + 1, at++); }
  Random random;
  std::uint64_t at = 0;
};

template <class Kind_, class Policy_, class T_ = double, class Context_ = Cpu<T_>>
struct Case {
  using Policy = Policy_;
  using T = T_;
  using Context = Context_;
  using Model = Encoder<Kind_, Policy, T>;
};
using Cases = std::tuple<
    Case<ConformerKind, Mha<4>>, Case<ConformerKind, Gqa<4, 2, NoPosition>>, Case<BranchformerKind, Mqa<4, Sinusoidal>>,
    Case<EBranchformerKind, Mha<4, Rotary<>>>, Case<BranchformerKind, Gqa<4, 2, InputRotary<>>>,
    Case<ConformerKind, Mla<4, 5>>, Case<EBranchformerKind, MlaSimple<4, 5>>,
    Case<BranchformerKind, MlaSplit<4, 5, 3, InputRotary<>>>, Case<ConformerKind, MlaHead<4, 2, 0, Sinusoidal>>,
    Case<EBranchformerKind, MlaHead<4, 2, 1>>, Case<ConformerKind, MlaDecoupled<4, 5, 4>>,
    Case<BranchformerKind, MlaDecoupled<4, 5, 4, LowRankQuery<3>, LayerNorm>>,
    Case<EBranchformerKind, CachedInput<4, 2>>, Case<ConformerKind, LinearAttention<4>>,
    Case<EBranchformerKind, LinearAttention<4, 2, Sinusoidal>>, Case<ConformerKind, Mha<4>, float>,
    Case<ConformerKind, AnyAttention>, Case<BranchformerKind, AnyAttention>, Case<EBranchformerKind, AnyAttention>,
    Case<ConformerKind, AnyAttention, float>, Case<EBranchformerKind, AnyAttention, float>>;

template <class Policy>
constexpr bool any = std::is_same_v<Policy, AnyAttention>;
template <class Policy>
bool is_linear(Names name) {
  if constexpr (any<Policy>)
    return name == Names::linear;
  else
    return Policy::Score::is_linear;
}
/// Whether a stream is the whole pass bit for bit. Attention over a latent may take another of its two paths there, and
/// linear attention sums its state in other steps; all others compute the same numbers in the same order, however many
/// come at a time, while a pass has fewer than 960 keys.
template <class Policy>
bool is_exact(Names name) {
  if constexpr (any<Policy>)
    return name == Names::mha || name == Names::gqa || name == Names::mqa;
  else
    return !Policy::KeyValue::is_latent && !Policy::Score::is_linear;
}

/// The numbers that `AnyAttention` needs for a name.
void set_attention(EncoderConfig& c, Names name, Draw& draw) {
  c.attention = name;
  c.num_heads = 4;
  if (name == Names::gqa || name == Names::input_latent || name == Names::linear) c.num_kv_heads = 2;
  if (to_name(name).starts_with("mla")) c.kv_lora_rank = draw(1, name == Names::mla_head ? c.d_model / 4 : c.d_model);
  if (name == Names::mla_split) c.v_lora_rank = draw(0, c.d_model);
  if (name == Names::mla_head) c.v_lora_rank = draw(0, c.d_model / 4);
  if (name == Names::mla_decoupled) c.qk_rope_head_dim = 2 * draw(1, 3);
}

template <class Policy>
EncoderConfig draw_config(Draw& draw, Names name) {
  EncoderConfig c{.num_mels = draw(7, 12),
                  .d_model = 8 * draw(1, 3),
                  .num_layers = draw(1, 3),
                  .vocab_size = 5,
                  .ffn_expansion = draw(1, 2)};
  c.conv_kernel = 2 * draw(0, 4) + 1;
  c.cgmlp_expansion = draw(1, 3);
  c.merge = draw(0, 1) == 0 ? BranchMerge::concat : BranchMerge::fixed_average;
  c.cgmlp_weight = 0.3;
  c.merge_kernel = 2 * draw(0, 3) + 1;
  c.subsampling = 2 * draw(1, 2);
  c.subsampling_channels = 3;
  c.convolution = draw(0, 1) == 0 ? ConvolutionContext::causal : ConvolutionContext::chunk;
  c.chunk = draw(1, 9);
  c.left_context = is_linear<Policy>(name) || draw(0, 4) == 0 ? -1 : draw(0, 20);
  if (any<Policy>) set_attention(c, name, draw);
  return c;
}

template <class Model>
Model random_model(const EncoderConfig& config) {
  Model model(config, Seed(1));
  randomize(model, 5);
  return model;
}

template <class T>
struct Utterance {
  Matrix<T> features;
  bool broken = false;  // pushed and closed without an end; all its features are NaN
};

/// Pushes the utterances as they might come: up to `capacity` at a time, in any order, several in one call, in blocks
/// of 0 to 50 rows. Gives what came out.
template <class Model, class Context, class T>
std::vector<Matrix<T>> drive(Draw& draw, const Model& model, Streams<Model, Context>& streams, Index capacity,
                             const std::vector<Utterance<T>>& utterances) {
  struct Live {
    std::size_t utterance;
    Index stream, given = 0;
  };
  std::vector<Live> live;
  std::vector<Matrix<T>> out(utterances.size(), Matrix<T>(0, model.config().vocab_size));
  const auto take = [&](const std::vector<Live>& of, const auto& logits) {
    REQUIRE(logits.sequences.size() == static_cast<Index>(of.size()));
    const Matrix<T> rows = streams.context().output(logits.rows);
    for (std::size_t n = 0; n < of.size(); ++n) {
      Matrix<T>& to = out[of[n].utterance];
      const Matrix<T> before = to;
      to.resize(before.rows() + logits.sequences.length(static_cast<Index>(n)), before.cols());
      to << before, rows.middleRows(logits.sequences.begin(static_cast<Index>(n)), to.rows() - before.rows());
    }
  };
  std::vector<Index> ids, lengths;
  for (std::size_t next = 0; next < utterances.size() || !live.empty();) {
    while (next < utterances.size() && static_cast<Index>(live.size()) < capacity && draw(0, 3) > 0)
      live.push_back({next++, streams.open()});
    shuffle(live, Random(Seed(3), draw.at));
    const auto part = static_cast<std::size_t>(draw(0, static_cast<Index>(live.size())));
    const std::vector<Live> pushed(live.begin(), live.begin() + static_cast<std::ptrdiff_t>(part));
    ids.clear();
    lengths.clear();
    for (const Live& l : pushed) {
      ids.push_back(l.stream);
      lengths.push_back(std::min(utterances[l.utterance].features.rows() - l.given, draw(0, 50)));
    }
    const Sequences blocks(lengths);
    Matrix<T> features(blocks.rows(), model.config().num_mels);
    for (std::size_t n = 0; n < part; ++n) {
      features.middleRows(blocks.begin(static_cast<Index>(n)), lengths[n]) =
          utterances[live[n].utterance].features.middleRows(live[n].given, lengths[n]);
      live[n].given += lengths[n];
    }
    take(pushed, streams.push(ids, features, blocks));
    for (std::size_t n = 0; n < part; ++n) {
      const Index late = live[n].given - streams.first_rows();
      REQUIRE(out[live[n].utterance].rows() ==
              (late < 0 ? 0 : (late / streams.chunk_rows() + 1) * streams.mask().chunk));
    }

    std::vector<Live> going, done;
    for (const Live& l : live) {
      const bool over = l.given == utterances[l.utterance].features.rows() && draw(0, 1) == 0;
      if (over && utterances[l.utterance].broken)
        streams.close(l.stream);
      else
        (over ? done : going).push_back(l);
    }
    live = going;
    ids.clear();
    for (const Live& l : done) ids.push_back(l.stream);
    if (!done.empty()) take(done, streams.finish(ids));
  }
  return out;
}

template <class Model, class T = typename Model::Scalar, class Context = Cpu<T>>
Matrix<T> whole(const Model& model, const Matrix<T>& features, const Mask& mask) {
  Context context(1);
  return context.output(model(context, context.input(features), {features.rows()}, mask).rows);
}

/// Logits of one stream, pushed at once.
template <class Model, class T = typename Model::Scalar, class Context = Cpu<T>>
Matrix<T> streamed(const Model& model, const Matrix<T>& features, const StreamConfig& config) {
  Streams<Model, Context> streams(model, config);
  const std::array one{streams.open()};
  const auto first = streams.push(one, features, {features.rows()}), last = streams.finish(one);
  Matrix<T> out(first.rows.rows() + last.rows.rows(), first.rows.cols());
  out << streams.context().output(first.rows), streams.context().output(last.rows);
  return out;
}

template <class C>
void check_streams(Index n, Names name) {
  using T = typename C::T;
  using Model = typename C::Model;
  Draw draw(n);
  EncoderConfig config = draw_config<typename C::Policy>(draw, name);
  INFO("draw " << n << ", " << to_name(name) << ", " << to_name(config.convolution) << ", chunk " << config.chunk
               << ", left " << config.left_context);
  std::vector<Utterance<T>> utterances;
  Index longest = 0;
  for (Index i = draw(3, 7); i > 0; --i) {
    const Index rows = draw(0, 3) == 0 ? draw(0, 12) : draw(13, 130);
    const bool broken = draw(0, 3) == 0;
    const T nan = std::numeric_limits<T>::quiet_NaN();
    utterances.push_back({broken ? Matrix<T>::Constant(rows, config.num_mels, nan)
                                 : random_matrix<T>(rows, config.num_mels, static_cast<std::uint64_t>(100 * n + i)),
                          broken});
    longest = std::max(longest, Conv2dSubsampling<T>::out_length(rows, config.subsampling));
  }
  const Model model = random_model<Model>(config);
  const Index capacity = draw(1, 4);
  const int threads = n % 300 == 3 ? 2 : 1;
  StreamConfig streamed_as{.capacity = capacity, .max_frames = std::max<Index>(1, longest), .threads = threads};
  Model streamed_model = model;
  if constexpr (!C::Context::computes_on_host) typename C::Context(1).prepare(streamed_model);
  Streams<Model, typename C::Context> streams(streamed_model, streamed_as);
  const auto out = drive(draw, model, streams, capacity, utterances);
  streamed_as.capacity = streamed_as.threads = 1;
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (utterances[i].broken) continue;
    // No company, no blocks, and no broken one before it.
    CHECK(out[i] == streamed<Model, T, typename C::Context>(streamed_model, utterances[i].features, streamed_as));
    const Matrix<T> expected =
        whole<Model, T, typename C::Context>(streamed_model, utterances[i].features, config.mask());
    CHECK(difference(out[i], whole(model, utterances[i].features, config.mask()), 1) <
          (std::is_same_v<T, double> ? 1e-12 : 2e-5));
    if (is_exact<typename C::Policy>(name))
      CHECK(out[i] == expected);
    else
      CHECK(difference(out[i], expected, 1) < (std::is_same_v<T, double> ? 1e-12 : 2e-5));
  }
}

EncoderConfig small(Index chunk = 3, Index left = 5) {
  return {.num_mels = 8,
          .d_model = 8,
          .num_layers = 2,
          .vocab_size = 5,
          .ffn_expansion = 2,
          .conv_kernel = 5,
          .cgmlp_expansion = 3,
          .subsampling = 2,
          .subsampling_channels = 3,
          .convolution = ConvolutionContext::chunk,
          .chunk = chunk,
          .left_context = left};
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("streams give the whole pass under the mask of their chunks", "[stream]", Cases) {
  constexpr bool all_names = any<typename TestType::Policy>;
  for (Index n = 0; n < (all_names ? 8 : 40); ++n)
    for (const auto& name : enum_names(Names()))
      if ((name.value == Names::by_type) != all_names)
        check_streams<TestType>(n + 100 * static_cast<Index>(name.value), name.value);
}

TEMPLATE_LIST_TEST_CASE("streams on every backend", "[stream]", Backends<double>) {
  for (Index n = 0; n < 10; ++n) {
    check_streams<Case<ConformerKind, Mha<4>, double, TestType>>(n, Names::by_type);
    check_streams<Case<EBranchformerKind, MlaSimple<4, 5>, double, TestType>>(n + 40, Names::by_type);
    check_streams<Case<ConformerKind, LinearAttention<4>, double, TestType>>(n + 80, Names::by_type);
  }
}

TEST_CASE("more streams than one pass takes", "[stream]") {
  const auto model = random_model<Branchformer<Gqa<4, 2>>>(small(8, 20));
  const Index count = 150;
  const int threads = GENERATE(1, 2, 3);  // each takes streams of its own, in several passes
  std::vector<Index> ids, lengths;
  Streams streams(model, {.capacity = count, .threads = threads});
  for (Index n = 0; n < count; ++n) {
    ids.push_back(streams.open());
    lengths.push_back(7 * n % 121);
  }
  const Sequences sequences(lengths);
  const Matrix<float> features = random_matrix<float>(sequences.rows(), 8, 1);
  const auto first = streams.push(ids, features, sequences), last = streams.finish(ids);
  const auto part = [](const auto& logits, Index n) {
    return logits.rows.view().middleRows(logits.sequences.begin(n), logits.sequences.length(n));
  };
  for (Index n = 0; n < count; ++n) {
    Matrix<float> both(first.sequences.length(n) + last.sequences.length(n), 5);
    both << part(first, n), part(last, n);
    CHECK(both == whole<Branchformer<Gqa<4, 2>>, float>(
                      model, features.middleRows(sequences.begin(n), lengths[static_cast<std::size_t>(n)]),
                      model.config().mask()));
  }
}

TEST_CASE("what became final does not change, and nothing waits for longer than it must", "[stream]") {
  const auto check = [](const auto& model) {
    using Model = std::remove_cvref_t<decltype(model)>;
    const Matrix<double> x = random_matrix(90, 8, 1);
    Streams streams(model, {.max_frames = 50, .threads = 1});
    for (Index rows = 0; rows <= 90; rows += 7) {
      Matrix<double> other = x;
      other.bottomRows(90 - rows) = random_matrix(90 - rows, 8, 2);
      const std::array one{streams.open()};
      const Matrix<double> now = streams.push(one, x.topRows(rows), {rows}).rows.view();
      streams.close(one[0]);
      const Matrix<double> a = whole<Model, double>(model, x, streams.mask()),
                           b = whole<Model, double>(model, other, streams.mask());
      CHECK(a.topRows(now.rows()) == b.topRows(now.rows()));
      CHECK(difference<double>(now, b.topRows(now.rows()), 1) < 1e-12);
      if (rows < 90) CHECK(a.bottomRows(1) != b.bottomRows(1));
    }
    // Each chunk needs its last row.
    for (const Index chunk : {0, 1, 4}) {
      const Index row = streams.first_rows() + chunk * streams.chunk_rows() - 1;
      Matrix<double> other = x;
      other(row, 3) += 1;
      const Index begin = chunk * streams.mask().chunk;
      const Matrix<double> change =
          whole<Model, double>(model, x, streams.mask()) - whole<Model, double>(model, other, streams.mask());
      CHECK(change.topRows(begin).isZero(0));
      CHECK(change.row(begin).cwiseAbs().minCoeff() > 0);  // already its first frame sees the last
    }
  };
  check(random_model<Conformer<Mha<4>, double>>(small()));
  check(random_model<Branchformer<MlaSimple<4, 5>, double>>(small(4, -1)));
  check(random_model<EBranchformer<MlaDecoupled<4, 5, 4>, double>>(small(1, 0)));
  check(random_model<EBranchformer<LinearAttention<4>, double>>(small(5, -1)));
}

TEST_CASE("one model, many latencies", "[stream]") {
  for (const bool whole_model : {false, true}) {
    EncoderConfig config = small(4, 8);
    if (whole_model) config.chunk = 0, config.left_context = -1;
    const auto model = random_model<Conformer<Mqa<4>, double>>(config);
    const Matrix<double> x = random_matrix(150, 8, 1);
    using Choice = std::pair<std::optional<Index>, std::optional<Index>>;
    for (const auto& [chunk, left] :
         std::vector<Choice>{{1, 0}, {2, 3}, {7, 20}, {5, -1}, {100, -1}, {std::nullopt, 3}, {3, std::nullopt}}) {
      if (whole_model && !chunk) continue;
      INFO("chunk " << chunk.value_or(0) << ", left " << left.value_or(-2));
      const Mask mask{chunk.value_or(4), left.value_or(config.left_context)};
      const StreamConfig with{
          .chunk = chunk, .left_context = left, .max_frames = mask.left_context < 0 ? 72 : 0, .threads = 1};
      CHECK(Streams(model, with).mask().chunk ==
            (mask.left_context < 0 ? std::min<Index>(mask.chunk, 72) : mask.chunk));
      CHECK(streamed(model, x, with) == whole(model, x, mask));
    }
  }
}

TEST_CASE("streams hold as many bytes as their model says, and rounding changes little", "[stream][cost]") {
  for (const auto& name : enum_names(Names())) {
    if (name.value == Names::by_type) continue;
    Draw draw(static_cast<Index>(name.value));
    const bool linear = name.value == Names::linear;
    EncoderConfig config = small(3, linear ? -1 : 17);
    config.num_layers = 3;
    config.d_model = 24;
    set_attention(config, name.value, draw);
    using Model = EBranchformer<AnyAttention>;
    const auto model = random_model<Model>(config);
    const Matrix<float> x = random_matrix<float>(120, 8, 1), exact = streamed(model, x, {.threads = 1});
    for (const auto& storage : enum_names(Storage())) {
      INFO(name.name << ", " << storage.name);
      const Streams streams(model, {.capacity = 5, .storage = storage.value, .threads = 1});
      CHECK(streams.attention_bytes() == 5 * Model::cache_bytes(model.config(), frames(17), storage.value));
      const Streams all(model,
                        {.capacity = 2, .left_context = -1, .max_frames = 50, .storage = storage.value, .threads = 1});
      CHECK(all.attention_bytes() == 2 * Model::cache_bytes(config, frames(50), storage.value));
      // The gate's convolution sees 2 frames before its own, the merge's 1.
      CHECK(streams.convolution_bytes() == 5 * 3 * 4 * (2 * 3 * 24 / 2 + 1 * 2 * 24));
      CHECK(streams.feature_bytes() == 5 * 4 * 8 * streams.first_rows());
      CHECK(streams.first_rows() == 7 + 2 * 2);
      CHECK(streams.max_rows() == 5 * 3);

      const Matrix<float> rounded = streamed(model, x, {.storage = storage.value, .threads = 1});
      const double change = static_cast<double>((rounded - exact).norm() / exact.norm());
      CHECK((change > 0) == (storage.value != Storage::full && !linear));
      CHECK(change < (storage.value == Storage::bf16 ? 1e-2 : 2e-2));
    }
  }
}

TEST_CASE("streams refuse what they cannot do, and go on afterwards", "[stream]") {
  const auto model = random_model<Conformer<Mha<4>>>(small());
  const Matrix<float> x = random_matrix<float>(60, 8, 1);
  Streams streams(model, {.capacity = 2, .threads = 1});
  const std::vector<Index> one{0}, both{0, 1}, twice{1, 1}, wrong{2}, negative{-1};
  const auto push = [&](std::span<const Index> ids, Index rows, const Sequences& blocks) {
    streams.push(ids, x.topRows(rows), blocks);
  };
  CHECK_THROWS_WITH(push(one, 5, {5}), "streams: stream 0 is not open");
  CHECK((streams.open() == 0 && streams.open() == 1));
  CHECK_THROWS_WITH(streams.open(), "streams: all 2 are in use");
  Matrix<float> got = streams.push(both, x.topRows(40), {20, 20}).rows.view();
  got.conservativeResize(got.rows() / 2, 5);
  CHECK_THROWS_WITH(push(twice, 5, {2, 3}), "streams: stream 1 is named twice");
  CHECK_THROWS_WITH(streams.finish(twice), "streams: stream 1 is named twice");
  CHECK_THROWS_WITH(push(wrong, 5, {5}), "streams: stream 2 is not open");
  CHECK_THROWS_WITH(push(negative, 5, {5}), "streams: stream -1 is not open");
  CHECK_THROWS_WITH(streams.close(2), "streams: stream 2 is not open");
  CHECK_THROWS_WITH(push(one, 5, {4}), "streams: features (5, 8) in 1 blocks given, (4, 8) in 1 expected");
  CHECK_THROWS_WITH(push(both, 5, {5}), "streams: features (5, 8) in 1 blocks given, (5, 8) in 2 expected");
  CHECK_THROWS_WITH(streams.push(one, x.leftCols(7), {60}),
                    "streams: features (60, 7) in 1 blocks given, (60, 8) in 1 expected");
  const std::vector<Index> other{1};
  streams.finish(other);
  CHECK_THROWS_WITH(push(both, 5, {2, 3}), "streams: stream 1 is not open");
  CHECK_THROWS_WITH(streams.finish(both), "streams: stream 1 is not open");
  CHECK_THROWS_WITH(streams.close(1), "streams: stream 1 is not open");
  CHECK(streams.open() == 1);
  // None of all this has moved stream 0.
  const auto more = streams.push(one, x.bottomRows(40), {40}), last = streams.finish(one);
  Matrix<float> all(got.rows() + more.rows.rows() + last.rows.rows(), 5);
  all << got, more.rows.view(), last.rows.view();
  CHECK(all == whole(model, x, model.config().mask()));
  CHECK((streams.push({}, Matrix<float>(0, 8), {}).rows.rows() == 0 && streams.finish({}).rows.rows() == 0));

  Streams keeps(model, {.left_context = -1, .max_frames = 10, .threads = 1});
  keeps.open();
  CHECK_THROWS_WITH(keeps.push(one, x, {60}),
                    "streams: stream 0 would have 27 frames, at most max_frames = 10 expected");
  CHECK(keeps.push(one, x.topRows(24), {24}).rows.rows() == 9);
  CHECK_THROWS_WITH(keeps.push(one, x.topRows(5), {5}),
                    "streams: stream 0 would have 12 frames, at most max_frames = 10 expected");
  CHECK(keeps.push(one, x.topRows(2), {2}).rows.rows() == 0);
  CHECK(keeps.finish(one).rows.rows() == 1);

  // A chunk of hours asks for no more than the longest stream.
  Streams large(model, {.chunk = 1 << 20, .left_context = 1 << 20, .max_frames = 100, .threads = 1});
  CHECK(large.mask().chunk == 100);
  CHECK(large.kept_frames() == 100);
  large.open();
  CHECK(large.push(one, x, {x.rows()}).rows.rows() == 0);
  CHECK(Matrix<float>(large.finish(one).rows.view()) == whole(model, x, Mask::chunked(1 << 20, Mask::unlimited)));
  large.open();
  CHECK_THROWS_WITH(large.push(one, random_matrix<float>(500, 8, 1), {500}),
                    Catch::Matchers::EndsWith("frames, at most max_frames = 100 expected"));
}

TEST_CASE("some models and numbers make no streams", "[stream]") {
  const auto refused = []<class Model>(std::type_identity<Model>, auto change,
                                       StreamConfig streams = {}) -> std::string {
    EncoderConfig config = small();
    change(config);
    streams.threads = 1;
    const Model model(config, Seed(1));
    try {
      Streams<Model> made(model, streams);
      return "no error";
    } catch (const Error& error) {
      return error.what();
    }
  };
  const auto as_it_is = [](auto&) {};
  const auto unchunked = [](auto& c) { c.chunk = 0, c.left_context = -1; };
  constexpr std::type_identity<Conformer<Mha<4>>> conformer;
  constexpr std::type_identity<Branchformer<Mha<4>>> branchformer;
  CHECK(refused(conformer, as_it_is) == "no error");
  CHECK(refused(conformer, as_it_is, {.capacity = 0}) == "streams: capacity 0 given, 1 to 16777216 expected");
  CHECK(refused(conformer, as_it_is, {.chunk = -3}) ==
        "streams: chunk -3 given, 1 to 1048576 expected, or none for the model's own");
  CHECK(refused(conformer, as_it_is, {.chunk = Index{1} << 62}) ==
        "streams: chunk 4611686018427387904 given, 1 to 1048576 expected, or none for the model's own");
  CHECK(refused(conformer, as_it_is, {.left_context = -3}) ==
        "streams: left_context -3 given, 0 to 1048576 expected, -1 for all, or none for the model's own");
  CHECK(refused(conformer, as_it_is, {.left_context = -1}) ==
        "streams: all frames are kept, so max_frames must say how many at most: 0 given");
  CHECK(refused(conformer, unchunked, {.left_context = 4}) ==
        "streams: chunk 0 given, but the model sees whole utterances and has none of its own; 1 to 1048576 expected");
  CHECK(refused(conformer, unchunked, {.chunk = 4, .left_context = 4}) == "no error");
  const auto centred = [&](auto& c) {
    unchunked(c);
    c.convolution = ConvolutionContext::centred;
  };
  CHECK(refused(conformer, centred, {.chunk = 4, .left_context = 4}) ==
        "conformer: a centred convolution cannot be streamed; causal or chunk expected");
  const auto learned = [&](auto& c) {
    unchunked(c);
    c.merge = BranchMerge::learned_average;
  };
  CHECK(refused(branchformer, learned, {.chunk = 4, .left_context = 4}) ==
        "branchformer: a learned average weighs the branches by the whole utterance, so it cannot be streamed; concat "
        "or fixed-average "
        "expected");
  CHECK(refused(std::type_identity<Conformer<LinearAttention<4>>>(), unchunked, {.chunk = 4, .left_context = 4}) ==
        "linear_attend: a mask of chunk 4 and left context 4 given; its state cannot forget, so an unlimited left "
        "context is expected");
  CHECK(refused(std::type_identity<Conformer<LinearAttention<4>>>(), unchunked, {.chunk = 4}) ==
        "no error");  // it keeps no frames
}
