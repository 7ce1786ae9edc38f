// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>

#include <string>

/// Runs `run` and returns the message of the `laconic::Error` that it throws, or "no error".
template <class Run>
std::string message_of(Run&& run) {
  try {
    run();
  } catch (const laconic::Error& error) {
    return error.what();
  }
  return "no error";
}
