// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/recognition/fingerprint.hpp>
#include <laconic/train/distill.hpp>

#include <functional>
#include <string>

namespace laconic {
inline namespace LACONIC_ABI {

/// Whom a student follows; none where `output` is empty.
template <class T>
struct Teacher {
  /// What it gives for features (rows, num_mels) of these sequences, its frames seeing what the mask says.
  std::function<ModelOutput<Tensor<T>>(Cpu<T>& cpu, const Matrix<T>& features, const Sequences& sequences,
                                       const Mask& mask)>
      output;
  std::string fingerprint;  ///< that of its parameters: a run goes on only with the same one

  explicit operator bool() const { return static_cast<bool>(output); }
};

/// A model as teacher, which it must outlive.
template <class Model>
Teacher<typename Model::Scalar> teacher_of(const Model& model) {
  using T = typename Model::Scalar;
  return {[&model](Cpu<T>& cpu, const Matrix<T>& features, const Sequences& sequences, const Mask& mask) {
            ModelOutput<Tensor<T>> out;
            out.logits = model(cpu, features, sequences, mask, &out.blocks);
            return out;
          },
          Fingerprint::of_parameters(model)};
}

}  // namespace LACONIC_ABI
}  // namespace laconic
