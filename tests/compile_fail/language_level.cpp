// The language is older than the library.
// expect: laconic needs C++20 (-std=c++20) and g++ 12 or clang 14, or newer ones
// flags: -std=c++17
// errors: 2
#include <laconic/laconic.hpp>
