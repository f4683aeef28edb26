// layer_norm (Ba et al. 2016) over the last axis: y = (x - mean) / sqrt(var + eps) * weight + bias.
//
// Shapes    x, y (rows, channels) with x_stride, y_stride floats between rows; weight, bias (channels,) or
//           null, which stands for ones and for zeros. Any size may be zero.
// Precision mean and variance in two passes, the variance of the differences; the second pass also finds what
//           rounding has left of the mean. A mean of 1e4 times the standard deviation costs no digits of y.
// Aliasing  y may be exactly x (with the same stride); otherwise the two must not overlap.
// Threads   results do not depend on their number: rows are independent.
#pragma once

#include <cstddef>

#include "kernels/parallel.h"

namespace fastdiff {

struct LayerNormArgs {
    std::size_t rows, channels;
    const float* x;
    std::size_t x_stride;
    const float* weight;
    const float* bias;
    float* y;
    std::size_t y_stride;
    double eps;
};

}  // namespace fastdiff
