// elementwise: unary functions, and binary ones with broadcasting, over strided arrays of up to four axes.
//
// Shapes    y, a, b of `sizes` (outermost first); the strides are in floats, one per axis, 0 repeats. b is
//           not read by unary functions. Fast where the innermost axis, or any other of at least 8 elements,
//           is contiguous in y and contiguous or repeated in a and b. Any size may be zero.
// Aliasing  y may be exactly a or exactly b (same strides); otherwise it overlaps neither.
// Parameters low and high belong to clamp, scalar to add_scalar and mul_scalar.
// Precision 2 ulp, but in absolute terms gelu and gelu_tanh 2e-7, quick_gelu 1e-8, and sigmoid below -86,
//           silu below -80 1e-30. NaN stays NaN.
// Threads   results do not depend on their number.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/parallel.h"

namespace fastdiff {

enum class Elementwise : std::uint8_t {
    copy,
    silu,
    gelu,
    quick_gelu,
    gelu_tanh,
    relu,
    sigmoid,
    tanh,
    exp,
    sin,
    cos,
    sqrt,
    negate,
    clamp,
    add_scalar,
    mul_scalar,  // unary up to here
    add,
    subtract,
    multiply,
    divide  // binary
};

struct ElementwiseArgs {
    Elementwise function;
    std::size_t sizes[4];
    const float* a;
    std::size_t a_strides[4];
    const float* b;
    std::size_t b_strides[4];
    float* y;
    std::size_t y_strides[4];
    float scalar, low, high;
};

}  // namespace fastdiff
