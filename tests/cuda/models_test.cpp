// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Models on `Cuda` in each precision of products: their logits, streams and losses next to those of the processor.
#include "gradient_check.hpp"

#include <laconic/attention/aliases.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/e_branchformer.hpp>
#include <laconic/model/stream.hpp>
#include <laconic/train/adamw.hpp>
#include <laconic/train/ctc_loss.hpp>

#include <array>
#include <cmath>
#include <tuple>
#include <vector>

using namespace laconic;

namespace {

// 4 heads of 12 channels: no two sizes that could be mixed up are equal.
EncoderConfig config() {
  return {.num_mels = 20,
          .d_model = 48,
          .num_layers = 2,
          .vocab_size = 7,
          .ffn_expansion = 2,
          .conv_kernel = 5,
          .cgmlp_expansion = 2,
          .subsampling_channels = 8,
          .convolution = ConvolutionContext::causal,
          .chunk = 4,
          .left_context = 8};
}
/// Returns the greatest difference between logits, relative to the greatest logit.
double difference(const Matrix<float>& got, const Matrix<float>& expected) {
  REQUIRE((got.rows() == expected.rows() && got.cols() == expected.cols() && got.allFinite()));
  return (got - expected).cwiseAbs().maxCoeff() / static_cast<double>(expected.cwiseAbs().maxCoeff());
}
/// Returns the difference that rounded products may make.
double bound(ProductPrecision precision) {
  switch (precision) {
    case ProductPrecision::bf16:
      return 3e-2;
    case ProductPrecision::tf32:
      return 3e-3;
    default:
      return 1e-4;
  }
}
constexpr ProductPrecision precisions[] = {ProductPrecision::full, ProductPrecision::tf32, ProductPrecision::bf16};

using Models = std::tuple<Conformer<Mha<4>>, Conformer<MlaSimple<4, 16>>, EBranchformer<Mha<4>>>;

}  // namespace

TEMPLATE_LIST_TEST_CASE("models in every precision of products", "[cuda]", Models) {
  TestType model(config(), Seed(1));
  randomize(model, 3);
  const Matrix<float> x = random_matrix<float>(106, 20, 5, 1);
  const Sequences lengths{61, 7, 38};
  Cpu<float> cpu(1);
  const Matrix<float> expected = cpu.output(model(cpu, cpu.input(x), lengths).rows);
  for (const ProductPrecision precision : precisions) {
    INFO(to_name(precision));
    Cuda<float> gpu(CudaDevice{.precision = precision});
    gpu.prepare(model);
    const Matrix<float> got = gpu.output(model(gpu, gpu.input(x), lengths).rows);
    CHECK(difference(got, expected) < bound(precision));
    if (precision != ProductPrecision::full) CHECK(difference(got, expected) > 1e-5);  // they are rounded indeed
    // A sequence alone has the bits that it has in a batch.
    const Matrix<float> alone = gpu.output(model(gpu, gpu.input(Matrix<float>(x.topRows(61))), Sequences{61}).rows);
    CHECK(alone == got.topRows(alone.rows()));

    Streams<TestType, Cuda<float>> streams(model, {.capacity = 2}, gpu.settings());
    CHECK(streams.context().precision() == precision);
    const std::array first{streams.open()};
    const std::array both{first[0], streams.open()};
    std::vector<Matrix<float>> parts;
    Matrix<float> streamed(0, 7);
    const auto take = [&](const auto& logits) {
      const Matrix<float> all = streams.context().output(logits.rows);
      const Index rows = logits.sequences.length(0), before = streamed.rows();
      streamed.conservativeResize(before + rows, 7);
      streamed.bottomRows(rows) = all.topRows(rows);
    };
    take(streams.push(first, Matrix<float>(x.topRows(30)), Sequences{30}));
    Matrix<float> mixed(31 + 38, 20);
    mixed << x.middleRows(30, 31), x.bottomRows(38);
    take(streams.push(both, mixed, Sequences{31, 38}));
    take(streams.finish(both));
    CHECK(difference(streamed, got.topRows(streamed.rows())) < bound(precision));
    CHECK(streamed.rows() == alone.rows());
    gpu.fetch(model);
  }
}

TEST_CASE("training in every precision of products has the losses of the processor", "[cuda]") {
  using Model = Conformer<Mha<4>>;
  const Matrix<float> x = random_matrix<float>(99, 20, 5, 1);
  const Sequences lengths{61, 38};
  const Labels labels{{1, 4, 4, 2, 6}, Sequences{3, 2}};
  constexpr int steps = 50;
  const auto losses_on = [&](auto& context) {
    EncoderConfig one_layer = config();
    one_layer.num_layers = 1;
    Model model(one_layer, Seed(1));
    AdamW optimizer(context, AdamWConfig{.weight_decay = 0.01, .clip_norm = 1});
    const TrainedOn trained(context, model);
    std::vector<double> losses;
    for (int step = 0; step < steps; ++step) {
      Autodiff tape(context, Seed(static_cast<std::uint64_t>(step)));
      const auto loss = ctc_loss(tape, model(tape, x, lengths), labels);
      losses.push_back(tape.number(loss));
      tape.backward(loss);
      optimizer.step(model, 1e-3);
    }
    return losses;
  };
  Cpu<float> cpu(1);
  const std::vector<double> expected = losses_on(cpu);
  CHECK(expected.back() < 0.8 * expected.front());
  for (const ProductPrecision precision : precisions) {
    Cuda<float> gpu(CudaDevice{.precision = precision});
    const std::vector<double> losses = losses_on(gpu);
    double worst = 0;
    for (std::size_t i = 0; i < losses.size(); ++i) worst = std::max(worst, std::abs(losses[i] / expected[i] - 1));
    INFO(to_name(precision) << ": " << losses.back() << " and " << expected.back());
    CHECK(worst < 2 * bound(precision));
  }
}
