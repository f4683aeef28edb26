// How linear and conv2d cut their work into blocks. Compiled once for all instruction sets (blocks.cpp), so
// that a plan, and with it the scratch a caller provides, is the same for all.
#pragma once

#include <cstddef>

#include "kernels/conv2d.h"
#include "kernels/linear.h"

#ifndef FASTDIFF_INLINE
#define FASTDIFF_INLINE [[gnu::always_inline]] inline
#endif

namespace fastdiff {

// Part `index` of `total` cut into `parts` that differ by one at most.
struct Range {
    std::size_t begin, end;
};
FASTDIFF_INLINE constexpr Range part_of(std::size_t total, std::size_t parts, std::size_t index) {
    return {total * index / parts, total * (index + 1) / parts};
}
FASTDIFF_INLINE constexpr std::size_t div_up(std::size_t a, std::size_t b) { return (a + b - 1) / b; }
FASTDIFF_INLINE constexpr std::size_t round_up(std::size_t a, std::size_t b) { return div_up(a, b) * b; }

// Columns are counted in groups: what one run of tiles computes, two panels of 16 (four for few rows).
inline constexpr std::size_t group_panels = 2;
inline constexpr std::size_t few_rows = 6;
// Depth that is summed in one go; the part of B that belongs to it stays in the caches near the core.
inline constexpr std::size_t depth_block = 640;
// The same of weights that are halves: widened, two panels stay in a first-level cache beside the tile's rows
// of A.
inline constexpr std::size_t half_depth_block = 160;

// linear: items are (block of rows) × (range of column groups).
struct LinearBlocks {
    std::size_t panels;  // of 16 outputs y; with geglu each stands for two of W
    std::size_t panels_at_once;
    std::size_t row_blocks, column_blocks;
    std::size_t rows;           // in a row block, at most
    std::size_t sums, weights;  // floats of scratch per thread: for sums and for widened weights
};
LinearBlocks linear_blocks(const LinearArgs& args, std::size_t threads);

// conv2d, direct: the input is first copied with its padding, unless there is none; items are (block of
// output rows) × (range of column groups).
struct DirectBlocks {
    bool padded;  // whether there is a copy: to pad, to upsample or to normalise
    std::size_t copy_height, copy_width, copy_step;  // its size; floats between its pixels
    std::size_t copy;                                // floats of all of it
    std::size_t panels, row_blocks, column_blocks;
    std::size_t rows;  // output rows (of all images) in a block, at most
    std::size_t sums, weights;
};
// Only column_blocks depends on the number of threads, also below: sums over blocks of rows or tiles must
// not.
DirectBlocks direct_blocks(const Conv2dArgs& args, std::size_t threads);

// Depth for which winograd2_plain transforms the weights of a group at once: they stay near the core.
inline constexpr std::size_t plain_depth = 128;
// Floats between the points of such weights: one line more than they take, so that points fall into different
// cache sets.
FASTDIFF_INLINE constexpr std::size_t plain_step(std::size_t depth) { return 16 * depth + 16; }

// conv2d, Winograd: tiles are transformed and multiplied in rounds; in a round, items of the multiplication
// are (block of tiles) × (column group).
struct WinogradBlocks {
    std::size_t m, points;  // output tile size; (m + 2)²
    std::size_t tiles_high, tiles_wide, tiles;
    std::size_t rounds, round_tiles;       // tiles in a round, at most
    std::size_t tile_blocks, block_tiles;  // blocks in a round; tiles in a block, at most
    std::size_t panels, groups;
    std::size_t row;    // floats between transformed tiles of a point
    std::size_t plane;  // floats between points
    std::size_t zeros;  // floats of a pixel of zeros
    std::size_t strip;  // floats of a round's normalised input; 0 when the input is taken as it is
    std::size_t sums,
        weights;  // floats of scratch per thread: for sums, and for widened or transformed weights
};
WinogradBlocks winograd_blocks(const Conv2dArgs& args);

// Source rows that a round's tiles need of one image.
struct Strip {
    std::size_t image, begin, end;  // rows [begin, end) of x
    std::size_t row;                // where they begin in the strip
};
// The strips of tiles [begin, end) that have rows of image `image`; `row` as if it were the round's first.
Strip strip_of(const Conv2dShape& shape, const WinogradBlocks& blocks, Range tiles, std::size_t image);

}  // namespace fastdiff
