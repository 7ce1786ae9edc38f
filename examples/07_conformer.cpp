// Lesson 7: a Conformer. Its cost is known to the compiler; it is converted to latent attention and run on two
// utterances. Look at the static_assert, which says what a stream saves. The README shows this program.
#include <laconic/convert/convert.hpp>
#include <laconic/laconic.hpp>

#include <cstdio>

using namespace laconic;

using Full = Conformer<Mha<8>>;
using Small = Conformer<MlaSimple<8, 64>>;  // 64 floats a frame and layer instead of 2 x 256

int main() {
  constexpr EncoderConfig config{.num_mels = 80, .d_model = 256, .num_layers = 4, .vocab_size = 29};
  static_assert(8 * Small::cache_bytes(config, frames(1000)) == Full::cache_bytes(config, frames(1000)));

  Cpu cpu;
  const Full model(config, Seed(1));
  const auto [small, report] = convert<Small>(model, JointSvd{});

  const Matrix<float> features = Matrix<float>::Random(300 + 200, config.num_mels);  // two utterances, end to end
  const auto logits = small(cpu, features, Sequences{300, 200});
  std::printf("%td rows of logits, %td tokens; keys and values off by %.0f%%\n", logits.rows.rows(), logits.rows.cols(),
              100 * report.key_value_error);
}
// prints: ^123 rows of logits, 29 tokens; keys and values off by [0-9]+%
