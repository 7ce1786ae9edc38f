// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

// What clang precompiles for all tests. g++ compiles each test without it (scripts/check), so that a test which forgets an
// include is found there.
#include "../headers/json.hpp"

#include <Eigen/Dense>
#include <xsimd/xsimd.hpp>

#include "catch.hpp"
#include "golden.hpp"
#include "gradient_check.hpp"

#include <laconic/laconic.hpp>
#include <laconic/recognition/evaluate_streamed.hpp>
#include <laconic/recognition/trainer.hpp>
