// Lesson 4: a latent. One short row c = x A^T is cached in place of keys and values, which are made of it again by
// K = c B_K^T and V = c B_V^T. Look at the last column: that is full attention whose matrices B A have a low rank.
#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>

#include <cstdio>

using namespace laconic;

using Full = Mha<4, NoPosition>;
using Latent = MlaSimple<4, dyn, NoPosition>;  // the rank comes from the configuration

int main() {
  constexpr AttentionConfig config{.d_model = 64, .attention_bias = false};
  constexpr Index full_bytes = Full::cache_bytes(config, frames(1));
  const Matrix<float> x = Matrix<float>::Random(20, config.d_model);
  const Sequences sequences{20};
  Cpu cpu;
  const auto run = [&](const auto& layer) {
    return cpu.output(layer(cpu, cpu.input(x), Pass<Tensor<float>>{sequences}));
  };

  std::printf("full attention: %td parameters, %td bytes a frame\n\n", Full::parameter_count(config), full_bytes);
  std::printf("rank  parameters  bytes a frame   cache  difference from full attention with B A\n");
  for (const Index rank : {64, 32, 16, 8}) {
    AttentionConfig small = config;
    small.kv_lora_rank = rank;
    const AttentionLayer<Latent, float> latent(small, /*dropout*/ 0, Seed(1));

    AttentionLayer<Full, float> full(config, /*dropout*/ 0, Seed(2));
    const Matrix<float>& a = latent.key_value.linear_kv_down.weight.host();                  // (R, D)
    full.key_value.linear_k.weight.host() = latent.key_value.linear_k_up.weight.host() * a;  // (D, R) (R, D)
    full.key_value.linear_v.weight.host() = latent.key_value.linear_v_up.weight.host() * a;
    full.query = latent.query;
    full.linear_out = latent.linear_out;

    const Index bytes = Latent::cache_bytes(small, frames(1));
    std::printf("%4td %11td %14td  %5.2f%%  %.0e\n", rank, Latent::parameter_count(small), bytes,
                100.0 * static_cast<double>(bytes) / static_cast<double>(full_bytes),
                (run(latent) - run(full)).cwiseAbs().maxCoeff());
  }
}
// prints: full attention: 16384 parameters, 512 bytes a frame
// prints: ^  64 +20480 +256  50.00%  ([0-9]e-0[6-9]|0e\+00)
// prints: ^  32 +14336 +128  25.00%  ([0-9]e-0[6-9]|0e\+00)
// prints: ^  16 +11264 +64  12.50%  ([0-9]e-0[6-9]|0e\+00)
// prints: ^   8 +9728 +32   6.25%  ([0-9]e-0[6-9]|0e\+00)
