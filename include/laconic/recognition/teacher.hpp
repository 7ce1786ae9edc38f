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

/// Whom a student follows; none where `output` is empty.
template <class Context>
struct Teacher {
  /// What it gives for features (rows, num_mels) of these sequences, its frames seeing what the mask says.
  std::function<ModelOutput<typename Context::Tensor>(
      Context& context, const Matrix<typename Context::Scalar>& features, const Sequences& sequences, const Mask& mask)>
      output;
  std::string fingerprint;  ///< that of its parameters: a run goes on only with the same one

  explicit operator bool() const { return static_cast<bool>(output); }
};

/// A model as teacher, which it must outlive.
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
