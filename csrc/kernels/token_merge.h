// token_merge: y[b, m] is the mean of the x[b, i] with plan[b, i] = m; zeros where there is none.
//
// x is (batch, tokens, channels) and y (batch, rows, channels), with x_stride and y_stride floats between
// tokens, x_batch and y_batch between pictures. The plan is (batch, tokens), contiguous, of token_match or
// any other with all entries in [0, rows): the caller checks, token_plan_invalid gives the first that is not
// (or batch · tokens). y overlaps no input. Tokens are added in their order, whatever the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/parallel.h"

namespace fastdiff {

struct TokenMergeArgs {
    std::size_t batch, tokens, rows, channels;
    const float* x;
    std::size_t x_stride, x_batch;
    const std::int64_t* plan;
    float* y;
    std::size_t y_stride, y_batch;
    void* scratch;  // token_merge_scratch bytes, aligned to 64
};

std::size_t token_merge_scratch(const TokenMergeArgs& args);

std::size_t token_plan_invalid(const std::int64_t* plan, std::size_t count, std::size_t rows);

}  // namespace fastdiff
