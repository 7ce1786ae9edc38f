// Frames of two sequences have no distance.
// expect: laconic: cross-attention has NoPosition, for there is no distance between frames of two sequences
#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>

using namespace laconic;

void decode(Cpu<>& cpu, const AttentionLayer<Mha<8, RelativePosition>, float>& layer, const Tensor<float>& x,
            const Sequences& sequences) {
  layer.cross(cpu, x, sequences, layer.remember(cpu, x, sequences), sequences);
}
