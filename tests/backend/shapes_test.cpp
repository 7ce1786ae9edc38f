// laconic: attention for speech models. SPDX-License-Identifier: MIT
// What a device's compiler reads of the contract needs no Eigen.
#include <laconic/backend/shapes.hpp>

#if defined(EIGEN_CORE_H) || defined(EIGEN_WORLD_VERSION)
#error "backend/shapes.hpp must not include Eigen"
#endif

#include "catch.hpp"

using namespace laconic;

TEST_CASE("sequences are their offsets, which copies share", "[core]") {
  const Sequences one{3, 4}, copy = one, equal{3, 4};
  CHECK(copy.offsets() == one.offsets());
  CHECK(copy == equal);
  CHECK(equal.offsets() != one.offsets());
  Arena arena;
  const Sequences made = one.map_lengths(arena, [](Index n) { return n - 1; }), again = made;
  CHECK(again.offsets() == made.offsets());
  CHECK((made.offsets()[0] == 0 && made.offsets()[1] == 2 && made.offsets()[2] == 5));
}
