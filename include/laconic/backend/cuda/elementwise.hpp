// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/elementwise.hpp>
#include <laconic/backend/cuda/core.hpp>
#include <laconic/backend/cuda/kernels/elementwise.hpp>

#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the primitives of `Cuda` that compute elementwise or move values between columns.
template <class T>
class CudaElementwise {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = CudaTensor<T>;

  /// Returns ReLU, SiLU or a GELU of each element.
  Tensor activation(Activation kind, Tensor x) {
    Tensor y = over(x);
    for_each(core_.stream(), "activation", y.size(), cuda::Activate<T>{kind, x.data(), y.data()});
    return y;
  }
  /// Returns dy times the derivative of the activation at x. For ReLU, x may also be the result.
  Tensor activation_backward(Activation kind, Tensor dy, const Tensor& x) {
    Tensor dx = over(dy);
    for_each(core_.stream(), "activation_backward", dx.size(),
             cuda::ActivateBackward<T>{kind, dy.data(), x.data(), dx.data()});
    return dx;
  }

  /// Returns a * sigmoid(b) (rows, channels) of x = [a, b] (rows, 2 * channels). Throws `Error` for an odd number of
  /// columns.
  Tensor glu(const Tensor& x) {
    checks::glu(x);
    Tensor y = core_.make(x.rows(), x.cols() / 2);
    for_each(core_.stream(), "glu", y.size(), cuda::Glu<T>{x.data(), y.data(), y.cols()});
    return y;
  }
  /// Returns the derivative of `glu` by x (rows, 2 * channels).
  Tensor glu_backward(const Tensor& dy, const Tensor& x) {
    Tensor dx = core_.make(x.rows(), x.cols());
    for_each(core_.stream(), "glu_backward", dy.size(),
             cuda::GluBackward<T>{dy.data(), x.data(), dx.data(), dy.cols()});
    return dx;
  }

  /// Returns x, since this context does not train.
  Tensor dropout(Tensor x, double) { return x; }
  /// Returns x with the elements that the mask drops zeroed and the others scaled.
  Tensor dropout_train(Tensor x, const DropoutMask& mask) {
    Tensor y = over(x);
    for_each(core_.stream(), "dropout", y.size(), cuda::Dropout<T>{mask, x.data(), y.data()});
    return y;
  }

  /// Returns x + scale * y. Throws `Error` for different shapes.
  Tensor add(Tensor x, const Tensor& y, double scale = 1) {
    checks::equal_shapes("add", x, y);
    Tensor z = over(x);
    for_each(core_.stream(), "add", z.size(), cuda::Add<T>{x.data(), y.data(), z.data(), static_cast<T>(scale)});
    return z;
  }
  /// Returns x (rows, channels) with `row` (channels) added to every row.
  Tensor add_row(Tensor x, const Parameter<T>& row) {
    checks::add_row(x, row);
    Tensor y = over(x);
    for_each(core_.stream(), "add_row", y.size(), cuda::AddRow<T>{x.data(), cuda::values_of(row), y.data(), y.cols()});
    return y;
  }
  /// Adds the column sums of dy to the gradient of `row`.
  void add_row_backward(const Tensor& dy, const Parameter<T>& row) { core_.add_column_sums(dy, row); }
  /// Returns the elementwise product of x and y. Throws `Error` for different shapes.
  Tensor multiply(const Tensor& x, const Tensor& y) {
    checks::equal_shapes("multiply", x, y);
    Tensor z = core_.make(x.rows(), x.cols());
    for_each(core_.stream(), "multiply", z.size(), cuda::Multiply<T>{x.data(), y.data(), z.data()});
    return z;
  }
  /// Returns factor * x.
  Tensor scale(Tensor x, double factor) {
    Tensor y = over(x);
    for_each(core_.stream(), "scale", y.size(), cuda::Scale<T>{x.data(), y.data(), static_cast<T>(factor)});
    return y;
  }
  /// Returns the columns first .. first + count - 1 of x. Throws `Error` for columns that x does not have.
  Tensor columns(const Tensor& x, Index first, Index count) {
    checks::columns(x, first, count);
    Tensor y = core_.make(x.rows(), count);
    for_each(core_.stream(), "columns", y.size(),
             cuda::CopyColumns<T>{x.data(), y.data(), x.cols(), first, count, 0, count});
    return y;
  }
  /// Returns the derivative of `columns` by x (rows, cols), which is zero outside the columns.
  Tensor columns_backward(const Tensor& dy, Index first, Index cols) {
    Tensor dx = core_.zeros(dy.rows(), cols);
    for_each(core_.stream(), "columns_backward", dy.size(),
             cuda::CopyColumns<T>{dy.data(), dx.data(), dy.cols(), 0, cols, first, dy.cols()});
    return dx;
  }

  /// Returns sigmoid(gate_n) x + (1 - sigmoid(gate_n)) y for the rows of each sequence n. gate (sequences, 1).
  Tensor mix(const Tensor& x, const Tensor& y, const Tensor& gate, const Sequences& sequences) {
    checks::mix(x, y, gate, sequences);
    Tensor out = core_.make(x.rows(), x.cols());
    launch(core_.stream(), "mix", {sequences.size()},
           cuda::Mix<T>{x.data(), y.data(), gate.data(), out.data(), core_.offsets_of(sequences), x.cols()});
    return out;
  }
  /// Holds the derivatives of `mix`, each with the shape of its argument.
  struct MixDerivative {
    Tensor dx;     ///< derivative by x
    Tensor dy;     ///< derivative by y
    Tensor dgate;  ///< derivative by the gate
  };
  /// Returns the derivatives of `mix` by x, y and gate.
  MixDerivative mix_backward(const Tensor& dout, const Tensor& x, const Tensor& y, const Tensor& gate,
                             const Sequences& sequences) {
    MixDerivative d{core_.make(x.rows(), x.cols()), core_.make(x.rows(), x.cols()), core_.make(gate.rows(), 1)};
    launch(core_.stream(), "mix_backward", {sequences.size()},
           cuda::MixBackward<T>{dout.data(), x.data(), y.data(), gate.data(), d.dx.data(), d.dy.data(), d.dgate.data(),
                                core_.offsets_of(sequences), x.cols()});
    return d;
  }

  /// Returns x with the pairs of channels of each head rotated by the angles in `table` (rows, width), or rotated back
  /// if `direction` is -1.
  Tensor rotate(Tensor x, const Tensor& table, RotaryPairs pairs, double direction = 1) {
    checks::rotate(x, table);
    Tensor y = over(x);
    for_each(core_.stream(), "rotate", x.size() / 2,
             cuda::Rotate<T>{x.data(), table.data(), y.data(), x.cols() / table.cols(), table.cols(), pairs,
                             static_cast<T>(direction)});
    return y;
  }

  /// Returns [a_h, b_h] for every head h, where b has as many heads as a, or one for all.
  Tensor concat(const Tensor& a, const Tensor& b, Index num_heads = 1, Index b_heads = 1) {
    checks::concat(a, b, num_heads, b_heads);
    const Index a_width = a.cols() / num_heads, b_width = b.cols() / b_heads;
    Tensor y = core_.make(a.rows(), num_heads * (a_width + b_width));
    for_each(core_.stream(), "concat", y.size(),
             cuda::Concat<T>{a.data(), b.data(), y.data(), num_heads, a_width, b_width, b_heads != num_heads});
    return y;
  }
  /// Holds the derivatives of `concat`, each with the shape of its argument.
  struct ConcatDerivative {
    Tensor da;  ///< derivative by a
    Tensor db;  ///< derivative by b
  };
  /// Returns the derivatives of `concat` by a and b, which have these columns.
  ConcatDerivative concat_backward(const Tensor& dy, Index a_cols, Index b_cols, Index num_heads, Index b_heads) {
    ConcatDerivative d{core_.make(dy.rows(), a_cols), core_.make(dy.rows(), b_cols)};
    for_each(core_.stream(), "concat_backward", d.da.size() + d.db.size(),
             cuda::ConcatBackward<T>{dy.data(), d.da.data(), d.db.data(), d.da.size(), num_heads, a_cols / num_heads,
                                     b_cols / b_heads, b_heads != num_heads});
    return d;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CudaElementwise(CudaCore<T>& core) : core_(core) {}

 private:
  /// Returns x itself if nothing else shares its memory, so that the result may overwrite it, or a tensor of its shape.
  Tensor over(const Tensor& x) { return x.unique() ? x : core_.make(x.rows(), x.cols()); }

  CudaCore<T>& core_;
};

LACONIC_COMPILE_CUDA_CLASS(CudaElementwise);

}  // namespace LACONIC_ABI
}  // namespace laconic
