// The first header has said already how matrices are aligned.
// expect: laconic: EIGEN_MAX_ALIGN_BYTES, EIGEN_DONT_ALIGN and EIGEN_DONT_VECTORIZE are defined before the first header
#include <laconic/core/error.hpp>
#define EIGEN_MAX_ALIGN_BYTES 128
#include <laconic/core/matrix.hpp>
