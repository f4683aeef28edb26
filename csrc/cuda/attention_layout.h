// attention.h's shapes, and where things are: which byte of shared memory holds what, which lane which
// element.
#pragma once

#include "host_device.h"

// The compiled shapes: head size, queries of a block, tiles of 16 queries per warp, groups of keys per tile,
// warps, and the blocks that a multiprocessor should hold, which bounds the registers.
// fastdiff/kernels/cuda/attention.py chooses among them.
#define FASTDIFF_ATTENTION_SHAPES(X) \
    X(40, 128, 2, 2, 4, 4)           \
    X(40, 64, 1, 2, 4, 5)            \
    X(64, 128, 2, 2, 4, 2)           \
    X(64, 64, 1, 2, 4, 4)            \
    X(80, 128, 2, 2, 4, 2)           \
    X(80, 64, 1, 2, 4, 3)            \
    X(160, 64, 1, 1, 4, 2)           \
    X(160, 32, 1, 1, 2, 4)

#ifdef __CUDACC__
#define FASTDIFF_DEVICE __device__ __forceinline__
#define FASTDIFF_NO_UNROLL _Pragma("unroll 1")
#else
#define FASTDIFF_DEVICE inline
#define FASTDIFF_NO_UNROLL
#endif

namespace fastdiff::cuda {

// Strides in elements; query, key and value are of 2 bytes, their rows begin at multiples of 16 bytes.
struct AttentionArgs {
    const uint16_t *query, *key, *value;  // (batch, queries, heads · d), (batch, keys, heads · d) twice
    uint16_t* y;                          // (batch, queries, heads · d)
    int queries, keys;                    // keys at least 1
    int query_row, key_row, value_row, y_row;
    int64_t query_batch, key_batch, value_batch, y_batch;
    float scale;  // times log₂ e, positive
};

template <int Size, int RowTiles_, int Groups_, int Warps_>
struct AttentionShape {
    static constexpr int size = Size, row_tiles = RowTiles_, groups = Groups_, warps = Warps_;
    static constexpr int threads = 32 * warps;
    static constexpr int warp_rows = 16 * row_tiles, block_rows = warp_rows * warps;
    static constexpr int group_keys = 32, tile_keys = group_keys * groups;
    static constexpr int chunks = size / 8;  // of 16 bytes in a row; columns of 8 in the result
    static constexpr int steps = chunks / 2, tail = chunks % 2;  // sums over 16 channels, and over 8
    static constexpr int copy_rows = threads / chunks;  // in one pass over a tile; a thread keeps its chunk
    static constexpr int row_bytes = 2 * size;
    static constexpr int group_bytes = group_keys * row_bytes, tile_bytes = tile_keys * row_bytes;
    static constexpr int shared_bytes = 4 * tile_bytes;  // two tiles of keys, two of values
    static_assert(size % 8 == 0 && chunks <= threads);
};

// ---- Where things are ----

// Eight rows' chunks of one number must lie in eight different groups of four banks, or ldmatrix takes
// longer. An odd count of chunks does that by itself; otherwise the low bits of the number are mixed with
// bits of the row.
template <class Shape>
FASTDIFF_HD constexpr int swizzle_mask() {
    return Shape::chunks % 8 == 0 ? 7 : (Shape::chunks % 4 == 0 ? 3 : (Shape::chunks % 2 == 0 ? 1 : 0));
}

template <class Shape>
FASTDIFF_HD constexpr int swizzle(int row) {
    return row / (8 / (swizzle_mask<Shape>() + 1)) & swizzle_mask<Shape>();
}

// Byte of a tile where a chunk lies. The sum over parts keeps what depends on the lane apart from constants.
template <class Shape>
FASTDIFF_HD constexpr int shared_offset(int row, int chunk) {
    constexpr int mask = swizzle_mask<Shape>();
    return row * Shape::row_bytes + 16 * ((chunk & mask) ^ swizzle<Shape>(row)) + 16 * (chunk & ~mask);
}

// Row and column in a 16 × 8 accumulator of element e (0 … 3) of a lane.
FASTDIFF_HD constexpr int mma_row(int lane, int e) { return lane / 4 + 8 * (e / 2); }
FASTDIFF_HD constexpr int mma_column(int lane, int e) { return 2 * (lane % 4) + e % 2; }

// Row and first of two columns in a 16 × 16 left operand of register r (0 … 3) of a lane.
FASTDIFF_HD constexpr int left_row(int lane, int r) { return lane / 4 + 8 * (r % 2); }
FASTDIFF_HD constexpr int left_column(int lane, int r) { return 2 * (lane % 4) + 8 * (r / 2); }

// The row of keys and the chunk whose address a lane gives to ldmatrix. Registers 2m and 2m + 1 are then the
// right operand for keys 8m … 8m + 7 of a half group, channels 0 … 15 of a step.
FASTDIFF_HD constexpr int key_row(int lane) { return lane % 8 + 8 * (lane / 16); }
FASTDIFF_HD constexpr int key_chunk(int lane) { return lane / 8 % 2; }

}  // namespace fastdiff::cuda
