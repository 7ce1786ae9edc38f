// Lesson 3: training. The same model runs in another context, which records a tape. The loss falls.
#include <laconic/laconic.hpp>

#include <cstdio>

using namespace laconic;

int main() {
  Cpu cpu;
  Conformer<Mha<4>> model(
      {.num_mels = 20, .d_model = 32, .num_layers = 2, .vocab_size = 5, .conv_kernel = 7, .dropout = 0}, Seed(1));
  AdamW optimizer(cpu);

  // Two utterances. Each token is a tone: 30 frames with energy in one mel channel.
  const Labels labels{{1, 2, 3, 4, 2}, Sequences{3, 2}};
  const Sequences sequences{90, 60};
  Matrix<float> features = Matrix<float>::Zero(150, 20);
  for (Index t = 0; t < features.rows(); ++t) features(t, 4 * labels.tokens[static_cast<std::size_t>(t / 30)]) = 3;

  double first = 0, last = 0;
  for (int step = 0; step < 60; ++step) {
    Autodiff tape(cpu, Seed(static_cast<std::uint64_t>(step)));
    const auto loss = ctc_loss(tape, model(tape, features, sequences), labels);
    tape.backward(loss);
    optimizer.step(model, 2e-3);
    last = tape.number(loss);
    if (step == 0) first = last;
    if (step % 10 == 0) std::printf("step %2d  loss %.3f\n", step, last);
  }
  std::printf("the loss fell from %.3f to %.3f\n", first, last);
  return last < 0.5 * first ? 0 : 1;
}
