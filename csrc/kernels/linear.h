// linear: y = scale * (activation(x · Wᵀ + bias) + residual), a GEMM with packed weights. Also every 1×1
// convolution on NHWC activations.
//
// Shapes    x (rows, in), y (rows, out) with x_stride, y_stride floats between rows; residual as y with
//           residual_stride, or null; bias (out,) or null. With Activation::geglu, W has 2·out rows, and so
//           does bias: the first half is multiplied by gelu of the second. Any of rows may be zero.
// Weights   linear_pack lays W (out or 2·out, in) out in panels of 16 outputs; that layout is the same for
//           all instruction sets.
// Aliasing  y may be exactly residual (with the same stride); otherwise y overlaps no input.
// Scratch   linear_scratch(args, threads) bytes, aligned to 64.
// Threads   results do not depend on their number.
#pragma once

#include <cstddef>

#include "kernels/activation.h"
#include "kernels/parallel.h"

namespace fastdiff {

struct LinearArgs {
    std::size_t rows;
    std::size_t in;
    std::size_t out;
    const float* x;
    std::size_t x_stride;
    const void* weight;
    WeightType type;
    const float* bias;
    const float* residual;
    std::size_t residual_stride;
    float* y;
    std::size_t y_stride;
    Activation activation;
    float scale;
    void* scratch;
};

// `outputs` is the number of rows of W. A multiple of 64.
std::size_t linear_packed_bytes(std::size_t in, std::size_t outputs, WeightType type);
// weight (outputs, in), contiguous; `packed` has linear_packed_bytes and is aligned to 64.
void linear_pack(const float* weight, std::size_t in, std::size_t outputs, WeightType type, void* packed);

std::size_t linear_scratch(const LinearArgs& args, std::size_t threads);

}  // namespace fastdiff
