// layer_norm (Ba et al. 2016) over the last axis: y = (x - mean) / sqrt(var + eps) * weight + bias.
//
// Shapes    x, y (rows, channels) with x_stride, y_stride floats between rows; weight, bias (channels,) or
// null. Precision mean and variance in two passes, the variance of the differences. Aliasing  y may be
// exactly x. Threads: rows are independent.
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
