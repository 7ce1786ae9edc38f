// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Conversions by every method: by random projections, for inputs and queries as speech has them, with ranks of each
// layer.
#include "convert_factors.hpp"

#include <laconic/convert/convert.hpp>
#include <laconic/model/conformer.hpp>

#include <limits>
#include <map>

using namespace laconic;

namespace {

using Names = AttentionName;
using Model = Conformer<AnyAttention, double>;

// 4 heads of 12 channels: no two sizes that could be mixed up are equal.
constexpr Index d_model = 48, heads = 4, head_dim = 12;

Model full_model(Index seed, PositionEmbeddings positions = PositionEmbeddings::relative) {
  EncoderConfig config;
  config.position_embeddings_type = positions;
  config.num_mels = 20;
  config.d_model = d_model;
  config.num_layers = 2;
  config.vocab_size = 7;
  config.ffn_expansion = 2;
  config.conv_kernel = 5;
  config.subsampling_channels = 3;
  config.num_heads = heads;
  config.attention = Names::mha;
  Model model(config, Seed() / seed);
  randomize(model, static_cast<std::uint64_t>(100 * seed));
  return model;
}

/// Features that change slowly and together, as those of speech do.
Calibration<double> speech(std::uint64_t seed, std::initializer_list<Index> lengths) {
  Calibration<double> out{{}, Sequences(lengths)};
  Matrix<double> few = random_matrix(out.sequences.rows(), 3, seed);
  for (Index i = 1; i < few.rows(); ++i) few.row(i) = 0.8 * few.row(i - 1) + 0.6 * few.row(i);
  out.features = few * random_matrix(3, 20, 1) + random_matrix(out.sequences.rows(), 20, seed + 1000, 0.1);
  return out;
}
const Calibration<double> heard = speech(1, {300, 90, 3, 210}), held_out = speech(2, {150, 61});
const Calibration<double> little = speech(3, {61});  // 14 frames behind the subsampling: fewer than d_model

struct Wanted {
  Names attention;
  Index rank, v_rank = 0;
  ConversionConfig config() const {
    return {.num_kv_heads = attention == Names::gqa ? rank : 0,
            .kv_lora_rank = attention == Names::gqa ? 0 : rank,
            .v_lora_rank = v_rank,
            .attention = attention};
  }
};
const Wanted lossless[] = {
    {Names::mla_simple, d_model}, {Names::mla, d_model}, {Names::mla_split, d_model}, {Names::mla_head, head_dim}};
const Wanted lossy[] = {{Names::mla_simple, 1},  {Names::mla_simple, 9}, {Names::mla_simple, head_dim},
                        {Names::mla_simple, 30}, {Names::mla, 9},        {Names::mla_split, 9, 5},
                        {Names::mla_head, 5},    {Names::gqa, 2},        {Names::mla_head, 3, 7}};

/// f(method, calibration) for every method.
template <class F>
void with_methods(const Calibration<double>& calibration, F&& f) {
  f(JointSvd{}, "svd");
  f(RandomizedSvd{}, "randomized");
  f(ActivationPca<double>{calibration, false}, "activation");
  f(ActivationPca<double>{calibration, true}, "score-aware");
}
template <class Method>
auto convert_to(const Model& model, const Method& method, const ConversionConfig& config,
                const Calibration<double>& measured = held_out) {
  return convert<Model>(model, method, config, measured.features, measured.sequences);
}

Matrix<double> logits(const Model& model) {
  Cpu<double> cpu(1);
  return model(cpu, held_out.features, held_out.sequences).rows.view();
}
double difference(const Model& a, const Model& b) {
  const Matrix<double> x = logits(a), y = logits(b);
  REQUIRE((x.rows() == y.rows() && x.allFinite()));
  return (x - y).cwiseAbs().maxCoeff() / y.cwiseAbs().maxCoeff();
}
auto& keys_and_values(const Model& model, std::size_t layer) {
  return std::get<AttentionLayer<Gqa<dyn, dyn>, double>>(model.layers[layer].self_attn.layer).key_value;
}

}  // namespace

TEST_CASE("with every method, a latent that holds all loses nothing", "[convert]") {
  const Model model = full_model(1);
  for (const auto* calibration : {&heard, &little})
    with_methods(*calibration, [&](const auto& method, const char* name) {
      for (const Wanted& wanted : lossless) {
        INFO(name << " to " << to_name(wanted.attention) << ", " << calibration->features.rows() << " rows");
        const auto [small, report] = convert_to(model, method, wanted.config());
        CHECK(difference(small, model) < 1e-10);
        CHECK(std::max({report.key_value_error, report.output_error, report.logits_error}) < 1e-10);
        CHECK(report.predicted_error < 1e-10);
      }
    });
}

TEST_CASE("with every method, what is predicted of calibration speech is measured on it", "[convert]") {
  Model model = full_model(2);
  const auto check = [&](const Wanted& wanted) {
    for (const auto* calibration : {&heard, &little})
      for (const bool score_aware : {false, true}) {
        INFO(to_name(wanted.attention) << ' ' << wanted.rank << ", " << score_aware << ", "
                                       << calibration->features.rows() << " rows");
        const auto [small, report] =
            convert_to(model, ActivationPca<double>{*calibration, score_aware}, wanted.config(), *calibration);
        for (const LayerReport& layer : report.layers) {
          CHECK(layer.key_value_error == Approx(layer.predicted_error).epsilon(1e-6).margin(1e-7));
          if (calibration == &heard) CHECK(layer.predicted_error > 1e-4);
        }
        CHECK(report.key_value_error == Approx(report.predicted_error).epsilon(1e-6).margin(1e-7));
      }
    // Of weights alone: on inputs whose Gram matrix is the identity.
    Cpu<double> cpu(1);
    const auto conversion = convert<Model>(model, RandomizedSvd{}, wanted.config());
    for (std::size_t i = 0; i < model.layers.size(); ++i)
      detail::with_layer(conversion.model.layers[i].self_attn, [&](const auto& to) {
        detail::with_layer(model.layers[i].self_attn, [&](const auto& from) {
          const Matrix<double> identity = Matrix<double>::Identity(d_model, d_model);
          const double predicted = conversion.report.layers[i].predicted_error;
          CHECK(key_value_deviation(cpu, to, from, identity).relative() == Approx(predicted).epsilon(1e-10));
        });
      });
  };
  for (const Wanted& wanted : lossy) check(wanted);
  // Where positions turn the input, keys and values have different ones.
  EncoderConfig rotary = model.config();
  rotary.position_embeddings_type = PositionEmbeddings::rotary;
  model = Model(rotary, Seed(3));
  check({Names::mla_split, 9, 5});
}

TEST_CASE("calibrated latents are the optimum on their speech, and better on other speech", "[convert]") {
  const Model model = full_model(4);
  Recorder<Cpu<double>> recorder;
  const auto statistics = detail::calibrate(recorder, model, heard, false);
  REQUIRE(statistics.size() == 2);
  const auto seen = [&](const auto& linear, std::size_t layer) {
    return Matrix<double>(linear.weight.host() * root(statistics[layer].value_input));
  };
  const auto side_by_side = [](const Matrix<double>& rows) {
    Matrix<double> out(head_dim, heads * d_model);
    for (Index h = 0; h < heads; ++h) out.middleCols(h * d_model, d_model) = rows.middleRows(h * head_dim, head_dim);
    return out;
  };
  for (const Wanted& wanted : lossy) {
    if (wanted.attention == Names::gqa) continue;
    INFO(to_name(wanted.attention) << ' ' << wanted.rank);
    const auto calibrated = convert_to(model, ActivationPca<double>{heard}, wanted.config());
    for (std::size_t i = 0; i < 2; ++i) {
      const Matrix<double> k = seen(keys_and_values(model, i).linear_k, i),
                           v = seen(keys_and_values(model, i).linear_v, i);
      double discarded = tail(below(k, v), wanted.rank);
      if (wanted.attention == Names::mla_split) discarded = tail(k, wanted.rank) + tail(v, wanted.v_rank);
      if (wanted.attention == Names::mla_head)
        discarded =
            tail(side_by_side(k), wanted.rank) + tail(side_by_side(v), wanted.v_rank > 0 ? wanted.v_rank : wanted.rank);
      CHECK(calibrated.report.layers[i].predicted_error ==
            Approx(std::sqrt(discarded / below(k, v).squaredNorm())).epsilon(1e-6));
    }
    const auto plain = convert_to(model, JointSvd{}, wanted.config());
    CHECK(calibrated.report.key_value_error < plain.report.key_value_error);
    const auto scores = convert_to(model, ActivationPca<double>{heard, true}, wanted.config());
    CHECK(scores.report.key_value_error > calibrated.report.key_value_error * 0.999);
    CHECK(scores.report.output_error < plain.report.output_error);
  }
}

TEST_CASE("statistics are those of the layer's input, its queries and its output", "[convert]") {
  Model model = full_model(5);
  Recorder<Cpu<double>> recorder, cpu;
  const auto statistics = detail::calibrate(recorder, model, heard, true);
  for (const auto& block : model.layers) cpu.record(block.self_attn.input_weight());
  const Sequences sequences = model(cpu, heard.features, heard.sequences).sequences;
  for (std::size_t i = 0; i < 2; ++i) {
    const auto& layer = std::get<AttentionLayer<Gqa<dyn, dyn>, double>>(model.layers[i].self_attn.layer);
    const Matrix<double> x = cpu.input_of(layer.input_weight()), g = second_moment(x);
    CHECK(x.rows() == sequences.rows());
    CHECK((statistics[i].key_input - g).norm() < 1e-12 * g.norm());
    CHECK((statistics[i].value_input - g).norm() < 1e-12 * g.norm());
    for (Index h = 0; h < heads; ++h) {
      const auto rows = [&](const Matrix<double>& m) { return Matrix<double>(m.middleRows(h * head_dim, head_dim)); };
      Matrix<double> q = x * rows(layer.query.linear_q.weight.host()).transpose();
      q.rowwise() += layer.query.linear_q.bias.host().row(0).segment(h * head_dim, head_dim) +
                     layer.position.pos_bias_u.host().row(h);
      CHECK((rows(statistics[i].key_metric) - second_moment(q)).norm() < 1e-11 * second_moment(q).norm());
      const Matrix<double> out = layer.linear_out.weight.host().middleCols(h * head_dim, head_dim);
      CHECK((rows(statistics[i].value_metric) - out.transpose() * out).norm() < 1e-12 * out.squaredNorm());
    }
  }
  CHECK(detail::calibrate(recorder, model, heard, false)[1].key_metric.size() == 0);
  const auto calibrate = [&](Calibration<double> c) {
    convert_to(model, ActivationPca<double>{std::move(c)}, Wanted{Names::mla, 9}.config());
  };
  CHECK_THROWS_WITH(calibrate(speech(1, {5, 3})),
                    "calibration: 8 rows of features given in 2 sequences, of which the subsampling leaves none");
  CHECK_THROWS_WITH(calibrate({}),
                    "calibration: 0 rows of features given in 0 sequences, of which the subsampling leaves none");
  CHECK_THROWS_WITH(calibrate({heard.features, Sequences{300}}),
                    "calibration: 603 rows of features given, their sequences have 300");
  Calibration<double> broken = heard;
  broken.features(320, 3) = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(calibrate(broken), "calibration: layers.0.self_attn has inputs or queries that are not finite");
}

TEST_CASE("options of a conversion change factors, not functions", "[convert]") {
  const Model model = full_model(6);
  for (const Wanted& wanted : {lossy[1], lossy[4], lossy[5], lossy[6]}) {
    INFO(to_name(wanted.attention));
    ConversionConfig config = wanted.config();
    const auto up = convert_to(model, JointSvd{}, config);
    for (const SingularValues where : {SingularValues::down, SingularValues::both}) {
      config.singular_values = where;
      const auto moved = convert_to(model, JointSvd{}, config);
      CHECK(difference(moved.model, up.model) < 1e-12);
      CHECK(moved.report.predicted_error == up.report.predicted_error);
      Index changed = 0;
      moved.model.parameters([&](std::string_view name, const auto& p) {
        up.model.parameters([&](std::string_view other, const auto& q) {
          changed += name == other && (p.host() - q.host()).norm() > 1e-3;
        });
      });
      CHECK(changed == (wanted.attention == Names::mla_split || wanted.attention == Names::mla_head ? 8 : 6));
    }
  }
}

TEST_CASE("mixed channels are the same function, and lose less in 8 bits", "[convert]") {
  const Model model = full_model(6);
  for (const Index rank : {32, 24, 9}) {
    CAPTURE(rank);
    ConversionConfig config = Wanted{Names::mla_simple, rank}.config();
    // With singular values in the way down, channels are as unequal as these are: a whole number for all has few steps
    // for most.
    config.singular_values = SingularValues::down;
    const auto plain = convert_to(model, JointSvd{}, config);
    config.hadamard = true;
    const auto mixed = convert_to(model, JointSvd{}, config);
    CHECK(difference(mixed.model, plain.model) < 1e-12);
    const auto error_in_8_bits = [&](const Model& of) {
      const auto& latent =
          std::get<AttentionLayer<MlaSimple<dyn, dyn>, double>>(of.layers[0].self_attn.layer).key_value;
      const Matrix<double> c = random_matrix(500, d_model, 3) * latent.linear_kv_down.weight.host().transpose();
      Matrix<double> stored = c;
      for (Index r = 0; r < c.rows(); ++r) {
        const double step = c.row(r).cwiseAbs().maxCoeff() / 127;
        stored.row(r) = (c.row(r) / step).array().round().matrix() * step;
      }
      return (stored - c).norm() / c.norm();
    };
    const double before = error_in_8_bits(plain.model), after = error_in_8_bits(mixed.model);
    if (rank == 9)  // of 9 channels, 1 is the largest power of 2 that divides them
      CHECK(after == before);
    else
      CHECK(after < before);
  }
}

TEST_CASE("heads that differ by a turn become one without loss, and others lose less than their mean", "[convert]") {
  const ActivationPca<double> method{heard};
  const ConversionConfig two = Wanted{Names::gqa, 2}.config(), one{.attention = Names::mqa};
  for (const auto positions : {PositionEmbeddings::relative, PositionEmbeddings::rotary}) {
    INFO(to_name(positions));
    const Model different = full_model(9, positions);
    Model alike = different;
    std::uint64_t seed = 50;
    for (auto& block : alike.layers)
      std::visit(
          [&](auto& layer) {
            if constexpr (requires { layer.key_value.linear_k; }) {
              auto &k = layer.key_value.linear_k.weight.host(), &v = layer.key_value.linear_v.weight.host();
              for (const Index first : {0, 2}) {  // the second of two heads: keys turned, values in other units
                k.middleRows((first + 1) * head_dim, head_dim) =
                    detail::orthonormal(random_matrix(head_dim, head_dim, ++seed)) *
                    k.middleRows(first * head_dim, head_dim).eval();
                v.middleRows((first + 1) * head_dim, head_dim) =
                    random_matrix(head_dim, head_dim, ++seed) * v.middleRows(first * head_dim, head_dim).eval();
              }
            }
          },
          block.self_attn.layer);
    const auto aligned = convert_to(alike, method, two, heard);
    CHECK(difference(aligned.model, alike) < 1e-8);
    CHECK(aligned.report.key_value_error < 1e-8);
    CHECK(difference(convert_to(alike, JointSvd{}, two).model, alike) > 1e-2);

    for (const ConversionConfig& fewer : {two, one}) {
      const auto turned = convert_to(different, method, fewer, heard),
                 mean = convert_to(different, JointSvd{}, fewer, heard);
      CHECK(turned.report.predicted_error == Approx(turned.report.key_value_error).epsilon(1e-6));
      CHECK(turned.report.key_value_error < 0.9 * mean.report.key_value_error);
      CHECK(turned.report.output_error < 0.9 * mean.report.output_error);
    }
  }
}

TEST_CASE("balanced, weak keys or values keep their place in the latent", "[convert]") {
  Model model = full_model(7);
  for (auto& block : model.layers)
    std::get<AttentionLayer<Gqa<dyn, dyn>, double>>(block.self_attn.layer).key_value.linear_k.weight.host() *= 30;
  for (const Names attention : {Names::mla_simple, Names::mla}) {
    ConversionConfig config = Wanted{attention, 20}.config();
    const Matrix<double>&k = keys_and_values(model, 0).linear_k.weight.host(),
          &v = keys_and_values(model, 0).linear_v.weight.host();
    const auto errors = [&](const auto& conversion) {
      const auto map = detail::with_layer(conversion.model.layers[0].self_attn, [](const auto& layer) {
        using KeyValue = typename std::remove_cvref_t<decltype(layer)>::KeyValue;
        if constexpr (detail::is_linear_map<KeyValue>) return detail::key_value_map(KeyValue(), layer.key_value);
        return KeyValueMap();
      });
      return std::pair((map.k_weight() - k).norm() / k.norm(), (map.v_weight() - v).norm() / v.norm());
    };
    const auto plain = convert_to(model, JointSvd{}, config);
    config.balance = true;
    const auto balanced = convert_to(model, JointSvd{}, config);
    const auto calibrated = convert_to(model, ActivationPca<double>{heard}, config, heard);
    const auto [of_keys, of_values] = errors(balanced);
    CHECK(of_values < 0.9 * errors(plain).second);
    CHECK(of_keys * of_keys + of_values * of_values ==
          Approx(tail(below(k / k.norm(), v / v.norm()), 20)).epsilon(1e-9));
    CHECK(balanced.report.predicted_error > plain.report.predicted_error);
    for (const LayerReport& layer : calibrated.report.layers)
      CHECK(layer.key_value_error == Approx(layer.predicted_error).epsilon(1e-6));
    Cpu<double> cpu(1);
    detail::with_layer(balanced.model.layers[1].self_attn, [&](const auto& to) {
      const auto& from = std::get<AttentionLayer<Gqa<dyn, dyn>, double>>(model.layers[1].self_attn.layer);
      const Matrix<double> identity = Matrix<double>::Identity(d_model, d_model);
      CHECK(key_value_deviation(cpu, to, from, identity).relative() ==
            Approx(balanced.report.layers[1].predicted_error).epsilon(1e-10));
    });
    config.kv_lora_rank = d_model;
    CHECK(difference(convert_to(model, JointSvd{}, config).model, model) < 1e-11);
  }
}

// Mistakes of public converters, made on purpose: what the tests above ask for would find each of them.
TEST_CASE("mistakes that were made elsewhere would be seen", "[convert]") {
  const Model model = full_model(8);
  with_methods(heard, [&](const auto& method, const char* name) {
    INFO(name);
    // A factor stored the wrong way round: at full rank it is square, so no shape tells.
    Model wrong = convert_to(model, method, lossless[0].config()).model;
    auto& latent = std::get<AttentionLayer<MlaSimple<dyn, dyn>, double>>(wrong.layers[0].self_attn.layer).key_value;
    latent.linear_kv_down.weight.host().transposeInPlace();
    CHECK(difference(wrong, model) > 1e-3);
    // The rank of the two-stage latent is not that of a head: all ranks work, and more is nearer.
    double last = 2;
    for (const Index rank : {5, 12, 13, 30, 48}) {
      const double error = convert_to(model, method, Wanted{Names::mla, rank}.config(), heard).report.predicted_error;
      CHECK(error < last);
      last = error;
    }
  });
  // Without the output's share of the values' bias, or without the terms of position, it is another function.
  const auto without = [&](std::string_view what) {
    Model wrong = convert_to(model, JointSvd{}, lossless[0].config()).model;
    const Model& right = model;
    std::map<std::string, Matrix<double>, std::less<>> before;
    right.parameters([&](std::string_view name, const auto& p) { before.emplace(name, p.host()); });
    wrong.parameters([&](std::string_view name, auto& p) {
      if (name.find(what) == std::string_view::npos || name.find("self_attn") == std::string_view::npos) return;
      if (name.ends_with("linear_out.bias"))
        p.host() = before.find(name)->second;
      else
        p.host().setZero();
    });
    return difference(wrong, model);
  };
  CHECK(without("nothing") < 1e-11);
  for (const std::string_view what : {"linear_out.bias", "linear_pos", "pos_bias_u", "pos_bias_v"})
    CHECK(without(what) > 1e-3);
  // The mean of a compressor for keys and one for values, with the best way up from it: at full rank, too, it loses
  // much.
  const Matrix<double>&k = keys_and_values(model, 0).linear_k.weight.host(),
        &v = keys_and_values(model, 0).linear_v.weight.host();
  const Matrix<double> nothing(0, d_model);
  for (const Index rank : {head_dim, d_model}) {
    const JointFactors of_k = JointSvd::factorize(k, nothing, rank), of_v = JointSvd::factorize(nothing, v, rank);
    const Matrix<double> mean = 0.5 * (of_k.down + of_v.down);
    const double error = (below(of_k.k_up, of_v.v_up) * mean - below(k, v)).norm() / below(k, v).norm();
    CHECK(error > 0.5);
    CHECK(error > JointSvd::factorize(k, v, rank).predicted_error);
  }
}

TEST_CASE("a report says how far outputs are from what they were in four ways", "[convert]") {
  Matrix<double> value(2, 2), expected(2, 2);
  value << 3, 0, 1, -1;
  expected << 1, 0, 2, -2;
  const Deviation d = deviation(value, expected);
  CHECK(d.relative() == Approx(std::sqrt(6.0 / 9)));
  CHECK(d.mean_squared() == Approx(6.0 / 4));
  CHECK(d.mean_absolute() == Approx(4.0 / 4));
  CHECK(d.cosine() == Approx(7 / std::sqrt(11.0 * 9)));
  CHECK((Deviation().mean_squared() == 0 && Deviation().mean_absolute() == 0 && Deviation().cosine() == 1));
  CHECK(deviation(Matrix<double>(2 * expected), expected).cosine() == Approx(1));
  Deviation twice = d;
  twice += d;
  CHECK((twice.mean_squared() == d.mean_squared() && twice.cosine() == Approx(d.cosine())));
  CHECK((twice.mean_absolute() == d.mean_absolute() && twice.count == 8));

  const Model model = full_model(9);
  const ConversionReport report = convert_to(model, JointSvd{}, lossy[1].config()).report;
  double squares = 0;
  for (const LayerReport& layer : report.layers) {
    CHECK(layer.output_mae > 0);
    CHECK(layer.output_mae < std::sqrt(layer.output_mse));
    CHECK((layer.output_cosine > 0.3 && layer.output_cosine < 1));
    squares += layer.output_mse / 2;
  }
  CHECK(report.output_mse == Approx(squares));
  const ConversionReport same = convert_to(model, JointSvd{}, Wanted{Names::mha, 0}.config()).report;
  CHECK((same.output_mse == 0 && same.output_mae == 0 && same.output_cosine == 1));
}

TEST_CASE("each layer gets the rank that was allocated, and loses what was expected", "[convert]") {
  Model model = full_model(10);
  auto& second = std::get<AttentionLayer<Gqa<dyn, dyn>, double>>(model.layers[1].self_attn.layer).key_value;
  second.linear_k.weight.host() = with_spectrum(d_model, d_model, 3, [](double i) { return std::exp(-0.2 * i); });
  double last = std::numeric_limits<double>::infinity();
  for (const RankAllocation how : {RankAllocation::uniform, RankAllocation::energy, RankAllocation::water_filling}) {
    INFO(to_name(how));
    const ActivationPca<double> method{heard, false};
    const auto spectra = key_value_spectra(model, method);
    REQUIRE((spectra.size() == 2 && spectra[1].size() == static_cast<std::size_t>(d_model)));
    const std::vector<Index> ranks = allocate_ranks(spectra, 20, 2, how);
    ConversionConfig config{.attention = Names::mla_simple};
    for (const Index rank : ranks) config.kv_lora_ranks.push_back(rank);
    const auto [small, report] = convert_to(model, method, config, heard);
    CHECK(report.layers[0].kv_lora_rank == ranks[0]);
    CHECK(report.layers[1].kv_lora_rank == ranks[1]);
    CHECK(Model::cache_bytes(small.config(), frames(1)) == 4 * (ranks[0] + ranks[1]));
    const double all = lost(spectra, {0, 0});
    CHECK(report.predicted_error == Approx(std::sqrt(lost(spectra, ranks) / all)).epsilon(1e-6));
    if (how == RankAllocation::water_filling) CHECK(ranks[0] != ranks[1]);
    if (how != RankAllocation::energy) {  // uniform first, water-filling last
      CHECK(report.key_value_error < last);
      last = report.key_value_error;
    }
    const auto back = convert_to(small, JointSvd{}, Wanted{Names::mha, 0}.config());
    CHECK((back.model.config().kv_lora_ranks.size() == 0 && difference(back.model, small) < 1e-11));
  }
  const auto& first = keys_and_values(model, 0);
  const auto of_weights = singular_values(below(first.linear_k.weight.host(), first.linear_v.weight.host()));
  CHECK(key_value_spectra(model)[0][3] == Approx(of_weights[3]));
  EncoderConfig decoupled = model.config();
  decoupled.attention = Names::mla_decoupled;
  decoupled.kv_lora_rank = 9;
  decoupled.qk_rope_head_dim = 4;
  CHECK_THROWS_WITH(key_value_spectra(Model(decoupled, Seed())),
                    "key_value_spectra: keys and values of layers.0.self_attn are no linear functions of its input");
}
