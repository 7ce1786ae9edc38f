// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/block.hpp>
#include <laconic/core/rounding.hpp>

#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>

// What a warp computes together on tensor cores. Like block.hpp this file knows the compiler: nvcc makes one
// instruction of each function, and the emulation does what PTX ISA 8.0, section 9.7.13, says of it, register by
// register, so that the places of values in registers are tested.
//
// A function is called by all threads of a block alike, between two calls of `each`, and each warp does its own part.
// It takes functions of the thread that give its registers. No thread waits: what is in shared memory must be there
// since the last barrier. Lane l of a warp is its thread l.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Is a value as tensor cores read it: Bf16, or a float that is rounded to 10 bits of mantissa (TF32).
template <class E>
concept TensorElement = std::same_as<E, Bf16> || std::same_as<E, float>;

/// Gives the depth of one product of tensor cores: 32 bytes of elements.
template <TensorElement E>
inline constexpr int tensor_depth = 32 / static_cast<int>(sizeof(E));

/// Points to the registers of one thread for a product C (16, 8) += A (16, depth) B (depth, 8). With group = lane / 4
/// and place = lane % 4, they hold
/// - c[0], c[1]: C(group, 2 place), C(group, 2 place + 1), and c[2], c[3] the same of row group + 8;
/// - a[0], a[1]: 4 bytes from byte 4 place on of rows group and group + 8 of A; a[2], a[3]: from byte 4 place + 16 on;
/// - b[0], b[1]: 4 bytes from byte 4 place on, and from byte 4 place + 16 on, of column `group` of B.
struct TensorRegisters {
  float* c;                ///< 4 sums
  const std::uint32_t* a;  ///< 4 registers
  const std::uint32_t* b;  ///< 2 registers
};

#if !defined(__CUDACC__)

namespace detail {
/// Returns the address that a thread gives for its row of a matrix.
template <class Row>
const std::byte* row_of_matrix(const Row& row, int thread) {
  const AsThread giver(thread);
  const auto* const out = reinterpret_cast<const std::byte*>(row(thread));
  require(reinterpret_cast<std::uintptr_t>(out) % 16 == 0,
          "Cuda: a kernel loads a row of a matrix from an address that is no multiple of 16");
  return out;
}
}  // namespace detail

/// Loads four 8 x 8 matrices of 2-byte values, or 8 x 4 of 4-byte values, from shared memory. row(thread) is the
/// address of row l % 8 of matrix l / 8, 16 bytes at a multiple of 16, for lane l; to(thread) is where its 4 registers
/// are. Register m of lane l gets 4 bytes from byte 4 (l % 4) on of row l / 4 of matrix m.
template <class Row, class To>
void load_matrices(Block& block, const Row& row, const To& to) {
  for (int warp = 0; warp < block.threads(); warp += warp_threads)
    for (int m = 0; m < 4; ++m)
      for (int lane = 0; lane < warp_threads; ++lane) {
        const std::byte* const from = detail::row_of_matrix(row, warp + 8 * m + lane / 4);
        const AsThread thread(warp + lane);
        std::memcpy(to(warp + lane) + m, from + 4 * (lane % 4), 4);
      }
}

/// Loads four 8 x 8 matrices of 2-byte values as `load_matrices` does, each transposed: register m of lane l gets
/// values (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4) of matrix m.
template <class Row, class To>
void load_transposed(Block& block, const Row& row, const To& to) {
  for (int warp = 0; warp < block.threads(); warp += warp_threads)
    for (int m = 0; m < 4; ++m)
      for (int lane = 0; lane < warp_threads; ++lane)
        for (int half = 0; half < 2; ++half) {
          const std::byte* const from = detail::row_of_matrix(row, warp + 8 * m + 2 * (lane % 4) + half);
          const AsThread thread(warp + lane);
          std::memcpy(reinterpret_cast<std::byte*>(to(warp + lane) + m) + 2 * half, from + 2 * (lane / 4), 2);
        }
}

/// Replaces the value of each thread by f of those of the four threads of its group of lanes, which have the same
/// lane / 4: f(f(a, b), f(c, d)). f(a, b) is f(b, a).
template <class V, class F>
void reduce_groups(Block& block, PerThread<V>& values, const F& f) {
  for (int t = 0; t < block.threads(); t += 4) {
    V group[4];
    for (int i = 0; i < 4; ++i) {
      const AsThread thread(t + i);
      group[i] = values[t + i];
    }
    const V all = f(f(group[0], group[1]), f(group[2], group[3]));
    for (int i = 0; i < 4; ++i) {
      const AsThread thread(t + i);
      values[t + i] = all;
    }
  }
}

/// Returns 2^x with a relative error of about 2^-22, 0 where that is less than the least normal float.
inline float fast_exp2(float x) { return x < -126 ? 0.0f : std::exp2(x); }

/// Returns two floats rounded to nearest, the first in the lower half.
inline std::uint32_t two_bf16(float low, float high) {
  return to_bf16(low).bits | static_cast<std::uint32_t>(to_bf16(high).bits) << 16;
}
/// Returns the bits of a float rounded to TF32, to nearest with ties away from zero.
inline std::uint32_t tf32(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return x != x ? bits : (bits + 0x1000) & 0xffffe000U;
}

/// Adds a product to the sums of each warp. of(thread) returns TensorRegisters. Floats must have been rounded by
/// `tf32`.
template <TensorElement E, class Of>
void add_product(Block& block, const Of& of) {
  constexpr int depth = tensor_depth<E>, each = depth / 8;  // values of a register
  const auto value = [](std::uint32_t bits, int i) {
    if constexpr (std::same_as<E, Bf16>)
      return from_bf16({static_cast<std::uint16_t>(bits >> 16 * i)});
    else
      return std::bit_cast<float>(bits & 0xffffe000U);
  };
  for (int warp = 0; warp < block.threads(); warp += warp_threads) {
    float a[16][std::size_t{depth}], b[8][std::size_t{depth}];
    for (int lane = 0; lane < warp_threads; ++lane) {
      const AsThread thread(warp + lane);
      const TensorRegisters in = of(warp + lane);
      const int group = lane / 4, place = lane % 4;
      for (int i = 0; i < each; ++i)
        for (int half = 0; half < 2; ++half) {
          const int k = each * place + i + half * depth / 2;
          a[group][k] = value(in.a[2 * half], i);
          a[group + 8][k] = value(in.a[2 * half + 1], i);
          b[group][k] = value(in.b[half], i);
        }
    }
    for (int lane = 0; lane < warp_threads; ++lane) {
      const AsThread thread(warp + lane);
      float* c = of(warp + lane).c;
      for (int i = 0; i < 4; ++i)
        for (int k = 0; k < depth; ++k)
          c[i] = multiply_add(a[lane / 4 + i / 2 * 8][k], b[lane % 4 * 2 + i % 2][k], c[i]);
    }
  }
}

#else

/// Loads four 8 x 8 matrices of 2-byte values, or 8 x 4 of 4-byte values, from shared memory. row(thread) is the
/// address of row l % 8 of matrix l / 8, 16 bytes at a multiple of 16, for lane l; to(thread) is where its 4 registers
/// are. Register m of lane l gets 4 bytes from byte 4 (l % 4) on of row l / 4 of matrix m.
template <class Row, class To>
LACONIC_DEVICE void load_matrices(Block&, const Row& row, const To& to) {
  const int thread = static_cast<int>(threadIdx.x);
  std::uint32_t* const r = to(thread);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row(thread))))
               : "memory");
}

/// Loads four 8 x 8 matrices of 2-byte values as `load_matrices` does, each transposed: register m of lane l gets
/// values (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4) of matrix m.
template <class Row, class To>
LACONIC_DEVICE void load_transposed(Block&, const Row& row, const To& to) {
  const int thread = static_cast<int>(threadIdx.x);
  std::uint32_t* const r = to(thread);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row(thread))))
               : "memory");
}

/// Replaces the value of each thread by f of those of the four threads of its group of lanes, which have the same
/// lane / 4: f(f(a, b), f(c, d)). f(a, b) is f(b, a).
template <class V, class F>
LACONIC_DEVICE void reduce_groups(Block&, PerThread<V>& values, const F& f) {
  V& value = values[static_cast<int>(threadIdx.x)];
  value = f(value, __shfl_xor_sync(0xffffffffu, value, 1));
  value = f(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

/// Returns 2^x with a relative error of about 2^-22, 0 where that is less than the least normal float.
LACONIC_DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Returns two floats rounded to nearest, the first in the lower half.
LACONIC_DEVICE std::uint32_t two_bf16(float low, float high) {
  std::uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
/// Returns the bits of a float rounded to TF32, to nearest with ties away from zero.
LACONIC_DEVICE std::uint32_t tf32(float x) {
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

/// Adds a product to the sums of each warp. of(thread) returns TensorRegisters. Floats must have been rounded by
/// `tf32`.
template <TensorElement E, class Of>
LACONIC_DEVICE void add_product(Block&, const Of& of) {
  const TensorRegisters in = of(static_cast<int>(threadIdx.x));
  float* const c = in.c;
  if constexpr (std::same_as<E, Bf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(in.a[0]), "r"(in.a[1]), "r"(in.a[2]), "r"(in.a[3]), "r"(in.b[0]), "r"(in.b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(in.a[0]), "r"(in.a[1]), "r"(in.a[2]), "r"(in.a[3]), "r"(in.b[0]), "r"(in.b[1]));
}

#endif

/// Holds the values of 16 bytes as tensor cores read them, in registers. They are stored at once.
template <TensorElement E>
struct alignas(16) TensorChunk {
  static constexpr int count = 16 / static_cast<int>(sizeof(E));  ///< values of a chunk
  std::uint32_t bits[4];                                          ///< the values
  /// Rounds the values of a chunk to Bf16; floats are rounded when they are multiplied. of(i) returns value i.
  template <class Of>
  LACONIC_DEVICE static TensorChunk of(const Of& of) {
    TensorChunk out;
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::same_as<E, Bf16>)
        out.bits[i] = two_bf16(of(2 * i), of(2 * i + 1));
      else
        out.bits[i] = std::bit_cast<std::uint32_t>(of(i));
    }
    return out;
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
