// Lesson 9: training and fine-tuning. In the context Autodiff the same model records a tape, from which gradients
// follow. Look at the loss: it falls in training, rises when the cache is cut to a sixteenth, and falls again.
#include <laconic/convert/convert.hpp>
#include <laconic/laconic.hpp>
#include <laconic/train/adamw.hpp>
#include <laconic/train/ctc_loss.hpp>

#include <array>
#include <cstdint>
#include <cstdio>

using namespace laconic;

/// Two utterances, and what is said in them. Each token is a tone: 30 frames with energy in one mel channel.
struct Speech {
  Labels labels{{1, 2, 3, 4, 2}, Sequences{3, 2}};
  Sequences sequences{90, 60};
  Matrix<float> features = Matrix<float>::Zero(150, 20);

  Speech() {
    for (Index t = 0; t < features.rows(); ++t) features(t, 4 * labels.tokens[static_cast<std::size_t>(t / 30)]) = 3;
  }
};

/// Returns the loss before the first and before the last update.
template <class Model>
std::array<double, 2> train(Cpu<>& cpu, Model& model, const Speech& speech, std::uint64_t updates, double rate) {
  AdamW optimizer(cpu);
  std::array<double, 2> losses{};
  for (std::uint64_t update = 0; update < updates; ++update) {
    Autodiff tape(cpu, Seed(update));
    const auto loss = ctc_loss(tape, model(tape, speech.features, speech.sequences), speech.labels);
    tape.backward(loss);
    optimizer.step(model, rate);
    losses[update > 0] = tape.number(loss);
    if (update % 10 == 0) std::printf("  update %2d  loss %6.3f\n", static_cast<int>(update), losses[update > 0]);
  }
  return losses;
}

int main() {
  Cpu cpu;
  const Speech speech;
  Conformer<Mha<4>> model(
      {.num_mels = 20, .d_model = 32, .num_layers = 2, .vocab_size = 5, .conv_kernel = 7, .dropout = 0}, Seed(1));
  std::printf("training with full attention\n");
  const auto [untrained, trained] = train(cpu, model, speech, 60, 2e-3);

  auto small = convert<Conformer<MlaSimple<4, 4>>>(model, JointSvd{}).model;  // 4 elements instead of 2 x 32
  std::printf("fine-tuning with a latent of a sixteenth\n");
  const auto [converted, tuned] = train(cpu, small, speech, 30, 5e-4);
  std::printf("untrained %.3f, trained %.3f, converted %.3f, fine-tuned %.3f\n", untrained, trained, converted, tuned);
}
// prints: training with full attention
// prints: fine-tuning with a latent
// prints: untrained [1-9][0-9]\..*, trained 0\.[01].*, converted [1-9]\..*, fine-tuned 0\.[01]
