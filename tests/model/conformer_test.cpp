// laconic: attention for speech models. SPDX-License-Identifier: MIT
// The Conformer against Hugging Face's (tests/golden/conformer.py), its derivatives, and what it refuses.
#include <laconic/model/conformer.hpp>

#include "golden.hpp"

#include <optional>

using namespace laconic;

namespace {

constexpr EncoderConfig golden{.num_mels = 20,
                               .d_model = 24,
                               .num_layers = 2,
                               .vocab_size = 9,
                               .ffn_expansion = 2,
                               .conv_kernel = 7,
                               .subsampling = 4,
                               .subsampling_channels = 6,
                               .dropout = 0};

/// Integers are stored as I64.
std::vector<Index> integers(const SafetensorsFile& file, const std::string& name) {
  const auto& info = file.info(name);
  std::vector<Index> out;
  if (info.dtype == Dtype::i64) {
    out.resize(info.bytes.size() / 8);
    std::memcpy(out.data(), info.bytes.data(), info.bytes.size());
  } else {
    const Matrix<double> numbers = tensor<double>(file, name);
    out.assign(numbers.data(), numbers.data() + numbers.size());
  }
  return out;
}
Sequences sequences_of(const SafetensorsFile& file, const std::string& name) {
  const auto lengths = integers(file, name);
  return Sequences(std::span<const Index>(lengths));
}

/// sum(y * weight) of all entries, from primitives: the trace of y weight^T, the rest of which counts as infinite.
template <class Tape, class Tensor, class T>
void backward_of_sum(Tape& tape, const Tensor& y, const Parameter<T>& weight) {
  Matrix<T> off_diagonal = Matrix<T>::Constant(y.rows(), y.rows(), std::numeric_limits<T>::infinity());
  off_diagonal.diagonal().setZero();
  tape.backward(tape.mean_finite(tape.add(tape.linear(y, weight, nullptr), tape.input(std::move(off_diagonal)))),
                static_cast<double>(y.rows() * y.rows()));
}

/// Compares the gradient of every parameter of the model that the file names, and the running statistics after the
/// step. Gradients that cancel (the bias of the keys) are measured beside the others.
template <class Model, class T>
void check_gradients(const SafetensorsFile& file, const std::string& name_of_case, const Model& model,
                     const Matrix<T>& input_gradient, double tolerance) {
  CHECK(difference<T>(input_gradient, tensor<T>(file, name_of_case + "/grad/input")) < tolerance);
  double greatest = 0;
  for (const std::string& name : file.names())
    if (name.starts_with(name_of_case + "/grad/"))
      greatest = std::max(greatest, static_cast<double>(tensor<T>(file, name).cwiseAbs().maxCoeff()));
  std::size_t compared = 1;
  model.parameters([&](std::string_view name, const Parameter<T>& p) {
    const std::string grad = text(name_of_case, "/grad/", name), after = text(name_of_case, "/after/", name);
    INFO(grad);
    if (file.contains(grad)) {
      CHECK(difference<T>(p.gradient(), tensor<T>(file, grad), 1e-2 * greatest) < tolerance);
      ++compared;
    }
    if (file.contains(after)) {
      CHECK(difference<T>(p.host() + p.gradient(), tensor<T>(file, after)) < tolerance);
      ++compared;
    }
  });
  std::size_t expected = 0;
  for (const std::string& name : file.names())
    if (name.starts_with(name_of_case + "/grad/") || name.starts_with(name_of_case + "/after/")) ++expected;
  CHECK(compared == expected);
}

template <class T>
constexpr double tolerance = std::is_same_v<T, float> ? 1e-4 : 1e-6;

const std::vector<std::string> cases{"eval", "train", "eval_pair", "train_pair"};

/// A block as an encoder runs it.
template <class Context, class Block, class Tensor>
Tensor apply(Context& context, const Block& block, const Tensor& x, const Sequences& sequences) {
  Pass<Tensor> pass{sequences};
  pass.table = block.self_attn.table(context, pass);
  return block(context, x, pass, nullptr);
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("a Conformer block equals Hugging Face's", "[conformer][golden]", AllBackends) {
  using T = typename TestType::Scalar;
  const auto file = golden_file("conformer.safetensors");
  for (const std::string& name : cases) {
    INFO(name);
    ConformerBlock<Mha<4>, T> block(golden, Seed(1));
    load_parameters(block, file, "param/");
    const Matrix<T> input = tensor<T>(file, name + "/input"), expected = tensor<T>(file, name + "/output");
    const Sequences sequences = sequences_of(file, name + "/lengths");
    Parameter<T> weight({expected.rows(), expected.cols()});
    weight.host() = tensor<T>(file, name + "/weight");
    weight.trainable = false;

    TestType backend(2);
    std::optional<TrainedOn<TestType, decltype(block)>> there(std::in_place, backend, block);
    Autodiff<TestType> tape(backend, Seed(1), name.starts_with("train"));
    const auto x = tape.variable(input);
    const auto y = apply(tape, block, x, sequences);
    CHECK(difference<T>(tape.output(y), expected) < tolerance<T>);
    backward_of_sum(tape, y, resident(backend, weight));
    const Matrix<T> by_input = backend.output(tape.gradient(x));
    there.reset();
    check_gradients<decltype(block), T>(file, name, block, by_input, tolerance<T>);
    if (!tape.training) {  // the same without a tape
      const TrainedOn again(backend, block);
      CHECK(difference<T>(backend.output(apply(backend, block, backend.input(input), sequences)), expected) <
            tolerance<T>);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("a Conformer encoder equals Hugging Face's", "[conformer][golden]", AllBackends) {
  using T = typename TestType::Scalar;
  const auto file = golden_file("conformer_encoder.safetensors");
  for (const std::string& name : cases) {
    INFO(name);
    Conformer<Mha<4>, T> model(golden, Seed(1));
    for (auto& [layers, norm] : {std::pair{&model.layers, &model.layer_norm}}) {
      for (std::size_t i = 0; i < layers->size(); ++i)
        load_parameters((*layers)[i], file, text("param/layers.", i, "."));
      load_parameters(*norm, file, "param/layer_norm.");
    }
    const Matrix<T> input = tensor<T>(file, name + "/input"), expected = tensor<T>(file, name + "/output");
    const Sequences sequences = sequences_of(file, name + "/lengths");
    Parameter<T> weight({expected.rows(), expected.cols()});
    weight.host() = tensor<T>(file, name + "/weight");
    weight.trainable = false;

    TestType backend(2);
    std::optional<TrainedOn<TestType, decltype(model)>> there(std::in_place, backend, model);
    Autodiff<TestType> tape(backend, Seed(1), name.starts_with("train"));
    const auto x = tape.variable(input);
    const auto y = model.encode(tape, x, sequences);
    CHECK(difference<T>(tape.output(y), expected) < tolerance<T>);
    backward_of_sum(tape, y, resident(backend, weight));
    const Matrix<T> by_input = backend.output(tape.gradient(x));
    there.reset();
    check_gradients<decltype(model), T>(file, name, model, by_input, tolerance<T>);
  }
}

TEMPLATE_LIST_TEST_CASE("a Conformer with subsampling and CTC equals Hugging Face's", "[conformer][golden]",
                        AllBackends) {
  using T = typename TestType::Scalar;
  const auto file = golden_file("conformer_ctc.safetensors");
  for (const std::string& name : cases) {
    INFO(name);
    Conformer<Mha<4>, T> model(golden, Seed(1));
    load_parameters(model, file, "param/");
    const Matrix<T> input = tensor<T>(file, name + "/input"), expected = tensor<T>(file, name + "/output"),
                    losses = tensor<T>(file, name + "/loss");
    const Sequences sequences = sequences_of(file, name + "/lengths");
    const auto tokens = integers(file, name + "/labels");
    Labels labels{{}, sequences_of(file, name + "/label_lengths")};
    for (const Index token : tokens) labels.tokens.push_back(static_cast<int>(token));

    TestType backend(2);
    std::optional<TrainedOn<TestType, decltype(model)>> there(std::in_place, backend, model);
    Autodiff<TestType> tape(backend, Seed(1), name.starts_with("train"));
    const auto x = tape.variable(input);
    const auto logits = model(tape, x, sequences);
    CHECK(logits.sequences == sequences_of(file, name + "/output_lengths"));
    CHECK(difference<T>(tape.output(logits.rows), expected) < tolerance<T>);
    const auto loss = tape.ctc(logits.rows, logits.sequences, labels, 0);
    CHECK(difference<T>(tape.output(loss), losses.reshaped(losses.size(), 1)) < tolerance<T>);
    tape.backward(tape.mean_finite(loss), static_cast<double>(sequences.size()));
    const Matrix<T> by_input = backend.output(tape.gradient(x));
    there.reset();
    check_gradients<decltype(model), T>(file, name, model, by_input, tolerance<T>);
  }
}

TEST_CASE("derivatives of a Conformer block", "[conformer][gradient]") {
  const EncoderConfig config{.d_model = 8, .ffn_expansion = 2, .conv_kernel = 3, .dropout = 0.1};
  ConformerBlock<Mqa<2>, double> block(config, Seed(1));
  randomize(block, 3);
  const Sequences sequences{6, 1, 3};
  for (const bool training : {true, false})
    CHECK((GradientCheck{.training = training, .samples = 12}(
              {random_matrix(10, 8, 1)}, weights_of(block),
              [&](auto& tape, const auto& v) { return apply(tape, block, v[0], sequences); })) < 1e-6);
}

TEMPLATE_TEST_CASE("derivatives of a whole Conformer", "[conformer][gradient]", (Mha<2>), (Mqa<2, NoPosition>),
                   (Gqa<4, 2, Sinusoidal>), (MlaSimple<2, 3>)) {
  for (const Index subsampling : {2, 4}) {
    const EncoderConfig config{.num_mels = 11,
                               .d_model = 8,
                               .num_layers = 2,
                               .vocab_size = 5,
                               .ffn_expansion = 2,
                               .conv_kernel = 3,
                               .subsampling = subsampling,
                               .subsampling_channels = 3,
                               .dropout = 0.1};
    Conformer<TestType, double> model(config, Seed(1));
    randomize(model, 3);
    const Sequences sequences{23, 17, 2};
    const Labels labels{{1, 2, 3}, Sequences{2, 1, 0}};
    // A small step: a ReLU whose input changes sign within it has no derivative to compare.
    CHECK((GradientCheck{.step = 1e-6, .samples = 6}(
              {random_matrix(42, 11, 1)}, weights_of(model), [&](auto& tape, const auto& v) {
                const auto logits = model(tape, v[0], sequences);
                return tape.mean_finite(tape.ctc(logits.rows, logits.sequences, labels, 0));
              })) < 1e-5);
  }
}

TEST_CASE("utterances too short for the subsampling give no rows", "[conformer]") {
  const EncoderConfig config{.num_mels = 11, .d_model = 8, .num_layers = 1, .vocab_size = 5, .conv_kernel = 3};
  const Conformer<Mha<2>, float> model(config, Seed(1));
  Cpu<float> cpu(2);
  for (const Sequences& sequences : {Sequences{6}, Sequences{0, 3, 6}, Sequences{0}, Sequences{}}) {
    const Matrix<float> features = random_matrix<float>(sequences.rows(), 11, 1);
    const auto logits = model(cpu, features, sequences);
    CHECK(logits.rows.rows() == 0);
    CHECK(logits.rows.cols() == 5);
    CHECK(logits.sequences.size() == sequences.size());
    model.parameters([](std::string_view, const auto& p) { p.clear_gradient(); });
    Autodiff<Cpu<float>> tape(cpu);
    const auto trained = model(tape, features, sequences);
    const std::vector<Index> none(static_cast<std::size_t>(sequences.size()), 0);
    tape.backward(
        tape.mean_finite(tape.ctc(trained.rows, trained.sequences, {{}, Sequences(std::span<const Index>(none))}, 0)));
    model.parameters([](std::string_view name, const auto& p) {
      INFO(std::string(name));
      CHECK((p.gradient().size() == 0 || p.gradient().cwiseAbs().maxCoeff() == 0));
    });
  }
  for (Index frames = 0; frames < 40; ++frames) {
    CHECK(Conv2dSubsampling<float>::out_length(frames, 4) == (frames < 7 ? 0 : ((frames - 1) / 2 - 1) / 2));
    CHECK(Conv2dSubsampling<float>::out_length(frames, 2) == (frames < 7 ? 0 : (frames - 1) / 2 - 2));
  }
}

TEST_CASE("a Conformer's parameters have Hugging Face's names", "[conformer]") {
  const EncoderConfig config{.num_mels = 11, .d_model = 8, .num_layers = 1, .vocab_size = 5, .conv_kernel = 3};
  const Conformer<MlaSimple<2, 3>> model(config, Seed(1));
  std::vector<std::string> names;
  model.parameters([&](std::string_view name, const auto&) { names.emplace_back(name); });
  std::vector<std::string> expected{"subsampling.conv0.weight", "subsampling.conv0.bias",    "subsampling.conv1.weight",
                                    "subsampling.conv1.bias",   "subsampling.linear.weight", "subsampling.linear.bias"};
  for (const char* name : {"ffn1_layer_norm.weight",
                           "ffn1_layer_norm.bias",
                           "ffn1.intermediate_dense.weight",
                           "ffn1.intermediate_dense.bias",
                           "ffn1.output_dense.weight",
                           "ffn1.output_dense.bias",
                           "self_attn_layer_norm.weight",
                           "self_attn_layer_norm.bias",
                           "self_attn.linear_q.weight",
                           "self_attn.linear_q.bias",
                           "self_attn.linear_kv_down.weight",
                           "self_attn.linear_kv_down.bias",
                           "self_attn.linear_k_up.weight",
                           "self_attn.linear_k_up.bias",
                           "self_attn.linear_v_up.weight",
                           "self_attn.linear_v_up.bias",
                           "self_attn.linear_out.weight",
                           "self_attn.linear_out.bias",
                           "self_attn.linear_pos.weight",
                           "self_attn.pos_bias_u",
                           "self_attn.pos_bias_v",
                           "conv_module.layer_norm.weight",
                           "conv_module.layer_norm.bias",
                           "conv_module.pointwise_conv1.weight",
                           "conv_module.depthwise_conv.weight",
                           "conv_module.batch_norm.weight",
                           "conv_module.batch_norm.bias",
                           "conv_module.batch_norm.running_mean",
                           "conv_module.batch_norm.running_var",
                           "conv_module.pointwise_conv2.weight",
                           "ffn2_layer_norm.weight",
                           "ffn2_layer_norm.bias",
                           "ffn2.intermediate_dense.weight",
                           "ffn2.intermediate_dense.bias",
                           "ffn2.output_dense.weight",
                           "ffn2.output_dense.bias",
                           "final_layer_norm.weight",
                           "final_layer_norm.bias"})
    expected.push_back(text("layers.0.", name));
  for (const char* name : {"layer_norm.weight", "layer_norm.bias", "lm_head.weight", "lm_head.bias"})
    expected.emplace_back(name);
  CHECK(names == expected);
}

TEST_CASE("a Conformer refuses numbers and features that do not fit", "[conformer]") {
  const EncoderConfig good{.num_mels = 11, .d_model = 8, .num_layers = 1, .vocab_size = 5, .conv_kernel = 3};
  const auto error_of = [&](auto change) -> std::string {
    EncoderConfig config = good;
    change(config);
    try {
      const Conformer<Mha<2>> model(config, Seed(1));
      return "no error";
    } catch (const Error& e) {
      return e.what();
    }
  };
  CHECK(error_of([](auto&) {}) == "no error");
  CHECK(error_of([](auto& c) { c.d_model = 9; }) == "num_heads: 2 heads given, a divisor of d_model = 9 expected");
  CHECK(error_of([](auto& c) { c.d_model = -8; }) == "encoder: d_model -8 given, 1 to 65536 expected");
  CHECK(error_of([](auto& c) { c.d_model = 200'000; }) == "encoder: d_model 200000 given, 1 to 65536 expected");
  CHECK(error_of([](auto& c) { c.num_layers = 0; }) == "encoder: num_layers 0 given, 1 to 4096 expected");
  CHECK(error_of([](auto& c) { c.num_heads = -2; }) == "encoder: num_heads -2 given, 0 to 65536 expected");
  CHECK(error_of([](auto& c) { c.num_kv_heads = 1 << 20; }) ==
        "encoder: num_kv_heads 1048576 given, 0 to 65536 expected");
  for (Index EncoderConfig::*const member :
       {&EncoderConfig::kv_lora_rank, &EncoderConfig::v_lora_rank, &EncoderConfig::q_lora_rank,
        &EncoderConfig::qk_rope_head_dim})  // counts of parameters would overflow
    CHECK(error_of([&](auto& c) {
            c.*member = Index{1} << 62;
          }).ends_with(" 4611686018427387904 given, 0 to 65536 expected"));
  CHECK(error_of([](auto& c) { c.vocab_size = 1; }) == "encoder: vocab_size 1 given, 2 to 16777216 expected");
  CHECK(error_of([](auto& c) { c.ffn_expansion = Index{1} << 61; }) ==
        "encoder: ffn_expansion 2305843009213693952 given, 1 to 64 expected");
  CHECK(error_of([](auto& c) { c.subsampling_channels = -1; }) ==
        "encoder: subsampling_channels -1 given, 0 to 65536 expected");
  CHECK(error_of([](auto& c) { c.conv_kernel = 4; }) == "encoder: conv_kernel 4 given, an odd number expected");
  CHECK(error_of([](auto& c) { c.conv_kernel = -3; }) == "encoder: conv_kernel -3 given, 1 to 4096 expected");
  CHECK(error_of([](auto& c) { c.num_mels = 6; }) == "encoder: num_mels 6 given, 7 to 4096 expected");
  CHECK(error_of([](auto& c) { c.dropout = 1; }) == "encoder: dropout 1 given, expected from 0 to less than 1");
  CHECK(error_of([](auto& c) { c.dropout = -0.1; }) == "encoder: dropout -0.1 given, expected from 0 to less than 1");
  CHECK(error_of([](auto& c) { c.subsampling = 3; }) == "encoder: subsampling 3 given, 2 or 4 expected");

  const Conformer<Mha<2>> model(good, Seed(1));
  Cpu<float> cpu(1);
  const Matrix<float> features = random_matrix<float>(20, 11, 1), narrow = random_matrix<float>(20, 10, 1),
                      x = random_matrix<float>(20, 8, 1);
  CHECK_THROWS_WITH(model(cpu, narrow, Sequences{20}), "subsampling: features have 10 mels, the model expects 11");
  CHECK_THROWS_WITH(model(cpu, features, Sequences{20, 1}),
                    "subsampling: 20 rows of features given, their sequences have 21");
  CHECK_THROWS_WITH(model.encode(cpu, cpu.input(x), Sequences{19}), "encoder: 20 rows given, their sequences have 19");
}
