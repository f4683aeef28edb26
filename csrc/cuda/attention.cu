// attention for the head sizes of Stable Diffusion 1.5 on tensor cores, fp16 and bf16: attention.h is the
// algorithm, mma.h the instructions. A kernel per type, head size and number of queries in a block,
// attention_f16_40_128; a grid of (blocks of queries, heads of all images), a block of 32 threads per warp.
// Strides are in elements; rows begin at multiples of 16 bytes. `scale` is positive and contains log2 e;
// there is at least one key.
#include "attention.h"

#ifdef FASTDIFF_CUDA_EMULATION
#include "emulated_attention.h"
#else
#include "mma.h"

namespace fastdiff::cuda {

template <class Shape, bool Bfloat>
__device__ __forceinline__ void run(const AttentionArgs& args, int heads) {
    __shared__ __align__(128) unsigned char shared[Shape::shared_bytes];
    DeviceWarp<Bfloat> warp(shared);
    const int head = blockIdx.y % heads, batch = blockIdx.y / heads;
    Attention<Shape, DeviceWarp<Bfloat>>(args, warp, blockIdx.x, head, batch).run();
}

}  // namespace fastdiff::cuda
#endif

#define FASTDIFF_ATTENTION(type, bfloat, size, rows, row_tiles, groups, warps, blocks)                    \
    extern "C" __global__ void __launch_bounds__(32 * warps, blocks) attention_##type##_##size##_##rows(  \
        const uint16_t* query, const uint16_t* key, const uint16_t* value, uint16_t* y, int heads,        \
        int queries, int keys, int query_row, int key_row, int value_row, int y_row, int64_t query_batch, \
        int64_t key_batch, int64_t value_batch, int64_t y_batch, float scale) {                           \
        using Shape = fastdiff::cuda::AttentionShape<size, row_tiles, groups, warps>;                     \
        static_assert(Shape::block_rows == rows, "a name says how many queries a block has");             \
        fastdiff::cuda::run<Shape, bfloat>(                                                               \
            {query, key, value, y, queries, keys, query_row, key_row, value_row, y_row, query_batch,      \
             key_batch, value_batch, y_batch, scale},                                                     \
            heads);                                                                                       \
    }
#define FASTDIFF_ATTENTION_BOTH(...)            \
    FASTDIFF_ATTENTION(f16, false, __VA_ARGS__) \
    FASTDIFF_ATTENTION(bf16, true, __VA_ARGS__)

FASTDIFF_ATTENTION_SHAPES(FASTDIFF_ATTENTION_BOTH)
