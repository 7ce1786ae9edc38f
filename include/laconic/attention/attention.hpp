// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Attention in one include: every policy, their combinations by name, the layer that computes them, and what they cost.
#pragma once

#include <laconic/attention/aliases.hpp>
#include <laconic/attention/config.hpp>
#include <laconic/attention/cost.hpp>
#include <laconic/attention/heads.hpp>
#include <laconic/attention/key_value.hpp>
#include <laconic/attention/layer.hpp>
#include <laconic/attention/policy.hpp>
#include <laconic/attention/position.hpp>
#include <laconic/attention/query.hpp>
#include <laconic/attention/score.hpp>
