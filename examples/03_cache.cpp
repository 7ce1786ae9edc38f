// Lesson 3: what a cache holds. Rows that come one by one need the keys and values of all rows before, and nothing else
// of them. Look at the differences: step by step gives what one causal pass gives, also, nearly, from a rounded cache.
#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>

#include <algorithm>
#include <array>
#include <cstdio>

using namespace laconic;

int main() {
  using Full = Mha<4, NoPosition>;
  constexpr AttentionConfig config{.d_model = 64};
  constexpr Index rows = 30;
  const AttentionLayer<Full, float> layer(config, /*dropout*/ 0, Seed(1));
  const Matrix<float> x = Matrix<float>::Random(rows, config.d_model);

  Cpu cpu;
  const Sequences all{rows}, one{1};
  const Matrix<float> whole = cpu.output(layer(cpu, cpu.input(x), Pass<Tensor<float>>{all, Mask::causal()}));
  std::printf("one pass over %td rows computes %td rows of keys and values\n", rows, rows);
  std::printf("without a cache, row after row computes %td of them, with a cache %td\n", rows * (rows + 1) / 2, rows);

  std::printf("\nelements  bytes a row  bytes of %td rows  largest difference from one pass\n", rows);
  const auto decode = [&](const char* name, Storage storage) {
    AttentionLayer<Full, float>::State<Cpu<float>> state(
        cpu, layer, {.slots = 1, .left_context = rows, .chunk = 1, .storage = storage});
    state.clear(cpu, 0);
    float difference = 0;
    for (Index r = 0; r < rows; ++r) {
      const std::array<Index, 1> slot{0}, first{r};  // row r of the stream in slot 0
      const Pass<Tensor<float>> pass{one, Mask::causal(), {}, slot, first};
      const Matrix<float> y = cpu.output(layer(cpu, cpu.input(Matrix<float>(x.row(r))), pass, &state));
      difference = std::max(difference, (y.row(0) - whole.row(r)).cwiseAbs().maxCoeff());
    }
    std::printf("%-8s %12td %17td  %.0e\n", name, Full::cache_bytes(config, frames(1), storage), state.cache_bytes(),
                difference);
  };
  decode("float", Storage::full);
  decode("bf16", Storage::bf16);
  decode("int8", Storage::int8);
}
// prints: row after row computes 465 of them, with a cache 30
// prints: float +512 +15360 +([0-9]e-0[6-9]|0e\+00)
// prints: bf16 +256 +7680 +[0-9]e-0[345]
// prints: int8 +136 +4080 +[0-9]e-0[345]
