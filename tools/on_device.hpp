// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "common/device_option.hpp"

#include <laconic/recognition/recognizer/context.hpp>

#include <utility>

/// Returns f(context) with the context of a device, a `Cpu` of so many threads or a `Cuda`. It is for programs that
/// have models of their own; a recogniser knows its device.
template <class F>
decltype(auto) on_device(const DeviceOption& device, int threads, F&& f) {
  laconic::Workspace::Context context(device.chosen(), threads);
  return context.visit(std::forward<F>(f));
}
