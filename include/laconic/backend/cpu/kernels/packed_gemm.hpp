// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/byte_products.hpp>
#include <laconic/backend/cpu/kernels/elementwise.hpp>
#include <laconic/backend/cpu/kernels/gemm.hpp>
#include <laconic/core/compiled.hpp>
#include <laconic/core/rounding.hpp>

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>

// Products with weights that are packed once, before they are used: panels of floats, of bf16, or of bytes with a scale
// for each output (int8).

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Gives the rows of the register tile of bytes: one less than of floats where products need one of 16 registers before
/// they are added.
inline constexpr Index int8_tile_rows = GemmTile<float>::rows - (!LACONIC_VNNI && GemmTile<float>::rows == 4 ? 1 : 0);

/// Describes the layout of a packed weight (out, in). Bytes are in groups of `bytes_group` inputs, as the instruction
/// that multiplies them reads them, followed by the scale and the sum of each output's row.
struct PackedLayout {
  Storage storage;  ///< how elements are stored
  Index out;        ///< outputs
  Index in;         ///< inputs

  /// Returns the inputs, padded to whole groups.
  Index grouped_in() const { return (in + bytes_group - 1) / bytes_group * bytes_group; }
  /// Returns the offset of a byte within its panel, which is `width` outputs wide.
  static Index place(Index i, Index o, Index width) {
    return (i / bytes_group * width + o) * bytes_group + i % bytes_group;
  }
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
        bytes[layout.place(i, o, width)] = rounded;
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
      to[i] =
          static_cast<T>(layout.scales(packed.data)[row] * static_cast<float>(reinterpret_cast<const std::int8_t*>(
                                                               packed.data)[layout.at(j) + layout.place(i, o, width)]));
}
/// Writes a packed weight back to `weight` (out, in). One thread; no allocation.
template <class T>
void unpack_weight(const PackedWeight& packed, Index out, Index in, T* weight) {
  for (Index row = 0; row < out; ++row) unpack_row(packed, out, in, row, weight + row * in);
}

#if !LACONIC_WHOLE_PRODUCTS

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
          slice[i * width + o] = scale[o] * static_cast<float>(from[layout.place(i0 + i, o, width)]);
      detail::gemm_panel(m, Operand<float>{x.data + i0, x.row_stride}, slice, width, count, y + j, layout.out,
                         std::min(Tile::cols, layout.out - j), i0 > 0, bias == nullptr ? nullptr : bias + j);
    }
    epilogue(Index{0}, j, y + j, layout.out, m, std::min(Tile::cols, layout.out - j));
  });
}

#else

/// Rounds a row x (in) to whole numbers up to 127 and returns its scale: max |x| / 127. A NaN or infinity in the row
/// makes the scale NaN. `to` has room for whole vectors.
inline float round_row(Index in, const float* x, RoundedNumber* to) {
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
  const float inverse = largest > 1e-30f && fault == 0 ? 127 / largest : 0;
  for (i = 0; i < in; i += lanes<float>) round_some(x + i, in - i, inverse, to + i);
  return largest / 127 + fault;
}

/// Computes y (Rows, used) = row_scale * column_scale * (a b) + bias: the micro-kernel for bytes. a (Rows, groups *
/// bytes_group) is rounded, b one panel, or several, `panel_stride` bytes apart, if Vectors is more than a panel has.
template <Index Rows, Index Vectors>
[[gnu::noinline]] void int8_kernel(const RoundedNumber* a, Index a_stride, Index groups, const std::int8_t* b,
                                   Index panel_stride, const float* row_scales, const float* scales,
                                   const std::int32_t* sums, const float* bias, float* y, Index y_stride, Index used) {
  constexpr Index w = lanes<float>, step = w * bytes_group, of_panel = std::min(Vectors, GemmTile<float>::vectors);
  constexpr auto rows = static_cast<std::size_t>(Rows), vectors = static_cast<std::size_t>(Vectors);
  WholeVector sum[rows][vectors];
  LACONIC_UNROLL
  for (Index i = 0; i < Rows; ++i) {
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) sum[i][j] = WholeVector(0);
  }
  for (Index g = 0; g < groups; ++g) {
    WholeVector row[vectors];
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j)
      row[j] = in_register(load_group(b + j / of_panel * panel_stride + (g * of_panel + j % of_panel) * step));
    detail::prefetch_panels<Rows, Vectors / of_panel, of_panel * step>(b + g * of_panel * step, panel_stride,
                                                                       of_panel * step);
    LACONIC_UNROLL
    for (Index i = 0; i < Rows; ++i) {
      std::int32_t group;
      std::memcpy(&group, a + i * a_stride + bytes_group * g, sizeof group);
      const WholeVector x = spread_group(group);
      LACONIC_UNROLL
      for (Index j = 0; j < Vectors; ++j) sum[i][j] = add_products(sum[i][j], x, row[j]);
    }
  }
  // The sums go through memory here, or the compiler keeps them in memory during the loop.
  alignas(WholeVector) Local<Local<std::int32_t, Vectors * w>, Rows> done;
  LACONIC_UNROLL
  for (Index i = 0; i < Rows; ++i) {
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) std::memcpy(done[i] + w * j, &sum[i][j], sizeof(WholeVector));
  }
  for (Index j = 0; j < used; j += w) {
    const Index count = std::min<Index>(w, used - j);
    const Batch<float> scale = load(scales + j),
                       start = bias == nullptr ? Batch<float>(0.0f) : load_part(bias + j, count);
    const WholeVector zero = zero_of(sums + j);
    for (Index i = 0; i < Rows; ++i) {
      const Batch<float> product = xsimd::to_float(WholeVector::load_aligned(done[i] + j) - zero);
      store_part(y + i * y_stride + j, xsimd::fma(product, scale * Batch<float>(row_scales[i]), start), count);
    }
  }
}

/// Holds rows of x rounded to whole numbers, in memory of the caller: first the scales, then the rows.
struct RoundedRows {
  float* scales;           ///< the scale of each row
  RoundedNumber* numbers;  ///< the rows
  Index stride;            ///< numbers from row to row

  /// Returns the numbers from row to row for so many inputs.
  static Index stride_of(Index in) { return padded_cols<float>(in); }
  /// Returns the bytes of memory for m rows.
  static Index space(Index m, Index in) {
    return m * (stride_of(in) * static_cast<Index>(sizeof(RoundedNumber)) + static_cast<Index>(sizeof(float)));
  }
  /// Places m rows in `memory`. Rounds nothing yet.
  RoundedRows(Index m, Index in, void* memory)
      : scales(static_cast<float*>(memory)),
        numbers(reinterpret_cast<RoundedNumber*>(scales + m)),
        stride(stride_of(in)) {}
  /// Rounds these rows of x (m, in).
  void round(Range rows, Index in, const float* x, Index x_stride) {
    for (Index i = rows.begin; i < rows.end; ++i) scales[i] = round_row(in, x + i * x_stride, numbers + i * stride);
  }
};

/// Computes y = x W^T + bias for the rows `rows` of rounded x and the columns `cols`, which are whole panels of a
/// weight of bytes, then the epilogue. One thread; no allocation.
template <class Epilogue>
void int8_panels(Range rows, const RoundedRows& x, const PackedLayout& layout, const std::byte* data, Range cols,
                 const float* bias, float* y, const Epilogue& epilogue) {
  if (rows.size() == 0) return;
  using Tile = GemmTile<float>;
  const Index together = panels_together<float>(rows.size(), layout.grouped_in()) * Tile::cols,
              panel_stride = layout.grouped_in() * Tile::cols;
  for (Index j = cols.begin, used; j < cols.end; j += used) {
    used = std::min(j + together <= layout.out && j + together <= cols.end ? together : Tile::cols, layout.out - j);
    const auto* panel = reinterpret_cast<const std::int8_t*>(data) + layout.at(j);
    float* to = y + rows.begin * layout.out + j;
    const auto tile = [&](Index i, auto height, auto vectors) {
      i += rows.begin;
      int8_kernel<decltype(height)::value, decltype(vectors)::value>(
          x.numbers + i * x.stride, x.stride, layout.grouped_in() / bytes_group, panel, panel_stride, x.scales + i,
          layout.scales(data) + j, layout.sums(data) + j, bias == nullptr ? nullptr : bias + j, y + i * layout.out + j,
          layout.out, used);
    };
    if (rows.size() == 1 && used == together)
      detail::with_constant<Tile::row_panels>(used / Tile::cols, [&](auto panels) {
        tile(0, std::integral_constant<Index, 1>(),
             std::integral_constant<Index, decltype(panels)::value * Tile::vectors>());
      });
    else
      detail::with_constant<Tile::vectors>(layout.width(j) / lanes<float>, [&](auto vectors) {
        detail::each_row_tile<int8_tile_rows>(rows.size(), [&](Index i, auto height) { tile(i, height, vectors); });
      });
    epilogue(rows.begin, j, to, layout.out, rows.size(), used);
  }
}

/// Computes y (m, out) = x (m, in) W^T + bias with a weight of bytes, then the epilogue. Each row of x is rounded to
/// whole numbers by its own scale first. Takes scratch from `arena`; call it from one thread.
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
#if LACONIC_WHOLE_PRODUCTS
  if (weight.storage == Storage::int8) return RoundedRows::space(1, in);
#endif
  return 0;
}
/// Computes y (m, out) = x (m, in) W^T + bias (out, or null) with a packed weight, then the epilogue. `space` has
/// multiply_rows_space bytes for each row. int8 is allowed only with LACONIC_WHOLE_PRODUCTS. One thread;
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
#if LACONIC_WHOLE_PRODUCTS
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
