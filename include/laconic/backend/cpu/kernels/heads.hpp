// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/elementwise.hpp>
#include <laconic/backend/cpu/kernels/gemm.hpp>
#include <laconic/backend/shapes.hpp>
#include <laconic/core/compiled.hpp>

#include <algorithm>

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Gives the max number of rows for which `head_linear` packs x and not the weight.
template <class T>
inline constexpr Index few_rows = 2 * GemmTile<T>::rows;
/// Returns the elements of scratch that `multiply_few_rows` needs.
template <class T>
constexpr Index few_rows_scratch(Index out, Index in) {
  return Panels<T>::size(in, few_rows<T>) + out * few_rows<T>;
}
/// Computes y (rows, out) = x (rows, in) W^T + bias for at most few_rows rows, as y^T = W x^T: it packs x, which is
/// smaller than the weight (out, in). Sums are accumulated in the same order as in `gemm_block`. scratch has
/// few_rows_scratch(out, in) elements. One thread; no allocation.
template <class T>
void multiply_few_rows(Index rows, Index out, Index in, Operand<T> x, const T* weight, const T* bias, T* y,
                       Index y_stride, T* scratch) {
  const Panels<T> panels = pack(1, x.transposed(), in, rows, scratch);
  T* const sums = scratch + Panels<T>::size(in, few_rows<T>);
  for (Index c = 0; c < out; ++c) std::fill_n(sums + c * rows, rows, bias == nullptr ? T(0) : bias[c]);
  for (Index c = 0; c < out; c += GemmTile<T>::rows) {
    const Index some = std::min(GemmTile<T>::rows, out - c);
    prefetch_rows(Operand<T>{weight, in}, c + some, c + 2 * some, in);
    gemm_panels(some, Operand<T>{weight + c * in, in}, panels, {0, in}, {0, rows}, sums + c * rows, rows, true,
                static_cast<const T*>(nullptr));
  }
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < out; ++c) y[r * y_stride + c] = sums[c * rows + r];
}

/// Computes y_h = x_h W_h^T + b_h for every head h, or y_h = x_h W_h if transposed. weight (num_blocks * out, in), bias
/// (num_blocks * out) or null; x (rows, num_heads * in) and y (rows, num_heads * out), or x (rows, num_heads * out) and
/// y (rows, num_heads * in) if transposed. A task is 64 rows of a head. Takes scratch from `arena`; call it from one
/// thread.
template <class T>
void head_linear(int threads, Arena& arena, const HeadShape& shape, Index rows, Index out, Index in, const T* x,
                 const T* weight, const T* bias, T* y) {
  const Index from = shape.transposed ? out : in, to = shape.transposed ? in : out;
  const auto matrix = [&](Index block) {
    const Operand<T> w{weight + block * out * in, in};
    return shape.transposed ? w : w.transposed();
  };
  if (shape.num_blocks == 1) {  // with one matrix, heads are more rows
    gemm<T>(threads, arena, rows * shape.num_heads, to, from, {x, from}, matrix(0), y, to, false, bias);
    return;
  }
  constexpr Index tile = 64;
  const Index tiles = (rows + tile - 1) / tile, x_cols = shape.num_heads * from, y_cols = shape.num_heads * to;
  const Index space = std::max(gemm_scratch<T>(), few_rows_scratch<T>(out, in));
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * space) * sizeof(T));
  parallel_for(threads, shape.num_heads * tiles, [&](Index task, int thread) {
    const Index head = task / tiles, row = task % tiles * tile, block = head / (shape.num_heads / shape.num_blocks);
    const Operand<T> of_head{x + row * x_cols + head * from, x_cols};
    const Index some = std::min(tile, rows - row);
    const T* const of_block = bias == nullptr ? nullptr : bias + block * to;
    T *const out_of_head = y + row * y_cols + head * to, *const own = static_cast<T*>(scratch.data()) + thread * space;
    if (!shape.transposed && some <= few_rows<T>)
      multiply_few_rows(some, out, in, of_head, weight + block * out * in, of_block, out_of_head, y_cols, own);
    else
      gemm_block<T>(some, to, from, of_head, matrix(block), out_of_head, y_cols, false, of_block, own);
  });
}

/// Adds the derivatives of `head_linear` by weight and bias to dweight (num_blocks * out, in) and dbias (num_blocks *
/// out), each of which may be null. Takes scratch from `arena`; call it from one thread.
template <class T>
void head_linear_backward_weight(int threads, Arena& arena, const HeadShape& shape, Index rows, Index out, Index in,
                                 const T* dy, const T* x, T* dweight, T* dbias) {
  const Index group = shape.num_heads / shape.num_blocks, x_cols = shape.num_heads * (shape.transposed ? out : in),
              y_cols = shape.num_heads * (shape.transposed ? in : out);
  for (Index head = 0; head < shape.num_heads; ++head) {
    const Operand<T> a{x + head * (shape.transposed ? out : in), x_cols},
        g{dy + head * (shape.transposed ? in : out), y_cols};
    T* to = dweight == nullptr ? nullptr : dweight + head / group * out * in;
    if (to != nullptr && shape.transposed)
      gemm<T>(threads, arena, out, in, rows, a.transposed(), g, to, in, true, nullptr);
    else if (to != nullptr)
      gemm<T>(threads, arena, out, in, rows, g.transposed(), a, to, in, true, nullptr);
    for (Index r = 0; dbias != nullptr && r < rows; ++r)
      for (Index c = 0; c < out; ++c) dbias[head / group * out + c] += dy[r * y_cols + head * out + c];
  }
}

/// Rotates each pair of channels (a, b) of each head to (a cos - b s, a s + b cos), s = direction * sin, by the angle
/// of its row (Su et al. 2021); direction -1 rotates back. table (rows, width) holds width / 2 cosines, then as many
/// sines. x and y (rows, num_heads * width) may be the same. Parallel over rows; no allocation.
template <class T>
void rotate(int threads, Index rows, Index num_heads, Index width, RotaryPairs pairs, T direction, const T* x,
            const T* table, T* y) {
  const Index half = width / 2, step = pairs == RotaryPairs::interleaved ? 2 : 1,
              apart = pairs == RotaryPairs::interleaved ? 1 : half;
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const T *cosine = table + r * width, *sine = cosine + half;
      for (Index h = 0; h < num_heads; ++h) {
        const T* from = x + (r * num_heads + h) * width;
        T* to = y + (r * num_heads + h) * width;
        for (Index i = 0; i < half; ++i) {
          const T a = from[i * step], b = from[i * step + apart], s = direction * sine[i];
          to[i * step] = a * cosine[i] - b * s;
          to[i * step + apart] = a * s + b * cosine[i];
        }
      }
    }
  });
}

/// Computes y_h = [a_h, b_h] for every head h. a (rows, num_heads * a_width), b (rows, num_heads * b_width), or (rows,
/// b_width) if `shared`, y (rows, num_heads * (a_width + b_width)). Parallel over rows; no allocation.
template <class T>
void concat(int threads, Index rows, Index num_heads, Index a_width, Index b_width, bool shared, const T* a, const T* b,
            T* y) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r)
      for (Index h = 0; h < num_heads; ++h) {
        T* to = y + (r * num_heads + h) * (a_width + b_width);
        std::copy_n(a + (r * num_heads + h) * a_width, a_width, to);
        std::copy_n(b + (shared ? r : r * num_heads + h) * b_width, b_width, to + a_width);
      }
  });
}
/// Computes da and db from dy, with the shapes of `concat`. If b is `shared`, db is the sum over heads. Parallel over
/// rows; no allocation.
template <class T>
void concat_backward(int threads, Index rows, Index num_heads, Index a_width, Index b_width, bool shared, const T* dy,
                     T* da, T* db) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r)
      for (Index h = 0; h < num_heads; ++h) {
        const T* from = dy + (r * num_heads + h) * (a_width + b_width);
        std::copy_n(from, a_width, da + (r * num_heads + h) * a_width);
        T* to = db + (shared ? r : r * num_heads + h) * b_width;
        if (shared && h > 0)
          for (Index c = 0; c < b_width; ++c) to[c] += from[a_width + c];
        else
          std::copy_n(from + a_width, b_width, to);
      }
  });
}

LACONIC_COMPILE(head_linear);
LACONIC_COMPILE(head_linear_backward_weight);
LACONIC_COMPILE(rotate);
LACONIC_COMPILE(concat);
LACONIC_COMPILE(concat_backward);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
