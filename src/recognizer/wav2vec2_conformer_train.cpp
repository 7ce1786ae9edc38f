// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/recognition/recognizer/train.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

using Model = Wav2Vec2Conformer<AnyAttention>;
template TrainState train_model(Model&, Cpu<float>&, const Dataset&, const Dataset&, const Vocabulary&,
                                const TrainConfig&, const RecognizerTraining&, const Model*);
template std::vector<double> layer_information(const Model&, const SpeechBatch&, int);

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
