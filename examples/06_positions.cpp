// Lesson 6: positions. Attention by itself does not see the order of rows. Look at the columns: what changes when rows
// are in reversed order, which a position must show, and what when all come 1000 frames later, which it should not.
#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>

#include <array>
#include <cstdio>

using namespace laconic;

constexpr Index rows = 12;
constexpr AttentionConfig sizes{.d_model = 64};

template <class Policy>
void row(const char* name) {
  const AttentionLayer<Policy, float> layer(sizes, /*dropout*/ 0, Seed(1));
  Cpu cpu;
  const Sequences sequences{rows};
  const auto run = [&](const Matrix<float>& x, Index first) {
    const std::array<Index, 1> firsts{first};
    Pass<Tensor<float>> pass{.sequences = sequences, .firsts = firsts};
    pass.table = layer.table(cpu, pass);
    return cpu.output(layer(cpu, layer.enter(cpu, cpu.input(x), pass), pass));
  };
  const Matrix<float> x = Matrix<float>::Random(rows, sizes.d_model), y = run(x, 0);
  const auto change = [&](const Matrix<float>& other) { return (other - y).norm() / y.norm(); };
  std::printf("%-34s %8.5f %12.5f\n", name, change(run(x.colwise().reverse(), 0).colwise().reverse()),
              change(run(x, 1000)));
}

int main() {
  std::printf("relative change of the output      reversed  1000 later\n");
  row<Mha<4, NoPosition>>("Mha<4, NoPosition>");
  row<Mha<4, Sinusoidal>>("Mha<4, Sinusoidal>");
  row<Mha<4, InputRotary<>>>("Mha<4, InputRotary<>>");
  row<Mha<4, Rotary<>>>("Mha<4, Rotary<>>");
  row<Mha<4, RelativePosition>>("Mha<4, RelativePosition>");

  // Relative positions are a term of the scores and leave keys alone, so every latent goes with them. A rotated key
  // differs from frame to frame and is no function of a latent: MlaSimple<4, 16, Rotary<>> does not compile. A
  // decoupled latent has a short key for the rotation in addition, and InputRotary needs a latent of its own for keys.
  row<MlaSimple<4, 16>>("MlaSimple<4, 16>");
  row<MlaDecoupled<4, 16, 8>>("MlaDecoupled<4, 16, 8>");
  row<MlaSplit<4, 16, 16, InputRotary<>>>("MlaSplit<4, 16, 16, InputRotary<>>");
}
// prints: Mha<4, NoPosition> +0.00000 +0.00000
// prints: Mha<4, Sinusoidal> +[0-9]\.[0-9]*[1-9][0-9]* +[0-9]\.[0-9]*[1-9][0-9]*$
// prints: Mha<4, InputRotary<>> .* 0\.0*[1-9]
// prints: Mha<4, Rotary<>> +0\.0*[1-9].* 0.0000[0-2]$
// prints: Mha<4, RelativePosition> +0\.0*[1-9].* 0.00000$
// prints: ^MlaSimple<4, 16> +0\.0*[1-9].* 0.00000$
// prints: ^MlaDecoupled<4, 16, 8> +0\.0*[1-9].* 0.0000[0-2]$
