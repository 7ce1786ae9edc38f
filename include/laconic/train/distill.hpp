// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu.hpp>
#include <laconic/model/encoder.hpp>
#include <laconic/train/distillation_config.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// What a model gives for a batch: logits, and (rows, d_model) of each block.
template <class Tensor>
struct ModelOutput {
  Logits<Tensor> logits;
  std::vector<Tensor> blocks;
};

/// temperature^2 KL(teacher || student) as DistillationConfig has it, (1, 1).
template <class Tape, class Tensor, class T>
auto distillation_loss(Tape& tape, const Logits<Tensor>& student, const Logits<laconic::Tensor<T>>& teacher,
                       double temperature) {
  const Index rows = student.rows.rows(), tokens = student.rows.cols();
  require(teacher.rows.rows() == rows && teacher.rows.cols() == tokens, "distillation: the teacher's logits are (",
          teacher.rows.rows(), ", ", teacher.rows.cols(), "), the student's (", rows, ", ", tokens, ')');
  auto& cpu = tape.backend();
  const auto wanted = cpu.log_softmax(cpu.scale(teacher.rows, 1 / temperature));
  Matrix<T> probabilities = wanted.view().array().exp().matrix();
  const double entropy =
      -probabilities.template cast<double>().cwiseProduct(wanted.view().template cast<double>()).sum();
  const double utterances = static_cast<double>(std::max<Index>(1, student.sequences.size())),
               square = temperature * temperature;
  const auto said = tape.log_softmax(tape.scale(student.rows, 1 / temperature));
  const auto agreed = tape.mean_finite(tape.multiply(said, tape.input(std::move(probabilities))));
  const auto cross_entropy = tape.scale(agreed, -square * static_cast<double>(rows * tokens) / utterances);
  return tape.add(cross_entropy, tape.constant(1, 1, [&](Index, Index) { return -square * entropy / utterances; }));
}

/// The squared error of the blocks' outputs over the teacher's squares, its mean over blocks, (1, 1).
template <class Tape, class Tensor, class T>
auto block_loss(Tape& tape, const std::vector<Tensor>& student, const std::vector<laconic::Tensor<T>>& teacher) {
  require(!student.empty() && student.size() == teacher.size(), "distillation: the teacher has ", teacher.size(),
          " blocks, the student ", student.size());
  auto sum = tape.constant(1, 1, [](Index, Index) { return 0.0; });
  for (std::size_t i = 0; i < student.size(); ++i) {
    require(student[i].rows() == teacher[i].rows() && student[i].cols() == teacher[i].cols(), "distillation: block ", i,
            " of the teacher gives (", teacher[i].rows(), ", ", teacher[i].cols(), "), that of the student (",
            student[i].rows(), ", ", student[i].cols(), ')');
    const auto error = tape.add(student[i], tape.input(Matrix<T>(teacher[i].view())), -1);
    const double square = static_cast<double>(teacher[i].view().squaredNorm()) /
                          static_cast<double>(std::max<Index>(1, teacher[i].size()));
    sum = tape.add(sum, tape.scale(tape.mean_finite(tape.multiply(error, error)),
                                   1 / (std::max(square, 1e-30) * static_cast<double>(student.size()))));
  }
  return sum;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
