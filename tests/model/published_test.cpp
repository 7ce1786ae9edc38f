// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Published models by name: their sizes while compiling, and the small ones built.
#include <laconic/attention/any.hpp>
#include <laconic/backend/cpu.hpp>
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/published.hpp>

#include "catch.hpp"

#include <set>

using namespace laconic;

namespace {

template <class F>
constexpr auto with_model(const PublishedModel& model, F&& f) {
  if (model.encoder == EncoderName::branchformer) return f(std::type_identity<Branchformer<AnyAttention>>());
  return f(std::type_identity<Conformer<AnyAttention>>());
}
constexpr Index parameters(std::string_view name) {
  const PublishedModel& model = published_model(name);
  return with_model(model, [&]<class M>(std::type_identity<M>) { return M::parameter_count(model.config); });
}

// -- Trained numbers, as the shapes of the layers of a PyTorch model give them ----------------------------------------

static_assert(parameters("conformer_mha") == 634'837'024);
static_assert(parameters("conformer_mla") == 663'222'304);
static_assert(parameters("conformer_gqa") == 590'753'824);
static_assert(parameters("conformer_linear") == 609'622'048);
static_assert(parameters("branchformer_mha") == 83'985'440);
static_assert(parameters("branchformer_mla") == 89'911'328);
static_assert(parameters("branchformer_gqa") == 76'893'728);
static_assert(parameters("branchformer_linear") == 79'248'416);
static_assert(parameters("conformer_mha_small") == 1'645'824);
static_assert(parameters("conformer_mla_small") == 1'630'720);
static_assert(parameters("conformer_gqa_small") == 1'546'752);
static_assert(parameters("conformer_linear_small") == 1'579'264);
static_assert(parameters("branchformer_mha_small") == 1'137'408);
static_assert(parameters("branchformer_mla_small") == 1'122'304);
static_assert(parameters("branchformer_gqa_small") == 1'038'336);
static_assert(parameters("branchformer_linear_small") == 1'070'848);

// -- Key-value cache of 1000 frames in single precision, MiB, as published (speech_mha2mla) ---------------------------

constexpr double cache_mib(std::string_view name, Index count = 1000) {
  const PublishedModel& model = published_model(name);
  const Index bytes =
      with_model(model, [&]<class M>(std::type_identity<M>) { return M::cache_bytes(model.config, frames(count)); });
  return static_cast<double>(bytes) / (1024 * 1024);
}
static_assert(cache_mib("conformer_mha") == 187.5);
static_assert(cache_mib("conformer_mla") == 93.75);
static_assert(cache_mib("conformer_gqa") == 23.4375);
static_assert(cache_mib("branchformer_mha") == 70.3125);
static_assert(cache_mib("branchformer_mla") == 35.15625);
static_assert(cache_mib("branchformer_gqa") == 17.578125);
// A state: a matrix and a sum for each head.
static_assert(cache_mib("conformer_linear", 1) == cache_mib("conformer_linear", 1000));
static_assert(cache_mib("conformer_linear") == 24 * 16 * 64 * 65 * 4 / (1024.0 * 1024));
static_assert(cache_mib("conformer_mla_small") == cache_mib("conformer_mha_small") / 4);

}  // namespace

TEST_CASE("published models are found by their names", "[published]") {
  std::set<std::string_view> names;
  for (const PublishedModel& model : published_models) {
    CHECK(&published_model(model.name) == &model);
    CHECK(model.config.conv_kernel == (model.name.ends_with("_small") ? 15 : 31));
    std::string name(to_name(model.encoder));
    name += '_';
    name += to_name(model.config.attention);
    CHECK(model.name.substr(0, name.size()) == name);
    names.insert(model.name);
  }
  CHECK(names.size() == 16);
  for (const char* wrong : {"conformer", "conformer_mha_smal", "", "Conformer_mha"}) {
    std::string message = "no error";
    try {
      published_model(wrong);
    } catch (const Error& e) {
      message = e.what();
    }
    CHECK(message ==
          text("published model: \"", wrong,
               "\" given, one of conformer_mha, conformer_mla, conformer_gqa, conformer_linear, branchformer_mha, "
               "branchformer_mla, "
               "branchformer_gqa, branchformer_linear, conformer_mha_small, conformer_mla_small, conformer_gqa_small, "
               "conformer_linear_small, branchformer_mha_small, branchformer_mla_small, branchformer_gqa_small, "
               "branchformer_linear_small "
               "expected"));
  }
}

TEST_CASE("the small ones run, and hold as many numbers as was computed", "[published]") {
  Cpu cpu(1);
  for (const PublishedModel& published : published_models) {
    if (!published.name.ends_with("_small")) continue;
    INFO(published.name);
    with_model(published, [&]<class M>(std::type_identity<M>) {
      const M model(published.config, Seed(1));
      CHECK(model.count_parameters() == M::parameter_count(published.config));
      CHECK(model.config().num_heads == 8);
      const Matrix<float> features = Matrix<float>::Random(67, published.config.num_mels);
      const auto logits = model(cpu, features, Sequences{40, 27});
      CHECK(logits.rows.rows() == 9 + 6);
      CHECK(logits.rows.cols() == 32);
      CHECK(logits.rows.view().allFinite());
      return true;
    });
  }
}
