// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Mistakes of public code that makes latent attention of full: each would fail here. Those of the conversion itself
// (factors the wrong way round, a layout guessed from shapes, compressors averaged, a rank that must be a head's, lost
// biases and positions) are in convert_methods_test; a feed-forward module that halves the wrong term, and missing
// positions, fail the goldens of conformer_test; what a conversion costs in word errors is measured by `laconic study`.
#include "gradient_check.hpp"

#include <laconic/attention/any.hpp>
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>

#include <map>

using namespace laconic;

namespace {

using Layer = AnyAttentionLayer<double>;
constexpr Index d_model = 16, heads = 4, head_dim = 4;

/// Every attention that has a name.
template <class F>
void each_attention(F&& f) {
  for (const auto& entry : enum_names(AttentionName{})) {
    if (entry.value == AttentionName::by_type) continue;
    using enum AttentionName;
    AttentionConfig c{.d_model = d_model, .num_heads = heads, .attention = entry.value};
    const bool has_latent = entry.name.starts_with("mla");
    if (has_latent) c.kv_lora_rank = entry.value == mla_head ? 3 : 5;
    if (entry.value == mla_head) c.v_lora_rank = 2;
    if (entry.value == gqa) c.num_kv_heads = 2;
    if (entry.value == mla_decoupled) c.qk_rope_head_dim = 4;
    CAPTURE(entry.name);
    f(c);
  }
}

Matrix<double> output(const Layer& layer, const Matrix<double>& x, const Sequences& sequences, const Mask& mask = {}) {
  Cpu<double> cpu(1);
  Pass<Tensor<double>> pass{sequences, mask};
  auto rows = layer.enter(cpu, cpu.input(x), pass);
  pass.table = layer.table(cpu, pass);
  return layer(cpu, rows, pass).view();
}
Layer random_layer(const AttentionConfig& c) {
  Layer layer(c, 0, Seed(1));
  randomize(layer, 3);
  return layer;
}

}  // namespace

TEST_CASE("what lies beside an utterance in a batch changes nothing", "[mistakes]") {
  each_attention([](const AttentionConfig& c) {
    const Layer layer = random_layer(c);
    const Matrix<double> x = random_matrix(20, d_model, 1);
    const Matrix<double> alone = output(layer, x.topRows(10), Sequences{10}),
                         batch = output(layer, x, Sequences{10, 10});
    CHECK((batch.topRows(10) - alone).cwiseAbs().maxCoeff() < 1e-12);
  });
}

TEST_CASE("under a causal mask, no frame knows of later ones", "[mistakes]") {
  each_attention([](const AttentionConfig& c) {
    const Layer layer = random_layer(c);
    const Matrix<double> x = random_matrix(20, d_model, 1);
    Matrix<double> other = x;
    other.bottomRows(8) = random_matrix(8, d_model, 2);
    const Matrix<double> before = output(layer, x, Sequences{20}, Mask::causal()),
                         after = output(layer, other, Sequences{20}, Mask::causal());
    CHECK((after - before).topRows(12).isZero(1e-13));
    CHECK_FALSE((after - before).bottomRows(8).isZero(1e-3));
  });
}

TEST_CASE("every attention has its own cost, and the one that is counted", "[mistakes]") {
  using enum AttentionName;
  const std::map<AttentionName, Index> numbers_a_frame{{mha, 32},
                                                       {gqa, 16},
                                                       {mqa, 8},
                                                       {mla, 5},
                                                       {mla_simple, 5},
                                                       {mla_split, 10},
                                                       {mla_head, heads * (3 + 2)},
                                                       {mla_decoupled, 5 + 4},
                                                       {input_latent, d_model}};
  each_attention([&](const AttentionConfig& c) {
    const Layer layer = random_layer(c);
    CHECK(layer.count_parameters() == AnyAttention::parameter_count(c));  // a matrix that heads share counts once
    if (c.attention == linear) {
      CHECK(AnyAttention::cache_bytes(c, frames(1000)) ==
            heads * head_dim * (head_dim + 1) * 4);  // a state, which does not grow
      CHECK(AnyAttention::cache_bytes(c, frames(1)) == AnyAttention::cache_bytes(c, frames(1000)));
    } else {
      CHECK(AnyAttention::cache_bytes(c, frames(1000)) == 1000 * 4 * numbers_a_frame.at(c.attention));
    }
  });
}

TEST_CASE("utterances of any length give numbers", "[mistakes]") {
  const auto check = []<class Model>(std::type_identity<Model>) {
    const Model model({.num_mels = 20,
                       .d_model = d_model,
                       .num_layers = 1,
                       .vocab_size = 5,
                       .conv_kernel = 3,
                       .subsampling_channels = 3},
                      Seed(1));
    Cpu<float> cpu(1);
    for (Index frames = 0; frames < 12; ++frames) {
      const Matrix<float> x = random_matrix<float>(frames, 20, 1);
      const auto logits = model(cpu, x, Sequences{frames});
      CHECK(logits.rows.view().allFinite());
      CHECK(logits.rows.rows() == Model::out_length(model.config(), frames));
    }
  };
  check(std::type_identity<Conformer<Mha<4>>>());
  check(std::type_identity<Branchformer<Mha<4>>>());
}

TEST_CASE("rotary positions turn frames, also where as many heads, channels and frames are there", "[mistakes]") {
  // 4 heads, a rotary key of 4 channels and 4 frames: no two sizes tell what is what.
  AttentionConfig c{.d_model = d_model, .num_heads = heads, .kv_lora_rank = 5, .qk_rope_head_dim = 4};
  AttentionLayer<MlaDecoupled<heads, dyn, dyn, FullQuery, NoNorm>, double> layer(c, 0, Seed(1));
  randomize(layer, 3);
  const Index frames = 4, rope = 4;
  const Matrix<double> x = random_matrix(frames, d_model, 1);
  Cpu<double> cpu(1);
  const Sequences sequences{frames};
  Pass<Tensor<double>> pass{sequences, {}};
  pass.table = layer.table(cpu, pass);
  const Matrix<double> got = layer(cpu, cpu.input(x), pass).view();

  const auto apply = [](const Linear<double>& linear, const Matrix<double>& in) {
    Matrix<double> out = in * linear.weight.host().transpose();
    if (linear.has_bias()) out.rowwise() += linear.bias.host().row(0);
    return out;
  };
  const auto turned = [&](Matrix<double> rows) {
    for (Index t = 0; t < frames; ++t)
      for (Index pair = 0; pair < rows.cols() / 2; ++pair) {
        const double angle =
            static_cast<double>(t) * std::pow(10000.0, -2 * static_cast<double>(pair % (rope / 2)) / rope);
        const double a = rows(t, 2 * pair), b = rows(t, 2 * pair + 1);
        rows(t, 2 * pair) = a * std::cos(angle) - b * std::sin(angle);
        rows(t, 2 * pair + 1) = a * std::sin(angle) + b * std::cos(angle);
      }
    return rows;
  };
  const auto& kv = layer.key_value;
  const Matrix<double> q = apply(layer.query.linear_q, x), q_rope = turned(apply(layer.query.linear_q_rope, x)),
                       c_kv = apply(kv.linear_kv_down, x), k = apply(kv.linear_k_up, c_kv),
                       v = apply(kv.linear_v_up, c_kv), k_rope = turned(apply(kv.linear_k_rope, x));
  Matrix<double> heads_out(frames, d_model);
  for (Index h = 0; h < heads; ++h) {
    const auto head = [&](const Matrix<double>& all) { return all.middleCols(h * head_dim, head_dim); };
    Matrix<double> p = (head(q) * head(k).transpose() + q_rope.middleCols(h * rope, rope) * k_rope.transpose()) /
                       std::sqrt(double(head_dim + rope));
    p = p.array().exp();
    for (Index t = 0; t < frames; ++t) p.row(t) /= p.row(t).sum();
    heads_out.middleCols(h * head_dim, head_dim) = p * head(v);
  }
  CHECK((got - apply(layer.linear_out, heads_out)).cwiseAbs().maxCoeff() < 1e-12);
}
