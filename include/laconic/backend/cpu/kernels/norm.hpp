// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/elementwise.hpp>

#include <cmath>

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Layer normalisation (Ba 2016) of each row; keeps mean and 1/std a row (rows, 2) for the derivative.
template <class T>
void layer_norm(int threads, Index rows, Index cols, const T* x, const T* weight, const T* bias, T eps, T* y,
                T* moments) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const T* row = x + r * cols;
      const T mean = sum_span<T>(
                         cols, [](auto a) { return a; }, row) /
                     static_cast<T>(cols);
      const T square = sum_span<T>(
          cols,
          [m = Batch<T>(mean)](auto a) {
            const auto d = a - m;
            return d * d;
          },
          row);
      const T inverse = T(1) / std::sqrt(square / static_cast<T>(cols) + eps);
      if (moments != nullptr) {
        moments[2 * r] = mean;
        moments[2 * r + 1] = inverse;
      }
      const Batch<T> m(mean), s(inverse);
      map_span(
          cols, y + r * cols, [&](auto a, auto w, auto b) { return xsimd::fma((a - m) * s, w, b); }, row, weight, bias);
    }
  });
}

/// Root-mean-square normalisation (Zhang and Sennrich 2019) of each row; keeps 1/rms a row (rows, 1) for the
/// derivative.
template <class T>
void rms_norm(int threads, Index rows, Index cols, const T* x, const T* weight, T eps, T* y, T* inverses) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const T* row = x + r * cols;
      const T square = sum_span<T>(
                           cols, [](auto a) { return a * a; }, row) /
                       static_cast<T>(cols);
      const T inverse = T(1) / std::sqrt(square + eps);
      if (inverses != nullptr) inverses[r] = inverse;
      map_span(
          cols, y + r * cols, [s = Batch<T>(inverse)](auto a, auto w) { return a * s * w; }, row, weight);
    }
  });
}

/// dx for every row; dweight is added to. Null results are left out.
template <class T>
void rms_norm_backward(int threads, Index rows, Index cols, const T* dy, const T* x, const T* weight, const T* inverses,
                       T* dx, T* dweight) {
  if (dx != nullptr)
    parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
      for (Index r = begin; r < end; ++r) {
        const T *g = dy + r * cols, *row = x + r * cols, inverse = inverses[r];
        const T dot = sum_span<T>(
                          cols, [](auto d, auto w, auto a) { return d * w * a; }, g, weight, row) /
                      static_cast<T>(cols);
        const Batch<T> s(inverse), along(dot * inverse * inverse * inverse);
        map_span(
            cols, dx + r * cols, [&](auto d, auto w, auto a) { return d * w * s - a * along; }, g, weight, row);
      }
    });
  constexpr Index width = 4 * lanes<T>;
  if (dweight != nullptr)
    parallel_blocks(threads, cols, width, [&](Index begin, Index end) {
      Local<T, width> sum = {};
      for (Index r = 0; r < rows; ++r)
        for (Index c = begin; c < end; ++c) sum[c - begin] += dy[r * cols + c] * x[r * cols + c] * inverses[r];
      for (Index c = begin; c < end; ++c) dweight[c] += sum[c - begin];
    });
}

/// dx for every row; then dweight and dbias, each added to. Null results are left out.
template <class T>
void layer_norm_backward(int threads, Index rows, Index cols, const T* dy, const T* x, const T* weight,
                         const T* moments, T* dx, T* dweight, T* dbias) {
  if (dx != nullptr)
    parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
      for (Index r = begin; r < end; ++r) {
        const Batch<T> mean(moments[2 * r]), inverse(moments[2 * r + 1]);
        const T *g = dy + r * cols, *row = x + r * cols;
        const T n = static_cast<T>(cols);
        const Batch<T> sum(sum_span<T>(
                               cols, [](auto d, auto w) { return d * w; }, g, weight) /
                           n);
        // Padding lanes have d = w = 0, so their garbage (0 - mean) does not count.
        const Batch<T> dot(
            sum_span<T>(
                cols, [&](auto d, auto w, auto a) { return d * w * (a - mean) * inverse; }, g, weight, row) /
            n);
        map_span(
            cols, dx + r * cols,
            [&](auto d, auto w, auto a) { return inverse * (d * w - sum - (a - mean) * inverse * dot); }, g, weight,
            row);
      }
    });
  constexpr Index width = 4 * lanes<T>;
  if (dweight != nullptr || dbias != nullptr)
    parallel_blocks(threads, cols, width, [&](Index begin, Index end) {
      Local<T, width> w = {}, b = {};
      for (Index r = 0; r < rows; ++r)
        for (Index c = begin; c < end; ++c) {
          const T d = dy[r * cols + c];
          b[c - begin] += d;
          w[c - begin] += d * (x[r * cols + c] - moments[2 * r]) * moments[2 * r + 1];
        }
      for (Index c = begin; c < end; ++c) {
        if (dweight != nullptr) dweight[c] += w[c - begin];
        if (dbias != nullptr) dbias[c] += b[c - begin];
      }
    });
}

/// Mean and population variance of each column of x (rows, cols).
template <class T>
void column_moments(int threads, Index rows, Index cols, const T* x, T* mean, T* variance) {
  constexpr Index width = 4 * lanes<T>;
  parallel_blocks(threads, cols, width, [&](Index begin, Index end) {
    Local<T, width> sum = {}, square = {};
    for (Index r = 0; r < rows; ++r)
      for (Index c = begin; c < end; ++c) sum[c - begin] += x[r * cols + c];
    for (Index c = begin; c < end; ++c) mean[c] = sum[c - begin] / static_cast<T>(rows);
    for (Index r = 0; r < rows; ++r)
      for (Index c = begin; c < end; ++c) {
        const T d = x[r * cols + c] - mean[c];
        square[c - begin] += d * d;
      }
    for (Index c = begin; c < end; ++c) variance[c] = square[c - begin] / static_cast<T>(rows);
  });
}

/// y = (x - mean) / sqrt(variance + eps) * weight + bias, by column (Ioffe and Szegedy 2015). `scale_shift` is 2 cols
/// of scratch.
template <class T>
void batch_norm(int threads, Index rows, Index cols, const T* x, const T* weight, const T* bias, const T* mean,
                const T* variance, T eps, T* scale_shift, T* y) {
  for (Index c = 0; c < cols; ++c) {
    scale_shift[c] = weight[c] / std::sqrt(variance[c] + eps);
    scale_shift[cols + c] = bias[c] - mean[c] * scale_shift[c];
  }
  parallel_blocks(threads, rows, 64, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r)
      map_span(
          cols, y + r * cols, [](auto a, auto s, auto t) { return xsimd::fma(a, s, t); }, x + r * cols, scale_shift,
          scale_shift + cols);
  });
}

/// Derivative of batch_norm; `of_batch` says that mean and variance are those of x itself.
template <class T>
void batch_norm_backward(int threads, Index rows, Index cols, const T* dy, const T* x, const T* weight, const T* mean,
                         const T* variance, T eps, bool of_batch, T* dx, T* dweight, T* dbias) {
  constexpr Index width = 4 * lanes<T>;
  parallel_blocks(threads, cols, width, [&](Index begin, Index end) {
    Local<T, width> inverse, sum = {}, dot = {};
    for (Index c = begin; c < end; ++c) inverse[c - begin] = T(1) / std::sqrt(variance[c] + eps);
    for (Index r = 0; r < rows; ++r)
      for (Index c = begin; c < end; ++c) {
        const T d = dy[r * cols + c];
        sum[c - begin] += d;
        dot[c - begin] += d * (x[r * cols + c] - mean[c]) * inverse[c - begin];
      }
    for (Index c = begin; c < end; ++c) {
      if (dweight != nullptr) dweight[c] += dot[c - begin];
      if (dbias != nullptr) dbias[c] += sum[c - begin];
    }
    if (dx == nullptr) return;
    const T n = static_cast<T>(rows);
    for (Index r = 0; r < rows; ++r)
      for (Index c = begin; c < end; ++c) {
        const T s = inverse[c - begin], d = dy[r * cols + c];
        const T centred = of_batch ? d - sum[c - begin] / n - (x[r * cols + c] - mean[c]) * s * dot[c - begin] / n : d;
        dx[r * cols + c] = weight[c] * s * centred;
      }
  });
}

/// Row-wise log softmax.
template <class T>
void log_softmax(int threads, Index rows, Index cols, const T* x, T* y) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const T* row = x + r * cols;
      Batch<T> best(row[0]);
      Index c = 0;
      for (; c + lanes<T> <= cols; c += lanes<T>) best = xsimd::max(best, load(row + c));
      if (c < cols) best = xsimd::max(best, load_part(row + c, cols - c, row[0]));
      const T most = max_lanes<T>(best);
      const T log_sum = most + std::log(sum_span<T>(
                                   cols, [m = Batch<T>(most)](auto a) { return exp<T>(a - m); }, row));
      map_span(
          cols, y + r * cols, [l = Batch<T>(log_sum)](auto a) { return a - l; }, row);
    }
  });
}

/// dx = dy - softmax * sum(dy), from the result y of log_softmax.
template <class T>
void log_softmax_backward(int threads, Index rows, Index cols, const T* dy, const T* y, T* dx) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const Batch<T> sum(sum_span<T>(
          cols, [](auto d) { return d; }, dy + r * cols));
      map_span(
          cols, dx + r * cols, [sum](auto d, auto l) { return d - exp<T>(l) * sum; }, dy + r * cols, y + r * cols);
    }
  });
}

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
