// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/simd.hpp>
#include <laconic/core/matrix.hpp>
#include <laconic/core/memory.hpp>
#include <laconic/core/rounding.hpp>
#include <laconic/core/tensor.hpp>

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace laconic {
inline namespace LACONIC_ABI {
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
#if defined(__AVX512F__) || defined(__aarch64__)
  static constexpr Index rows = 8;
#else
  static constexpr Index rows = 4;
#endif
  static constexpr Index vectors = 3;
  static constexpr Index cols = vectors * lanes<T>;
  /// Of a panel of B so many rows are met by all rows of A before the next: with them a second-level cache of 512 KiB
  /// holds what up to `block_rows` rows of A bring.
  static constexpr Index depth = 512;
  static constexpr Index block_rows = 256;
  /// Columns that `gemm_block` packs at once.
  static constexpr Index block_cols = 5 * cols;
};

/// Columns as panels hold them: whole vectors.
template <class T>
constexpr Index padded_cols(Index cols) {
  return (cols + lanes<T> - 1) / lanes<T> * lanes<T>;
}

/// B(depth x cols) as the kernel reads it from end to end: panels of GemmTile::cols columns, the last one padded to
/// whole vectors with zeros, row after row.
template <class T, class Number = T>
struct Panels {
  const Number* data;
  Index depth, cols;

  static constexpr Index size(Index depth, Index cols) { return depth * padded_cols<T>(cols); }
  /// The panel that begins at column j, from row k.
  const Number* at(Index k, Index j) const { return data + j * depth + k * width(j); }
  Index width(Index j) const { return padded_cols<T>(std::min(GemmTile<T>::cols, cols - j)); }
};

namespace detail {

/// Four numbers that GCC and clang both shuffle.
template <class T>
struct Quad;
template <>
struct Quad<float> {
  typedef float Row __attribute__((vector_size(16)));
};
template <>
struct Quad<double> {
  typedef double Row __attribute__((vector_size(32)));
};

/// to (4 x 4) = from^T, each with its row stride.
template <class T>
void transpose_4x4(const T* from, Index from_stride, T* to, Index to_stride) {
  using Row = typename Quad<T>::Row;
  Row a, b, c, d;
  std::memcpy(&a, from, sizeof a);
  std::memcpy(&b, from + from_stride, sizeof b);
  std::memcpy(&c, from + 2 * from_stride, sizeof c);
  std::memcpy(&d, from + 3 * from_stride, sizeof d);
  const Row ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7),
            cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Row rows[4] = {
      __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
      __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
  for (Index i = 0; i < 4; ++i) std::memcpy(to + i * to_stride, &rows[i], sizeof(Row));
}

/// As many numbers as a vector has, as they are or widened from 16 bits.
template <class T>
Batch<T> load_as(const T* from) {
  return load(from);
}
template <class T>
Batch<T> load_as(const Bf16* from) {
  Local<T, lanes<T>> wide;
  for (Index i = 0; i < lanes<T>; ++i) wide[i] = static_cast<T>(from_bf16(from[i]));
  return load(wide);
}
#ifdef __AVX512F__
template <>
inline Batch<float> load_as<float>(const Bf16* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
#elif defined(__AVX2__)
template <>
inline Batch<float> load_as<float>(const Bf16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
#endif

/// Where number `offset` after this one lies, which may be beyond the end: to ask for, not to read.
template <class Number>
const void* address(const Number* from, Index offset) {
  return reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(from) +
                                       static_cast<std::uintptr_t>(offset) * sizeof(Number));
}

/// Asks for what comes 48 rows of B later, less than a microsecond, to the second-level cache: where few rows meet
/// weights that lie in memory, the processor's own fetching does not keep up; where they are near already, it costs
/// nothing that can be measured.
template <Index Cols, class Number>
void fetch_later_row(const Number* row, Index row_stride) {
  constexpr Index later = 48, line = laconic::detail::line_bytes / static_cast<Index>(sizeof(Number));
  LACONIC_UNROLL
  for (Index i = 0; i < Cols; i += line) __builtin_prefetch(address(row, later * row_stride + i), 0, 2);
}

/// C(rows x cols) = [C or bias or 0] + A(rows x depth) B(depth x cols) in registers. B is packed or at least has unit
/// column stride; `cols` may end inside the last vector if B is padded there.
template <Index Rows, Index Vectors, class T, class Number>
void gemm_kernel(Operand<T> a, const Number* b, Index b_stride, Index depth, T* c, Index c_stride, Index cols,
                 bool from_c, const T* bias) {
  constexpr Index w = lanes<T>;
  Local<Local<Batch<T>, Vectors>, Rows> sum;
  const Index tail = cols - (Vectors - 1) * w;  // columns of the last vector
  // Results are written at the end, one line after the other: they would wait for lines that lie far away.
  LACONIC_UNROLL
  for (Index i = 0; i < Rows; ++i) {
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) __builtin_prefetch(address(c, i * c_stride + j * w), 1, 3);
  }
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
    for (Index j = 0; j < Vectors; ++j) row[j] = load_as<T>(b + j * w);
    fetch_later_row<Vectors * w>(b, b_stride);
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
template <Index Rows, Index Vectors, class T, class Number>
void gemm_rows(Index m, Operand<T> a, const Number* b, Index b_stride, Index depth, T* c, Index c_stride, Index cols,
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

/// A panel: `used` columns of B from the first row on, and zeros up to `padded`, in rows `stride` apart.
template <class T>
void pack_panel(Operand<T> b, Index depth, Index used, Index padded, T* to, Index stride) {
  if (b.col_stride == 1) {
    for (Index k = 0; k < depth; ++k) {
      std::memcpy(to + k * stride, b.data + k * b.row_stride, static_cast<std::size_t>(used) * sizeof(T));
      for (Index i = used; i < padded; ++i) to[k * stride + i] = T(0);
    }
    return;
  }
  // Blocks of 16 rows of the transpose: each cache line is read whole while its page is at hand.
  for (Index k0 = 0; k0 < depth; k0 += 16) {
    const Index k1 = std::min(depth, k0 + 16);
    Index i = 0;
    if (b.row_stride == 1 && k1 - k0 == 16)
      for (; i + 4 <= used; i += 4)
        for (Index k = k0; k < k1; k += 4) transpose_4x4(b.at(k, i), b.col_stride, to + k * stride + i, stride);
    for (; i < padded; ++i)
      for (Index k = k0; k < k1; ++k) to[k * stride + i] = i < used ? *b.at(k, i) : T(0);
  }
}

/// All rows of A times one panel's rows k0 .. k0 + depth.
template <class T, class Number>
void gemm_panel(Index m, Operand<T> a, const Number* b, Index b_stride, Index depth, T* c, Index c_stride, Index used,
                bool from_c, const T* bias) {
  constexpr Index rows = GemmTile<T>::rows;
  switch (padded_cols<T>(used) / lanes<T>) {
    case 1:
      return gemm_rows<rows, 1>(m, a, b, b_stride, depth, c, c_stride, used, from_c, bias);
    case 2:
      return gemm_rows<rows, 2>(m, a, b, b_stride, depth, c, c_stride, used, from_c, bias);
    default:
      return gemm_rows<rows, 3>(m, a, b, b_stride, depth, c, c_stride, used, from_c, bias);
  }
}

template <class T>
void fill_product(Index m, Index n, T* c, Index c_stride, const T* bias) {
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < n; ++j) c[i * c_stride + j] = bias == nullptr ? T(0) : bias[j];
}

}  // namespace detail

/// Asks for rows begin .. end - 1, which may be beyond the last: they are read soon, several at once or far apart,
/// which the processor does not foresee.
template <class T>
void fetch_ahead(Operand<T> rows, Index begin, Index end, Index width) {
  constexpr Index line = laconic::detail::line_bytes / static_cast<Index>(sizeof(T));
  for (Index i = begin; i < end; ++i)
    for (Index c = 0; c < width; c += line) __builtin_prefetch(detail::address(rows.data, i * rows.row_stride + c));
}

/// B(depth x cols) in panels, of which `to` holds Panels::size(depth, cols) numbers.
template <class T>
Panels<T> pack(int threads, Operand<T> b, Index depth, Index cols, T* to) {
  constexpr Index width = GemmTile<T>::cols;
  parallel_for(threads, (cols + width - 1) / width, [&](Index panel, int) {
    const Index j = panel * width, used = std::min(width, cols - j), padded = padded_cols<T>(used);
    detail::pack_panel(Operand<T>{b.at(0, j), b.row_stride, b.col_stride}, depth, used, padded, to + j * depth, padded);
  });
  return {to, depth, cols};
}

/// What `gemm` does with a finished part of C: nothing.
struct NoEpilogue {
  template <class T>
  void operator()(Index, Index, T*, Index, Index, Index) const {}
};

/// C(m x n) = A(m x k) B(k x n), plus C if `accumulate`, else plus `bias` (a row) if given, with B in panels, of which
/// only the rows `ks` and the columns `js` take part, the first of them at the head of a panel; a, c and bias begin
/// there too. One thread; no allocation. Every element of C is summed over k in the same order, whatever m and n are
/// and wherever it lies. `epilogue(row, col, c, c_stride, rows, cols)` is called for each part of C that is done, while
/// it is in the cache.
template <class T, class Number, class Epilogue = NoEpilogue>
void gemm_panels(Index m, Operand<T> a, const Panels<T, Number>& b, Range ks, Range js, T* c, Index c_stride,
                 bool accumulate, const T* bias, const Epilogue& epilogue = {}) {
  using Tile = GemmTile<T>;
  if (ks.size() == 0 && !accumulate) detail::fill_product(m, js.size(), c, c_stride, bias);
  const Index blocks = (m + Tile::block_rows - 1) / Tile::block_rows;
  for (Index block = 0; block < blocks; ++block) {
    const Range of_block = equal_part(m, Tile::rows, block, blocks);
    const Index i = of_block.begin, rows = of_block.size();
    for (Index j = 0; j < js.size(); j += Tile::cols) {
      const Index used = std::min(Tile::cols, js.size() - j);
      T* to = c + i * c_stride + j;
      for (Index k = 0; k < ks.size(); k += Tile::depth)
        detail::gemm_panel(rows, Operand<T>{a.at(i, k), a.row_stride, a.col_stride}, b.at(ks.begin + k, js.begin + j),
                           b.width(js.begin + j), std::min(Tile::depth, ks.size() - k), to, c_stride, used,
                           accumulate || k > 0, bias == nullptr ? nullptr : bias + j);
      epilogue(i, j, to, c_stride, rows, used);
    }
  }
}

/// A product of m rows, so many columns and this depth in parts for all threads: body(rows, cols) for each. It is cut
/// by rows while there are enough of them for all, since B is then met by more rows a time it is read; else by columns
/// too.
template <class T, class Body>
void share_product(int threads, Index m, Index cols, Index depth, Body&& body) {
  using Tile = GemmTile<T>;
  if (m == 0 || cols == 0) return;
  if (threads == 1 || m * cols * depth < 32 * 32 * 32)  // the work is less than waking a thread
    return body(Range{0, m}, Range{0, cols});
  const Index panels = (cols + Tile::cols - 1) / Tile::cols;
  Index row_parts = std::clamp<Index>(m / (Tile::block_rows / 4), 1, threads);
  if (row_parts == threads) row_parts *= std::max<Index>(1, m / (threads * Tile::block_rows));
  const Index col_parts = std::min((threads + row_parts - 1) / row_parts, panels);
  parallel_for(threads, row_parts * col_parts, [&](Index part, int) {
    body(equal_part(m, Tile::rows, part / col_parts, row_parts),
         equal_part(cols, Tile::cols, part % col_parts, col_parts));
  });
}

/// The same as gemm_panels on several threads, with all rows and columns of B.
template <class T, class Number, class Epilogue = NoEpilogue>
void gemm(int threads, Index m, Operand<T> a, const Panels<T, Number>& b, T* c, Index c_stride, bool accumulate,
          const T* bias, const Epilogue& epilogue = {}) {
  share_product<T>(threads, m, b.cols, b.depth, [&](Range rows, Range cols) {
    gemm_panels(rows.size(), Operand<T>{a.at(rows.begin, 0), a.row_stride, a.col_stride}, b, {0, b.depth}, cols,
                c + rows.begin * c_stride + cols.begin, c_stride, accumulate,
                bias == nullptr ? nullptr : bias + cols.begin,
                [&](Index i, Index j, T* to, Index stride, Index height, Index width) {
                  epilogue(rows.begin + i, cols.begin + j, to, stride, height, width);
                });
  });
}

/// Numbers of scratch that `gemm_block` needs.
template <class T>
constexpr Index gemm_scratch() {
  return GemmTile<T>::depth * GemmTile<T>::block_cols;
}

/// The product with B as it lies, on one thread, which packs B as it goes.
template <class T>
void gemm_block(Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index c_stride, bool accumulate,
                const T* bias, T* scratch) {
  using Tile = GemmTile<T>;
  if (k == 0 && !accumulate) detail::fill_product(m, n, c, c_stride, bias);
  for (Index j0 = 0; j0 < n; j0 += Tile::block_cols) {
    const Index cols = std::min(Tile::block_cols, n - j0);
    for (Index k0 = 0; k0 < k; k0 += Tile::depth) {
      const Index depth = std::min(Tile::depth, k - k0);
      // Packing pays once a panel is read a few times; a whole number of vectors can be read where it lies.
      const bool packed = b.col_stride != 1 || m > 2 * Tile::rows || cols % lanes<T> != 0;
      if (packed) pack(1, Operand<T>{b.at(k0, j0), b.row_stride, b.col_stride}, depth, cols, scratch);
      const Panels<T> panels{scratch, depth, cols};
      for (Index j = 0; j < cols; j += Tile::cols)
        detail::gemm_panel<T>(m, {a.at(0, k0), a.row_stride, a.col_stride}, packed ? panels.at(0, j) : b.at(k0, j0 + j),
                              packed ? panels.width(j) : b.row_stride, depth, c + j0 + j, c_stride,
                              std::min(Tile::cols, cols - j), accumulate || k0 > 0,
                              bias == nullptr ? nullptr : bias + j0 + j);
    }
  }
}

/// The product with B as it lies, on several threads.
template <class T, class Epilogue = NoEpilogue>
void gemm(int threads, Arena& arena, Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index c_stride,
          bool accumulate, const T* bias, const Epilogue& epilogue = {}) {
  if (m == 0 || n == 0) return;
  const Buffer packed = arena.allocate(static_cast<std::size_t>(Panels<T>::size(k, n)) * sizeof(T));
  const auto panels = pack(m * n * k < 32 * 32 * 32 ? 1 : threads, b, k, n, static_cast<T*>(packed.data()));
  gemm(threads, m, a, panels, c, c_stride, accumulate, bias, epilogue);
}

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
