// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/recognition/recognizer/convert.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

using Model = EBranchformer<AnyAttention>;
template ConvertedModel<Model> convert_model(const Model&, const AttentionChoice&, const ConversionChoice&,
                                             const SpeechBatch*);
template std::vector<std::vector<double>> model_spectra(const Model&, const ConversionChoice&);
template double cut_latents(Model&, Index, OptimizerState<float>&, const SpeechBatch*);

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
