// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/positions.hpp>
#include <laconic/backend/cpu/core.hpp>
#include <laconic/backend/cpu/kernels/positions.hpp>
#include <laconic/core/compiled.hpp>

#include <cstddef>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the tables of positions of `Cpu`.
template <class T>
class CpuPositions {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Returns the sinusoids (rows, width) of the positions of rows.
  Tensor sinusoids(const RowPositions& at, Index width) {
    const Buffer rates = room(width);
    kernels::sinusoid_rates(width, rates_of(rates));
    Tensor out = core_.make(at.sequences.rows(), width);
    kernels::sinusoids(core_.threads(), at, width, rates_of(rates), out.data());
    return out;
  }
  /// Returns the table of `rotate` (rows, width): cosines of width / 2 pairs, then their sines. Throws `Error` for
  /// sizes that do not fit.
  Tensor rotary_table(const RowPositions& at, Index width, Index rate_width, const IndexList& pairs,
                      const RotaryRates& how = {}) {
    checks::rotary_table(width, rate_width, pairs, how);
    const Buffer rates = room(width);
    for (Index i = 0; 2 * i < width; ++i) rates_of(rates)[i] = how.rate(pairs.size() > 0 ? pairs[i] : i, rate_width);
    Tensor out = core_.make(at.sequences.rows(), width);
    kernels::rotary_table(core_.threads(), at, width, rates_of(rates), how.amplitude(), out.data());
    return out;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuPositions(CpuCore<T>& core) : core_(core) {}

 private:
  Buffer room(Index width) { return core_.arena().allocate(static_cast<std::size_t>(width + 1) / 2 * sizeof(double)); }
  static double* rates_of(const Buffer& rates) { return static_cast<double*>(rates.data()); }

  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuPositions);

}  // namespace LACONIC_ABI
}  // namespace laconic
