// laconic: attention for speech models. SPDX-License-Identifier: MIT
// What an attention costs is known while compiling.
#include <laconic/model/conformer.hpp>

#include "catch.hpp"

using namespace laconic;

namespace {

// -- Key-value cache of 1000 frames in single precision, MiB, as published --------------------------------------------

constexpr double mib(Index bytes) { return static_cast<double>(bytes) / (1024 * 1024); }

constexpr EncoderConfig conformer{.d_model = 1024, .num_layers = 24};
static_assert(mib(Conformer<Mha<16>>::cache_bytes(conformer, frames(1000))) == 187.5);
static_assert(mib(Conformer<MlaSimple<16, 1024>>::cache_bytes(conformer, frames(1000))) == 93.75);
static_assert(mib(Conformer<Gqa<16, 2>>::cache_bytes(conformer, frames(1000))) == 23.4375);

constexpr AttentionConfig branchformer{.d_model = 512};  // 18 layers
static_assert(mib(18 * Mha<8>::cache_bytes(branchformer, frames(1000))) == 70.3125);
static_assert(mib(18 * MlaSimple<8, 512>::cache_bytes(branchformer, frames(1000))) == 35.15625);
static_assert(mib(18 * Gqa<8, 2>::cache_bytes(branchformer, frames(1000))) == 17.578125);

// The same in half precision.
static_assert(2 * Mha<8>::cache_bytes(branchformer, frames(1000), Storage::bf16) ==
              Mha<8>::cache_bytes(branchformer, frames(1000)));

// -- A small model ----------------------------------------------------------------------------------------------------

using Full = Conformer<Mha<8>>;
using Small = Conformer<MlaSimple<8, 64>>;
constexpr EncoderConfig config{.num_mels = 80, .d_model = 256, .num_layers = 12, .vocab_size = 29};
static_assert(8 * Small::cache_bytes(config, frames(1000)) == Full::cache_bytes(config, frames(1000)));

// -- Parameters of one layer, d = 512, 8 heads, R = 256 ---------------------------------------------------------------

static_assert(Mha<8, NoPosition>::parameter_count(branchformer) == 1'050'624);
static_assert(Gqa<8, 2, NoPosition>::parameter_count(branchformer) == 656'640);
static_assert(MlaSimple<8, 256, NoPosition>::parameter_count(branchformer) == 919'808);
static_assert(Mqa<8, NoPosition>::parameter_count(branchformer) ==
              Gqa<8, 1, NoPosition>::parameter_count(branchformer));
static_assert(Mha<8, Sinusoidal>::parameter_count(branchformer) == 1'050'624);
static_assert(Mha<8>::parameter_count(branchformer) == 1'050'624 + 512 * 512 + 2 * 512);

// -- Operations of one layer, d = 8, 2 heads, 3 frames: 2 for each multiply-add ---------------------------------------

constexpr AttentionConfig eight{.d_model = 8};
constexpr Index out_and_query = 2 * 3 * 2 * 8 * 8, scores_and_values = 2 * 2 * (3 * 3 * 4) * 2;
static_assert(Mha<2, NoPosition>::flops(eight, frames(3)) == out_and_query + 3 * 2 * (2 * 8 * 8) + scores_and_values);
static_assert(Mqa<2, NoPosition>::flops(eight, frames(3)) == out_and_query + 3 * 2 * (2 * 8 * 4) + scores_and_values);
static_assert(MlaSimple<2, 5, NoPosition>::flops(eight, frames(3)) ==
              out_and_query + 3 * 2 * (8 * 5 + 5 * 8 + 5 * 8) + scores_and_values);
// The table of 5 distances is projected, and each query meets each of them.
static_assert(Mha<2>::flops(eight, frames(3)) - Mha<2, NoPosition>::flops(eight, frames(3)) ==
              2 * 5 * 8 * 8 + 2 * (3 * 5 * 8));
static_assert(Mha<2, Sinusoidal>::flops(eight, frames(3)) == Mha<2, NoPosition>::flops(eight, frames(3)));

// -- Numbers in the type or in the configuration ----------------------------------------------------------------------

template <class A, class B>
constexpr bool same_costs(const AttentionConfig& a, const AttentionConfig& b) {
  return A::cache_bytes(a, frames(77)) == B::cache_bytes(b, frames(77)) &&
         A::parameter_count(a) == B::parameter_count(b) && A::flops(a, frames(77)) == B::flops(b, frames(77));
}
static_assert(same_costs<Mha<8>, Mha<dyn>>({512}, {512, 8}));
static_assert(same_costs<Mha<8>, Mha<8>>({512}, {512, 8, 8}));
static_assert(same_costs<Gqa<8, 2>, Gqa<dyn, dyn>>({512}, {512, 8, 2}));
static_assert(same_costs<Gqa<8, 2>, Gqa<8, dyn>>({512}, {512, 0, 2}));
static_assert(same_costs<Mqa<8>, Mqa<dyn>>({512}, {512, 8}));
static_assert(same_costs<MlaSimple<8, 64>, MlaSimple<dyn, dyn>>({512}, {512, 8, 0, 64}));
static_assert(same_costs<MlaSimple<8, 64>, MlaSimple<8, 64>>({512}, {512, 8, 8, 64}));

template <class Policy>
void check_count(const EncoderConfig& c) {
  const Conformer<Policy> model(c, Seed(1));
  CHECK(model.layers[0].self_attn.count_parameters() == Policy::parameter_count(c.attention_config()));
  CHECK(model.count_parameters() == Conformer<Policy>::parameter_count(c));
  CHECK(model.layers[1].self_attn.dims().kv_lora_rank == model.config().kv_lora_rank);
}

template <class Policy>
std::string dims_error(const AttentionConfig& c) {
  try {
    Policy::dims(c);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("a layer holds as many numbers as its type says", "[cost]") {
  const EncoderConfig typed{.num_mels = 20, .d_model = 24, .num_layers = 2, .vocab_size = 5, .conv_kernel = 3};
  EncoderConfig open = typed;
  open.num_heads = 4;
  open.num_kv_heads = 2;
  check_count<Mha<4>>(typed);
  check_count<Mha<4, NoPosition>>(typed);
  check_count<Mha<4, Sinusoidal>>(typed);
  check_count<Gqa<4, 2>>(typed);
  check_count<Gqa<dyn, dyn, NoPosition>>(open);
  check_count<Mqa<4>>(typed);
  check_count<Mqa<6, NoPosition>>(typed);
  check_count<MlaSimple<4, 7>>(typed);
  check_count<MlaSimple<4, 24, NoPosition>>(typed);
  open.kv_lora_rank = 3;
  open.subsampling = 2;
  open.subsampling_channels = 5;
  open.ffn_expansion = 3;
  check_count<MlaSimple<dyn, dyn>>(open);
}

TEST_CASE("type and configuration that contradict each other are refused", "[cost]") {
  CHECK(dims_error<Mha<8>>({512}) == "no error");
  CHECK(dims_error<Mha<8>>({512, 4}) == "num_heads: 4 configured, but the type says 8");
  CHECK(dims_error<Mha<dyn>>({512}) == "num_heads: the type says `dyn`, so the configuration must say it: 0 given");
  CHECK(dims_error<Mha<dyn>>({512, -2}) ==
        "num_heads: the type says `dyn`, so the configuration must say it: -2 given");
  CHECK(dims_error<Mha<8>>({513}) == "num_heads: 8 heads given, a divisor of d_model = 513 expected");
  CHECK(dims_error<Mha<8>>({}) == "num_heads: 8 heads given, a divisor of d_model = 0 expected");
  CHECK(dims_error<Mha<8>>({-8}) == "num_heads: 8 heads given, a divisor of d_model = -8 expected");
  CHECK(dims_error<Gqa<8, dyn>>({512, 0, 3}) ==
        "num_kv_heads: 3 key-value heads given, a divisor of num_heads = 8 expected");
  CHECK(dims_error<Gqa<8, 2>>({512, 0, 4}) == "num_kv_heads: 4 configured, but the type says 2");
  CHECK(dims_error<Gqa<8, dyn>>({512, 0, -1}) ==
        "num_kv_heads: the type says `dyn`, so the configuration must say it: -1 given");
  CHECK(dims_error<Mha<8>>({512, 0, 0, 64}) == "kv_lora_rank: 64 configured for an attention that has none");
  CHECK(dims_error<MlaSimple<8, 64>>({512, 0, 0, 32}) == "kv_lora_rank: 32 configured, but the type says 64");
  CHECK(dims_error<MlaSimple<8, dyn>>({512}) ==
        "kv_lora_rank: the type says `dyn`, so the configuration must say it: 0 given");
  CHECK(dims_error<MlaSimple<8, 64>>({32}) ==
        "kv_lora_rank: 64 given, at most d_model = 32 expected (a larger latent holds nothing more)");
  CHECK(dims_error<MlaHead<8, 32, dyn>>({512, 0, 0, 0, 65}) ==
        "v_lora_rank: 65 given, at most head_dim = 64 expected (a larger latent holds nothing more)");
  CHECK(dims_error<MlaHead<8, 32, 16>>({512, 0, 0, 0, 17}) == "v_lora_rank: 17 configured, but the type says 16");
  CHECK(dims_error<MlaHead<8, 32>>({512, 0, 0, 0, 16}) ==
        "v_lora_rank: 16 configured, but the type says that of the keys, 32");
}
