// timestep_embedding: the sinusoidal embedding of diffusion models (Ho et al. 2020, after Vaswani et al.
// 2017).
//
//   y[i] = (cos(t[i]·f), sin(t[i]·f)),   or (sin, cos) with `sine_first`
//
// Shapes    timesteps (rows,), frequencies (half,), y (rows, 2·half) with y_stride floats between rows.
// Precision t·f is rounded to float, as PyTorch rounds it; sine and cosine are computed in double.
// Aliasing  y overlaps no input.
// Threads   results do not depend on their number: rows are independent.
#pragma once

#include <cstddef>

#include "kernels/parallel.h"

namespace fastdiff {

struct TimestepEmbeddingArgs {
    std::size_t rows, half;
    const float* timesteps;
    const float* frequencies;
    float* y;
    std::size_t y_stride;
    bool sine_first;
};

}  // namespace fastdiff
