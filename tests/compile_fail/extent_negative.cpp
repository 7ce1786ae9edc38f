// A static extent is a count.
// expect: laconic: an extent is at least 0, or `dyn` for a number known at run time
#include <laconic/core/extent.hpp>

int main() {
  laconic::Extent<-2> extent;
  (void)extent;
}
