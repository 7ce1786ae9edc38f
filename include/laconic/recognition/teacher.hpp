// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu.hpp>
#include <laconic/recognition/fingerprint.hpp>
#include <laconic/train/distill.hpp>

#include <functional>
#include <string>
#include <type_traits>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the model that a student follows; none if `output` is empty.
template <class Context>
struct Teacher {
  /// Computes the teacher's outputs for features (rows, num_mels) of packed sequences, whose frames attend as the mask
  /// says.
  std::function<ModelOutput<typename Context::Tensor>(
      Context& context, const Matrix<typename Context::Scalar>& features, const Sequences& sequences, const Mask& mask)>
      output;
  std::string fingerprint;  ///< fingerprint of its parameters: a run resumes only with the same teacher

  /// Says whether there is a teacher.
  explicit operator bool() const { return static_cast<bool>(output); }
};

/// Makes a teacher of a model, which must outlive it. Throws `Error` if the parameters are not on the host.
template <class Model, class Context = Cpu<typename Model::Scalar>>
Teacher<Context> teacher_of(const Model& model, std::type_identity<Context> = {}) {
  return {[&model](Context& context, const Matrix<typename Context::Scalar>& features, const Sequences& sequences,
                   const Mask& mask) {
            ModelOutput<typename Context::Tensor> out;
            out.logits = model(context, features, sequences, mask, &out.blocks);
            return out;
          },
          Fingerprint::of_parameters(model)};
}

}  // namespace LACONIC_ABI
}  // namespace laconic
