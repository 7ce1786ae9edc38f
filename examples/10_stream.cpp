// Lesson 10: streaming. Speech comes in blocks of any size, and frames are returned when they are final. Look at the
// difference: they are the frames that the whole utterance gives under the same chunks. A cache of known size holds the
// past.
#include <laconic/laconic.hpp>

#include <algorithm>
#include <array>
#include <cstdio>

using namespace laconic;

int main() {
  // Chunks of 8 encoder frames (320 ms) see 32 frames (1.28 s) before them. Convolutions must not see beyond the chunk.
  constexpr EncoderConfig config{.num_mels = 40,
                                 .d_model = 64,
                                 .num_layers = 3,
                                 .vocab_size = 11,
                                 .conv_kernel = 15,
                                 .subsampling_channels = 16,
                                 .convolution = ConvolutionContext::chunk,
                                 .chunk = 8,
                                 .left_context = 32};
  using Full = Conformer<Mha<8>>;
  using Small = Conformer<MlaSimple<8, 16>>;
  static_assert(8 * Small::cache_bytes(config, frames(config.left_context)) ==
                Full::cache_bytes(config, frames(config.left_context)));

  const Small model(config, Seed(1));
  const Matrix<float> features = Matrix<float>::Random(400, config.num_mels);  // 4 s of speech
  Cpu cpu;
  const auto whole = model(cpu, features, Sequences{400});

  Streams streams(model, {.capacity = 2});  // room for two streams; all memory is taken here
  const std::array stream{streams.open()};
  Index frame = 0;
  double difference = 0;
  const auto compare = [&](const Logits<Tensor<float>>& logits) {
    for (Index r = 0; r < logits.rows.rows(); ++r, ++frame)
      difference = std::max(
          difference,
          static_cast<double>((logits.rows.view().row(r) - whole.rows.view().row(frame)).cwiseAbs().maxCoeff()));
  };
  for (Index row = 0; row < 400;) {
    const Index block = std::min<Index>(7 + row % 50, 400 - row);  // blocks of any size, as a network brings them
    compare(streams.push(stream, features.middleRows(row, block), Sequences{block}));
    row += block;
  }
  compare(streams.finish(stream));
  std::printf("%td of %td frames were returned; they differ from those of the whole utterance by at most %.1e\n", frame,
              whole.rows.rows(), difference);
  std::printf("a stream holds %td bytes of latents; with MHA it would hold %td bytes of keys and values\n",
              streams.attention_bytes() / 2, Full::cache_bytes(config, frames(config.left_context)));
}
// prints: ^99 of 99 frames .* by at most ([0-9.]+e-0[5-9]|0.0e\+00)$
// prints: holds 6144 bytes of latents; with MHA it would hold 49152 bytes
