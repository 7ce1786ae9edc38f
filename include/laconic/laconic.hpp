// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

// The core in one include: floors 0 to 5 without file formats and audio (laconic/io/, laconic/speech/).
#include <laconic/core/arena.hpp>
#include <laconic/core/enum.hpp>
#include <laconic/core/error.hpp>
#include <laconic/core/extent.hpp>
#include <laconic/core/matrix.hpp>
#include <laconic/core/parameter.hpp>
#include <laconic/core/random.hpp>
#include <laconic/core/sequences.hpp>
#include <laconic/core/tensor.hpp>
#include <laconic/core/version.hpp>
