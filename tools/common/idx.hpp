// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

/// Holds an array of bytes of an IDX file, the format of MNIST (yann.lecun.com/exdb/mnist).
struct IdxBytes {
  std::vector<std::int64_t> shape;    ///< sizes of the dimensions, the slowest first
  std::vector<unsigned char> values;  ///< as many as the product of the sizes
};

/// Reads an IDX file of bytes with so many dimensions, gzipped or not. Throws `laconic::Error`, with the name of the
/// file, for one that is anything else, too short or too long.
IdxBytes read_idx(const std::string& path, std::size_t dimensions);
