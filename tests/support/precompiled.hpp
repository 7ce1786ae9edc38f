// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

// What clang precompiles for all tests. g++ compiles each test without it (scripts/check): there a test that forgets an
// include is found.
#include "../headers/json.hpp"

#include <Eigen/Dense>
#include <xsimd/xsimd.hpp>

#include "catch.hpp"
#include "golden.hpp"
#include "gradient_check.hpp"

#include <laconic/laconic.hpp>
#include <laconic/recognition/evaluate_streamed.hpp>
#include <laconic/recognition/trainer.hpp>
