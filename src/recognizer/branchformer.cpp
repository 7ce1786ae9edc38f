// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/recognition/recognizer/convert.hpp>
#include <laconic/recognition/recognizer/run.hpp>
#include <laconic/recognition/recognizer/train.hpp>

template std::unique_ptr<laconic::detail::RecognizerModel>
laconic::detail::make_recognizer_model<laconic::EncoderName::branchformer>(const EncoderConfig&, Seed);
