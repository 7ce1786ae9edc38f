// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/simd.hpp>
#include <laconic/core/compiled.hpp>
#include <laconic/core/matrix.hpp>
#include <laconic/core/memory.hpp>
#include <laconic/core/rounding.hpp>
#include <laconic/core/tensor.hpp>

#include <cstdint>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Refers to a matrix to read: element (i, j) is data[i * row_stride + j * col_stride], so a transpose costs nothing.
template <class T>
struct Operand {
  const T* data;         ///< element (0, 0)
  Index row_stride;      ///< elements from row to row
  Index col_stride = 1;  ///< elements from column to column

  /// Returns the transpose.
  Operand transposed() const { return {data, col_stride, row_stride}; }
  /// Returns the address of element (i, j).
  const T* at(Index i, Index j) const { return data + i * row_stride + j * col_stride; }
};

/// Holds the block sizes of matrix products. The register tile of the micro-kernel is 8 rows by 3 vectors with 32
/// vector registers and 4 by 3 with 16: the largest that leaves room for a row of B and one element of A (Goto and van
/// de Geijn 2008, section 6).
template <class T>
struct GemmTile {
  static constexpr Index vectors = 3;  ///< vectors of a row of the register tile
#if defined(__AVX512F__) || defined(__aarch64__)
  static constexpr Index rows = 8;  ///< rows of the register tile
  /// Gives the rows of a block of A (block_rows x depth), which meets one panel of B after the other: 512 KiB in float.
  static constexpr Index block_rows = 256;
  static constexpr Index depth = 512;  ///< columns of a block of A
  /// Gives the rows of B that a step of the micro-kernel takes, with no prefetch.
  static constexpr Index unrolled = 2;
  /// Gives the bytes of a panel from which on a single row meets two panels at once. The next two lie elsewhere: after
  /// short panels this costs more (22% of a product with 144 inputs) than two panels save.
  static constexpr Index long_panel = 64 << 10;
  /// Gives the columns of B from which on a transposed A is copied. With fewer the copy takes up to 16% of the product.
  static constexpr Index copying_cols = 1024;
#else  // measured on a processor with 512 KiB of second-level cache, as most without AVX-512
  static constexpr Index rows = 4;
  static constexpr Index block_rows = 128;
  static constexpr Index depth = 1024;
#ifdef __FMA__
  // A fifth fewer instructions. Where two threads share a core, each can issue half as many, and these are the limit.
  static constexpr Index unrolled = 4;
#else
  static constexpr Index unrolled = 1;
#endif
  static constexpr Index long_panel = 0;
  static constexpr Index copying_cols = 48;
#endif
  /// Gives the columns of the register tile, and of a panel.
  static constexpr Index cols = vectors * lanes<T>;
  /// Gives the max number of panels that a single row meets at once. With one it would wait for its own sums; two
  /// panels are also two streams from memory.
  static constexpr Index row_panels = 2;
  /// Gives the columns of B that `gemm_block` packs at once.
  static constexpr Index block_cols = 5 * cols;
};

/// Returns the columns of a panel for so many columns of B: whole vectors.
template <class T>
constexpr Index padded_cols(Index cols) {
  return (cols + lanes<T> - 1) / lanes<T> * lanes<T>;
}

/// Refers to a packed B (depth x cols), which the micro-kernel reads from end to end: panels of GemmTile::cols columns,
/// each row after row. The last panel is padded with zeros to whole vectors. `Number` is the stored type.
template <class T, class Number = T>
struct Panels {
  const Number* data;  ///< the first panel
  Index depth;         ///< rows of B
  Index cols;          ///< columns of B, without padding

  /// Returns the elements of the panels of a matrix (depth x cols).
  static constexpr Index size(Index depth, Index cols) { return depth * padded_cols<T>(cols); }
  /// Returns row k of the panel that begins at column j.
  const Number* at(Index k, Index j) const { return data + j * depth + k * width(j); }
  /// Returns the columns of the panel that begins at column j, padding included.
  Index width(Index j) const { return padded_cols<T>(std::min(GemmTile<T>::cols, cols - j)); }
};

namespace detail {

/// Names a vector of four elements that both GCC and clang shuffle.
template <class T>
struct Quad;
/// Names a vector of four floats.
template <>
struct Quad<float> {
  /// Names four floats.
  typedef float Row __attribute__((vector_size(16)));
};
/// Names a vector of four doubles.
template <>
struct Quad<double> {
  /// Names four doubles.
  typedef double Row __attribute__((vector_size(32)));
};

/// Computes to (4 x 4) = from^T. Rows are from_stride and to_stride apart.
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

/// Loads a vector of elements.
template <class T>
Batch<T> load_as(const T* from) {
  return load(from);
}
/// Loads a vector of bf16 elements and widens them.
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

/// Returns the address `offset` elements after `from`, which may be outside the array: it is prefetched, not read.
template <class Number>
const void* address(const Number* from, Index offset) {
  return reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(from) +
                                       static_cast<std::uintptr_t>(offset) * sizeof(Number));
}

/// Prefetches the row of B that a tile of `Rows` rows will read next but many: `Count` elements of each panel. `row` is
/// the current one, in the first of these panels. The micro-kernel reads it less than a microsecond later: if few rows
/// of A meet weights in memory, the hardware prefetcher does not keep up.
template <Index Rows, Index Panels, Index Count, class Number>
[[gnu::always_inline]] inline void prefetch_panels(const Number* row, Index panel_stride, Index row_stride) {
  // A few rows read B as fast as the second-level cache gives it: a line that was prefetched to there would come from
  // it twice, which took a third of the speed of one row on a Xeon. More rows have the time.
  constexpr int locality = Rows <= 3 ? 3 : 2;
  constexpr Index number = static_cast<Index>(sizeof(Number)), line = laconic::detail::line_bytes / number;
  constexpr Index rows_ahead = Rows <= 3 ? 4608 / (Count * number) : 48;
  LACONIC_UNROLL
  for (Index panel = 0; panel < Panels; ++panel) {
    LACONIC_UNROLL
    for (Index i = 0; i < Count; i += line)
      __builtin_prefetch(address(row, panel * panel_stride + rows_ahead * row_stride + i), 0, locality);
  }
}

/// Adds the product of a column of A (Rows), whose elements are `row_stride` apart, and a row of B (Vectors) to a tile.
/// If Vectors is more than a panel has, the row is in several panels, `panel_stride` elements apart.
template <Index Rows, Index Vectors, class T, class Number>
[[gnu::always_inline]] inline void add_outer_product(Local<Local<Batch<T>, Vectors>, Rows>& sum, const T* column,
                                                     Index row_stride, const Number* row, Index panel_stride) {
  constexpr Index of_panel = GemmTile<T>::vectors;
  Local<Batch<T>, Vectors> y;
  LACONIC_UNROLL
  for (Index j = 0; j < Vectors; ++j)
    y[j] = in_register(load_as<T>(row + j / of_panel * panel_stride + j % of_panel * lanes<T>));
  LACONIC_UNROLL
  for (Index i = 0; i < Rows; ++i) {
    const Batch<T> x(column[i * row_stride]);
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j)
      if constexpr (Rows <= 2)  // few sums: the compiler keeps them in registers
        sum[i][j] = xsimd::fma(x, y[j], sum[i][j]);
      else
        multiply_add(sum[i][j], x, y[j]);
  }
}

/// Computes C (rows x cols) = [C or bias or 0] + A (rows x depth) B (depth x cols) in registers: the micro-kernel. B is
/// packed, or at least has unit column stride. `cols` may end inside the last vector if B is padded there. If Vectors
/// is more than a panel has, B is several panels, `panel_stride` elements apart. `prefetches` tells whether B is
/// probably not in a cache. Inlined by g++ 12, some tiles keep their sums in memory, at less than half the speed.
template <Index Rows, Index Vectors, class T, class Number>
[[gnu::noinline]] void gemm_kernel(Operand<T> a, const Number* b, Index b_stride, Index panel_stride, Index depth, T* c,
                                   Index c_stride, Index cols, bool from_c, const T* bias, bool prefetches) {
  constexpr Index w = lanes<T>, of_panel = std::min(Vectors, GemmTile<T>::vectors);  // vectors of a panel
  Local<Local<Batch<T>, Vectors>, Rows> sum;
  const Index tail = cols - (Vectors - 1) * w;  // columns of the last vector
  // Results are written at the end, where each store would wait for its cache line.
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
  Index k = 0;
  if constexpr (constexpr Index together = GemmTile<T>::unrolled; together > 1 && Rows > 2)
    if (a.col_stride == 1 && !prefetches)
      for (; k + together <= depth; k += together, b += together * b_stride) {
        LACONIC_UNROLL
        for (Index t = 0; t < together; ++t)
          add_outer_product<Rows, Vectors>(sum, a.data + k + t, a.row_stride, b + t * b_stride, panel_stride);
      }
  for (; k < depth; ++k, b += b_stride) {
    prefetch_panels<Rows, Vectors / of_panel, of_panel * w>(b, panel_stride, b_stride);
    add_outer_product<Rows, Vectors>(sum, a.data + k * a.col_stride, a.row_stride, b, panel_stride);
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

/// Calls run(count), with an integral constant, for a count that is known at run time: 1 to Max.
template <Index Max, class Run>
void with_constant(Index count, Run&& run) {
  if constexpr (Max > 1)
    if (count < Max) return with_constant<Max - 1>(count, run);
  run(std::integral_constant<Index, Max>());
}

/// Divides m rows among register tiles of at most Rows rows and calls tile(first, rows), rows an integral constant, for
/// each. The last two tiles are equally high: one of a single row would wait for its own sums.
template <Index Rows, class Tile>
void each_row_tile(Index m, Tile&& tile) {
  Index i = 0;
  for (; m - i >= 2 * Rows || m - i == Rows; i += Rows) tile(i, std::integral_constant<Index, Rows>());
  for (Index tiles = (m - i + Rows - 1) / Rows; tiles > 0; --tiles) {
    const Index rows = (m - i + tiles - 1) / tiles;
    with_constant<Rows>(rows, [&](auto constant) { tile(i, constant); });
    i += rows;
  }
}

/// Packs `used` columns of B (depth rows), from column 0 on, into a panel with rows `stride` apart. Columns from `used`
/// to `padded` are zeros.
template <class T>
void pack_panel(Operand<T> b, Index depth, Index used, Index padded, T* to, Index stride) {
  if (b.col_stride == 1) {
    for (Index k = 0; k < depth; ++k) {
      std::memcpy(to + k * stride, b.data + k * b.row_stride, static_cast<std::size_t>(used) * sizeof(T));
      for (Index i = used; i < padded; ++i) to[k * stride + i] = T(0);
    }
    return;
  }
  // Blocks of 16 rows of the transpose: each cache line is read whole while its page is in the TLB.
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

/// Computes all rows of C for the rows k0 .. k0 + depth - 1 of one panel of B, at which `b` points. `used` are the
/// columns of the panel without padding.
template <class T, class Number>
void gemm_panel(Index m, Operand<T> a, const Number* b, Index b_stride, Index depth, T* c, Index c_stride, Index used,
                bool from_c, const T* bias) {
  with_constant<GemmTile<T>::vectors>(padded_cols<T>(used) / lanes<T>, [&](auto vectors) {
    each_row_tile<GemmTile<T>::rows>(m, [&](Index i, auto rows) {
      gemm_kernel<decltype(rows)::value, decltype(vectors)::value>(Operand<T>{a.at(i, 0), a.row_stride, a.col_stride},
                                                                   b, b_stride, 0, depth, c + i * c_stride, c_stride,
                                                                   used, from_c, bias, i == 0);
    });
  });
}

/// Sets C (m x n) to the bias, or to zeros if it is null: the product of depth 0.
template <class T>
void fill_product(Index m, Index n, T* c, Index c_stride, const T* bias) {
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < n; ++j) c[i * c_stride + j] = bias == nullptr ? T(0) : bias[j];
}

}  // namespace detail

/// Prefetches the first `width` elements of the rows begin .. end - 1, which may be after the last row. It helps with
/// rows that are read soon, several at once or far apart, which the hardware prefetcher does not foresee.
template <class T>
void prefetch_rows(Operand<T> rows, Index begin, Index end, Index width) {
  constexpr Index line = laconic::detail::line_bytes / static_cast<Index>(sizeof(T));
  for (Index i = begin; i < end; ++i)
    for (Index c = 0; c < width; c += line) __builtin_prefetch(detail::address(rows.data, i * rows.row_stride + c));
}

/// Packs B (depth x cols) into panels at `to`, which has room for Panels::size(depth, cols) elements. A task is a
/// panel; no allocation.
template <class T>
Panels<T> pack(int threads, Operand<T> b, Index depth, Index cols, T* to) {
  constexpr Index width = GemmTile<T>::cols;
  parallel_for(threads, (cols + width - 1) / width, [&](Index panel, int) {
    const Index j = panel * width, used = std::min(width, cols - j), padded = padded_cols<T>(used);
    detail::pack_panel(Operand<T>{b.at(0, j), b.row_stride, b.col_stride}, depth, used, padded, to + j * depth, padded);
  });
  return {to, depth, cols};
}

/// Does nothing with a finished tile of C.
struct NoEpilogue {
  /// Leaves the tile unchanged.
  template <class T>
  void operator()(Index, Index, T*, Index, Index, Index) const {}
};

/// Returns the panels that so many rows of A meet at once, whose columns take `column_bytes` each.
template <class T>
constexpr Index panels_together(Index rows, Index column_bytes) {
  using Tile = GemmTile<T>;
  return rows == 1 && column_bytes * Tile::cols >= Tile::long_panel ? Tile::row_panels : 1;
}

/// Computes C (m x n) = A (m x k) B (k x n), plus C if `accumulate`, else plus `bias` (n) unless it is null. B is in
/// panels, of which the rows `ks` and the columns `js` are read; js.begin is the first column of a panel. a, c and bias
/// begin at these rows and columns. epilogue(row, col, c, c_stride, rows, cols) is called for each finished tile of C
/// while it is in the cache. Each element of C is accumulated over k in the same order, whatever m and n are and
/// wherever it is. One thread; no allocation. The blocking is that of Goto and van de Geijn (2008).
template <class T, class Number, class Epilogue = NoEpilogue>
void gemm_panels(Index m, Operand<T> a, const Panels<T, Number>& b, Range ks, Range js, T* c, Index c_stride,
                 bool accumulate, const T* bias, const Epilogue& epilogue = {}) {
  using Tile = GemmTile<T>;
  if (ks.size() == 0 && !accumulate) detail::fill_product(m, js.size(), c, c_stride, bias);
  const Index blocks = (m + Tile::block_rows - 1) / Tile::block_rows;
  for (Index block = 0; block < blocks; ++block) {
    const Range of_block = equal_part(m, Tile::rows, block, blocks);
    const Index i = of_block.begin, rows = of_block.size();
    const Index together = panels_together<T>(rows, b.depth * static_cast<Index>(sizeof(Number))) * Tile::cols;
    for (Index j = 0, used; j < js.size(); j += used) {
      used = std::min(j + together <= js.size() ? together : Tile::cols, js.size() - j);
      T* to = c + i * c_stride + j;
      for (Index k = 0; k < ks.size(); k += Tile::depth) {
        const Operand<T> from{a.at(i, k), a.row_stride, a.col_stride};
        const Number* panel = b.at(ks.begin + k, js.begin + j);
        const Index depth = std::min(Tile::depth, ks.size() - k);
        const bool from_c = accumulate || k > 0;
        const T* start = bias == nullptr ? nullptr : bias + j;
        if (rows == 1 && used == together)
          detail::with_constant<Tile::row_panels>(used / Tile::cols, [&](auto panels) {
            detail::gemm_kernel<1, decltype(panels)::value * Tile::vectors>(
                from, panel, Tile::cols, b.depth * Tile::cols, depth, to, c_stride, used, from_c, start, true);
          });
        else
          detail::gemm_panel(rows, from, panel, b.width(js.begin + j), depth, to, c_stride, used, from_c, start);
      }
      epilogue(i, j, to, c_stride, rows, used);
    }
  }
}

/// Divides a product of m rows, `cols` columns and this depth among all threads: calls body(rows, cols) for each tile.
/// Tiles are cut by rows as long as there are enough of them, since each panel of B that is read then meets more rows,
/// and otherwise by columns, too.
template <class T, class Body>
void share_product(int threads, Index m, Index cols, Index depth, Body&& body) {
  using Tile = GemmTile<T>;
  if (m == 0 || cols == 0) return;
  if (threads == 1 || m * cols * depth < 32 * 32 * 32)  // less work than waking a thread
    return body(Range{0, m}, Range{0, cols});
  const Index panels = (cols + Tile::cols - 1) / Tile::cols;
  constexpr Index min_rows = 64;  // fewer would not repay the panels, which every part reads
  Index row_parts = std::clamp<Index>(m / min_rows, 1, threads);
  if (row_parts == threads) row_parts *= (m + threads * Tile::block_rows - 1) / (threads * Tile::block_rows);
  const Index col_parts = std::min((threads + row_parts - 1) / row_parts, panels);
  parallel_for(threads, row_parts * col_parts, [&](Index part, int) {
    body(equal_part(m, Tile::rows, part / col_parts, row_parts),
         equal_part(cols, Tile::cols, part % col_parts, col_parts));
  });
}

/// Computes C (m x n) = A B with B in panels, as `gemm_panels` with all its rows and columns, on several threads. No
/// allocation; call it from one thread.
template <class T, class Number, class Epilogue = NoEpilogue>
void gemm_packed(int threads, Index m, Operand<T> a, const Panels<T, Number>& b, T* c, Index c_stride, bool accumulate,
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

/// Returns the elements of scratch that `gemm_block` needs.
template <class T>
constexpr Index gemm_scratch() {
  return GemmTile<T>::depth * GemmTile<T>::block_cols;
}

/// Computes C (m x n) = A (m x k) B (k x n), plus C if `accumulate`, else plus `bias` (n) unless it is null, with B
/// unpacked. It packs a (depth x block_cols) block of B at a time into `scratch`, or reads B in place if that is as
/// fast. One thread; no allocation.
template <class T>
void gemm_block(Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index c_stride, bool accumulate,
                const T* bias, T* scratch) {
  using Tile = GemmTile<T>;
  if (k == 0 && !accumulate) detail::fill_product(m, n, c, c_stride, bias);
  for (Index j0 = 0; j0 < n; j0 += Tile::block_cols) {
    const Index cols = std::min(Tile::block_cols, n - j0);
    for (Index k0 = 0; k0 < k; k0 += Tile::depth) {
      const Index depth = std::min(Tile::depth, k - k0);
      // Packing pays if a panel is read several times. Whole vectors of contiguous columns can be read in place.
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

/// Copies A (m x k), a transpose (row stride 1), to `to` (m, k). A task is 64 rows; no allocation.
template <class T>
void transpose_rows(int threads, Index m, Index k, Operand<T> a, T* to) {
  parallel_blocks(threads, m, 64, [&](Index begin, Index end) {
    detail::pack_panel(Operand<T>{a.at(begin, 0), a.row_stride, a.col_stride}, end - begin, k, k, to + begin * k, k);
  });
}

/// Computes C (m x n) = A (m x k) B (k x n), plus C if `accumulate`, else plus `bias` (n) unless it is null, then the
/// epilogue, on several threads. It packs B first, and A if it is a transpose of many columns, whose elements would lie
/// far apart for each panel of B, into memory from `arena`. Call it from one thread.
template <class T, class Epilogue = NoEpilogue>
void gemm(int threads, Arena& arena, Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index c_stride,
          bool accumulate, const T* bias, const Epilogue& epilogue = {}) {
  if (m == 0 || n == 0) return;
  const auto floats = [&](Index count) { return arena.allocate(static_cast<std::size_t>(count) * sizeof(T)); };
  const int packing = m * n * k < 32 * 32 * 32 ? 1 : threads;
  const Buffer packed = floats(Panels<T>::size(k, n));
  const auto panels = pack(packing, b, k, n, static_cast<T*>(packed.data()));
  Buffer rows;
  if (a.row_stride == 1 && a.col_stride >= 64 && n >= GemmTile<T>::copying_cols) {
    rows = floats(m * k);
    transpose_rows(packing, m, k, a, static_cast<T*>(rows.data()));
    a = {static_cast<const T*>(rows.data()), k};
  }
  gemm_packed(threads, m, a, panels, c, c_stride, accumulate, bias, epilogue);
}

LACONIC_COMPILE(pack);
LACONIC_COMPILE(gemm, NoEpilogue);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
