// attention: softmax(scale · Q Kᵀ) V for `heads` heads side by side, by online softmax (Milakov and
// Gimelshein 2018; Dao et al. 2022): memory grows with the block size, never with queries × keys.
//
// Shapes    query (batch, queries, heads·size), key (batch, keys, heads·size), value (batch, keys,
//           heads·value_size), y (batch, queries, heads·value_size), with …_stride floats between rows and
//           …_batch floats between batches (0: the same for all). causal: query n sees keys 0 … n.
// Aliasing  y overlaps no input.
// Scratch   attention_scratch(args, threads) bytes, aligned to 64.
// Threads   results do not depend on their number.
#pragma once

#include <cstddef>

#include "kernels/parallel.h"

namespace fastdiff {

struct AttentionArgs {
    std::size_t batch, queries, keys, heads, size, value_size;
    const float* query;
    std::size_t query_stride, query_batch;
    const float* key;
    std::size_t key_stride, key_batch;
    const float* value;
    std::size_t value_stride, value_batch;
    float* y;
    std::size_t y_stride, y_batch;
    float scale;
    bool causal;
    void* scratch;
};

std::size_t attention_scratch(const AttentionArgs& args, std::size_t threads);

}  // namespace fastdiff
