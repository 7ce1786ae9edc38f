// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/map.hpp>
#include <laconic/backend/shapes.hpp>

#include <cmath>
#include <cstdint>
#include <numbers>

// Functions of elements, for `for_each`. `at<N>(i)` computes N neighbours of the result, from element i on.

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
  static constexpr int together = vector_size<T>;
  Activation kind;
  const T* x;
  T* y;
  bool in_vectors() const { return are_aligned<together>(x, y); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    map<N>(
        y + i, [&](T a) { return activate(kind, a); }, x + i);
  }
};
/// Computes dx[i] = dy[i] times the slope of the activation at x[i]. dy and dx may be the same.
template <class T>
struct ActivateBackward {
  static constexpr int together = vector_size<T>;
  Activation kind;
  const T *dy, *x;
  T* dx;
  bool in_vectors() const { return are_aligned<together>(dy, x, dx); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    const auto one = [&](T d, T a) {
      const T slope = activation_slope(kind, a);
      // A product would make NaN of an infinite derivative where ReLU is 0.
      return kind == Activation::relu && slope == T(0) ? T(0) : d * slope;
    };
    map<N>(dx + i, one, dy + i, x + i);
  }
};

/// Computes y = a sigmoid(b) (rows, cols) of x = [a, b] (rows, 2 * cols).
template <class T>
struct Glu {
  static constexpr int together = vector_size<T>;
  const T* x;
  T* y;
  Index cols;
  bool in_vectors() const { return are_aligned<together>(x, y) && are_multiples<together>(cols); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    const T* a = x + i / cols * 2 * cols + i % cols;
    map<N>(
        y + i, [](T value, T gate) { return value * sigmoid(gate); }, a, a + cols);
  }
};
/// Computes both derivatives dx (rows, 2 * cols) of elements of dy (rows, cols).
template <class T>
struct GluBackward {
  static constexpr int together = vector_size<T>;
  const T *dy, *x;
  T* dx;
  Index cols;
  bool in_vectors() const { return are_aligned<together>(dy, x, dx) && are_multiples<together>(cols); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    const Index at = i / cols * 2 * cols + i % cols;
    const Vector<T, N> d = load<N>(dy + i), a = load<N>(x + at), b = load<N>(x + at + cols);
    Vector<T, N> da, db;
    LACONIC_UNROLL_DEVICE
    for (int k = 0; k < N; ++k) {
      const T s = sigmoid(b[k]);
      da[k] = d[k] * s;
      db[k] = d[k] * a[k] * s * (T(1) - s);
    }
    store(dx + at, da);
    store(dx + at + cols, db);
  }
};

/// Computes z[i] = x[i] + scale * y[i]. x and z may be the same.
template <class T>
struct Add {
  static constexpr int together = vector_size<T>;
  const T *x, *y;
  T* z;
  T scale;
  bool in_vectors() const { return are_aligned<together>(x, y, z); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    map<N>(
        z + i, [&](T a, T b) { return a + scale * b; }, x + i, y + i);
  }
};
/// Computes y (rows, cols) = x + row (cols). x and y may be the same.
template <class T>
struct AddRow {
  static constexpr int together = vector_size<T>;
  const T *x, *row;
  T* y;
  Index cols;
  bool in_vectors() const { return are_aligned<together>(x, row, y) && are_multiples<together>(cols); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    map<N>(
        y + i, [](T a, T b) { return a + b; }, x + i, row + i % cols);
  }
};
/// Computes z[i] = x[i] * y[i].
template <class T>
struct Multiply {
  static constexpr int together = vector_size<T>;
  const T *x, *y;
  T* z;
  bool in_vectors() const { return are_aligned<together>(x, y, z); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    map<N>(
        z + i, [](T a, T b) { return a * b; }, x + i, y + i);
  }
};
/// Computes y[i] = factor * x[i]. x and y may be the same.
template <class T>
struct Scale {
  static constexpr int together = vector_size<T>;
  const T* x;
  T* y;
  T factor;
  bool in_vectors() const { return are_aligned<together>(x, y); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    map<N>(
        y + i, [&](T a) { return factor * a; }, x + i);
  }
};
/// Applies a dropout mask. x and y may be the same.
template <class T>
struct Dropout {
  static constexpr int together = 8;  // elements of one draw
  DropoutMask mask;
  const T* x;
  T* y;
  bool in_vectors() const { return are_aligned<together>(x, y); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    const T scale = static_cast<T>(mask.scale());
    std::uint32_t kept = mask.kept_of(static_cast<std::uint64_t>(i) / 8) >> (i % 8);
    const auto one = [&](T a) {
      const T scaled = (kept & 1) != 0 ? a * scale : T(0);
      kept >>= 1;
      return scaled;
    };
    map<N>(y + i, one, x + i);
  }
};

/// Copies columns of x (rows, from_cols), from `from` on, to columns of y (rows, to_cols), from `to` on: `count` of
/// each row.
template <class T>
struct CopyColumns {
  static constexpr int together = vector_size<T>;
  const T* x;
  T* y;
  Index from_cols, from, to_cols, to, count;
  bool in_vectors() const {
    return are_aligned<together>(x, y) && are_multiples<together>(from_cols, from, to_cols, to, count);
  }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    const Index r = i / count, c = i % count;
    store(y + r * to_cols + to + c, load<N>(x + r * from_cols + from + c));
  }
};

/// Computes elements of [a_h, b_h] for all heads h: a (rows, heads * a_width), b (rows, heads * b_width) or, shared,
/// (rows, b_width); y (rows, heads * (a_width + b_width)).
template <class T>
struct Concat {
  static constexpr int together = vector_size<T>;
  const T *a, *b;
  T* y;
  Index heads, a_width, b_width;
  bool shared;
  bool in_vectors() const { return are_aligned<together>(a, b, y) && are_multiples<together>(a_width, b_width); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    const Index width = a_width + b_width, row = i / (heads * width), head = i / width % heads, c = i % width;
    store(y + i, load<N>(c < a_width ? a + (row * heads + head) * a_width + c
                                     : b + (shared ? row : row * heads + head) * b_width + c - a_width));
  }
};
/// Computes elements of da and db, one after the other, from dy (rows, heads * (a_width + b_width)). A shared b gets
/// the sum over heads.
template <class T>
struct ConcatBackward {
  static constexpr int together = vector_size<T>;
  const T* dy;
  T *da, *db;
  Index a_size, heads, a_width, b_width;
  bool shared;
  bool in_vectors() const { return are_aligned<together>(dy, da, db) && are_multiples<together>(a_width, b_width); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    const Index width = a_width + b_width;
    if (i < a_size) return store(da + i, load<N>(dy + i / a_width * width + i % a_width));
    const Index j = i - a_size, row = j / b_width, c = a_width + j % b_width;
    if (!shared) return store(db + j, load<N>(dy + row * width + c));
    Vector<T, N> sum{};
    for (Index h = 0; h < heads; ++h) {
      const Vector<T, N> d = load<N>(dy + (row * heads + h) * width + c);
      LACONIC_UNROLL_DEVICE
      for (int k = 0; k < N; ++k) sum[k] += d[k];
    }
    store(db + j, sum);
  }
};

/// Rotates pairs of channels of x (rows, heads * width) by the angles in `table` (rows, width), or back if direction is
/// -1. The index numbers pairs. x and y may be the same.
template <class T>
struct Rotate {
  static constexpr int together = vector_size<T>;
  const T *x, *table;
  T* y;
  Index heads, width;
  RotaryPairs pairs;
  T direction;
  bool in_vectors() const { return are_aligned<together>(x, table, y) && are_multiples<together>(width / 2); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    const Index half = width / 2, row = i / (heads * half), head = i / half % heads, m = i % half;
    const Index base = (row * heads + head) * width;
    const Vector<T, N> c = load<N>(table + row * width + m), s = load<N>(table + row * width + half + m);
    Vector<T, N> a, b;
    Vector<T, 2 * N> both;  // a and b in turns
    if (pairs == RotaryPairs::interleaved) {
      both = load<2 * N>(x + base + 2 * m);
    } else {
      a = load<N>(x + base + m);
      b = load<N>(x + base + half + m);
    }
    LACONIC_UNROLL_DEVICE
    for (int k = 0; k < N; ++k) {
      const T sine = direction * s[k], first = pairs == RotaryPairs::interleaved ? both[2 * k] : a[k],
              second = pairs == RotaryPairs::interleaved ? both[2 * k + 1] : b[k];
      both[2 * k] = a[k] = first * c[k] - second * sine;
      both[2 * k + 1] = b[k] = second * c[k] + first * sine;
    }
    if (pairs == RotaryPairs::interleaved) return store(y + base + 2 * m, both);
    store(y + base + m, a);
    store(y + base + half + m, b);
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
