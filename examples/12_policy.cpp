// Lesson 12: a key-value policy of your own. This one, in keys_as_values.hpp, caches only keys and uses them as values
// too. Look at the last line: training, streams and costs follow from the policy, and a stream keeps half as much.
#include "keys_as_values.hpp"

#include <laconic/train/adamw.hpp>
#include <laconic/train/ctc_loss.hpp>

#include <cstdio>

using namespace laconic;
using lesson::KeysAsValues;

int main() {
  constexpr EncoderConfig config{.num_mels = 20,
                                 .d_model = 32,
                                 .num_layers = 2,
                                 .vocab_size = 5,
                                 .conv_kernel = 7,
                                 .subsampling_channels = 8,
                                 .dropout = 0,
                                 .convolution = ConvolutionContext::causal,
                                 .chunk = 4,
                                 .left_context = 12};
  using Half = Conformer<Attention<Heads<4>, KeysAsValues>>;
  static_assert(2 * Half::cache_bytes(config, frames(1)) == Conformer<Mha<4>>::cache_bytes(config, frames(1)));

  Cpu cpu;
  Half model(config, Seed(1));
  AdamW optimizer(cpu);
  const Labels labels{{1, 2, 3}, Sequences{3}};
  const Matrix<float> features = Matrix<float>::Random(100, config.num_mels);
  double first = 0, last = 0;
  for (int step = 0; step < 30; ++step) {
    Autodiff tape(cpu);
    const auto loss = ctc_loss(tape, model(tape, features, Sequences{100}), labels);
    tape.backward(loss);
    optimizer.step(model, 2e-3);
    last = tape.number(loss);
    if (step == 0) first = last;
  }
  Streams streams(model);
  std::printf("%td parameters, as the policy says: %td\n", model.count_parameters(), Half::parameter_count(config));
  std::printf("the loss fell from %.1f to %.1f\n", first, last);
  std::printf("a stream keeps %td bytes; with full attention it would keep %td\n", streams.attention_bytes(),
              Conformer<Mha<4>>::cache_bytes(config, frames(config.left_context)));
}
// prints: ^51229 parameters, as the policy says: 51229$
// prints: fell from [1-9][0-9]\.[0-9] to [0-5]\.[0-9]$
// prints: keeps 3072 bytes; with full attention it would keep 6144$
