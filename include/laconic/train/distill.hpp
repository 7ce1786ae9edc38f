// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/context.hpp>
#include <laconic/model/encoder.hpp>
#include <laconic/train/distillation_config.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the outputs of a model for a batch.
template <class Tensor>
struct ModelOutput {
  Logits<Tensor> logits;       ///< logits, (rows, vocab_size)
  std::vector<Tensor> blocks;  ///< output of each block, (rows, d_model)
};

/// Returns temperature^2 KL(teacher || student) as DistillationConfig defines it, (1, 1). The teacher's logits are a
/// value of the tape's backend. Throws `Error` unless both have the same shape.
template <class Tape, class Tensor, class Value>
auto distillation_loss(Tape& tape, const Logits<Tensor>& student, const Logits<Value>& teacher, double temperature) {
  const Index rows = student.rows.rows(), tokens = student.rows.cols();
  require(teacher.rows.rows() == rows && teacher.rows.cols() == tokens, "distillation: the teacher's logits are (",
          teacher.rows.rows(), ", ", teacher.rows.cols(), "), the student's (", rows, ", ", tokens, ')');
  auto& backend = tape.backend();
  const auto scaled = backend.scale(teacher.rows, 1 / temperature);
  const auto probabilities = backend.softmax(scaled);
  const double entropy = -backend.dot(probabilities, backend.log_softmax(scaled));
  const double utterances = static_cast<double>(std::max<Index>(1, student.sequences.size())),
               square = temperature * temperature;
  const auto said = tape.log_softmax(tape.scale(student.rows, 1 / temperature));
  const auto agreed = tape.mean_finite(tape.multiply(said, tape.constant(probabilities)));
  const auto cross_entropy = tape.scale(agreed, -square * static_cast<double>(rows * tokens) / utterances);
  return tape.add(cross_entropy, tape.fill(1, 1, -square * entropy / utterances));
}

/// Returns the squared error of the blocks' outputs relative to the teacher's squares, averaged over blocks, (1, 1).
/// The teacher's outputs are values of the tape's backend. Throws `Error` unless both have the same blocks.
template <class Tape, class Tensor, class Value>
auto block_loss(Tape& tape, const std::vector<Tensor>& student, const std::vector<Value>& teacher) {
  require(!student.empty() && student.size() == teacher.size(), "distillation: the teacher has ", teacher.size(),
          " blocks, the student ", student.size());
  auto sum = tape.fill(1, 1, 0);
  for (std::size_t i = 0; i < student.size(); ++i) {
    require(student[i].rows() == teacher[i].rows() && student[i].cols() == teacher[i].cols(), "distillation: block ", i,
            " of the teacher gives (", teacher[i].rows(), ", ", teacher[i].cols(), "), that of the student (",
            student[i].rows(), ", ", student[i].cols(), ')');
    const auto error = tape.add(student[i], tape.constant(teacher[i]), -1);
    const double square = tape.backend().squared_norm(teacher[i]) /
                          static_cast<double>(std::max<Index>(1, teacher[i].rows() * teacher[i].cols()));
    sum = tape.add(sum, tape.scale(tape.mean_finite(tape.multiply(error, error)),
                                   1 / (std::max(square, 1e-30) * static_cast<double>(student.size()))));
  }
  return sum;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
