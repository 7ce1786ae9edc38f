// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/positions.hpp>
#include <laconic/backend/cuda/core.hpp>
#include <laconic/backend/cuda/kernels/positions.hpp>

#include <cstddef>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the tables of positions of `Cuda`.
template <class T>
class CudaPositions {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = CudaTensor<T>;

  /// Returns the sinusoids (rows, width) of the positions of rows.
  Tensor sinusoids(const RowPositions& at, Index width) {
    const auto rates = rates_of((width + 1) / 2, [&](Index m) { return RotaryRates().rate(m, width); });
    const auto firsts = core_.upload(at.firsts);
    Tensor out = core_.make(at.sequences.rows(), width);
    for_each(core_.stream(), "sinusoids", out.size(),
             cuda::Sinusoids<T>{positions(at, firsts.data()), rates.data(), out.data(), width});
    return out;
  }
  /// Returns the table of `rotate` (rows, width): cosines of width / 2 pairs, then their sines. Throws `Error` for
  /// sizes that do not fit.
  Tensor rotary_table(const RowPositions& at, Index width, Index rate_width, const IndexList& pairs,
                      const RotaryRates& how = {}) {
    checks::rotary_table(width, rate_width, pairs, how);
    const auto rates =
        rates_of(width / 2, [&](Index i) { return how.rate(pairs.size() > 0 ? pairs[i] : i, rate_width); });
    const auto firsts = core_.upload(at.firsts);
    Tensor out = core_.make(at.sequences.rows(), width);
    for_each(core_.stream(), "rotary_table", out.size() / 2,
             cuda::RotaryTable<T>{positions(at, firsts.data()), rates.data(), how.amplitude(), out.data(), width});
    return out;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CudaPositions(CudaCore<T>& core) : core_(core) {}

 private:
  cuda::DevicePositions positions(const RowPositions& at, const Index* firsts) {
    return {core_.offsets_of(at.sequences), at.firsts.empty() ? nullptr : firsts, at.sequences.size(), at.step};
  }
  template <class Rate>
  cuda::Uploaded<double> rates_of(Index pairs, Rate&& rate) {
    const auto count = static_cast<std::size_t>(pairs);
    const Buffer here = core_.arena().allocate(count * sizeof(double));
    auto* rates = static_cast<double*>(here.data());
    for (Index m = 0; m < pairs; ++m) rates[m] = rate(m);
    return core_.upload(std::span<const double>(rates, count));
  }

  CudaCore<T>& core_;
};

LACONIC_COMPILE_CUDA_CLASS(CudaPositions);

}  // namespace LACONIC_ABI
}  // namespace laconic
