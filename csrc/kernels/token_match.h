// token_match: which tokens of a picture become one (Bolya and Hoffman 2023, "Token Merging for Fast Stable
// Diffusion", with the upper left token of each 2×2 square as destination, and no random choice).
//
//   x     tokens of a picture, (batch, height, width, channels); channels are neighbours, x_stride floats lie
//         between tokens, x_batch between pictures
//   plan  (batch, height · width), contiguous: the row in which each token is found after merging
//
// Destinations are the tokens in even rows and columns of the whole 2×2 squares. They get rows 0 to D - 1 in
// their order, D = (height / 2) · (width / 2). Every other token is a source, whose match is the destination
// with the largest cosine between the two, the first of equals. The `merged` sources with the largest
// cosines, the first of equals, get their match's row; the others rows D, D + 1, … in their order.
//
// height and width are at least 2, D < 2^24, merged at most height · width - D. The plan overlaps no input.
// Results do not depend on the number of threads. NaN in x leaves some plan in range.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/parallel.h"

namespace fastdiff {

struct TokenMatchArgs {
    std::size_t batch, height, width, channels, merged;
    const float* x;
    std::size_t x_stride, x_batch;
    std::int64_t* plan;
    void* scratch;  // token_match_scratch bytes, aligned to 64
};

// Destinations of a picture.
constexpr std::size_t token_destinations(std::size_t height, std::size_t width) {
    return (height / 2) * (width / 2);
}

std::size_t token_match_scratch(const TokenMatchArgs& args);

// The sources of a picture by their numbers: scores and matches, (batch, sources) each, become the plan of
// one picture. The part of the op that no instruction set makes faster.
void token_match_choose(const TokenMatchArgs& args, const float* scores, const float* matches,
                        std::size_t image, std::uint32_t* order);

}  // namespace fastdiff
