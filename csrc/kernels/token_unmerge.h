// token_unmerge: y[b, i] = x[b, plan[b, i]], the tokens that token_merge made one apart again.
//
// x is (batch, rows, channels) and y (batch, tokens, channels), with x_stride and y_stride floats between
// tokens, x_batch and y_batch between pictures; the plan is as in token_merge.h. y overlaps no input.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/parallel.h"

namespace fastdiff {

struct TokenUnmergeArgs {
    std::size_t batch, tokens, rows, channels;
    const float* x;
    std::size_t x_stride, x_batch;
    const std::int64_t* plan;
    float* y;
    std::size_t y_stride, y_batch;
};

}  // namespace fastdiff
