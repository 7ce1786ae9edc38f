// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/recognition/recognizer/cut.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

using Model = Branchformer<AnyAttention>;
template double cut_latents(Model&, Index, OptimizerState<float>&, const SpeechBatch*);
template std::vector<double> layer_information(const Model&, const SpeechBatch&, int);

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
