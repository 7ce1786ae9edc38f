// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/elementwise.hpp>
#include <laconic/core/compiled.hpp>

#include <cmath>

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Computes y = (x - mean) / sqrt(variance + eps) * weight + bias for each row of x (rows, cols) (Ba et al. 2016).
/// weight and bias (cols). Writes mean and 1/std of each row to moments (rows, 2) unless it is null. Parallel over
/// rows; no allocation.
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

/// Computes y = x / sqrt(mean(x^2) + eps) * weight for each row of x (rows, cols) (Zhang and Sennrich 2019). weight
/// (cols). Writes 1/rms of each row to inverses (rows) unless it is null. Parallel over rows; no allocation.
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

/// Computes dx (rows, cols) of `rms_norm`, and adds to dweight (cols); each may be null. Parallel over rows, then over
/// columns; no allocation.
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

/// Computes dx (rows, cols) of `layer_norm`, and adds to dweight and dbias (cols); each may be null. Parallel over
/// rows, then over columns; no allocation.
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
        // Padding lanes have d = w = 0, so (0 - mean) in them adds nothing.
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

/// Computes mean and population variance (cols) of each column of x (rows, cols). Rows are summed in blocks, and the
/// blocks in double, so that minutes of audio, millions of rows, lose hardly a digit. Parallel over columns, so the
/// order of each sum is fixed; no allocation.
template <class T>
void column_moments(int threads, Index rows, Index cols, const T* x, T* mean, T* variance) {
  constexpr Index width = 4 * lanes<T>, block = 256;
  parallel_blocks(threads, cols, width, [&](Index begin, Index end) {
    // Returns the mean over the rows of f(value, column).
    const auto mean_of = [&](auto&& f, T* to) {
      Local<double, width> total = {};
      for (Index r0 = 0; r0 < rows; r0 += block) {
        Local<T, width> sum = {};
        for (Index r = r0; r < std::min(rows, r0 + block); ++r)
          for (Index c = begin; c < end; ++c) sum[c - begin] += f(x[r * cols + c], c);
        for (Index c = begin; c < end; ++c) total[c - begin] += static_cast<double>(sum[c - begin]);
      }
      for (Index c = begin; c < end; ++c) to[c] = static_cast<T>(total[c - begin] / static_cast<double>(rows));
    };
    mean_of([](T value, Index) { return value; }, mean);
    mean_of([&](T value, Index c) { return (value - mean[c]) * (value - mean[c]); }, variance);
  });
}

/// Computes y = (x - mean) / sqrt(variance + eps) * weight + bias for each column of x (rows, cols) (Ioffe and Szegedy
/// 2015). weight, bias, mean and variance (cols); scale_shift is scratch of 2 * cols elements. Parallel over rows; no
/// allocation.
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

/// Computes dx (rows, cols) of `batch_norm`, and adds to dweight and dbias (cols); each may be null. `of_batch` says
/// that mean and variance are those of x, and so depend on it. Parallel over columns; no allocation.
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

/// Computes y = x - logsumexp(x) for each row of x (rows, cols). Parallel over rows; no allocation.
template <class T>
void log_softmax(int threads, Index rows, Index cols, const T* x, T* y) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const T* row = x + r * cols;
      Batch<T> best(row[0]);
      Index c = 0;
      for (; c + lanes<T> <= cols; c += lanes<T>) best = xsimd::max(best, load(row + c));
      if (c < cols) best = xsimd::max(best, load_part(row + c, cols - c, row[0]));
      const T max = max_lanes<T>(best);
      const T logsumexp = max + std::log(sum_span<T>(
                                    cols, [m = Batch<T>(max)](auto a) { return exp<T>(a - m); }, row));
      map_span(
          cols, y + r * cols, [l = Batch<T>(logsumexp)](auto a) { return a - l; }, row);
    }
  });
}

/// Computes dx = dy - exp(y) sum(dy) for each row, from the result y of `log_softmax`; all (rows, cols). Parallel over
/// rows; no allocation.
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

LACONIC_COMPILE(layer_norm);
LACONIC_COMPILE(layer_norm_backward);
LACONIC_COMPILE(rms_norm);
LACONIC_COMPILE(rms_norm_backward);
LACONIC_COMPILE(column_moments);
LACONIC_COMPILE(batch_norm);
LACONIC_COMPILE(batch_norm_backward);
LACONIC_COMPILE(log_softmax);
LACONIC_COMPILE(log_softmax_backward);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
