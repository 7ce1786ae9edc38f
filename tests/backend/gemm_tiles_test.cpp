// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Products of the CUDA backend, emulated: every element is the sum of chunks of 256 products in order, to the bit, in
// tiles of every size, from operands of every layout, at whatever addresses.
#define LACONIC_CUDA_EMULATED
#include <laconic/backend/cuda/kernels/gemm.hpp>
#include <laconic/core/random.hpp>

#include <cmath>
#include <cstddef>
#include <vector>

#include "catch.hpp"

using namespace laconic;
using namespace laconic::cuda;

namespace {

/// Holds numbers at an address that is a multiple of 16, or one number beyond it.
class Numbers {
 public:
  Numbers(Index size, bool shifted, const Random& random) : values_(static_cast<std::size_t>(size) + 8) {
    for (std::size_t i = 0; i < values_.size(); ++i) values_[i] = static_cast<float>(random.normal(i));
    while (!are_aligned<4>(data() - (shifted ? 1 : 0))) ++first_;
  }
  float* data() { return values_.data() + first_ + 1; }

 private:
  std::vector<float> values_;
  std::ptrdiff_t first_ = 0;
};

/// Returns the element that laconic's products define.
template <class A, class B>
float product(Index depth, const A& a, const B& b) {
  float sum = 0;
  for (Index begin = 0; begin < depth; begin += 256) {
    float chunk = 0;
    for (Index k = begin; k < depth && k < begin + 256; ++k) chunk = cuda::multiply_add(a(k), b(k), chunk);
    sum += chunk;
  }
  return sum;
}

template <int Side, class B>
void multiply(const GemmSize& size, const GemmOperand<float>& a, const B& b, float* c, const float* bias) {
  using Kernel = Gemm<float, B, float, Side>;
  const RowSplit whole{pieces(size.depth, Kernel::chunk), pieces(size.depth, Kernel::chunk)};
  const Kernel kernel{
      size,  a,      b, {c, size.cols}, bias, true, has_contiguous_rows(a), has_contiguous_rows(b), Activation::relu,
      whole, nullptr};
  launch(Stream(0), "product", {Kernel::tiles(size)}, kernel, Kernel::shared_bytes());
}

/// Compares the products in tiles of all sizes with the definition, for b(k, j).
template <class B, class Element>
bool all_equal(const GemmSize& size, const GemmOperand<float>& a, const B& b, const Element& element,
               const float* bias) {
  std::vector<float> small(static_cast<std::size_t>(size.rows * size.cols)), middle = small, large = small;
  multiply<16>(size, a, b, small.data(), bias);
  multiply<64>(size, a, b, middle.data(), bias);
  multiply<128>(size, a, b, large.data(), bias);
  bool equal = small == middle && small == large;
  for (Index i = 0; i < size.rows; ++i)
    for (Index j = 0; j < size.cols; ++j) {
      const float sum = product(
          size.depth, [&](Index k) { return a.data[i * a.row_stride + k * a.col_stride]; },
          [&](Index k) { return element(k, j); });
      const float value = sum + bias[j];
      equal = equal && small[static_cast<std::size_t>(i * size.cols + j)] == (value < 0 ? 0 : value);
    }
  return equal;
}

}  // namespace

TEST_CASE("products of the CUDA backend are the same in tiles of all sizes") {
  for (const Order order : {Order::forward, Order::backward})
    for (const bool shifted : {false, true})
      for (const GemmSize& size : {GemmSize{132, 136, 272}, GemmSize{131, 7, 519}, GemmSize{3, 130, 261}}) {
        emulated_order() = order;
        Numbers a(size.rows * size.depth, shifted, Random(Seed{1}, 0)),
            b(size.depth * size.cols, shifted, Random(Seed{2}, 0)), bias(size.cols, shifted, Random(Seed{3}, 0));
        const GemmOperand<float> a_rows{a.data(), size.depth}, a_columns{a.data(), 1, size.rows},
            b_rows{b.data(), size.cols}, b_columns{b.data(), 1, size.depth};
        CAPTURE(size.rows, size.cols, size.depth, shifted);
        for (const GemmOperand<float>& of_a : {a_rows, a_columns})
          for (const GemmOperand<float>& of_b : {b_rows, b_columns})
            CHECK(all_equal(
                size, of_a, of_b,
                [&](Index k, Index j) { return of_b.data[k * of_b.row_stride + j * of_b.col_stride]; }, bias.data()));
        const auto check_stored = [&]<Storage storage>() {
          const Index bytes = size.cols * cache_row_bytes(storage, size.depth);
          Numbers memory(bytes / 4 + 1, false, Random(Seed{4}, 0));
          const auto rows = StoredRows<float>::in(reinterpret_cast<std::byte*>(memory.data() + (shifted ? 3 : 0)),
                                                  storage, size.cols, size.depth);
          launch(Stream(0), "store", {size.cols}, StoreRows<float>{b.data(), rows});
          CHECK(all_equal(
              size, a_rows, StoredColumns<float, storage>{rows}, [&](Index k, Index j) { return rows.row(j)[k]; },
              bias.data()));
        };
        check_stored.operator()<Storage::bf16>();
        check_stored.operator()<Storage::int8>();
      }
  emulated_order() = Order::forward;
}
