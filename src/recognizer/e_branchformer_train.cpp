// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/recognition/recognizer/train.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

using Model = EBranchformer<AnyAttention>;
template TrainState train_model(Model&, Cpu<float>&, const Dataset&, const Dataset&, const Vocabulary&,
                                const TrainConfig&, const RecognizerTraining&, const Model*);

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
