// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Everything above the backends keeps to the contract: models, streams, training and evaluation run on a context that
// shows nothing else, with the bits of the context behind the fence.
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/e_branchformer.hpp>
#include <laconic/model/stream.hpp>
#include <laconic/model/wav2vec2_conformer.hpp>
#include <laconic/train/adamw.hpp>
#include <laconic/train/ctc_loss.hpp>

#include "backends.hpp"
#include "gradient_check.hpp"

#include <array>
#include <tuple>

using namespace laconic;

static_assert(StreamingContext<Fenced<Cpu<float>>> && TrainingContext<Fenced<Cpu<float>>>);
static_assert(Context<Autodiff<Fenced<Cpu<float>>>>);

namespace {

template <class Tensor>
concept Open = requires(Tensor x) {
  x.data();
}
|| requires(Tensor x) { x.view(); }
|| requires(Tensor x) { x.row(0); };
static_assert(Open<Cpu<float>::Tensor> && !Open<Fenced<Cpu<float>>::Tensor>);
static_assert(!Open<Fenced<Cpu<float>>::Cache> &&
              !std::constructible_from<Fenced<Cpu<float>>::Cache, Index, Index, Index>);

EncoderConfig small() {
  return {.num_mels = 12,
          .d_model = 16,
          .num_layers = 2,
          .vocab_size = 5,
          .ffn_expansion = 2,
          .conv_kernel = 5,
          .cgmlp_expansion = 3,
          .subsampling = 2,
          .subsampling_channels = 16,
          .dropout = 0.1,
          .convolution = ConvolutionContext::chunk,
          .chunk = 3,
          .left_context = 6};
}
EncoderConfig on_samples() {
  EncoderConfig c = small();
  c.num_mels = 1;
  c.subsampling = 4;
  c.waveform = {.conv_dim = IndexList{8, 8}, .conv_kernel = IndexList{4, 3}, .conv_stride = IndexList{2, 2}};
  return c;
}
EncoderConfig whole_utterances() {
  EncoderConfig c = small();
  c.convolution = ConvolutionContext::centred;
  c.chunk = 0;
  c.left_context = -1;
  return c;
}
EncoderConfig without_forgetting() {
  EncoderConfig c = small();
  c.left_context = -1;
  return c;
}

template <class Model_, EncoderConfig (*config)()>
struct Case {
  using Model = Model_;
  static Model make() {
    Model model(config(), Seed(5));
    randomize(model, 9);
    return model;
  }
};
using Cases = std::tuple<Case<Conformer<Mha<4>>, small>, Case<Conformer<Gqa<4, 2, Rotary<>>>, small>,
                         Case<Conformer<Mha<4, Sinusoidal>>, small>, Case<Conformer<Mla<4, 6>>, small>,
                         Case<Conformer<MlaSimple<4, 6>>, small>, Case<Conformer<MlaSplit<4, 6, 5>>, small>,
                         Case<Conformer<MlaHead<4, 2, 1>>, small>, Case<Conformer<MlaDecoupled<4, 6, 4>>, small>,
                         Case<Conformer<CachedInput<4>>, small>, Case<Conformer<Mha<4, InputRotary<>>>, small>,
                         Case<Conformer<LinearAttention<4>>, without_forgetting>,
                         Case<Conformer<MlaSimple<4, 6>>, whole_utterances>, Case<Branchformer<MlaSimple<4, 6>>, small>,
                         Case<EBranchformer<Mha<4>>, small>, Case<Wav2Vec2Conformer<MlaSimple<4, 6>>, on_samples>>;

/// Logits of a batch, the blocks' outputs, and one step of training: all that a context computes of a model.
template <class Backend, class Model>
std::vector<Matrix<float>> results(Model model, const Matrix<float>& features, const Sequences& sequences) {
  Backend backend(2);
  std::vector<Matrix<float>> out;
  {
    Model prepared = model;
    backend.prepare(prepared);
    std::vector<typename Backend::Tensor> blocks;
    const auto logits = prepared(backend, features, sequences, model.config().mask(), &blocks);
    out.push_back(backend.output(logits.rows));
    for (const auto& block : blocks) out.push_back(backend.output(block));
    std::vector<Index> best(static_cast<std::size_t>(logits.rows.rows()));
    backend.argmax(logits.rows, best);
    for (std::size_t i = 0; i < best.size(); ++i) {
      Index expected = 0;
      out.front().row(static_cast<Index>(i)).maxCoeff(&expected);
      REQUIRE(best[i] == expected);
    }
  }
  backend.prepare_training(model);
  AdamW optimizer(backend);
  for (const bool again : {false, true}) {
    Autodiff tape(backend, Seed(4));
    tape.recompute_blocks = again;
    const Labels labels{{1, 2, 3}, Sequences{2, 0, 1}};
    const auto loss = ctc_loss(tape, model(tape, features, sequences), labels);
    out.push_back(Matrix<float>::Constant(1, 1, static_cast<float>(tape.number(loss))));
    tape.backward(loss);
    out.push_back(Matrix<float>::Constant(1, 1, static_cast<float>(optimizer.step(model, 0.01))));
  }
  backend.fetch(model);
  model.parameters([&](std::string_view, const Parameter<float>& p) { out.push_back(p.host()); });
  return out;
}

template <class Backend, class Model>
std::vector<Matrix<float>> streamed(Model model, const Matrix<float>& features, Storage storage) {
  Backend backend(1);
  backend.prepare(model);
  Streams<Model, Backend> streams(model, {.capacity = 3, .max_frames = 200, .storage = storage, .threads = 2});
  std::vector<Matrix<float>> out;
  for (int round = 0; round < 2; ++round) {  // streams are taken up again
    const std::array two{streams.open(), streams.open()};
    const Index half = features.rows() / 2;
    for (const Index begin : {Index{0}, half}) {
      Matrix<float> both(2 * half, features.cols());
      both << features.middleRows(begin, half), -features.middleRows(begin, half);
      out.push_back(streams.context().output(streams.push(two, both, Sequences{half, half}).rows));
    }
    out.push_back(streams.context().output(streams.finish(two).rows));
  }
  return out;
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("a model runs and trains behind the fence, with the same bits", "[fenced]", Cases) {
  const auto model = TestType::make();
  const Sequences sequences{90, 11, 55};
  const Matrix<float> features = random_matrix<float>(sequences.rows(), model.config().num_mels, 3);
  const auto expected = results<Cpu<float>>(model, features, sequences),
             got = results<Fenced<Cpu<float>>>(model, features, sequences);
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    REQUIRE(expected[i].allFinite());
    CHECK(got[i] == expected[i]);
  }
}

TEMPLATE_LIST_TEST_CASE("a model streams behind the fence, with the same bits", "[fenced][stream]", Cases) {
  const auto model = TestType::make();
  if (model.config().chunk == 0) return;
  const Matrix<float> features = random_matrix<float>(80, model.config().num_mels, 3);
  for (const Storage storage : {Storage::full, Storage::int8}) {
    const auto expected = streamed<Cpu<float>>(model, features, storage),
               got = streamed<Fenced<Cpu<float>>>(model, features, storage);
    REQUIRE(got.size() == expected.size());
    for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == expected[i]);
  }
}

TEST_CASE("the fence refuses parameters on the host, and the host those behind it", "[fenced]") {
  Fenced<Cpu<float>> fenced(1);
  Linear<float> layer(3, 2, Seed(1));
  const Matrix<float> x = Matrix<float>::Ones(4, 3);
  CHECK_THROWS_WITH(layer(fenced, fenced.input(x)),
                    "fenced: a parameter on the host given, one that was prepared expected");
  fenced.prepare(layer);
  CHECK(fenced.output(layer(fenced, fenced.input(x))).rows() == 4);
  CHECK_THROWS_WITH(layer.weight.host(),
                    "parameter: values resident in Cpu given, values on the host expected (fetch)");
}

TEST_CASE("a slot that was forked goes its own way", "[fenced][cache]") {
  Fenced<Cpu<float>> fenced(1);
  auto cache = fenced.make_cache(3, 4, 2);
  const std::array<Index, 1> first{0}, second{2};
  const auto append = [&](std::span<const Index> slots, float value) {
    fenced.append(cache, slots, fenced.input(Matrix<float>::Constant(1, 2, value)), Sequences{1});
  };
  const auto held = [&](std::span<const Index> slots) {
    const auto rows = fenced.with_cached(cache, slots, fenced.input(Matrix<float>(0, 2)), Sequences{0});
    return fenced.output(fenced.gathered(rows, Sequences{0}, fenced.cached_lengths(rows, Sequences{0})));
  };
  append(first, 1);
  append(first, 2);
  fenced.fork(cache, 0, 2);
  CHECK(held(second) == held(first));
  append(second, 3);
  append(first, 4);
  CHECK(held(first)(2, 0) == 4);
  CHECK(held(second)(2, 0) == 3);
  CHECK(cache.count(1) == 0);
  fenced.clear(cache, 2);
  CHECK(cache.count(2) == 0);
  CHECK_THROWS_WITH(fenced.fork(cache, 0, 3), "cache: slot 3 given, 0 to 2 expected");
}
