// laconic: attention for speech models. SPDX-License-Identifier: MIT
// The optimiser against its algorithm written out in plain loops, the learning rates, and freezing by name.
#include <laconic/recognition/trainer.hpp>

#include "catch.hpp"

#include <limits>

using namespace laconic;

namespace {

/// One parameter of each kind.
template <class T>
struct Small : Module<Small<T>> {
  Parameter<T> weight{{7, 5}}, kernel{{3, 1, 4}}, bias{{6}}, statistic{{4}, Role::statistic}, frozen{{2, 3}};

  Small() {
    std::uint64_t stream = 0;
    this->parameters([&](std::string_view, Parameter<T>& p) { fill_uniform(p, 1, Random(Seed(5), stream++)); });
    frozen.trainable = false;
  }
  static void each_parameter(auto& self, auto&& visit) {
    visit("encoder.weight", self.weight);
    visit("encoder.kernel", self.kernel);
    visit("bias", self.bias);
    visit("statistic", self.statistic);
    visit("frozen", self.frozen);
  }
};

template <class T>
double number(Index i, int step) {
  return static_cast<double>(
      static_cast<T>(std::sin(0.7 * static_cast<double>(i) + 1.3 * step) * (step == 2 ? 0.01 : 1)));
}

/// AdamW as in algorithm 2 of Loshchilov and Hutter (2019), a number at a time.
struct Reference {
  AdamWConfig config;
  std::vector<double> value, first, second;
  std::vector<bool> decays;
  int steps = 0;

  void step(const std::vector<double>& gradient, double rate) {
    double square = 0;
    for (const double g : gradient) square += g * g;
    const double norm = std::sqrt(square);
    const double clip = config.clip_norm > 0 && norm > config.clip_norm ? config.clip_norm / norm : 1.0;
    ++steps;
    for (std::size_t i = 0; i < value.size(); ++i) {
      const double g = gradient[i] * clip;
      first[i] = config.beta1 * first[i] + (1 - config.beta1) * g;
      second[i] = config.beta2 * second[i] + (1 - config.beta2) * g * g;
      const double m = first[i] / (1 - std::pow(config.beta1, steps)),
                   v = second[i] / (1 - std::pow(config.beta2, steps));
      value[i] =
          value[i] - rate * m / (std::sqrt(v) + config.eps) - (decays[i] ? rate * config.weight_decay * value[i] : 0);
    }
  }
};

template <class T>
std::vector<double> trained(const Small<T>& model) {
  std::vector<double> out;
  for (const auto* p : {&model.weight, &model.kernel, &model.bias})
    for (Index i = 0; i < p->size(); ++i) out.push_back(static_cast<double>(p->host().data()[i]));
  return out;
}

std::vector<double> all_numbers(const Small<double>& model) {
  std::vector<double> out;
  model.parameters([&](std::string_view, const Parameter<double>& p) {
    out.insert(out.end(), p.host().data(), p.host().data() + p.size());
  });
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("AdamW does what its algorithm says", "[train]", float, double) {
  using T = TestType;
  for (const double clip_norm : {0.0, 2.0}) {
    const AdamWConfig config{.beta1 = 0.8, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip_norm = clip_norm};
    Small<T> model;
    Cpu<T> cpu(2);
    AdamW optimizer(cpu, config);
    Reference reference{config, trained(model), {}, {}, {}};
    reference.first.assign(reference.value.size(), 0);
    reference.second = reference.first;
    for (std::size_t i = 0; i < reference.value.size(); ++i) reference.decays.push_back(i < 35 + 12);  // not the bias
    const Matrix<T> frozen = model.frozen.host(), statistic = model.statistic.host();
    for (int step = 1; step <= 6; ++step) {
      std::vector<double> gradient;
      for (auto* p : {&model.weight, &model.kernel, &model.bias})
        for (Index i = 0; i < p->size(); ++i) {
          gradient.push_back(number<T>(static_cast<Index>(gradient.size()), step));
          p->gradient().data()[i] = static_cast<T>(gradient.back());
        }
      double square = 0;
      for (const double g : gradient) square += g * g;
      model.statistic.gradient().setConstant(T(0.5));
      const double rate = 0.01 * step;
      CHECK(optimizer.step(model, rate) == Approx(std::sqrt(square)).epsilon(1e-5));  // before clipping
      reference.step(gradient, rate);
      const auto got = trained(model);
      double worst = 0;
      for (std::size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - reference.value[i]));
      CHECK(worst < (sizeof(T) == 8 ? 1e-13 : 2e-6));
      CHECK(optimizer.state().steps == step);
      // A statistic gets its update as it is: neither clipped, nor scaled by the rate, nor decayed.
      CHECK((model.statistic.host() - statistic).isConstant(T(0.5) * static_cast<T>(step), T(1e-5)));
      model.parameters([&](std::string_view name, const Parameter<T>& p) {
        INFO(name);
        CHECK((!p.has_gradient() || (p.gradient().array() == 0).all()));
      });
    }
    CHECK(model.frozen.host() == frozen);
  }
}

TEST_CASE("A gradient that is not finite changes nothing", "[train]") {
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Small<double> model;
    Cpu<double> cpu(1);
    AdamW optimizer(cpu);
    const auto give_gradients = [&] {
      model.parameters([](std::string_view, const Parameter<double>& p) {
        if (p.trainable) p.gradient().setConstant(0.25);
      });
    };
    give_gradients();
    optimizer.step(model, 0.1);
    const auto before = all_numbers(model);
    const Matrix<double> first = optimizer.state().moments[0].first, second = optimizer.state().moments[0].second;

    give_gradients();
    model.kernel.gradient()(1, 2) = bad;
    CHECK_FALSE(std::isfinite(optimizer.step(model, 0.1)));
    CHECK(all_numbers(model) == before);  // the statistics, too
    CHECK(optimizer.state().steps == 1);
    CHECK(optimizer.state().moments[0].first == first);
    CHECK(optimizer.state().moments[0].second == second);
    model.parameters([](std::string_view, const Parameter<double>& p) {
      CHECK((!p.has_gradient() || (p.gradient().array() == 0).all()));
    });

    // The next step is as if the bad one had not been.
    Small<double> other;
    AdamW unbroken(cpu);
    for (int step = 0; step < 2; ++step) {
      other.parameters([](std::string_view, const Parameter<double>& p) {
        if (p.trainable) p.gradient().setConstant(0.25);
      });
      unbroken.step(other, 0.1);
    }
    give_gradients();
    CHECK(std::isfinite(optimizer.step(model, 0.1)));
    CHECK(all_numbers(model) == all_numbers(other));
  }
}

TEST_CASE("AdamW refuses numbers that make no sense", "[adamw]") {
  Cpu<float> any(1);
  CHECK_THROWS_WITH(AdamW(any, {.beta1 = 1}), "adamw: beta1 1 and beta2 0.98 given, expected from 0 to less than 1");
  CHECK_THROWS_WITH(AdamW(any, {.beta2 = -0.5}),
                    "adamw: beta1 0.9 and beta2 -0.5 given, expected from 0 to less than 1");
  CHECK_THROWS_WITH(AdamW(any, {.eps = 0}), "adamw: eps 0 given, a positive number expected");
  CHECK_THROWS_WITH(AdamW(any, {.weight_decay = -1}), "adamw: weight_decay -1 given, at least 0 expected");
  CHECK_THROWS_WITH(AdamW(any, {.clip_norm = std::numeric_limits<double>::quiet_NaN()}),
                    "adamw: clip_norm nan given, at least 0 expected");

  Linear<float> model(2, 3, Seed(1));
  AdamW optimizer(any);
  CHECK_THROWS_WITH(optimizer.step(model, std::numeric_limits<double>::quiet_NaN()),
                    "adamw: learning_rate nan given, a finite number expected");
  CHECK_THROWS_WITH(optimizer.step(model, std::numeric_limits<double>::infinity()),
                    "adamw: learning_rate inf given, a finite number expected");
}

TEST_CASE("A frozen parameter's gradient counts for nothing", "[train]") {
  Small<double> model;
  const Matrix<double> frozen = model.frozen.host();
  model.frozen.gradient().setConstant(1e6);
  model.bias.gradient().setConstant(1);
  Cpu<double> cpu(1);
  AdamW optimizer(cpu);
  CHECK(optimizer.step(model, 0.1) == Approx(std::sqrt(6.0)));
  CHECK(model.frozen.host() == frozen);

  // Frozen statistics stay, too.
  model.statistic.trainable = false;
  const Matrix<double> statistic = model.statistic.host();
  model.statistic.gradient().setConstant(1);
  optimizer.step(model, 0.1);
  CHECK(model.statistic.host() == statistic);
}

TEST_CASE("The learning rate warms up and falls", "[train]") {
  const Schedule cosine{.peak = 2e-3, .warmup_steps = 10, .decay = Decay::cosine, .total_steps = 110};
  CHECK(cosine(1) == Approx(2e-4));
  CHECK(cosine(5) == Approx(1e-3));
  CHECK(cosine(10) == Approx(2e-3));
  CHECK(cosine(60) == Approx(2e-3 * (0.01 + 0.99 / 2)));  // halfway
  CHECK(cosine(35) == Approx(2e-3 * (0.01 + 0.99 * (1 + std::sqrt(0.5)) / 2)));
  CHECK(cosine(110) == Approx(2e-5));
  CHECK(cosine(500) == Approx(2e-5));
  for (std::int64_t step = 10; step < 110; ++step) CHECK(cosine(step + 1) < cosine(step));

  const Schedule noam{.peak = 2e-3, .warmup_steps = 16, .decay = Decay::noam, .total_steps = 20};
  CHECK(noam(8) == Approx(1e-3));
  CHECK(noam(16) == Approx(2e-3));
  CHECK(noam(64) == Approx(1e-3));
  CHECK(noam(1600) == Approx(2e-4));

  const Schedule cold{.peak = 1, .warmup_steps = 0, .decay = Decay::cosine, .total_steps = 1};
  CHECK(cold(1) == 1);
  const Schedule cold_long{.peak = 1, .warmup_steps = 0, .decay = Decay::cosine, .total_steps = 1000};
  CHECK(cold_long(1) == 1);
  CHECK(cold_long(1000) == Approx(0.01).margin(1e-4));
  const Schedule cold_noam{.peak = 1, .warmup_steps = 0, .decay = Decay::noam, .total_steps = 1};
  CHECK(cold_noam(1) == 1);
  const Schedule only_warm{.peak = 1, .warmup_steps = 4, .decay = Decay::cosine, .total_steps = 4};
  CHECK(only_warm(4) == 1);
}

TEST_CASE("Parameters are frozen by name", "[train]") {
  Small<float> model;
  const std::vector<std::string> encoder{"encoder.", "stat"};
  freeze(model, std::span(encoder));
  CHECK_FALSE(model.weight.trainable);
  CHECK_FALSE(model.kernel.trainable);
  CHECK_FALSE(model.statistic.trainable);
  CHECK(model.bias.trainable);
  CHECK(model.frozen.trainable);  // all others are freed

  const std::vector<std::string> wrong{"bias", "decoder"};
  CHECK_THROWS_WITH(freeze(model, std::span(wrong)), "freeze: no parameter's name contains \"decoder\"");
}
