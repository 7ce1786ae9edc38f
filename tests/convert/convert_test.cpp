// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "catch.hpp"
#include "message_of.hpp"

#include <laconic/convert/convert.hpp>
#include <laconic/model/conformer.hpp>

#include <Eigen/QR>

#include <limits>

using namespace laconic;

namespace {

// 4 heads of 12 channels: no two sizes that could be mixed up are equal.
constexpr Index d_model = 48, heads = 4, head_dim = 12;
constexpr EncoderConfig config{.num_mels = 20,
                               .d_model = d_model,
                               .num_layers = 2,
                               .vocab_size = 7,
                               .ffn_expansion = 2,
                               .conv_kernel = 5,
                               .subsampling_channels = 3};

template <class Position = RelativePosition, class T = double>
using Full = Conformer<Mha<heads, Position>, T>;
template <class Position = RelativePosition>
using Latent = Conformer<Attention<Heads<heads, dyn>, SharedLatent<dyn>, Position>, double>;
using Grouped = Conformer<Gqa<heads, dyn>, double>;

constexpr ConversionConfig rank_of(Index rank) { return {.kv_lora_rank = rank}; }
constexpr ConversionConfig kv_heads_of(Index num_kv_heads) { return {.num_kv_heads = num_kv_heads}; }

/// A model in which every parameter matters, also those that start at zero or one.
template <class Model>
Model random_model(Seed seed, EncoderConfig numbers = config) {
  Model model(numbers, seed);
  model.parameters([&](std::string_view name, auto& p) {
    const Random random(seed / "all", name);
    for (Index i = 0; i < p.size(); ++i)
      p.host().data()[i] += static_cast<typename Model::Scalar>(0.3 * random.uniform(static_cast<std::uint64_t>(i)));
  });
  return model;
}

/// Three sequences of different lengths, one of which leaves a single row.
struct Speech {
  Sequences sequences{61, 7, 38};
  template <class T>
  Matrix<T> features() const {
    return white_noise<T>(sequences.rows(), config.num_mels, "speech");
  }
};

template <class Model>
auto logits(const Model& model) {
  Cpu<typename Model::Scalar> cpu;
  const Speech speech;
  const auto features = speech.features<typename Model::Scalar>();
  const Matrix<typename Model::Scalar> out = model(cpu, features, speech.sequences).rows.view();
  REQUIRE(out.rows() == 14 + 1 + 8);
  return out;
}

template <class A, class B>
double difference(const A& a, const B& b) {
  const auto x = logits(a), y = logits(b);
  return static_cast<double>((x - y).cwiseAbs().maxCoeff() / y.cwiseAbs().maxCoeff());
}

template <class Model>
Matrix<double> parameter(const Model& model, std::string_view wanted) {
  Matrix<double> out;
  model.parameters([&](std::string_view name, const auto& p) {
    if (name == wanted) out = p.host().template cast<double>();
  });
  INFO(wanted);
  REQUIRE(out.size() > 0);
  return out;
}

/// Bit for bit, in the same order.
template <class A, class B>
bool equal_parameters(const A& a, const B& b) {
  using Named = std::vector<std::pair<std::string, Matrix<double>>>;
  const auto list = [](const auto& model) {
    Named out;
    model.parameters([&](std::string_view name, const auto& p) { out.emplace_back(name, p.host()); });
    return out;
  };
  const Named x = list(a), y = list(b);
  return !x.empty() && std::equal(x.begin(), x.end(), y.begin(), y.end(), [](const auto& p, const auto& q) {
    return p.first == q.first && p.second.rows() == q.second.rows() && p.second == q.second;
  });
}

/// The errors of keys and values for inputs whose Gram matrix is the identity: what the prediction is about.
template <class Target, class Source>
std::vector<double> errors_on_identity(const Target& target, const Source& source) {
  Cpu<double> cpu;
  const Matrix<double> identity = Matrix<double>::Identity(d_model, d_model);
  std::vector<double> out;
  for (std::size_t i = 0; i < source.layers.size(); ++i)
    out.push_back(
        key_value_deviation(cpu, target.layers[i].self_attn, source.layers[i].self_attn, identity).relative());
  return out;
}

template <class Target, class Source>
void check_prediction(const Conversion<Target>& conversion, const Source& source, double least) {
  const auto measured = errors_on_identity(conversion.model, source);
  REQUIRE(measured.size() == conversion.report.layers.size());
  for (std::size_t i = 0; i < measured.size(); ++i) {
    const LayerReport& layer = conversion.report.layers[i];
    CHECK(layer.layer == text("layers.", i, ".self_attn"));
    CHECK(measured[i] > least);
    CHECK(std::abs(measured[i] - layer.predicted_error) < 1e-10);
    // White noise of 64 rows: if all the error is in one direction, one standard deviation is 1 / sqrt(2 * 64) = 9%.
    CHECK(layer.key_value_error == Approx(layer.predicted_error).epsilon(0.3));
  }
}

Matrix<double> random_orthogonal(Index size, std::string_view name) {
  const Eigen::MatrixXd noise = white_noise<double>(size, size, name);
  return Eigen::HouseholderQR<Eigen::MatrixXd>(noise).householderQ() * Eigen::MatrixXd::Identity(size, size);
}

double relative_error(const Matrix<double>& k, const Matrix<double>& v, const Matrix<double>& k_near,
                      const Matrix<double>& v_near) {
  return std::sqrt(((k - k_near).squaredNorm() + (v - v_near).squaredNorm()) / (k.squaredNorm() + v.squaredNorm()));
}

}  // namespace

TEST_CASE("deviations") {
  CHECK(Deviation().relative() == 0);
  Matrix<float> value(1, 2), expected(1, 2);
  value << 3, 4;
  expected << 3, 0;
  CHECK(deviation(value, expected).relative() == Approx(4.0 / 3));
  value << 3, std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(deviation(value, expected).relative()));  // never mistaken for equal
}

TEST_CASE("joint factors of a matrix whose singular values are known") {
  const Index d = 6, k_rows = 5, v_rows = 3;
  const std::vector<double> s{5, 4, 3, 1, 0.5, 0.25};
  Matrix<double> diagonal = Matrix<double>::Zero(k_rows + v_rows, d);
  for (Index i = 0; i < d; ++i) diagonal(i, i) = s[static_cast<std::size_t>(i)];
  const Matrix<double> w = random_orthogonal(k_rows + v_rows, "left") * diagonal * random_orthogonal(d, "right");
  const Matrix<double> k = w.topRows(k_rows), v = w.bottomRows(v_rows);

  double total = 0, tail = 0;
  for (const double value : s) total += value * value;
  for (Index rank = d; rank >= 1; --rank) {
    const JointFactors factors = JointSvd::factorize(k, v, rank);
    CHECK(factors.down.rows() == rank);
    CHECK(factors.down.cols() == d);
    CHECK(factors.k_up.rows() == k_rows);
    CHECK(factors.v_up.rows() == v_rows);
    REQUIRE(factors.singular_values.size() == s.size());
    for (std::size_t i = 0; i < s.size(); ++i) CHECK(factors.singular_values[i] == Approx(s[i]).epsilon(1e-12));
    CHECK((factors.down * factors.down.transpose() - Matrix<double>::Identity(rank, rank)).norm() < 1e-13);
    CHECK(factors.discarded == Approx(tail).margin(1e-12));
    CHECK(factors.predicted_error == Approx(std::sqrt(tail / total)).margin(1e-12));
    CHECK(std::abs(relative_error(k, v, factors.k_up * factors.down, factors.v_up * factors.down) -
                   std::sqrt(tail / total)) < 1e-12);
    tail += std::pow(s[static_cast<std::size_t>(rank) - 1], 2);
  }
}

TEST_CASE("no other latent of the same rank is nearer") {
  for (const char* name : {"a", "b", "c"}) {
    const Index d = 20, rank = 8;
    const Matrix<double> k = white_noise<double>(12, d, text(name, "k"));
    const Matrix<double> v = 2 * white_noise<double>(9, d, text(name, "v"));
    const double joint = JointSvd::factorize(k, v, rank).predicted_error;

    const Matrix<double> nothing(0, d);
    const JointFactors half_k = JointSvd::factorize(k, nothing, rank / 2);
    const JointFactors half_v = JointSvd::factorize(v, nothing, rank / 2);
    CHECK(joint < relative_error(k, v, half_k.k_up * half_k.down, half_v.k_up * half_v.down));

    // Any subspace, with the best way up from it; also the mean of two compressors, a mistake seen in public code.
    const auto error_of_subspace = [&](const Matrix<double>& down) {
      const Eigen::HouseholderQR<Eigen::MatrixXd> qr(down.transpose());
      const Eigen::MatrixXd q = qr.householderQ() * Eigen::MatrixXd::Identity(d, rank);
      return relative_error(k, v, k * q * q.transpose(), v * q * q.transpose());
    };
    CHECK(error_of_subspace(JointSvd::factorize(k, v, rank).down) == Approx(joint).epsilon(1e-12));
    CHECK(joint < error_of_subspace(white_noise<double>(rank, d, text(name, "any"))));
    CHECK(joint < error_of_subspace(
                      0.5 * (JointSvd::factorize(k, nothing, rank).down + JointSvd::factorize(v, nothing, rank).down)));
  }
}

TEST_CASE("factors beyond the rank of the weights") {
  const Matrix<double> k = white_noise<double>(2, 10, "few k"), v = white_noise<double>(3, 10, "few v");
  const JointFactors factors = JointSvd::factorize(k, v, 7);
  CHECK(relative_error(k, v, factors.k_up * factors.down, factors.v_up * factors.down) < 1e-14);
  CHECK(factors.predicted_error < 1e-14);
  CHECK(factors.down.rowwise().norm().minCoeff() == Approx(1));  // such channels can learn
  const Matrix<double> zero = Matrix<double>::Zero(3, 10);
  CHECK(JointSvd::factorize(zero, zero, 4).predicted_error == 0);
}

TEST_CASE("factorize refuses what it cannot factorize") {
  const Matrix<double> k = white_noise<double>(4, 10, "k");
  Matrix<double> v = k;
  CHECK(message_of([&] { JointSvd::factorize(k, v, 0); }) == "factorize: rank 0 given, expected 1 .. d_model = 10");
  CHECK(message_of([&] { JointSvd::factorize(k, v, 11); }) == "factorize: rank 11 given, expected 1 .. d_model = 10");
  CHECK(message_of([&] { JointSvd::factorize(k, Matrix<double>(Matrix<double>::Zero(4, 9)), 1); }) ==
        "factorize: keys of 10 and values of 9 inputs given, equal numbers expected");
  v(1, 2) = std::numeric_limits<double>::infinity();
  CHECK(message_of([&] { JointSvd::factorize(k, v, 2); }) ==
        "factorize: the key or value weights hold numbers that are not finite");
}

TEMPLATE_TEST_CASE("a latent of d_model numbers loses nothing", "", NoPosition, Sinusoidal, RelativePosition) {
  for (const Index seed : {1, 2, 3}) {
    const auto model = random_model<Full<TestType>>(Seed() / seed);
    const auto [small, report] = convert<Latent<TestType>>(model, JointSvd{}, rank_of(d_model));
    CHECK(difference(small, model) < 1e-12);
    CHECK(report.predicted_error == 0);
    CHECK(report.key_value_error < 1e-12);
    CHECK(report.output_error < 1e-12);
    CHECK(report.logits_error < 1e-12);
  }
}

TEST_CASE("a latent of d_model numbers in float") {
  const auto model = random_model<Full<RelativePosition, float>>(Seed(5));
  const auto [small, report] = convert<Conformer<MlaSimple<heads, d_model>>>(model);
  CHECK(difference(small, model) < 1e-4);
  CHECK(report.logits_error < 1e-4);
}

TEST_CASE("the error falls as the rank grows, and is what was predicted") {
  const auto model = random_model<Full<>>(Seed(7));
  double last = 2;
  for (const Index rank : {1, 2, 6, 12, 24, 36, 47}) {
    const auto conversion = convert<Latent<>>(model, JointSvd{}, rank_of(rank));
    INFO("rank " << rank);
    check_prediction(conversion, model, 1e-4);
    const ConversionReport& report = conversion.report;
    CHECK(report.predicted_error < last);
    CHECK(report.input == "white noise");
    CHECK(report.output_error > 1e-4);
    CHECK(report.logits_error > 1e-4);
    CHECK(report.logits_error < 2);
    for (const LayerReport& layer : report.layers) {
      CHECK(layer.kv_lora_rank == rank);
      CHECK(layer.num_kv_heads == heads);
    }
    last = report.predicted_error;
  }
}

TEST_CASE("what both models name is copied, and numbers end where they belong") {
  const auto model = random_model<Full<>>(Seed(8));
  const auto small = convert<Conformer<MlaSimple<heads, 12>, double>>(model).model;
  Index shared = 0;
  model.parameters([&](std::string_view name, const Parameter<double>& p) {
    if (name.find("linear_k") != name.npos || name.find("linear_v") != name.npos) return;
    INFO(name);
    const bool moved = name.ends_with("self_attn.linear_out.bias");  // it holds the biases of the values now
    CHECK((parameter(small, name) == p.host()) == !moved);
    ++shared;
  });
  CHECK(shared > 60);
  for (const char* name : {"linear_kv_down.bias", "linear_k_up.bias", "linear_v_up.bias"})
    CHECK(parameter(small, text("layers.1.self_attn.", name)).isZero(0));
  CHECK(parameter(small, "layers.0.self_attn.linear_kv_down.weight").rows() == 12);
  CHECK(parameter(small, "layers.0.self_attn.linear_v_up.weight").cols() == 12);

  CHECK(small.config().kv_lora_rank == 12);
  CHECK(small.config().num_heads == heads);
  CHECK(model.count_parameters() - small.count_parameters() ==
        2 * (2 * d_model * (d_model + 1) - 12 * (d_model + 1) - 2 * d_model * (12 + 1)));
  CHECK(small.count_parameters() == Conformer<MlaSimple<heads, 12>, double>(config, Seed(1)).count_parameters());
}

TEST_CASE("the report on features measures every layer on what it gets from them") {
  const auto model = random_model<Full<>>(Seed(9));
  const Speech speech;
  const auto features = speech.features<double>();
  const auto [small, report] = convert<Latent<>>(model, JointSvd{}, rank_of(12), features, speech.sequences);
  CHECK(report.input == "features");
  REQUIRE(report.layers.size() == 2);
  CHECK(report.logits_error == Approx((logits(small) - logits(model)).norm() / logits(model).norm()).epsilon(1e-12));

  // Layer 0 by hand.
  Cpu<double> cpu;
  const auto [embedded, sequences] = model.subsampling(cpu, cpu.input(features), speech.sequences);
  const auto& block = model.layers[0];
  const auto x = cpu.add(embedded, block.ffn1(cpu, block.ffn1_layer_norm(cpu, embedded)), 0.5);
  const Matrix<double> input = block.self_attn_layer_norm(cpu, x).view();
  const auto keys_and_values = [&](const auto& layer) {
    const auto kv = layer.key_value.expand(cpu, layer.key_value.remember(cpu, cpu.input(input), cpu.input(input)));
    return std::pair<Matrix<double>, Matrix<double>>(kv.k.view(), kv.v.view());
  };
  auto [k, v] = keys_and_values(block.self_attn);
  k.rowwise() -= parameter(model, "layers.0.self_attn.linear_k.bias").row(0);
  v.rowwise() -= parameter(model, "layers.0.self_attn.linear_v.bias").row(0);
  const auto [k_near, v_near] = keys_and_values(small.layers[0].self_attn);
  CHECK(report.layers[0].key_value_error == Approx(relative_error(k, v, k_near, v_near)).epsilon(1e-12));

  Pass<Tensor<double>> pass{sequences};
  pass.table = block.self_attn.table(cpu, pass);
  const Matrix<double> out = block.self_attn(cpu, cpu.input(input), pass).view();
  const Matrix<double> near = small.layers[0].self_attn(cpu, cpu.input(input), pass).view();
  CHECK(report.layers[0].output_error == Approx((near - out).norm() / out.norm()).epsilon(1e-12));
  CHECK(report.layers[0].output_error > 1e-3);

  // Together: by their energies, so between the two.
  const auto [least, most] = std::minmax(report.layers[0].key_value_error, report.layers[1].key_value_error);
  CHECK(report.key_value_error > least);
  CHECK(report.key_value_error < most);
}

TEST_CASE("as many key-value heads as before change nothing") {
  const auto model = random_model<Full<>>(Seed(10));
  const auto [same, report] = convert<Grouped>(model, JointSvd{}, kv_heads_of(heads));
  CHECK(equal_parameters(same, model));
  CHECK(report.logits_error == 0);
  CHECK(equal_parameters(convert<Grouped>(model).model, model));  // 0: one for every head
}

TEST_CASE("fewer key-value heads are means") {
  const auto model = random_model<Full<>>(Seed(11));
  const auto conversion = convert<Grouped>(model, JointSvd{}, kv_heads_of(2));
  const Grouped& grouped = conversion.model;
  CHECK(grouped.config().num_kv_heads == 2);
  for (const char* name : {"layers.1.self_attn.linear_k.weight", "layers.1.self_attn.linear_v.weight"}) {
    const Matrix<double> before = parameter(model, name), after = parameter(grouped, name);
    REQUIRE(after.rows() == 2 * head_dim);
    REQUIRE(after.cols() == d_model);
    for (const Index g : {0, 1})
      CHECK((after.middleRows(g * head_dim, head_dim) -
             (before.middleRows(2 * g * head_dim, head_dim) + before.middleRows((2 * g + 1) * head_dim, head_dim)) / 2)
                .norm() < 1e-14);
  }
  CHECK((parameter(grouped, "layers.1.self_attn.linear_k.bias").leftCols(head_dim) -
         (parameter(model, "layers.1.self_attn.linear_k.bias").leftCols(head_dim) +
          parameter(model, "layers.1.self_attn.linear_k.bias").middleCols(head_dim, head_dim)) /
             2)
            .norm() < 1e-14);
  check_prediction(conversion, model, 1e-2);
  check_prediction(convert<Grouped>(model, JointSvd{}, kv_heads_of(1)), model, 1e-2);
}

TEST_CASE("heads whose weights are equal are merged without loss, whatever their biases") {
  auto model = random_model<Full<>>(Seed(12));
  for (auto& layer : model.layers)
    for (auto* linear : {&layer.self_attn.key_value.linear_k, &layer.self_attn.key_value.linear_v})
      for (const Index h : {1, 3})
        linear->weight.host().middleRows(h * head_dim, head_dim) =
            linear->weight.host().middleRows((h - 1) * head_dim, head_dim).eval();
  const auto [grouped, report] = convert<Grouped>(model, JointSvd{}, kv_heads_of(2));
  CHECK(report.predicted_error < 1e-15);
  CHECK(difference(grouped, model) < 1e-12);
  CHECK(convert<Grouped>(model, JointSvd{}, kv_heads_of(1)).report.logits_error > 1e-3);

  // The other way, and to latents that hold all of both key-value heads.
  const auto full = convert<Full<>>(grouped);
  CHECK(difference(full.model, grouped) < 1e-12);
  CHECK(full.report.logits_error < 1e-12);
  const auto ungrouped = convert<Latent<>>(grouped, JointSvd{}, rank_of(d_model));
  CHECK(difference(ungrouped.model, grouped) < 1e-12);
  const auto latent = convert<Latent<>>(grouped, JointSvd{}, {.num_kv_heads = 2, .kv_lora_rank = d_model});
  CHECK(difference(latent.model, grouped) < 1e-12);
  CHECK(latent.model.config().num_kv_heads == 2);
}

TEST_CASE("a latent of all grouped keys and values together is exact") {
  const auto grouped = random_model<Conformer<Mqa<heads>, double>>(Seed(13));
  for (const Index num_kv_heads : {1, 4}) {
    const auto exact = convert<Latent<>>(grouped, JointSvd{}, {num_kv_heads, 2 * head_dim});
    CHECK(difference(exact.model, grouped) < 1e-12);
    CHECK(exact.report.predicted_error < 1e-14);
    check_prediction(convert<Latent<>>(grouped, JointSvd{}, {num_kv_heads, 2 * head_dim - 4}), grouped, 1e-2);
  }
}

TEST_CASE("means and latents at once are predicted too") {
  const auto model = random_model<Full<>>(Seed(14));
  for (const Index rank : {6, 24}) {
    const auto conversion = convert<Latent<>>(model, JointSvd{}, {.num_kv_heads = 2, .kv_lora_rank = rank});
    check_prediction(conversion, model, 1e-2);
    CHECK(conversion.report.layers[0].num_kv_heads == 2);
  }
}

TEST_CASE("latents keep their rank or change it") {
  const auto model = random_model<Latent<>>(Seed(15), [] {
    EncoderConfig numbers = config;
    numbers.kv_lora_rank = 24;
    return numbers;
  }());
  const auto fixed = convert<Conformer<MlaSimple<heads, 24>, double>>(model);
  CHECK(equal_parameters(fixed.model, model));
  CHECK(fixed.report.predicted_error == 0);
  CHECK(fixed.report.logits_error == 0);
  CHECK(equal_parameters(convert<Latent<>>(fixed.model, JointSvd{}, rank_of(24)).model, model));

  const auto more = convert<Latent<>>(model, JointSvd{}, rank_of(30));
  CHECK(difference(more.model, model) < 1e-12);
  check_prediction(convert<Latent<>>(model, JointSvd{}, rank_of(12)), model, 1e-2);
  // By way of another rank is as good as at once, from full rank: truncations nest.
  const auto full = random_model<Full<>>(Seed(16));
  const auto at_once = convert<Latent<>>(full, JointSvd{}, rank_of(10));
  const auto between = convert<Latent<>>(full, JointSvd{}, rank_of(20));
  const auto in_steps = convert<Latent<>>(between.model, JointSvd{}, rank_of(10));
  CHECK(difference(in_steps.model, at_once.model) < 1e-10);
}

TEST_CASE("convert refuses numbers that do not fit") {
  const auto model = random_model<Full<>>(Seed(17));
  const auto refused = [&](ConversionConfig numbers) {
    return message_of([&] { convert<Latent<>>(model, JointSvd{}, numbers); });
  };
  CHECK(refused(rank_of(49)) ==
        "kv_lora_rank: 49 given, at most d_model = 48 expected (a larger latent holds nothing more)");
  CHECK(refused({}) == "kv_lora_rank: the type says `dyn`, so the configuration must say it: 0 given");
  CHECK(refused({3, 12}) == "num_kv_heads: 3 key-value heads given, a divisor of num_heads = 4 expected");
  CHECK(message_of([&] { convert<Grouped>(model, JointSvd{}, rank_of(12)); }) ==
        "kv_lora_rank: 12 configured for an attention that has none");
  CHECK(message_of([&] { convert<Conformer<MlaSimple<heads, 12>, double>>(model, JointSvd{}, rank_of(13)); }) ==
        "kv_lora_rank: 13 configured, but the type says 12");
  CHECK(message_of([&] {
          const Matrix<double> little = Matrix<double>::Ones(6, config.num_mels);
          convert<Latent<>>(model, JointSvd{}, rank_of(12), little, Sequences{6});
        }) == "convert: 6 rows of features given in 1 sequences, of which the subsampling leaves none");

  auto broken = random_model<Full<>>(Seed(17));
  broken.layers[1].self_attn.key_value.linear_v.weight.host()(5, 6) = std::numeric_limits<double>::quiet_NaN();
  const std::string message = "convert: keys or values of layers.1.self_attn have weights that are not finite";
  CHECK(message_of([&] { convert<Latent<>>(broken, JointSvd{}, rank_of(12)); }) == message);
  CHECK(message_of([&] { convert<Grouped>(broken, JointSvd{}, kv_heads_of(2)); }) == message);
}
