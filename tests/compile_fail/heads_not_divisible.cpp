// Eight query heads cannot share three key-value heads evenly.
// expect: laconic: the number of key-value heads must divide the number of query heads
#include <laconic/attention/heads.hpp>

int main() {
  laconic::Heads<8, 3> heads;
  (void)heads;
}
