// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Computes x W^T + b with other libraries, for products.cpp. CMake defines LACONIC_BENCH_OPENBLAS and
// LACONIC_BENCH_DNNL if these libraries are installed.
#pragma once

#include <laconic/nn/linear.hpp>
#include "cpu_with.hpp"

#ifdef LACONIC_BENCH_OPENBLAS
#include "cblas.hpp"
#endif
#ifdef LACONIC_BENCH_DNNL
#include <dnnl.hpp>
#endif

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bench {

using laconic::Index;
using Layers = std::vector<laconic::Linear<float>>;

/// Multiplies by weight i modulo their number in call i, and returns the result, which is valid until the next call.
using ProductCall = std::function<const float*(Index)>;
using ProductCalls = std::vector<std::pair<std::string, ProductCall>>;

/// Returns a product into memory of its own: multiply(layer, y) adds to y, which holds the bias in every row.
template <class Multiply>
ProductCall into_memory(Index rows, const Layers& layers, Multiply multiply) {
  return [&layers, multiply, y = laconic::Matrix<float>(rows, layers.front().out())](Index i) mutable {
    const laconic::Linear<float>& layer = layers[static_cast<std::size_t>(i) % layers.size()];
    y.rowwise() = layer.bias.host().row(0);
    multiply(layer, y);
    return std::as_const(y).data();
  };
}

#ifdef LACONIC_BENCH_DNNL
/// Computes oneDNN's inner product, with weights in the layout that oneDNN chooses.
class DnnlProduct {
 public:
  DnnlProduct(const laconic::Matrix<float>& x, const Layers& layers)
      : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    using Desc = dnnl::memory::desc;
    using Tag = dnnl::memory::format_tag;
    constexpr auto f32 = dnnl::memory::data_type::f32;
    const Index rows = x.rows(), out = layers.front().out(), in = layers.front().in();
    const Desc source({rows, in}, f32, Tag::ab), weights({out, in}, f32, Tag::any), bias({out}, f32, Tag::a),
        result({rows, out}, f32, Tag::ab);
    constexpr auto inference = dnnl::prop_kind::forward_inference;
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::inner_product_forward::primitive_desc primitive(engine_, inference, source, weights, bias, result);
#else
    const dnnl::inner_product_forward::primitive_desc primitive({inference, source, weights, bias, result}, engine_);
#endif
    primitive_ = dnnl::inner_product_forward(primitive);
    result_ = dnnl::memory(result, engine_);
    for (const laconic::Linear<float>& layer : layers) {
      // oneDNN's memory is not const, but only the result is written.
      dnnl::memory plain(Desc({out, in}, f32, Tag::ab), engine_, const_cast<float*>(layer.weight.host().data()));
      dnnl::memory packed(primitive.weights_desc(), engine_);
      dnnl::reorder(plain, packed).execute(stream_, plain, packed);
      stream_.wait();
      arguments_.push_back({{DNNL_ARG_SRC, dnnl::memory(source, engine_, const_cast<float*>(x.data()))},
                            {DNNL_ARG_WEIGHTS, packed},
                            {DNNL_ARG_BIAS, dnnl::memory(bias, engine_, const_cast<float*>(layer.bias.host().data()))},
                            {DNNL_ARG_DST, result_}});
    }
  }
  const float* operator()(Index i) {
    primitive_.execute(stream_, arguments_[static_cast<std::size_t>(i) % arguments_.size()]);
    stream_.wait();
    return static_cast<const float*>(result_.get_data_handle());
  }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::inner_product_forward primitive_;
  dnnl::memory result_;
  std::vector<std::unordered_map<int, dnnl::memory>> arguments_;
};
#endif

/// Returns a product by one of the libraries that `CpuWith` can use.
template <class Products>
ProductCall call_of(const laconic::Matrix<float>& x, const Layers& layers, int threads) {
  return into_memory(x.rows(), layers, [&x, threads](const auto& layer, auto& y) {
    using Operand = laconic::kernels::Operand<float>;
    Products::add_product(threads, x.rows(), layer.out(), layer.in(), Operand{x.data(), x.cols()},
                          Operand{layer.weight.host().data(), layer.in()}.transposed(), y.data(), y.cols());
  });
}

/// Adds the products of all installed libraries, Eigen last. x and layers must outlive the calls.
inline void add_libraries(ProductCalls& calls, const laconic::Matrix<float>& x, const Layers& layers, int threads) {
#ifdef LACONIC_BENCH_OPENBLAS
  openblas_set_num_threads(threads);
  calls.emplace_back("OpenBLAS", call_of<laconic::CblasProducts>(x, layers, threads));
#endif
#ifdef LACONIC_BENCH_DNNL
  calls.emplace_back("oneDNN", into_memory(x.rows(), layers, [&x](const auto& layer, auto& y) {
                       dnnl::sgemm('N', 'T', x.rows(), layer.out(), layer.in(), 1, x.data(), layer.in(),
                                   layer.weight.host().data(), layer.in(), 1, y.data(), layer.out());
                     }));
  calls.emplace_back("oneDNN, packed", DnnlProduct(x, layers));
#endif
  calls.emplace_back("Eigen", call_of<laconic::EigenProducts>(x, layers, threads));
}

}  // namespace bench
