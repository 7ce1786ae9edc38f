// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Branchformer and E-Branchformer against ESPnet's (tests/golden/branchformer.py), their derivatives and those of whole
// small encoders of all kinds, and what encoders refuse.
#include <laconic/attention/any.hpp>
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/e_branchformer.hpp>

#include "golden.hpp"

using namespace laconic;

namespace {

using enum BranchMerge;
constexpr BranchMerge merges[] = {concat, fixed_average, learned_average};
constexpr auto centred = ConvolutionContext::centred, causal = ConvolutionContext::causal,
               by_chunk = ConvolutionContext::chunk;

/// A block as an encoder runs it.
template <class Context, class Block, class Tensor>
Tensor apply(Context& context, const Block& block, const Tensor& x, const Sequences& sequences, const Mask& mask = {}) {
  Pass<Tensor> pass{sequences, mask};
  pass.table = block.attention().table(context, pass);
  return block(context, x, pass, nullptr);
}

/// The cgMLP of the golden cases has 24 units, which is no multiple of d_model.
template <class Block, class T>
void check_golden(const std::string& name, const EncoderConfig& config) {
  const SafetensorsFile file = golden_file("branchformer.safetensors");
  constexpr bool single = std::is_same_v<T, float>;
  const Golden<T> golden{file, name, single ? 1e-5 : 1e-10, single ? 5e-5 : 1e-10};
  INFO(name);
  Block block(config, Seed(1));
  auto& cgmlp = block.branches.cgmlp;
  cgmlp.channel_proj1 = Linear<T>(16, 24, Seed(1));
  cgmlp.csgu = ConvolutionalSpatialGatingUnit<T>(24, 7, centred, 0, Seed(1));
  cgmlp.channel_proj2 = Linear<T>(12, 16, Seed(1));
  load_parameters(block, golden.file, name + "param.");

  const Matrix<T> input = golden("input");
  const Sequences one{input.rows()};
  for (const int threads : {1, 2}) {
    Cpu<T> cpu(threads);
    golden.check_output(apply(cpu, block, cpu.input(input), one).view());
    block.parameters([](std::string_view, const auto& p) { p.clear_gradient(); });
    Autodiff<Cpu<T>> tape(cpu, Seed(1), false);
    const auto x = tape.variable(input);
    golden.check_backward(tape, apply(tape, block, x, one));
    golden.check_gradients(tape.gradient(x).view(), block);
  }
}

const EncoderConfig small{.num_mels = 11,
                          .d_model = 8,
                          .num_layers = 2,
                          .vocab_size = 5,
                          .ffn_expansion = 2,
                          .conv_kernel = 3,
                          .cgmlp_expansion = 3,
                          .subsampling = 2,
                          .subsampling_channels = 3,
                          .dropout = 0.1};
EncoderConfig with(auto change) {
  EncoderConfig config = small;
  change(config);
  return config;
}
EncoderConfig chunked(ConvolutionContext convolution, Index left = 2, BranchMerge merge = concat) {
  return with([&](auto& c) {
    c.convolution = convolution;
    c.merge = merge;
    c.chunk = 3;
    c.left_context = left;
  });
}

template <class Model>
void check_derivatives(const EncoderConfig& config) {
  Model model(config, Seed(1));
  randomize(model, 3);
  const Sequences sequences{23, 17, 2};
  const Labels labels{{1, 2, 3}, Sequences{2, 1, 0}};
  // A small step: a ReLU whose input changes sign within it has no derivative to compare.
  CHECK((GradientCheck{.step = 1e-6, .samples = 4}(
            {random_matrix(42, 11, 1)}, weights_of(model), [&](auto& tape, const auto& v) {
              const auto logits = model(tape, v[0], sequences);
              return tape.mean_finite(tape.ctc(logits.rows, logits.sequences, labels, 0));
            })) < 1e-5);
}

template <class Kind, class Policy>
void check_counts(const EncoderConfig& config) {
  for (const BranchMerge merge : merges)
    for (const Index subsampling : {2, 4}) {
      EncoderConfig c = config;
      c.merge = merge;
      c.subsampling = subsampling;
      c.merge_kernel = 5;
      using Model = Encoder<Kind, Policy, double>;
      CHECK(Model(c, Seed(1)).count_parameters() == Model::parameter_count(c));
    }
}
template <class Kind>
void check_all_counts() {
  check_counts<Kind, Mha<2>>(small);
  check_counts<Kind, Gqa<4, 2, NoPosition>>(small);
  check_counts<Kind, MlaDecoupled<2, 3, 4, LowRankQuery<5>>>(small);
  for (const auto& name : enum_names(AttentionName())) {
    if (name.value == AttentionName::by_type) continue;
    INFO(name.name);
    const bool latent = name.name.starts_with("mla");
    check_counts<Kind, AnyAttention>(with([&](auto& c) {
      c.attention = name.value;
      c.num_heads = 4;
      c.num_kv_heads = name.value == AttentionName::gqa ? 2 : 0;
      c.kv_lora_rank = latent ? 2 : 0;
      c.qk_rope_head_dim = name.value == AttentionName::mla_decoupled ? 4 : 0;
    }));
  }
}

/// Logits of a batch, its sequences one by one, and on several threads; and all gradients.
template <class Model>
void check_batches(const EncoderConfig& config) {
  using T = typename Model::Scalar;
  const Sequences sequences{40, 3, 7, 150, 23};
  const Matrix<T> features = random_matrix<T>(sequences.rows(), config.num_mels, 1);
  Model model(config, Seed(2));
  randomize(model, 9);
  Cpu<T> cpu(1), many(3);
  const auto batch = model(cpu, features, sequences);
  CHECK(model(many, features, sequences).rows.view() == batch.rows.view());
  for (Index n = 0; n < sequences.size(); ++n) {
    const Matrix<T> own = features.middleRows(sequences.begin(n), sequences.length(n));
    CHECK(model(cpu, own, {own.rows()}).rows.view() ==
          batch.rows.view().middleRows(batch.sequences.begin(n), batch.sequences.length(n)));
  }
  const auto gradients = [&](Cpu<T>& on) {
    model.parameters([](std::string_view, const auto& p) { p.clear_gradient(); });
    Autodiff<Cpu<T>> tape(on, Seed(5));
    const auto logits = model(tape, features, sequences);
    tape.backward(tape.mean_finite(tape.multiply(logits.rows, logits.rows)));
    std::vector<Matrix<T>> out{logits.rows.value.view()};
    model.parameters([&](std::string_view, const auto& p) { out.push_back(p.gradient()); });
    return out;
  };
  CHECK(gradients(cpu) == gradients(many));
}

template <class Model>
std::string error_of(const EncoderConfig& config) {
  try {
    Model(config, Seed(1));
    return "no error";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace

TEMPLATE_TEST_CASE("the blocks equal ESPnet's", "[branchformer][golden]", float, double) {
  const EncoderConfig config{
      .d_model = 16, .ffn_expansion = 2, .conv_kernel = 7, .cgmlp_expansion = 1, .cgmlp_weight = 0.3, .dropout = 0};
  for (std::size_t n = 0; n < 3; ++n) {
    EncoderConfig c = config;
    c.merge = merges[n];
    check_golden<BranchformerBlock<Mha<4>, TestType>, TestType>(text("case", n, '.'), c);
  }
  for (const Index kernel : {3, 5}) {
    EncoderConfig c = config;
    c.merge_kernel = kernel;
    check_golden<EBranchformerBlock<Mha<4>, TestType>, TestType>(kernel == 3 ? "case3." : "case4.", c);
  }
}

TEST_CASE("derivatives of the blocks", "[branchformer][gradient]") {
  const auto check = [](auto block, const Mask& mask) {
    randomize(block, 3);
    const Sequences sequences{6, 0, 1, 3};
    for (const bool training : {true, false})
      CHECK((GradientCheck{.training = training, .samples = 10}(
                {random_matrix(10, 8, 1)}, weights_of(block),
                [&](auto& tape, const auto& v) { return apply(tape, block, v[0], sequences, mask); })) < 1e-6);
  };
  for (const BranchMerge merge : merges) {
    INFO(to_name(merge));
    check(BranchformerBlock<Mha<2>, double>(with([&](auto& c) { c.merge = merge; }), Seed(1)), {});
  }
  check(BranchformerBlock<Mqa<2>, double>(chunked(by_chunk), Seed(1)), Mask::chunked(2, 3));
  check(EBranchformerBlock<Mha<2>, double>(small, Seed(1)), {});
  check(EBranchformerBlock<MlaSimple<2, 3>, double>(chunked(causal), Seed(1)), Mask::causal());
  check(EBranchformerBlock<Mha<2>, double>(with([](auto& c) {
                                             c.merge_kernel = 5;
                                             c.convolution = by_chunk;
                                           }),
                                           Seed(1)),
        Mask::chunked(3, 2));
}

TEST_CASE("derivatives of whole encoders", "[branchformer][conformer][gradient]") {
  check_derivatives<Branchformer<Mha<2>, double>>(with([](auto& c) { c.merge = learned_average; }));
  check_derivatives<Branchformer<Mha<2>, double>>(chunked(causal, 2, fixed_average));
  check_derivatives<EBranchformer<MlaSimple<2, 3>, double>>(small);
  check_derivatives<EBranchformer<MlaSimple<2, 3>, double>>(chunked(by_chunk));
  for (const ConvolutionContext convolution : {causal, by_chunk}) {
    check_derivatives<Conformer<Mha<2>, double>>(chunked(convolution));
    check_derivatives<Conformer<LinearAttention<2>, double>>(chunked(convolution, -1));
    check_derivatives<Conformer<MlaDecoupled<2, 3, 4>, double>>(chunked(convolution, 4));
  }
  check_derivatives<Conformer<AnyAttention, double>>(with([](auto& c) {
    c.attention = AttentionName::mla_split;
    c.num_heads = 2;
    c.kv_lora_rank = 3;
  }));
}

TEST_CASE("parameters are counted without a model", "[branchformer][cost]") {
  check_all_counts<ConformerKind>();
  check_all_counts<BranchformerKind>();
  check_all_counts<EBranchformerKind>();
}

TEMPLATE_TEST_CASE("a batch of any encoder is its sequences, on any number of threads", "[branchformer][determinism]",
                   float, double) {
  for (const BranchMerge merge : merges)
    check_batches<Branchformer<Mha<2>, TestType>>(with([&](auto& c) { c.merge = merge; }));
  check_batches<Branchformer<Gqa<4, 2>, TestType>>(chunked(causal, 2, fixed_average));
  check_batches<EBranchformer<Mha<2>, TestType>>(small);
  check_batches<EBranchformer<MlaDecoupled<2, 3, 4>, TestType>>(chunked(by_chunk));
  check_batches<Conformer<LinearAttention<2>, TestType>>(chunked(causal, -1));
  check_batches<Conformer<MlaHead<2, 3>, TestType>>(chunked(by_chunk, -1));
}

TEST_CASE("a gate starts near 1", "[branchformer]") {
  const ConvolutionalSpatialGatingUnit<double> csgu(64, 31, centred, 0.1, Seed(3));
  CHECK(csgu.conv.weight.shape() == std::vector<Index>{32, 1, 31});
  CHECK((csgu.conv.bias.host().array() == 1).all());
  CHECK(csgu.conv.weight.host().norm() / std::sqrt(32.0 * 31) == Approx(1e-6).epsilon(0.1));
  Cpu<double> cpu(1);
  const Matrix<double> x = random_matrix(50, 64, 1);
  const Sequences sequences{30, 20};
  const auto y = csgu(cpu, cpu.input(x), Pass<Tensor<double>>{sequences});
  const double off = (y.view() - x.leftCols(32)).cwiseAbs().maxCoeff();
  CHECK((off > 0 && off < 1e-4));
}

TEST_CASE("an average that weighs one branch with 0 does without it", "[branchformer]") {
  const Matrix<double> x = random_matrix(9, 8, 1);
  Cpu<double> cpu(1);
  for (const double weight : {0.0, 1.0}) {
    BranchformerBlock<Mha<2>, double> block(with([&](auto& c) {
                                              c.merge = fixed_average;
                                              c.cgmlp_weight = weight;
                                            }),
                                            Seed(1));
    const auto run = [&] { return Matrix<double>(apply(cpu, block, cpu.input(x), {9}).view()); };
    const Matrix<double> before = run();
    auto& in_use = weight == 0 ? block.branches.attn.linear_out.bias : block.branches.cgmlp.channel_proj2.bias;
    auto& idle = weight == 0 ? block.branches.cgmlp.channel_proj2.bias : block.branches.attn.linear_out.bias;
    idle.host().array() += 1;
    CHECK(run() == before);
    in_use.host()(0, 3) += 1;
    CHECK(run() != before);
  }
}

TEST_CASE("encoders refuse what they cannot do", "[branchformer][conformer]") {
  using Branch = Branchformer<Mha<2>>;
  const auto refused = [](auto change) { return error_of<Branch>(with(change)); };
  CHECK(refused([](auto&) {}) == "no error");
  CHECK(refused([](auto& c) { c.cgmlp_expansion = 0; }) == "encoder: cgmlp_expansion 0 given, 1 to 64 expected");
  CHECK(refused([](auto& c) { c.merge_kernel = 4; }) == "encoder: merge_kernel 4 given, an odd number expected");
  CHECK(refused([](auto& c) { c.merge_kernel = 0; }) == "encoder: merge_kernel 0 given, 1 to 4096 expected");
  CHECK(refused([](auto& c) { c.cgmlp_weight = 1.5; }) == "encoder: cgmlp_weight 1.5 given, 0 to 1 expected");
  CHECK(refused([](auto& c) { c.cgmlp_weight = std::nan(""); }) == "encoder: cgmlp_weight nan given, 0 to 1 expected");
  CHECK(refused([](auto& c) {
          c.d_model = 6;
          c.num_heads = 2;
          c.cgmlp_expansion = 3;
        }) == "no error");
  CHECK(error_of<Branchformer<Mha<3>>>(with([](auto& c) { c.d_model = 9; })) ==
        "encoder: a cgMLP of 27 channels given, an even number expected");
  CHECK(refused([](auto& c) { c.chunk = -1; }) == "encoder: chunk -1 given, 0 to 1048576 expected");
  CHECK(refused([](auto& c) { c.left_context = 3; }) == "encoder: left_context 3 given without a chunk");
  CHECK(refused([](auto& c) { c.left_context = -2; }) == "encoder: left_context -2 given, -1 to 1048576 expected");

  const std::string centred_error = ": a centred convolution cannot be streamed; causal or chunk expected";
  CHECK(error_of<Branch>(chunked(centred)) == "branchformer" + centred_error);
  CHECK(error_of<EBranchformer<Mha<2>>>(chunked(centred)) == "e-branchformer" + centred_error);
  CHECK(error_of<Conformer<Mha<2>>>(chunked(centred)) == "conformer" + centred_error);
  const std::string learned_error =
      "branchformer: a learned average weighs the branches by the whole utterance, so it cannot be streamed; concat or "
      "fixed-average "
      "expected";
  CHECK(error_of<Branch>(chunked(causal, 2, learned_average)) == learned_error);
  CHECK(error_of<EBranchformer<Mha<2>>>(chunked(causal, 2, learned_average)) ==
        "no error");  // it has no merge to choose
  const std::string cannot_forget =
      "encoder: left_context 2 given, but the state of linear attention cannot forget; -1 expected";
  CHECK(error_of<Conformer<LinearAttention<2>>>(chunked(causal)) == cannot_forget);
  CHECK(error_of<EBranchformer<AnyAttention>>([] {
          EncoderConfig c = chunked(by_chunk);
          c.attention = AttentionName::linear;
          c.num_heads = 2;
          return c;
        }()) == cannot_forget);

  // The same where the chunks come with the call.
  Cpu<float> cpu(1);
  const Matrix<float> features = random_matrix<float>(30, 11, 1), rows = random_matrix<float>(9, 8, 1);
  const auto check = [&](const auto& model, const Mask& mask, const std::string& error) {
    CHECK_NOTHROW(model(cpu, features, {30}));
    CHECK_NOTHROW(model.encode(cpu, cpu.input(rows), {9}));
    CHECK_THROWS_WITH(model(cpu, features, {30}, mask), error);
    CHECK_THROWS_WITH(model.encode(cpu, cpu.input(rows), {9}, mask), error);
  };
  check(Branch(with([](auto& c) {
                 c.merge = learned_average;
                 c.convolution = causal;
               }),
               Seed(1)),
        Mask::causal(), learned_error);
  check(Conformer<Mha<2>>(small, Seed(1)), Mask::causal(), "conformer" + centred_error);
  check(Conformer<LinearAttention<2>>(with([](auto& c) { c.convolution = causal; }), Seed(1)), Mask::chunked(3, 2),
        "linear_attend: a mask of chunk 3 and left context 2 given; its state cannot forget, so an unlimited left "
        "context is expected");
}
