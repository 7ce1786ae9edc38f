// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Normalises the lines of standard input: laconic's side of bench/normalize.py.
//   usage: normalize basic|whisper
#include <laconic/speech/text_normalization.hpp>

#include <iostream>
#include <string>

int main(int argc, char** argv) {
  const std::string kind = argc == 2 ? argv[1] : "";
  if (kind != "basic" && kind != "whisper") {
    std::cerr << "normalize: \"" << kind << "\" given, basic or whisper expected\n";
    return 2;
  }
  std::ios::sync_with_stdio(false);
  for (std::string line; std::getline(std::cin, line);)
    std::cout << (kind == "basic" ? laconic::basic_normalized(line) : laconic::whisper_normalized(line)) << '\n';
}
