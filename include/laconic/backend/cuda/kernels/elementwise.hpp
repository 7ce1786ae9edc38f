// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/map.hpp>
#include <laconic/backend/shapes.hpp>

#include <cmath>
#include <cstdint>
#include <numbers>

// Functions of elements, each for one index in a thread of its own (`for_each`). Their call operators take the index of
// an element of the result.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Returns 1 / (1 + exp(-x)).
template <class T>
LACONIC_DEVICE T sigmoid(T x) {
  return T(1) / (T(1) + std::exp(-x));
}

/// Returns 2 u, where GPT-2's approximation of GELU is x sigmoid(2 u): u = sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks
/// and Gimpel 2016, section 2), and writes its derivative by x to `slope`.
template <class T>
LACONIC_DEVICE T gelu_new_argument(T x, T& slope) {
  // Beyond these the sigmoid is 0 or 1 and the slope does not matter, but must not overflow.
  const T factor = T(2 * std::numbers::sqrt2 * std::numbers::inv_sqrtpi), cubic = T(0.044715);
  const T limited = x > T(1e4) ? T(1e4) : x < T(-1e4) ? T(-1e4) : x, square = limited * limited;
  slope = factor * (T(3) * cubic * square + T(1));
  return factor * limited * (cubic * square + T(1));
}

/// Returns ReLU, SiLU or a GELU of x (see Activation).
template <class T>
LACONIC_DEVICE T activate(Activation kind, T x) {
  T slope;
  switch (kind) {
    case Activation::relu:
      return x < T(0) ? T(0) : x;  // NaN stays NaN
    case Activation::silu:
      return x * sigmoid(x);
    case Activation::gelu_new:
      return x * sigmoid(gelu_new_argument(x, slope));
    default:
      return T(0.5) * x * (T(1) + std::erf(x * T(0.5 * std::numbers::sqrt2)));
  }
}
/// Returns the derivative of the activation at x.
template <class T>
LACONIC_DEVICE T activation_slope(Activation kind, T x) {
  T s, slope;
  switch (kind) {
    case Activation::relu:
      return x > T(0) ? T(1) : T(0);
    case Activation::silu:
      s = sigmoid(x);
      return s * (T(1) + x * (T(1) - s));
    case Activation::gelu_new:
      s = sigmoid(gelu_new_argument(x, slope));
      return s * (T(1) + x * (T(1) - s) * slope);
    default:
      s = T(0.5) * (T(1) + std::erf(x * T(0.5 * std::numbers::sqrt2)));
      return s + x * T(0.5 * std::numbers::inv_sqrtpi * std::numbers::sqrt2) * std::exp(T(-0.5) * x * x);
  }
}

/// Computes y[i] = activation(x[i]). x and y may be the same.
template <class T>
struct Activate {
  Activation kind;
  const T* x;
  T* y;
  LACONIC_DEVICE void operator()(Index i) const { y[i] = activate(kind, x[i]); }
};
/// Computes dx[i] = dy[i] times the slope of the activation at x[i]. dy and dx may be the same.
template <class T>
struct ActivateBackward {
  Activation kind;
  const T *dy, *x;
  T* dx;
  LACONIC_DEVICE void operator()(Index i) const {
    const T slope = activation_slope(kind, x[i]);
    // A product would make NaN of an infinite derivative where ReLU is 0.
    dx[i] = kind == Activation::relu && slope == T(0) ? T(0) : dy[i] * slope;
  }
};

/// Computes y = a sigmoid(b) (rows, cols) of x = [a, b] (rows, 2 * cols), one element of y.
template <class T>
struct Glu {
  const T* x;
  T* y;
  Index cols;
  LACONIC_DEVICE void operator()(Index i) const {
    const T* a = x + i / cols * 2 * cols + i % cols;
    y[i] = a[0] * sigmoid(a[cols]);
  }
};
/// Computes both derivatives dx (rows, 2 * cols) of one element of dy (rows, cols).
template <class T>
struct GluBackward {
  const T *dy, *x;
  T* dx;
  Index cols;
  LACONIC_DEVICE void operator()(Index i) const {
    const Index at = i / cols * 2 * cols + i % cols;
    const T s = sigmoid(x[at + cols]);
    dx[at] = dy[i] * s;
    dx[at + cols] = dy[i] * x[at] * s * (T(1) - s);
  }
};

/// Computes z[i] = x[i] + scale * y[i]. x and z may be the same.
template <class T>
struct Add {
  const T *x, *y;
  T* z;
  T scale;
  LACONIC_DEVICE void operator()(Index i) const { z[i] = x[i] + scale * y[i]; }
};
/// Computes y (rows, cols) = x + row (cols). x and y may be the same.
template <class T>
struct AddRow {
  const T *x, *row;
  T* y;
  Index cols;
  LACONIC_DEVICE void operator()(Index i) const { y[i] = x[i] + row[i % cols]; }
};
/// Computes z[i] = x[i] * y[i].
template <class T>
struct Multiply {
  const T *x, *y;
  T* z;
  LACONIC_DEVICE void operator()(Index i) const { z[i] = x[i] * y[i]; }
};
/// Computes y[i] = factor * x[i]. x and y may be the same.
template <class T>
struct Scale {
  const T* x;
  T* y;
  T factor;
  LACONIC_DEVICE void operator()(Index i) const { y[i] = factor * x[i]; }
};
/// Applies a dropout mask. x and y may be the same.
template <class T>
struct Dropout {
  DropoutMask mask;
  const T* x;
  T* y;
  LACONIC_DEVICE void operator()(Index i) const {
    y[i] = mask.keeps(static_cast<std::uint64_t>(i)) ? x[i] * static_cast<T>(mask.scale()) : T(0);
  }
};

/// Copies columns of x (rows, from_cols), from `from` on, to columns of y (rows, to_cols), from `to` on: `count` of
/// each row.
template <class T>
struct CopyColumns {
  const T* x;
  T* y;
  Index from_cols, from, to_cols, to, count;
  LACONIC_DEVICE void operator()(Index i) const {
    const Index r = i / count, c = i % count;
    y[r * to_cols + to + c] = x[r * from_cols + from + c];
  }
};

/// Computes one element of [a_h, b_h] for all heads h: a (rows, heads * a_width), b (rows, heads * b_width) or, shared,
/// (rows, b_width); y (rows, heads * (a_width + b_width)).
template <class T>
struct Concat {
  const T *a, *b;
  T* y;
  Index heads, a_width, b_width;
  bool shared;
  LACONIC_DEVICE void operator()(Index i) const {
    const Index width = a_width + b_width, row = i / (heads * width), head = i / width % heads, c = i % width;
    y[i] = c < a_width ? a[(row * heads + head) * a_width + c]
                       : b[(shared ? row : row * heads + head) * b_width + c - a_width];
  }
};
/// Computes one element of da and db, one after the other, from dy (rows, heads * (a_width + b_width)). A shared b gets
/// the sum over heads.
template <class T>
struct ConcatBackward {
  const T* dy;
  T *da, *db;
  Index a_size, heads, a_width, b_width;
  bool shared;
  LACONIC_DEVICE void operator()(Index i) const {
    const Index width = a_width + b_width;
    if (i < a_size) {
      da[i] = dy[i / a_width * width + i % a_width];
      return;
    }
    const Index j = i - a_size, row = j / b_width, c = a_width + j % b_width;
    if (!shared) {
      db[j] = dy[row * width + c];
      return;
    }
    T sum = 0;
    for (Index h = 0; h < heads; ++h) sum += dy[(row * heads + h) * width + c];
    db[j] = sum;
  }
};

/// Rotates one pair of channels of one head of x (rows, heads * width) by the angle in `table` (rows, width), or back
/// if direction is -1. The index numbers pairs. x and y may be the same.
template <class T>
struct Rotate {
  const T *x, *table;
  T* y;
  Index heads, width;
  RotaryPairs pairs;
  T direction;
  LACONIC_DEVICE void operator()(Index i) const {
    const Index half = width / 2, row = i / (heads * half), head = i / half % heads, m = i % half;
    const Index base = (row * heads + head) * width;
    const Index first = base + (pairs == RotaryPairs::interleaved ? 2 * m : m),
                second = pairs == RotaryPairs::interleaved ? first + 1 : first + half;
    const T c = table[row * width + m], s = direction * table[row * width + half + m], a = x[first], b = x[second];
    y[first] = a * c - b * s;
    y[second] = b * c + a * s;
  }
};

/// Computes sigmoid(gate_n) x + (1 - sigmoid(gate_n)) y for the rows of each sequence n. A block is a sequence.
template <class T>
struct Mix {
  static constexpr int threads = 256;
  const T *x, *y, *gate;
  T* out;
  const Index* offsets;
  Index cols;
  LACONIC_DEVICE void operator()(Block& block) const {
    block.each([&](int t) {
      const Index n = block.x();
      const T weight = sigmoid(gate[n]);
      for (Index i = offsets[n] * cols + t; i < offsets[n + 1] * cols; i += threads)
        out[i] = weight * x[i] + (T(1) - weight) * y[i];
    });
  }
};
/// Computes the derivatives of `Mix`. A block is a sequence.
template <class T>
struct MixBackward {
  static constexpr int threads = 256;
  const T *dout, *x, *y, *gate;
  T *dx, *dy, *dgate;
  const Index* offsets;
  Index cols;
  LACONIC_DEVICE void operator()(Block& block) const {
    const Index n = block.x();
    const T weight = sigmoid(gate[n]);
    PerThread<double> part(block);
    block.each([&](int t) {
      part[t] = 0;
      for (Index i = offsets[n] * cols + t; i < offsets[n + 1] * cols; i += threads) {
        dx[i] = weight * dout[i];
        dy[i] = (T(1) - weight) * dout[i];
        part[t] += static_cast<double>(dout[i]) * static_cast<double>(x[i] - y[i]);
      }
    });
    const double sum = block.sum(part);
    block.one([&] { dgate[n] = weight * (T(1) - weight) * static_cast<T>(sum); });
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
