// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/core.hpp>
#include <laconic/backend/cpu/kernels/positions.hpp>

#include <cstddef>

namespace laconic {
inline namespace LACONIC_ABI {

/// The slice of `Cpu` that computes tables of positions.
template <class T>
class CpuPositions {
 public:
  using Tensor = laconic::Tensor<T>;

  Tensor sinusoids(const RowPositions& at, Index width) {
    const Buffer rates = room(width);
    kernels::sinusoid_rates(width, rates_of(rates));
    Tensor out = core_.make(at.sequences.rows(), width);
    kernels::sinusoids(core_.threads(), at, width, rates_of(rates), out.data());
    return out;
  }
  Tensor rotary_table(const RowPositions& at, Index width, Index rate_width, const IndexList& pairs) {
    require(width % 2 == 0, "rotary_table: width ", width, " given, an even number expected");
    require(pairs.size() == 0 || 2 * pairs.size() == width, "rotary_table: ", pairs.size(),
            " pairs given, none or half of the width ", width, " expected");
    require(rate_width >= width, "rotary_table: rates of width ", rate_width, " given, at least ", width, " expected");
    const Buffer rates = room(pairs.size() > 0 ? width : rate_width);
    if (pairs.size() > 0)
      kernels::sinusoid_rates(rate_width, pairs, rates_of(rates));
    else
      kernels::sinusoid_rates(rate_width, rates_of(rates));
    Tensor out = core_.make(at.sequences.rows(), width);
    kernels::rotary_table(core_.threads(), at, width, rates_of(rates), out.data());
    return out;
  }

 protected:
  explicit CpuPositions(CpuCore<T>& core) : core_(core) {}

 private:
  Buffer room(Index width) { return core_.arena().allocate(static_cast<std::size_t>(width + 1) / 2 * sizeof(double)); }
  static double* rates_of(const Buffer& rates) { return static_cast<double*>(rates.data()); }

  CpuCore<T>& core_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
