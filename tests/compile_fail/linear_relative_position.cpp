// Linear attention sums over keys before it sees a query.
// expect: laconic: linear attention never compares one query with one key, so their distance has no place in it
#include <laconic/attention/attention.hpp>

using namespace laconic;

constexpr auto dims = LinearAttention<8, 8, RelativePosition>::dims({512});
