// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "cli.hpp"

#include <laconic/recognition/device.hpp>

#include <string>
#include <string_view>

/// The device that a command computes on.
struct DeviceOption {
  std::string name = "cpu";

  void add_to(CLI::App& command) {
    command
        .add_option(
            "--device", name,
            "cpu, cuda, cuda:N, or auto: a GPU if there is one (see `laconic devices`); cuda,bf16 and cuda,tf32 "
            "round products, for tensor cores")
        ->capture_default_str()
        ->check(CLI::Validator(
            [](std::string& given) {
              try {
                laconic::Device::named(given);
              } catch (const laconic::Error& error) {
                constexpr std::string_view name_of_option = "device: ";  // which CLI11 writes, too
                return std::string(error.what()).substr(name_of_option.size());
              }
              return std::string();
            },
            ""));
  }
  /// Returns the device, which was there when the options were read.
  laconic::Device chosen() const { return laconic::Device::named(name); }
};
