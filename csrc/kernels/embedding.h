// embedding: y[i] = table[ids[i]], rows of `channels` floats with y_stride floats between them.
//
// ids must be in [0, count): the caller checks, embedding_invalid says which is the first that is not (or
// `rows` when all are). y overlaps no input. Results do not depend on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/activation.h"
#include "kernels/parallel.h"

namespace fastdiff {

struct EmbeddingArgs {
    std::size_t rows, channels, count;
    const std::int64_t* ids;
    const void* table;  // (count, channels), contiguous, stored as `type`
    WeightType type;
    float* y;
    std::size_t y_stride;
};

std::size_t embedding_invalid(const EmbeddingArgs& args);

}  // namespace fastdiff
