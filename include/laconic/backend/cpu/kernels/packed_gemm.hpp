// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/elementwise.hpp>
#include <laconic/backend/cpu/kernels/gemm.hpp>
#include <laconic/core/compiled.hpp>
#include <laconic/core/rounding.hpp>

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>

#if LACONIC_VNNI
#include <immintrin.h>
#endif

// Products with weights that are packed once, before they are used: panels of floats, of bf16, or of bytes with a scale
// for each output (int8).

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Describes the layout of a packed weight (out, in). Bytes are in groups of four inputs, as the VNNI instruction that
/// multiplies them reads them, followed by the scale and the sum of each output's row.
struct PackedLayout {
  Storage storage;  ///< how elements are stored
  Index out;        ///< outputs
  Index in;         ///< inputs

  /// Returns the inputs, padded to whole groups of four.
  Index grouped_in() const { return (in + 3) / 4 * 4; }
  /// Returns the outputs, padded to whole vectors of floats.
  Index padded_out() const { return padded_cols<float>(out); }
  /// Returns the offset of the panel that begins at output j, in elements.
  Index at(Index j) const { return j * (storage == Storage::int8 ? grouped_in() : in); }
  /// Returns the columns of the panel that begins at output j, padding included.
  Index width(Index j) const { return padded_cols<float>(std::min(GemmTile<float>::cols, out - j)); }
  /// Returns the bytes of the packed weight, with `number_bytes` for an element in full storage.
  Index bytes(Index number_bytes) const {
    if (storage == Storage::full) return Panels<float>::size(in, out) * number_bytes;
    return storage == Storage::bf16 ? at(padded_out()) * 2 : at(padded_out()) + 8 * padded_out();
  }
  /// Returns the scale of each output (padded_out), for int8.
  const float* scales(const std::byte* data) const { return reinterpret_cast<const float*>(data + at(padded_out())); }
  /// Returns the sum of the bytes of each output's row (padded_out), for int8.
  const std::int32_t* sums(const std::byte* data) const {
    return reinterpret_cast<const std::int32_t*>(scales(data) + padded_out());
  }
};

/// Refers to a weight that `pack_weight` packed.
struct PackedWeight {
  Storage storage = Storage::full;  ///< how elements are stored
  const std::byte* data = nullptr;  ///< the packed weight
};

/// Packs `weight` (out, in) into `to`, which has PackedLayout::bytes, for `multiply`. A task is a panel; no allocation.
/// Throws `Error` if int8 is given more inputs than a sum of 32 bits can hold.
template <class T>
void pack_weight(int threads, Storage storage, Index out, Index in, const T* weight, std::byte* to) {
  constexpr Index max_inputs = 1 << 17;  // products of bytes that a sum of 32 bits can hold
  require(storage != Storage::int8 || in <= max_inputs, "prepare: ", in, " inputs given, at most ", max_inputs,
          " expected for int8");
  const PackedLayout layout{storage, out, in};
  if (storage == Storage::full) {
    pack(threads, Operand<T>{weight, in}.transposed(), in, out, reinterpret_cast<T*>(to));
    return;
  }
  constexpr Index cols = GemmTile<float>::cols;
  parallel_for(threads, (out + cols - 1) / cols, [&](Index panel, int) {
    const Index j = panel * cols, width = layout.width(j);
    if (storage == Storage::bf16) {
      auto* halves = reinterpret_cast<Bf16*>(to) + layout.at(j);
      for (Index i = 0; i < in; ++i)
        for (Index o = 0; o < width; ++o)
          halves[i * width + o] = to_bf16(j + o < out ? static_cast<float>(weight[(j + o) * in + i]) : 0.0f);
      return;
    }
    auto* bytes = reinterpret_cast<std::int8_t*>(to) + layout.at(j);
    for (Index o = 0; o < width; ++o) {
      const ByteRow row(j + o < out ? in : 0, weight + (j + o < out ? (j + o) * in : 0));
      std::int32_t sum = 0;
      for (Index i = 0; i < layout.grouped_in(); ++i) {
        const std::int8_t rounded = j + o < out && i < in ? row(weight[(j + o) * in + i]) : std::int8_t{0};
        bytes[(i / 4 * width + o) * 4 + i % 4] = rounded;
        sum += rounded;
      }
      const_cast<float*>(layout.scales(to))[j + o] = row.scale();
      const_cast<std::int32_t*>(layout.sums(to))[j + o] = sum;
    }
  });
}

/// Writes one row of a packed weight (out, in) to `to` (in): the original values in full storage, otherwise the rounded
/// ones. No allocation.
template <class T>
void unpack_row(const PackedWeight& packed, Index out, Index in, Index row, T* to) {
  const bool full = packed.storage == Storage::full;
  const PackedLayout layout{packed.storage, out, in};
  const Index cols = full ? GemmTile<T>::cols : GemmTile<float>::cols, j = row / cols * cols, o = row - j;
  const Index width = full ? padded_cols<T>(std::min(cols, out - j)) : layout.width(j);
  for (Index i = 0; i < in; ++i)
    if (full)
      to[i] = reinterpret_cast<const T*>(packed.data)[j * in + i * width + o];
    else if (packed.storage == Storage::bf16)
      to[i] = static_cast<T>(from_bf16(reinterpret_cast<const Bf16*>(packed.data)[layout.at(j) + i * width + o]));
    else
      to[i] = static_cast<T>(layout.scales(packed.data)[row] *
                             static_cast<float>(reinterpret_cast<const std::int8_t*>(
                                 packed.data)[layout.at(j) + (i / 4 * width + o) * 4 + i % 4]));
}
/// Writes a packed weight back to `weight` (out, in). One thread; no allocation.
template <class T>
void unpack_weight(const PackedWeight& packed, Index out, Index in, T* weight) {
  for (Index row = 0; row < out; ++row) unpack_row(packed, out, in, row, weight + row * in);
}

#if !LACONIC_VNNI

/// Computes y (m, out) = x (m, in) W^T + bias with a weight of bytes, then the epilogue. Each task widens a (128 x
/// cols) slab of its panel to floats, which stays in the cache while all rows meet it. Takes scratch from `arena`; call
/// it from one thread.
template <class Epilogue>
void multiply_int8(int threads, Arena& arena, Index m, Operand<float> x, const PackedLayout& layout,
                   const std::byte* data, const float* bias, float* y, const Epilogue& epilogue) {
  using Tile = GemmTile<float>;
  constexpr Index depth = 128;
  const Index panels = (layout.out + Tile::cols - 1) / Tile::cols;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * depth * Tile::cols) * sizeof(float));
  parallel_for(threads, panels, [&](Index panel, int thread) {
    float* slice = static_cast<float*>(scratch.data()) + thread * depth * Tile::cols;
    const Index j = panel * Tile::cols, width = layout.width(j);
    const auto* from = reinterpret_cast<const std::int8_t*>(data) + layout.at(j);
    const float* scale = layout.scales(data) + j;
    for (Index i0 = 0; i0 < layout.in; i0 += depth) {
      const Index count = std::min(depth, layout.in - i0);
      for (Index i = 0; i < count; ++i)
        for (Index o = 0; o < width; ++o)
          slice[i * width + o] = scale[o] * static_cast<float>(from[((i0 + i) / 4 * width + o) * 4 + (i0 + i) % 4]);
      detail::gemm_panel(m, Operand<float>{x.data + i0, x.row_stride}, slice, width, count, y + j, layout.out,
                         std::min(Tile::cols, layout.out - j), i0 > 0, bias == nullptr ? nullptr : bias + j);
    }
    epilogue(Index{0}, j, y + j, layout.out, m, std::min(Tile::cols, layout.out - j));
  });
}

#else

/// Rounds a row x (in) to bytes from 1 to 255, in which 128 is zero, and returns its scale: max |x| / 127. A NaN or
/// infinity in the row makes the scale NaN.
inline float round_row(Index in, const float* x, std::uint8_t* to) {
  using B = Batch<float>;
  B max_abs(0.0f), faults(0.0f);  // NaN and infinity make `faults` NaN
  Index i = 0;
  const auto look = [&](const B& some) {
    max_abs = xsimd::max(max_abs, xsimd::abs(some));
    faults = xsimd::fma(some, B(0.0f), faults);
  };
  for (; i + lanes<float> <= in; i += lanes<float>) look(load(x + i));
  if (i < in) look(load_part(x + i, in - i));
  const float largest = max_lanes<float>(max_abs), fault = sum_lanes<float>(faults);
  const float inverse = largest > 0 && fault == 0 ? 127 / largest : 0;
  const __m512 factor = _mm512_set1_ps(inverse);
  const __m512i zero = _mm512_set1_epi32(128);
  for (i = 0; i < in; i += 16) {
    const auto some = static_cast<__mmask16>(in - i < 16 ? (1u << (in - i)) - 1 : 0xffffu);
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), factor));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_cvtepi32_epi8(_mm512_add_epi32(rounded, zero)));
  }
  return largest / 127 + fault;
}

/// Computes y (Rows, used) = row_scale * column_scale * (a b) + bias: the micro-kernel for bytes. a (Rows, groups * 4)
/// with 128 as zero, b one panel; `sums` times 128 corrects for that zero.
template <Index Rows, Index Vectors>
void int8_kernel(const std::uint8_t* a, Index a_stride, Index groups, const std::int8_t* b, const float* row_scales,
                 const float* scales, const std::int32_t* sums, const float* bias, float* y, Index y_stride,
                 Index used) {
  constexpr auto rows = static_cast<std::size_t>(Rows), vectors = static_cast<std::size_t>(Vectors);
  __m512i sum[rows][vectors];
  LACONIC_UNROLL
  for (Index i = 0; i < Rows; ++i) {
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) sum[i][j] = _mm512_setzero_si512();
  }
  for (Index g = 0; g < groups; ++g) {
    __m512i row[vectors];
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) row[j] = _mm512_loadu_si512(b + (g * Vectors + j) * 64);
    detail::prefetch_later_row<Vectors * 64>(b + g * Vectors * 64, Vectors * 64);
    LACONIC_UNROLL
    for (Index i = 0; i < Rows; ++i) {
      std::int32_t four;
      std::memcpy(&four, a + i * a_stride + 4 * g, 4);
      const __m512i x = _mm512_set1_epi32(four);
      LACONIC_UNROLL
      for (Index j = 0; j < Vectors; ++j) sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], x, row[j]);
    }
  }
  // The sums go through memory here, or the compiler keeps them in memory during the loop.
  alignas(64) std::int32_t done[rows][vectors * 16];
  LACONIC_UNROLL
  for (Index i = 0; i < Rows; ++i) {
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) _mm512_store_si512(done[i] + 16 * j, sum[i][j]);
  }
  for (Index j = 0; j < used; j += 16) {
    const Index count = std::min<Index>(16, used - j);
    const __m512i zero = _mm512_slli_epi32(_mm512_loadu_si512(sums + j), 7);
    const Batch<float> scale = load(scales + j),
                       start = bias == nullptr ? Batch<float>(0.0f) : load_part(bias + j, count);
    for (Index i = 0; i < Rows; ++i) {
      const Batch<float> product(_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_load_si512(done[i] + j), zero)));
      store_part(y + i * y_stride + j, xsimd::fma(product, scale * Batch<float>(row_scales[i]), start), count);
    }
  }
}

/// Computes all rows of y for one panel of a weight of bytes, in register tiles of Rows rows, then half as many.
template <Index Rows, Index Vectors>
void int8_rows(Index m, const std::uint8_t* a, Index a_stride, Index groups, const std::int8_t* b,
               const float* row_scales, const float* scales, const std::int32_t* sums, const float* bias, float* y,
               Index y_stride, Index used) {
  for (; m >= Rows; m -= Rows) {
    int8_kernel<Rows, Vectors>(a, a_stride, groups, b, row_scales, scales, sums, bias, y, y_stride, used);
    a += Rows * a_stride;
    row_scales += Rows;
    y += Rows * y_stride;
  }
  if constexpr (Rows > 1)
    if (m > 0)
      int8_rows<Rows / 2, Vectors>(m, a, a_stride, groups, b, row_scales, scales, sums, bias, y, y_stride, used);
}

/// Holds rows of x rounded to bytes, in memory of the caller: first the scales, then the bytes.
struct RoundedRows {
  float* scales;        ///< the scale of each row
  std::uint8_t* bytes;  ///< the rows
  Index stride;         ///< bytes from row to row

  /// Returns the bytes from row to row for so many inputs.
  static Index stride_of(Index in) { return (in + 15) / 16 * 16; }
  /// Returns the bytes of memory for m rows.
  static Index space(Index m, Index in) { return m * (stride_of(in) + static_cast<Index>(sizeof(float))); }
  /// Places m rows in `memory`. Rounds nothing yet.
  RoundedRows(Index m, Index in, void* memory)
      : scales(static_cast<float*>(memory)),
        bytes(reinterpret_cast<std::uint8_t*>(scales + m)),
        stride(stride_of(in)) {}
  /// Rounds these rows of x (m, in).
  void round(Range rows, Index in, const float* x, Index x_stride) {
    for (Index i = rows.begin; i < rows.end; ++i) scales[i] = round_row(in, x + i * x_stride, bytes + i * stride);
  }
};

/// Computes y = x W^T + bias for the rows `rows` of rounded x and the columns `cols`, which are whole panels of a
/// weight of bytes, then the epilogue. One thread; no allocation.
template <class Epilogue>
void int8_panels(Range rows, const RoundedRows& x, const PackedLayout& layout, const std::byte* data, Range cols,
                 const float* bias, float* y, const Epilogue& epilogue) {
  constexpr Index width = GemmTile<float>::cols;
  for (Index j = cols.begin; j < cols.end; j += width) {
    const Index used = std::min(width, layout.out - j);
    float* to = y + rows.begin * layout.out + j;
    const auto run = [&](auto vectors) {
      int8_rows<8, decltype(vectors)::value>(
          rows.size(), x.bytes + rows.begin * x.stride, x.stride, layout.grouped_in() / 4,
          reinterpret_cast<const std::int8_t*>(data) + layout.at(j), x.scales + rows.begin, layout.scales(data) + j,
          layout.sums(data) + j, bias == nullptr ? nullptr : bias + j, to, layout.out, used);
    };
    switch (layout.width(j) / 16) {
      case 1:
        run(std::integral_constant<Index, 1>());
        break;
      case 2:
        run(std::integral_constant<Index, 2>());
        break;
      default:
        run(std::integral_constant<Index, 3>());
    }
    epilogue(rows.begin, j, to, layout.out, rows.size(), used);
  }
}

/// Computes y (m, out) = x (m, in) W^T + bias with a weight of bytes, then the epilogue. Each row of x is rounded to
/// bytes by its own scale first. Takes scratch from `arena`; call it from one thread.
template <class Epilogue>
void multiply_int8(int threads, Arena& arena, Index m, Operand<float> x, const PackedLayout& layout,
                   const std::byte* data, const float* bias, float* y, const Epilogue& epilogue) {
  const Buffer space = arena.allocate(static_cast<std::size_t>(RoundedRows::space(m, layout.in)));
  RoundedRows rounded(m, layout.in, space.data());
  parallel_blocks(threads, m, 16, [&](Index begin, Index end) {
    rounded.round({begin, end}, layout.in, x.data, x.row_stride);
  });
  share_product<float>(threads, m, layout.out, layout.in, [&](Range rows, Range cols) {
    int8_panels(rows, rounded, layout, data, cols, bias, y, epilogue);
  });
}

#endif

/// Computes y (m, out) = x (m, in) W^T + bias (out, or null) with a packed weight, then the epilogue. x has unit column
/// stride. Takes scratch from `arena` for int8; call it from one thread.
template <class T, class Epilogue>
void multiply(int threads, Arena& arena, Index m, Operand<T> x, Index out, Index in, const PackedWeight& weight,
              const T* bias, T* y, const Epilogue& epilogue) {
  const std::byte* data = weight.data;
  if (weight.storage == Storage::full)
    return gemm_packed(threads, m, x, Panels<T>{reinterpret_cast<const T*>(data), in, out}, y, out, false, bias,
                       epilogue);
  if constexpr (std::is_same_v<T, float>) {
    if (weight.storage == Storage::bf16)
      gemm_packed(threads, m, x, Panels<T, Bf16>{reinterpret_cast<const Bf16*>(data), in, out}, y, out, false, bias,
                  epilogue);
    else if (m > 0)
      multiply_int8(threads, arena, m, x, {weight.storage, out, in}, data, bias, y, epilogue);
  }
}

/// Returns the bytes of scratch that `multiply_rows` needs for a row.
inline Index multiply_rows_space([[maybe_unused]] Index in, [[maybe_unused]] const PackedWeight& weight) {
#if LACONIC_VNNI
  if (weight.storage == Storage::int8) return RoundedRows::space(1, in);
#endif
  return 0;
}
/// Computes y (m, out) = x (m, in) W^T + bias (out, or null) with a packed weight, then the epilogue. `space` has
/// multiply_rows_space bytes for each row. int8 is allowed only if the processor multiplies bytes (VNNI). One thread;
/// no allocation.
template <class T, class Epilogue>
void multiply_rows(Index m, Operand<T> x, Index out, Index in, const PackedWeight& weight, const T* bias, T* y,
                   const Epilogue& epilogue, [[maybe_unused]] void* space) {
  const std::byte* data = weight.data;
  const Range ks{0, in}, js{0, out};
  if (weight.storage == Storage::full)
    return gemm_panels(m, x, Panels<T>{reinterpret_cast<const T*>(data), in, out}, ks, js, y, out, false, bias,
                       epilogue);
  if constexpr (std::is_same_v<T, float>) {
    if (weight.storage == Storage::bf16)
      return gemm_panels(m, x, Panels<T, Bf16>{reinterpret_cast<const Bf16*>(data), in, out}, ks, js, y, out, false,
                         bias, epilogue);
#if LACONIC_VNNI
    RoundedRows rounded(m, in, space);
    rounded.round({0, m}, in, x.data, x.row_stride);
    int8_panels({0, m}, rounded, {weight.storage, out, in}, data, js, bias, y, epilogue);
#endif
  }
}

LACONIC_COMPILE(pack_weight);
LACONIC_COMPILE(unpack_row);
LACONIC_COMPILE(unpack_weight);
LACONIC_COMPILE(gemm, ActivationEpilogue);
LACONIC_COMPILE(multiply, NoEpilogue);
LACONIC_COMPILE(multiply, ActivationEpilogue);
LACONIC_COMPILE(multiply_rows, ActivationEpilogue);

}  // namespace kernels

}  // namespace LACONIC_ABI
}  // namespace laconic
