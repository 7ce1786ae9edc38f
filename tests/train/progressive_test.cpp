// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Latents cut to smaller ranks: as good as a conversion to these ranks, and the optimiser's moments follow.
#include "gradient_check.hpp"

#include <laconic/model/conformer.hpp>
#include <laconic/train/ctc_loss.hpp>
#include <laconic/train/progressive.hpp>

using namespace laconic;

namespace {

using Model = Conformer<AnyAttention, double>;
using Learnt = OptimizerState<double>;

constexpr EncoderConfig numbers{.num_mels = 20,
                                .d_model = 32,
                                .num_layers = 2,
                                .vocab_size = 7,
                                .num_heads = 4,
                                .ffn_expansion = 2,
                                .conv_kernel = 5,
                                .subsampling_channels = 3,
                                .dropout = 0};

/// A model whose latents have biases and no order of their channels.
Model random_model(AttentionName attention, Index rank) {
  EncoderConfig config = numbers;
  config.attention = attention;
  config.kv_lora_rank = rank;
  Model model(config, Seed(1));
  randomize(model, 5);
  return model;
}
const Matrix<double> features = random_matrix(106, numbers.num_mels, 1);
const Sequences sequences{61, 7, 38};

Matrix<double> logits(const Model& model) {
  Cpu<double> cpu(1);
  return model(cpu, features, sequences).rows.view();
}
double difference(const Model& a, const Model& b) {
  const Matrix<double> x = logits(a), y = logits(b);
  return (x - y).cwiseAbs().maxCoeff() / y.cwiseAbs().maxCoeff();
}

/// The model's gradients, as first moments.
Learnt gradients(const Model& model) {
  Cpu<double> cpu(1);
  Autodiff<Cpu<double>> tape(cpu);
  tape.backward(ctc_loss(tape, model(tape, features, sequences), {{1, 2, 3, 1}, Sequences{2, 0, 2}}));
  Learnt out;
  model.parameters([&](std::string_view, const Parameter<double>& p) {
    out.moments.push_back({p.gradient(), p.gradient().cwiseAbs2()});
    p.clear_gradient();
  });
  out.steps = 17;
  return out;
}

struct Case {
  AttentionName attention;
  Index rank, smaller;
};
std::vector<Case> cases() {
  using enum AttentionName;
  return {{mla, 24, 10}, {mla_simple, 24, 10}, {mla_split, 24, 10}, {mla_head, 6, 3}};
}

}  // namespace

TEST_CASE("a cut latent is the best of its rank", "[progressive]") {
  for (const Case& c : cases()) {
    CAPTURE(to_name(c.attention));
    const Model model = random_model(c.attention, c.rank);
    const auto cut = truncate<Model>(model, {.kv_lora_rank = c.smaller});
    const auto converted =
        convert<Model>(model, JointSvd(), {.kv_lora_rank = c.smaller, .attention = c.attention}, features, sequences);
    CHECK(cut.model.config().kv_lora_rank == c.smaller);
    CHECK(difference(cut.model, converted.model) < 1e-10);
    CHECK(cut.predicted_error == Approx(converted.report.predicted_error).epsilon(1e-9));
    CHECK(cut.predicted_error > 0.05);

    const auto same = truncate<Model>(model, {.kv_lora_rank = c.rank});
    CHECK(difference(same.model, model) < 1e-12);
    CHECK(same.predicted_error < 1e-7);
  }
}

TEST_CASE("layers may be cut to ranks of their own", "[progressive]") {
  const Model model = random_model(AttentionName::mla_simple, 24);
  const auto cut = truncate<Model>(model, {.kv_lora_ranks = {8, 16}});
  CHECK(cut.model.layers[0].self_attn.dims().kv_lora_rank == 8);
  CHECK(cut.model.layers[1].self_attn.dims().kv_lora_rank == 16);
  CHECK_THROWS_WITH(truncate<Model>(model, {.kv_lora_rank = 25}),
                    "truncate: layers.0.self_attn: a rank of 25 given, 1 to 24 expected");
}

TEST_CASE("latents of keys and of values may be cut to ranks of their own, and hold channels that are empty",
          "[progressive]") {
  struct Cut {
    AttentionName attention;
    Index from, keys, values;
  };
  for (const Cut& c : {Cut{AttentionName::mla_split, 24, 10, 7}, Cut{AttentionName::mla_head, 6, 3, 5}}) {
    CAPTURE(to_name(c.attention));
    const Model large = random_model(c.attention, c.from);
    const auto cut = truncate<Model>(large, {.kv_lora_rank = c.keys, .v_lora_rank = c.values});
    const auto converted =
        convert<Model>(large, JointSvd(), {.kv_lora_rank = c.keys, .v_lora_rank = c.values, .attention = c.attention},
                       features, sequences);
    CHECK(difference(cut.model, converted.model) < 1e-10);
  }

  Model model = random_model(AttentionName::mla_split, 24);
  for (auto& block : model.layers) {
    auto& latent = std::get<AttentionLayer<MlaSplit<dyn, dyn, dyn>, double>>(block.self_attn.layer).key_value;
    latent.linear_k_down.weight.host().topRows(5).setZero();
    latent.linear_v_up.weight.host().leftCols(5).setZero();
  }
  CHECK(difference(truncate<Model>(model, {.kv_lora_rank = 24}).model, model) < 1e-10);
  const auto smaller = truncate<Model>(model, {.kv_lora_rank = 19});
  CHECK(difference(smaller.model, model) < 1e-9);
  CHECK(smaller.predicted_error < 1e-7);
}

TEST_CASE("a model in single precision is cut as one in double", "[progressive]") {
  EncoderConfig config = numbers;
  config.attention = AttentionName::mla_simple;
  config.kv_lora_rank = 24;
  Conformer<AnyAttention, float> model(config, Seed(1));
  const auto cut = truncate<Conformer<AnyAttention, float>>(model, {.kv_lora_rank = 24});
  Cpu<float> cpu(1);
  const Matrix<float> x = features.cast<float>();
  const Matrix<float> before = model(cpu, x, sequences).rows.view(), after = cut.model(cpu, x, sequences).rows.view();
  CHECK((after - before).cwiseAbs().maxCoeff() < 1e-4f * before.cwiseAbs().maxCoeff());
}

TEST_CASE("for calibration speech, a cut latent is that of the principal components", "[progressive]") {
  for (const Case& c : cases()) {
    CAPTURE(to_name(c.attention));
    const Model model = random_model(c.attention, c.rank);
    const Calibration<double> speech{features, sequences};
    const auto cut = truncate<Model>(model, {.kv_lora_rank = c.smaller}, {}, &speech),
               plain = truncate<Model>(model, {.kv_lora_rank = c.smaller});
    const auto pca = convert<Model>(model, ActivationPca<double>{speech},
                                    {.kv_lora_rank = c.smaller, .attention = c.attention}, features, sequences);
    CHECK(cut.predicted_error == Approx(pca.report.predicted_error).epsilon(1e-6));
    CHECK(difference(cut.model, pca.model) < 1e-6);
    CHECK(difference(cut.model, plain.model) > 1e-3);
  }
}

TEST_CASE("the first moment turns as the gradient does", "[progressive]") {
  for (const Case& c : cases()) {
    CAPTURE(to_name(c.attention));
    const Model model = random_model(c.attention, c.rank);
    const auto cut = truncate<Model>(model, {.kv_lora_rank = c.rank}, gradients(model));
    CHECK(cut.optimizer.steps == 17);
    const Learnt expected = gradients(cut.model);
    REQUIRE(cut.optimizer.moments.size() == expected.moments.size());
    std::size_t i = 0;
    cut.model.parameters([&](std::string_view name, const Parameter<double>&) {
      CAPTURE(name);
      const Matrix<double>&first = cut.optimizer.moments[i].first, &wanted = expected.moments[i].first;
      ++i;
      REQUIRE((first.rows() == wanted.rows() && first.cols() == wanted.cols()));
      // The bias of the keys changes nothing, so its gradient is rounding.
      CHECK((first - wanted).cwiseAbs().maxCoeff() < 1e-9 * std::max(1e-3, wanted.cwiseAbs().maxCoeff()));
    });
  }
}

TEST_CASE("the second moment is the mean square of first ones with independent channels", "[progressive]") {
  const Index rank = 3, patterns = 8;
  const Model model = random_model(AttentionName::mla_simple, rank);
  const Learnt learnt = gradients(model);
  std::size_t down = 0, up = 0, at = 0;
  model.parameters([&](std::string_view name, const Parameter<double>&) {
    if (name == "layers.0.self_attn.linear_kv_down.weight") down = at;
    if (name == "layers.0.self_attn.linear_k_up.weight") up = at;
    ++at;
  });
  REQUIRE((down > 0 && up > 0));
  Matrix<double> mean_down, mean_up;
  for (Index p = 0; p < patterns; ++p) {
    Learnt signs = learnt;
    for (Index r = 0; r < rank; ++r) {
      const double sign = (p >> r) % 2 == 0 ? 1 : -1;
      signs.moments[down].first.row(r) *= sign;
      signs.moments[up].first.col(r) *= sign;
    }
    const auto cut = truncate<Model>(model, {.kv_lora_rank = 2}, signs);
    const auto add = [&](Matrix<double>& mean, const Matrix<double>& first) {
      if (mean.size() == 0) mean.setZero(first.rows(), first.cols());
      mean += first.cwiseAbs2() / patterns;
    };
    add(mean_down, cut.optimizer.moments[down].first);
    add(mean_up, cut.optimizer.moments[up].first);
  }
  const auto cut = truncate<Model>(model, {.kv_lora_rank = 2}, learnt);
  CHECK((cut.optimizer.moments[down].second - mean_down).cwiseAbs().maxCoeff() < 1e-12 * mean_down.maxCoeff());
  CHECK((cut.optimizer.moments[up].second - mean_up).cwiseAbs().maxCoeff() < 1e-12 * mean_up.maxCoeff());
  CHECK(cut.optimizer.moments[down].second.minCoeff() >= 0);
}

TEST_CASE("moments of another model are refused", "[progressive]") {
  const Model model = random_model(AttentionName::mla_simple, 24), other = random_model(AttentionName::mla_simple, 20);
  CHECK_THROWS_WITH(
      truncate<Model>(model, {.kv_lora_rank = 10}, gradients(other)),
      "truncate: moments of (20, 32) given for layers.0.self_attn.linear_kv_down.weight, (24, 32) expected");
  Learnt more = gradients(model);
  more.moments.emplace_back();
  CHECK_THROWS_WITH(truncate<Model>(model, {.kv_lora_rank = 10}, more),
                    text("truncate: moments of ", more.moments.size(), " parameters given for a model of fewer"));
}

TEST_CASE("attention without a latent cannot be cut", "[progressive]") {
  EncoderConfig config = numbers;
  config.attention = AttentionName::mha;
  const Model model(config, Seed(1));
  CHECK_THROWS_WITH(truncate<Model>(model, {}),
                    "truncate: layers.0.self_attn has no latent that is known to be cut (mha)");
}
