// Lesson 2: heads and groups. Query heads may share a key-value head: then there is less to cache. Look at the table,
// whose costs are constant expressions, and at the last line: sharing is full attention whose key-value heads are
// equal.
#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>

#include <cstdio>

using namespace laconic;

// So a table from a paper can be a static_assert: the cache of 24 layers and 1000 frames, in MiB.
constexpr AttentionConfig large{.d_model = 1024};
constexpr double mib = 1 << 20;
static_assert(24 * Mha<16>::cache_bytes(large, frames(1000)) / mib == 187.5);
static_assert(24 * Gqa<16, 2>::cache_bytes(large, frames(1000)) / mib == 23.4375);

constexpr AttentionConfig sizes{.d_model = 64};

template <class Attention>
void row(const char* name) {
  std::printf("%-10s %8td %8td %12td %14td\n", name, Attention::Heads::num_heads, Attention::Heads::num_kv_heads,
              Attention::parameter_count(sizes), Attention::cache_bytes(sizes, frames(1)));
}

int main() {
  std::printf("            queries  key-val.   parameters  bytes a frame\n");
  row<Mha<8>>("Mha<8>");
  row<Gqa<8, 4>>("Gqa<8, 4>");
  row<Gqa<8, 2>>("Gqa<8, 2>");
  row<Mqa<8>>("Mqa<8>");

  // Two key-value heads of 8 channels; in full attention each is there four times.
  const AttentionLayer<Gqa<8, 2, NoPosition>, float> grouped(sizes, /*dropout*/ 0, Seed(1));
  AttentionLayer<Mha<8, NoPosition>, float> full(sizes, /*dropout*/ 0, Seed(2));
  full.query = grouped.query;
  full.linear_out = grouped.linear_out;
  const auto repeat = [](Linear<float>& to, const Linear<float>& from) {
    for (Index head = 0; head < 8; ++head) {
      to.weight.host().middleRows(8 * head, 8) = from.weight.host().middleRows(8 * (head / 4), 8);
      to.bias.host().middleCols(8 * head, 8) = from.bias.host().middleCols(8 * (head / 4), 8);
    }
  };
  repeat(full.key_value.linear_k, grouped.key_value.linear_k);
  repeat(full.key_value.linear_v, grouped.key_value.linear_v);

  Cpu cpu;
  const Matrix<float> x = Matrix<float>::Random(20, sizes.d_model);
  const Sequences sequences{20};
  const auto run = [&](const auto& layer) {
    return cpu.output(layer(cpu, cpu.input(x), Pass<Tensor<float>>{sequences}));
  };
  std::printf("Gqa<8, 2> and Mha<8> with equal heads differ by %.0e\n",
              (run(grouped) - run(full)).cwiseAbs().maxCoeff());
}
// prints: Mha<8> +8 +8 .* 512$
// prints: Gqa<8, 4> +8 +4 .* 256$
// prints: Gqa<8, 2> +8 +2 .* 128$
// prints: Mqa<8> +8 +1 .* 64$
// prints: differ by ([0-9]e-0[6-9]|0e\+00)
