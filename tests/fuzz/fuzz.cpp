// laconic: attention for speech models. SPDX-License-Identifier: MIT
// One program for all readers: the environment variable LACONIC_FUZZ names the target, so that it is compiled once. See
// scripts/fuzz.
#include "targets.hpp"

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

const fuzz::Target& chosen() {
  const char* const name = std::getenv("LACONIC_FUZZ");
  for (const fuzz::Target& target : fuzz::targets)
    if (name != nullptr && target.name == name) return target;
  std::fputs("LACONIC_FUZZ must name one of:", stderr);
  for (const fuzz::Target& target : fuzz::targets)
    std::fprintf(stderr, " %.*s", static_cast<int>(target.name.size()), target.name.data());
  std::fputs("\n", stderr);
  std::exit(2);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Target& target = chosen();
  fuzz::accepts(target, {reinterpret_cast<const char*>(data), size});
  return 0;
}
