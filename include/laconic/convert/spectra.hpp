// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/convert/calibrate.hpp>
#include <laconic/convert/fit.hpp>
#include <laconic/convert/known_pairs.hpp>

#include <string_view>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

template <class Method>
JointFactors factorize(const Method& method, const Matrix<double>& k, const Matrix<double>& v, Index rank,
                       const LayerStatistics& statistics) {
  if constexpr (requires { method.calibration; })
    return method.factorize(k, v, rank, statistics);
  else
    return method.factorize(k, v, rank);
}
/// Returns the statistics of each layer that a method needs; none where it needs none.
template <class Context, class Source, class Method>
std::vector<LayerStatistics> statistics_of(Recorder<Context>& recorder, const Source& source, const Method& method) {
  if constexpr (requires { method.calibration; })
    return calibrate(recorder, source, method.calibration, method.score_aware);
  else
    return {};
}

/// Returns keys and values of a layer, which may hold any attention, for every query head.
template <class Layer>
KeyValueMap map_of_attention(std::string_view name, const Layer& any) {
  return with_layer(any, [&]<class Policy, class T>(const AttentionLayer<Policy, T>& layer) {
    constexpr bool is_known = is_linear_map<typename Policy::KeyValue>;
    require(is_known, "key_value_spectra: keys and values of ", name, " are no linear functions of its input");
    if constexpr (is_known)
      return repeat_heads(key_value_map(typename Policy::KeyValue{}, layer.key_value), layer.dims());
    else
      return KeyValueMap();
  });
}

}  // namespace detail

/// Returns, for each layer, the singular values of a joint latent of keys and values that the method would cut,
/// falling. `allocate_ranks` gives each layer its rank by them. Allocates. Throws `Error` where keys and values are no
/// linear functions of a layer's input or parameters are not on the host.
///
///     ConversionConfig numbers;
///     for (const Index rank : allocate_ranks(key_value_spectra(model), budget, 8, RankAllocation::water_filling))
///       numbers.kv_lora_ranks.push_back(rank);
template <class Source, class Method = JointSvd, class Context = Cpu<typename Source::Scalar>>
std::vector<std::vector<double>> key_value_spectra(const Source& source, const Method& method = {}) {
  require_on_host(source, "key_value_spectra");
  Recorder<Context> recorder;
  const std::vector<LayerStatistics> statistics = detail::statistics_of(recorder, source, method);
  std::vector<std::vector<double>> out;
  Source::each_attention(source, [&](std::string_view name, const auto& any) {
    const KeyValueMap map = detail::map_of_attention(name, any);
    const Matrix<double> k = map.k_weight(), v = map.v_weight();
    const LayerStatistics& seen = statistics.empty() ? LayerStatistics() : statistics[out.size()];
    out.push_back(detail::factorize(method, k, v, k.cols(), seen).singular_values);
  });
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
