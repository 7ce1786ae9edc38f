// The compiler is older than the library.
// expect: laconic needs g++ 12 or clang 14, or newer ones, with -std=c++20
// flags: -w -U__GNUC__ -D__GNUC__=11 -U__clang_major__ -D__clang_major__=13
// errors: 2
#include <laconic/laconic.hpp>
