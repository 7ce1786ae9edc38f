// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/simd.hpp>
#include <laconic/core/matrix.hpp>
#include <laconic/core/tensor.hpp>

namespace laconic::inline LACONIC_ABI {
namespace kernels {

/// A matrix to read: element (i, j) is data[i * row_stride + j * col_stride], so a transpose costs nothing.
template <class T>
struct Operand {
  const T* data;
  Index row_stride, col_stride = 1;

  Operand transposed() const { return {data, col_stride, row_stride}; }
  const T* at(Index i, Index j) const { return data + i * row_stride + j * col_stride; }
};

/// The register tile is 8 rows by 3 vectors where there are 32 vector registers and 4 by 3 where there are 16: the
/// largest that leaves room for a row of B and one element of A (Goto and van de Geijn 2008, section 6).
template <class T>
struct GemmTile {
#ifdef __AVX512F__
  static constexpr Index rows = 8;
#elif defined(__aarch64__)
  static constexpr Index rows = 8;
#else
  static constexpr Index rows = 4;
#endif
  static constexpr Index vectors = 3;
  static constexpr Index cols = vectors * lanes<T>;
  /// A packed block of B is depth x panels x cols: it stays in a second-level cache of 512 KiB.
  static constexpr Index depth = 256;
  static constexpr Index panels = 2048 / (vectors * 64);
  static constexpr Index block_cols = panels * cols;
};

namespace detail {

/// C(rows x cols) = [C or bias or 0] + A(rows x depth) B(depth x cols) in registers. B is packed or at least has unit
/// column stride; `cols` may end inside the last vector if B is padded there.
template <Index Rows, Index Vectors, class T>
void gemm_kernel(Operand<T> a, const T* b, Index b_stride, Index depth, T* c, Index c_stride, Index cols, bool from_c,
                 const T* bias) {
  constexpr Index w = lanes<T>;
  Local<Local<Batch<T>, Vectors>, Rows> sum;
  const Index tail = cols - (Vectors - 1) * w;  // columns of the last vector
  LACONIC_UNROLL
  for (Index i = 0; i < Rows; ++i) {
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) {
      const T* start = from_c ? c + i * c_stride : bias;
      if (start == nullptr)
        sum[i][j] = Batch<T>(T(0));
      else
        sum[i][j] = j + 1 < Vectors || tail == w ? load(start + j * w) : load_part(start + j * w, tail);
    }
  }
  for (Index k = 0; k < depth; ++k) {
    Local<Batch<T>, Vectors> row;
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) row[j] = load(b + j * w);
    LACONIC_UNROLL
    for (Index i = 0; i < Rows; ++i) {
      const Batch<T> x(a.data[i * a.row_stride]);
      LACONIC_UNROLL
      for (Index j = 0; j < Vectors; ++j) sum[i][j] = xsimd::fma(x, row[j], sum[i][j]);
    }
    a.data += a.col_stride;
    b += b_stride;
  }
  LACONIC_UNROLL
  for (Index i = 0; i < Rows; ++i) {
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) {
      T* to = c + i * c_stride + j * w;
      if (j + 1 < Vectors || tail == w)
        store(to, sum[i][j]);
      else
        store_part(to, sum[i][j], tail);
    }
  }
}

/// All rows of one panel of B: blocks of GemmTile::rows, then 4, 2 and 1.
template <Index Rows, Index Vectors, class T>
void gemm_rows(Index m, Operand<T> a, const T* b, Index b_stride, Index depth, T* c, Index c_stride, Index cols,
               bool from_c, const T* bias) {
  for (; m >= Rows; m -= Rows) {
    gemm_kernel<Rows, Vectors>(a, b, b_stride, depth, c, c_stride, cols, from_c, bias);
    a.data += Rows * a.row_stride;
    c += Rows * c_stride;
  }
  if constexpr (Rows > 1) {
    if (m > 0) gemm_rows<Rows / 2, Vectors>(m, a, b, b_stride, depth, c, c_stride, cols, from_c, bias);
  }
}

/// B(depth x cols) as panels of GemmTile::cols columns, padded with zeros to whole vectors.
template <class T>
void pack(Operand<T> b, Index depth, Index cols, T* to) {
  constexpr Index width = GemmTile<T>::cols, w = lanes<T>;
  for (Index j = 0; j < cols; j += width) {
    const Index used = std::min(width, cols - j), padded = (used + w - 1) / w * w;
    const T* from = b.at(0, j);
    if (b.col_stride == 1) {
      for (Index k = 0; k < depth; ++k) {
        std::memcpy(to + k * padded, from + k * b.row_stride, static_cast<std::size_t>(used) * sizeof(T));
        for (Index i = used; i < padded; ++i) to[k * padded + i] = T(0);
      }
    } else {
      // Blocks of 16 rows of the transpose: each cache line is read whole while its page is at hand.
      for (Index k0 = 0; k0 < depth; k0 += 16) {
        const Index k1 = std::min(depth, k0 + 16);
        for (Index i = 0; i < padded; ++i)
          for (Index k = k0; k < k1; ++k)
            to[k * padded + i] = i < used ? from[k * b.row_stride + i * b.col_stride] : T(0);
      }
    }
    to += depth * padded;
  }
}

}  // namespace detail

/// Numbers of scratch that `gemm_block` needs.
template <class T>
constexpr Index gemm_scratch() {
  return GemmTile<T>::depth * GemmTile<T>::block_cols;
}

/// C(m x n) = A(m x k) B(k x n), plus C if `accumulate`, else plus `bias` (a row) if given. One thread; no allocation.
/// Every element of C is summed over k in the same order, whatever m and n are and wherever it lies.
template <class T>
void gemm_block(Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index c_stride, bool accumulate,
                const T* bias, T* scratch) {
  using Tile = GemmTile<T>;
  constexpr Index w = lanes<T>;
  if (k == 0 && !accumulate)
    for (Index i = 0; i < m; ++i)
      for (Index j = 0; j < n; ++j) c[i * c_stride + j] = bias == nullptr ? T(0) : bias[j];
  for (Index j0 = 0; j0 < n; j0 += Tile::block_cols) {
    const Index cols = std::min(Tile::block_cols, n - j0);
    for (Index k0 = 0; k0 < k; k0 += Tile::depth) {
      const Index depth = std::min(Tile::depth, k - k0);
      // Packing pays once a panel is read a few times; a whole number of vectors can be read where it lies.
      const bool packed = b.col_stride != 1 || m > Tile::rows || cols % w != 0;
      if (packed) detail::pack(Operand<T>{b.at(k0, j0), b.row_stride, b.col_stride}, depth, cols, scratch);
      const bool from_c = accumulate || k0 > 0;
      const T* panel = scratch;
      for (Index j = 0; j < cols; j += Tile::cols) {
        const Index used = std::min(Tile::cols, cols - j), padded = (used + w - 1) / w * w;
        const T* from = packed ? panel : b.at(k0, j0 + j);
        const Index stride = packed ? padded : b.row_stride;
        const T* start = bias == nullptr ? nullptr : bias + j0 + j;
        const Operand<T> left{a.at(0, k0), a.row_stride, a.col_stride};
        T* to = c + j0 + j;
        switch (padded / w) {
          case 1:
            detail::gemm_rows<Tile::rows, 1>(m, left, from, stride, depth, to, c_stride, used, from_c, start);
            break;
          case 2:
            detail::gemm_rows<Tile::rows, 2>(m, left, from, stride, depth, to, c_stride, used, from_c, start);
            break;
          default:
            detail::gemm_rows<Tile::rows, 3>(m, left, from, stride, depth, to, c_stride, used, from_c, start);
            break;
        }
        panel += depth * padded;
      }
    }
  }
}

/// The same on several threads: C is cut along its longer side into pieces of whole register tiles.
template <class T>
void gemm(int threads, Arena& arena, Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index c_stride,
          bool accumulate, const T* bias) {
  using Tile = GemmTile<T>;
  if (m == 0 || n == 0) return;
  if (m * n * k < 32 * 32 * 32) threads = 1;  // the work is less than waking a thread
  const bool by_rows = m * Tile::cols >= n * Tile::rows;
  const Index unit = by_rows ? Tile::rows : Tile::cols, size = by_rows ? m : n;
  const Index units = (size + unit - 1) / unit, pieces = std::min<Index>(threads, units);
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(pieces * gemm_scratch<T>()) * sizeof(T));
  parallel_for(threads, pieces, [&](Index piece, int) {
    const Index begin = units * piece / pieces * unit, end = std::min(size, units * (piece + 1) / pieces * unit);
    T* own = static_cast<T*>(scratch.data()) + piece * gemm_scratch<T>();
    if (by_rows)
      gemm_block<T>(end - begin, n, k, {a.at(begin, 0), a.row_stride, a.col_stride}, b, c + begin * c_stride, c_stride,
                    accumulate, bias, own);
    else
      gemm_block<T>(m, end - begin, k, a, {b.at(0, begin), b.row_stride, b.col_stride}, c + begin, c_stride, accumulate,
                    bias == nullptr ? nullptr : bias + begin, own);
  });
}

}  // namespace kernels
}  // namespace laconic
