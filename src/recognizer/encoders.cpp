// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/recognition/recognizer/convert.hpp>
#include <laconic/recognition/recognizer/run.hpp>
#include <laconic/recognition/recognizer/train.hpp>

// One source for all encoders: most of what they instantiate is the same. Four sources took three times as long.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

template std::unique_ptr<RecognizerModel> make_recognizer_model<EncoderName::conformer>(const EncoderConfig&, Seed);
template std::unique_ptr<RecognizerModel> make_recognizer_model<EncoderName::branchformer>(const EncoderConfig&, Seed);
template std::unique_ptr<RecognizerModel> make_recognizer_model<EncoderName::e_branchformer>(const EncoderConfig&,
                                                                                             Seed);
template std::unique_ptr<RecognizerModel> make_recognizer_model<EncoderName::wav2vec2_conformer>(const EncoderConfig&,
                                                                                                 Seed);

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
