// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/elementwise.hpp>
#include <laconic/backend/cpu/core.hpp>
#include <laconic/backend/cpu/kernels/elementwise.hpp>
#include <laconic/backend/cpu/kernels/heads.hpp>
#include <laconic/backend/cpu/weights.hpp>
#include <laconic/core/compiled.hpp>

#include <cmath>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the primitives of `Cpu` that compute elementwise or move values between columns.
template <class T>
class CpuElementwise {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Returns ReLU, SiLU or GELU of each element.
  Tensor activation(Activation kind, Tensor x) {
    const auto activate = [kind](auto a) { return kernels::activate(kind, a); };
    return mapped(x.unique() ? x : core_.make(x.rows(), x.cols()), activate, x);
  }
  /// Returns dy times the derivative of the activation at x. For ReLU, x may also be the result.
  Tensor activation_backward(Activation kind, Tensor dy, const Tensor& x) {
    const auto derivative = [kind](auto d, auto a) { return kernels::activate_backward(kind, d, a); };
    return mapped(dy.unique() ? dy : core_.make(x.rows(), x.cols()), derivative, dy, x);
  }

  /// Returns a * sigmoid(b) (rows, channels) of x = [a, b] (rows, 2 * channels). Throws `Error` for an odd number of
  /// columns.
  Tensor glu(const Tensor& x) {
    checks::glu(x);
    Tensor y = core_.make(x.rows(), x.cols() / 2);
    kernels::glu(core_.threads(), y.rows(), y.cols(), x.data(), y.data());
    return y;
  }
  /// Returns the derivative of `glu` by x (rows, 2 * channels).
  Tensor glu_backward(const Tensor& dy, const Tensor& x) {
    Tensor dx = core_.make(x.rows(), x.cols());
    kernels::glu_backward(core_.threads(), dy.rows(), dy.cols(), dy.data(), x.data(), dx.data());
    return dx;
  }

  /// Returns x, since this context does not train.
  Tensor dropout(Tensor x, double) { return x; }
  /// Returns x with the elements that the mask drops zeroed and the others scaled.
  Tensor dropout_train(Tensor x, const DropoutMask& mask) {
    Tensor y = x.unique() ? x : core_.make(x.rows(), x.cols());
    kernels::dropout(core_.threads(), x.size(), mask, std::as_const(x).data(), y.data());
    return y;
  }

  /// Returns x + scale * y. Throws `Error` for different shapes.
  Tensor add(Tensor x, const Tensor& y, double scale = 1) {
    checks::equal_shapes("add", x, y);
    const kernels::Batch<T> s(static_cast<T>(scale));
    const auto sum = [s](auto a, auto b) { return xsimd::fma(s, b, a); };
    return mapped(x.unique() ? x : core_.make(x.rows(), x.cols()), sum, x, y);
  }
  /// Returns x (rows, channels) with `row` (channels) added to every row.
  Tensor add_row(Tensor x, const Parameter<T>& row) {
    checks::add_row(x, row);
    Tensor y = x.unique() ? x : core_.make(x.rows(), x.cols());
    const Tensor& from = x;
    kernels::parallel_blocks(core_.threads(), x.rows(), 32, [&](Index begin, Index end) {
      for (Index r = begin; r < end; ++r)
        kernels::map_span(
            x.cols(), y.row(r), [](auto a, auto b) { return a + b; }, from.row(r), kernels::values_of(row));
    });
    return y;
  }
  /// Adds the column sums of dy to the gradient of `row`.
  void add_row_backward(const Tensor& dy, const Parameter<T>& row) { core_.add_column_sums(dy, row); }
  /// Returns the elementwise product of x and y. Throws `Error` for different shapes.
  Tensor multiply(const Tensor& x, const Tensor& y) {
    checks::equal_shapes("multiply", x, y);
    return mapped(
        core_.make(x.rows(), x.cols()), [](auto a, auto b) { return a * b; }, x, y);
  }
  /// Returns the columns first .. first + count - 1 of x. Throws `Error` for columns that x does not have.
  Tensor columns(const Tensor& x, Index first, Index count) {
    checks::columns(x, first, count);
    Tensor out = core_.make(x.rows(), count);
    out.view() = std::as_const(x).view().middleCols(first, count);
    return out;
  }
  /// Returns the derivative of `columns` by x (rows, cols), which is zero outside the columns.
  Tensor columns_backward(const Tensor& dy, Index first, Index cols) {
    Tensor dx = core_.zeros(dy.rows(), cols);
    dx.view().middleCols(first, dy.cols()) = dy.view();
    return dx;
  }
  /// Returns sigmoid(gate_n) x + (1 - sigmoid(gate_n)) y for the rows of each sequence n. gate (sequences, 1).
  Tensor mix(const Tensor& x, const Tensor& y, const Tensor& gate, const Sequences& sequences) {
    checks::mix(x, y, gate, sequences);
    Tensor out = core_.make(x.rows(), x.cols());
    for (Index n = 0; n < sequences.size(); ++n) {
      const T weight = T(1) / (T(1) + std::exp(-gate.row(n)[0]));
      const Index first = sequences.begin(n), count = sequences.length(n);
      out.view().middleRows(first, count) =
          weight * x.view().middleRows(first, count) + (T(1) - weight) * y.view().middleRows(first, count);
    }
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
    for (Index n = 0; n < sequences.size(); ++n) {
      const T weight = T(1) / (T(1) + std::exp(-gate.row(n)[0]));
      const Index first = sequences.begin(n), count = sequences.length(n);
      const auto g = dout.view().middleRows(first, count);
      d.dx.view().middleRows(first, count) = weight * g;
      d.dy.view().middleRows(first, count) = (T(1) - weight) * g;
      d.dgate.row(n)[0] = weight * (T(1) - weight) *
                          g.cwiseProduct(x.view().middleRows(first, count) - y.view().middleRows(first, count)).sum();
    }
    return d;
  }
  /// Returns factor * x.
  Tensor scale(Tensor x, double factor) {
    const kernels::Batch<T> s(static_cast<T>(factor));
    return mapped(
        x.unique() ? x : core_.make(x.rows(), x.cols()), [s](auto a) { return s * a; }, x);
  }

  /// Returns x with the pairs of channels of each head rotated by the angles in `table` (rows, width), or rotated back
  /// if `direction` is -1.
  Tensor rotate(Tensor x, const Tensor& table, RotaryPairs pairs, double direction = 1) {
    checks::rotate(x, table);
    Tensor y = x.unique() ? x : core_.make(x.rows(), x.cols());
    kernels::rotate(core_.threads(), x.rows(), x.cols() / table.cols(), table.cols(), pairs, static_cast<T>(direction),
                    std::as_const(x).data(), table.data(), y.data());
    return y;
  }

  /// Returns [a_h, b_h] for every head h, where b has as many heads as a, or one for all.
  Tensor concat(const Tensor& a, const Tensor& b, Index num_heads = 1, Index b_heads = 1) {
    checks::concat(a, b, num_heads, b_heads);
    const Index a_width = a.cols() / num_heads, b_width = b.cols() / b_heads;
    Tensor y = core_.make(a.rows(), num_heads * (a_width + b_width));
    kernels::concat(core_.threads(), a.rows(), num_heads, a_width, b_width, b_heads != num_heads, a.data(), b.data(),
                    y.data());
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
    kernels::concat_backward(core_.threads(), dy.rows(), num_heads, a_cols / num_heads, b_cols / b_heads,
                             b_heads != num_heads, dy.data(), d.da.data(), d.db.data());
    return d;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuElementwise(CpuCore<T>& core) : core_(core) {}

 private:
  /// Writes f(inputs...) of each element to `out`, which may be the first input, and returns it.
  template <class F, class... Inputs>
  Tensor mapped(Tensor out, F f, const Inputs&... inputs) {
    kernels::map(core_.threads(), out.size(), out.data(), f, inputs.data()...);
    return out;
  }

  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuElementwise);

}  // namespace LACONIC_ABI
}  // namespace laconic
