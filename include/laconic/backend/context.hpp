// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>

#include <concepts>

// The contract of contexts. To add a backend, write a class that satisfies `Backend`: models then run on it, and train
// on it through `Autodiff`. What each primitive means is documented once, at `Cpu`.

namespace laconic {
inline namespace LACONIC_ABI {

/// Where a model runs: gives tensors `(rows, cols)` and computes the primitives that layers are written in.
template <class C>
concept Context = std::default_initializable<typename C::Tensor> && std::copyable<typename C::Tensor> &&
    requires(C& c, const typename C::Tensor& x, const Matrix<typename C::Scalar>& matrix,
             const Parameter<typename C::Scalar>& weight, const Parameter<typename C::Scalar>* bias,
             const Sequences& sequences, const AttendShape& attend, const Conv2dShape& conv2d,
             const Conv1dShape& conv1d, const Labels& labels,
             const RelativeTerm<typename C::Tensor, typename C::Scalar>& relative, const HeadShape& heads,
             const DepthwiseShape& depthwise, RotaryPairs pairs, const BatchNormParameters<typename C::Scalar>& norm,
             double number, Index count) {
  { x.rows() } -> std::convertible_to<Index>;
  { x.cols() } -> std::convertible_to<Index>;
  { x.empty() } -> std::same_as<bool>;
  { c.arena() } -> std::same_as<Arena&>;
  { c.input(matrix) } -> std::same_as<typename C::Tensor>;
  { c.input(Matrix<typename C::Scalar>()) } -> std::same_as<typename C::Tensor>;
  { c.input(x) } -> std::same_as<typename C::Tensor>;
  {
    c.constant(count, count, [](Index, Index) { return 0.0; })
    } -> std::same_as<typename C::Tensor>;
  { c.linear(x, weight, bias, Activation::silu) } -> std::same_as<typename C::Tensor>;
  { c.activation(Activation::silu, x) } -> std::same_as<typename C::Tensor>;
  { c.glu(x) } -> std::same_as<typename C::Tensor>;
  { c.layer_norm(x, weight, weight, number) } -> std::same_as<typename C::Tensor>;
  { c.rms_norm(x, weight, number) } -> std::same_as<typename C::Tensor>;
  { c.batch_norm(x, norm) } -> std::same_as<typename C::Tensor>;
  { c.sequence_norm(x, weight, weight, number, sequences) } -> std::same_as<typename C::Tensor>;
  { c.conv1d(x, weight, bias, conv1d, sequences, sequences) } -> std::same_as<typename C::Tensor>;
  { c.conv2d(x, weight, weight, conv2d, sequences, sequences, Activation::relu) } -> std::same_as<typename C::Tensor>;
  { c.depthwise_conv(x, weight, bias, sequences, depthwise) } -> std::same_as<typename C::Tensor>;
  { c.attend(x, x, x, attend, sequences, sequences, relative, number) } -> std::same_as<typename C::Tensor>;
  { c.linear_attend(x, x, x, attend, sequences) } -> std::same_as<typename C::Tensor>;
  { c.head_linear(x, weight, bias, heads) } -> std::same_as<typename C::Tensor>;
  { c.rotate(x, x, pairs) } -> std::same_as<typename C::Tensor>;
  { c.concat(x, x, count, count) } -> std::same_as<typename C::Tensor>;
  { c.columns(x, count, count) } -> std::same_as<typename C::Tensor>;
  { c.dropout(x, number) } -> std::same_as<typename C::Tensor>;
  { c.add(x, x, number) } -> std::same_as<typename C::Tensor>;
  { c.add_row(x, weight) } -> std::same_as<typename C::Tensor>;
  { c.multiply(x, x) } -> std::same_as<typename C::Tensor>;
  { c.mix(x, x, x, sequences) } -> std::same_as<typename C::Tensor>;
  { c.scale(x, number) } -> std::same_as<typename C::Tensor>;
  { c.log_softmax(x) } -> std::same_as<typename C::Tensor>;
  { c.ctc(x, sequences, labels, 0) } -> std::same_as<typename C::Tensor>;
  { c.mean_finite(x) } -> std::same_as<typename C::Tensor>;
};

/// What `attend_backward` gives: the derivatives by queries, keys, values, the table of positions and the queries that
/// met it.
template <class D, class Tensor>
concept AttendDerivativeOf = requires(D d) {
  { d.dq } -> std::convertible_to<Tensor>;
  { d.dk } -> std::convertible_to<Tensor>;
  { d.dv } -> std::convertible_to<Tensor>;
  { d.dtable } -> std::convertible_to<Tensor>;
  { d.dposition_q } -> std::convertible_to<Tensor>;
};

/// A context that can also be trained on: it has the derivative of every primitive, and the training form of those that
/// compute something else or keep something for the derivative (batch norm, attention, dropout).
template <class B>
concept Backend = Context<B> &&
    requires(B& b, typename B::Tensor& out, const typename B::Tensor& x, const Parameter<typename B::Scalar>& weight,
             const Parameter<typename B::Scalar>* bias, const Sequences& sequences, const AttendShape& attend,
             const Conv2dShape& conv2d, const Conv1dShape& conv1d, const Labels& labels,
             const RelativeTerm<typename B::Tensor, typename B::Scalar>& relative,
             const BatchNormParameters<typename B::Scalar>& norm, const DropoutMask& mask, double number, Index count,
             const HeadShape& heads, const DepthwiseShape& depthwise, RotaryPairs pairs) {
  { b.linear_backward(x, x, weight, bias, true) } -> std::same_as<typename B::Tensor>;
  { b.activation_backward(Activation::silu, x, x) } -> std::same_as<typename B::Tensor>;
  { b.glu_backward(x, x) } -> std::same_as<typename B::Tensor>;
  { b.layer_norm(x, weight, weight, number, &out) } -> std::same_as<typename B::Tensor>;
  { b.layer_norm_backward(x, x, weight, weight, x, true) } -> std::same_as<typename B::Tensor>;
  { b.rms_norm(x, weight, number, &out) } -> std::same_as<typename B::Tensor>;
  { b.rms_norm_backward(x, x, weight, x, true) } -> std::same_as<typename B::Tensor>;
  { b.batch_norm_train(x, norm, out, true) } -> std::same_as<typename B::Tensor>;
  { b.batch_norm_backward(x, x, norm, x, true) } -> std::same_as<typename B::Tensor>;
  { b.sequence_norm(x, weight, weight, number, sequences, &out) } -> std::same_as<typename B::Tensor>;
  { b.sequence_norm_backward(x, x, weight, weight, number, sequences, x, true) } -> std::same_as<typename B::Tensor>;
  { b.conv1d_backward(x, x, weight, bias, conv1d, sequences, sequences, true) } -> std::same_as<typename B::Tensor>;
  { b.conv2d_backward(x, x, weight, weight, conv2d, sequences, sequences, true) } -> std::same_as<typename B::Tensor>;
  { b.depthwise_conv_backward(x, x, weight, bias, sequences, depthwise, true) } -> std::same_as<typename B::Tensor>;
  { b.attend_train(x, x, x, attend, sequences, sequences, relative, mask, out) } -> std::same_as<typename B::Tensor>;
  {
    b.attend_backward(x, x, x, x, attend, sequences, sequences, relative, mask, x)
    } -> AttendDerivativeOf<typename B::Tensor>;
  { b.linear_attend_backward(x, x, x, x, attend, sequences).dq } -> std::convertible_to<typename B::Tensor>;
  { b.head_linear_backward(x, x, weight, bias, heads, true) } -> std::same_as<typename B::Tensor>;
  { b.rotate(x, x, pairs, number) } -> std::same_as<typename B::Tensor>;
  { b.concat_backward(x, count, count, count, count).da } -> std::convertible_to<typename B::Tensor>;
  { b.columns_backward(x, count, count) } -> std::same_as<typename B::Tensor>;
  {b.add_row_backward(x, weight)};
  { b.mix_backward(x, x, x, x, sequences).dgate } -> std::convertible_to<typename B::Tensor>;
  { b.dropout_train(x, mask) } -> std::same_as<typename B::Tensor>;
  { b.log_softmax_backward(x, x) } -> std::same_as<typename B::Tensor>;
  { b.ctc(x, sequences, labels, 0, &out) } -> std::same_as<typename B::Tensor>;
  { b.ctc_backward(x, sequences, x) } -> std::same_as<typename B::Tensor>;
  { b.mean_finite_backward(x, x) } -> std::same_as<typename B::Tensor>;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
