// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Lists the backends that the suites of primitives, gradients, streams and models run on. A new backend is added here.
#pragma once

#include <laconic/backend/cpu.hpp>
#ifdef LACONIC_TEST_CUDA
#include <laconic/backend/cuda.hpp>
#endif

#include "fenced.hpp"

#include <cstdio>
#include <cstdlib>
#include <tuple>
#include <utility>
#include <vector>

#ifdef LACONIC_TEST_CUDA
static_assert(laconic::StreamingContext<laconic::Cuda<float>> && laconic::TrainingContext<laconic::Cuda<double>>);

/// Ends a test program, which ctest then counts as skipped, where there is no GPU.
inline const bool has_gpu = [] {
  if (!laconic::cuda::gpus().empty()) return true;
  std::fputs("SKIPPED: no GPU and its driver found; without -DLACONIC_CUDA=ON the same tests run emulated\n", stderr);
  std::exit(77);
}();
#endif

namespace laconic {

#ifdef LACONIC_TEST_CUDA
/// Is made as the other backends are, with a number of threads, which a GPU does not have.
template <class T>
struct OnCuda : Cuda<T> {
  explicit OnCuda(int = 0) {}
  explicit OnCuda(const CudaDevice& device) : Cuda<T>(device) {}
};
template <class T>
using Backends = std::tuple<Cpu<T>, Fenced<Cpu<T>>, OnCuda<T>>;
#else
template <class T>
using Backends = std::tuple<Cpu<T>, Fenced<Cpu<T>>>;
#endif

template <class... A, class... B>
std::tuple<A..., B...> joined(std::tuple<A...>, std::tuple<B...>);
using AllBackends = decltype(joined(std::declval<Backends<float>>(), std::declval<Backends<double>>()));

/// Holds parameters of no model, so that a backend can prepare them like one.
template <class T>
struct ParameterList : Module<ParameterList<T>> {
  std::vector<Parameter<T>*> all;
  explicit ParameterList(std::vector<Parameter<T>*> list) : all(std::move(list)) {}
  static void each_parameter(auto& self, auto&& visit) {
    for (auto* p : self.all) visit("parameter", *p);
  }
};

/// Returns a copy of a parameter that a backend can compute with.
template <class Backend, class T>
Parameter<T> resident(Backend& backend, const Parameter<T>& p) {
  Parameter<T> out = p;
  ParameterList<T> list({&out});
  if constexpr (!Backend::computes_on_host) backend.prepare_training(list);
  return out;
}

/// Prepares the parameters of a model to be trained by a backend, and fetches them on destruction.
template <class Backend, class Model>
class TrainedOn {
 public:
  TrainedOn(Backend& backend, Model& model) : backend_(backend), model_(model) {
    if constexpr (!Backend::computes_on_host) backend_.prepare_training(model_);
  }
  TrainedOn(const TrainedOn&) = delete;
  TrainedOn& operator=(const TrainedOn&) = delete;
  ~TrainedOn() { backend_.fetch(model_); }

 private:
  Backend& backend_;
  Model& model_;
};

}  // namespace laconic
