// group_norm_silu on NHWC: (N, P, C), fp16, bf16 or fp32, statistics in fp32. group_norm_silu.h says how the
// work is shared; fastdiff/kernels/cuda/group_norm_silu.py chooses grid, columns and threads.
//
//   group_norm_silu_<t>           one launch, x is read once: a cluster of blocks has all rows of its columns
//                                 in its shared memory and exchanges moments through it (sm_90 and newer;
//                                 a cluster of one block elsewhere). Columns are whole groups.
//   group_norm_silu_moments_<t>,  two launches where that does not fit: moments of parts go to device memory,
//   group_norm_silu_apply_<t>     then every block combines what its columns need
//   ..._scalar_<t>                the two for any number of channels and any alignment
#include "device.h"
#include "group_norm_silu.h"
#include "half.h"

namespace fastdiff::cuda {
namespace {

constexpr int max_threads = 512;
constexpr int batch = 4;  // rows that a thread loads before it uses them

FASTDIFF_SHARED_MEMORY(shared_memory);

struct Shape {
    int pixels, channels, group_channels, columns;
    int64_t image_stride, pixel_stride;  // of x, in elements; the result is contiguous
};

struct Affine {
    const void* weight;
    const void* bias;
    int in_float;  // weight and bias are float and not T
    float eps;
    int silu;
};

// ---- the block's reductions ---------------------------------------------------------------------

__device__ Moments combine_warp(Moments moments) {
    FASTDIFF_UNROLL
    for (int distance = 16; distance > 0; distance /= 2) {
        const Moments other{__shfl_xor_sync(0xffffffffu, moments.count, distance),
                            __shfl_xor_sync(0xffffffffu, moments.mean, distance),
                            __shfl_xor_sync(0xffffffffu, moments.squares, distance)};
        // The same operand first in both lanes, so that all lanes end with the same bits.
        moments = (threadIdx.x & distance) != 0 ? combine(other, moments) : combine(moments, other);
    }
    return moments;
}

// Which elements a thread has: pack `pack` of the columns, rows `row`, row + step, ...
struct Place {
    int packs, step, pack, row;

    __device__ explicit Place(Columns columns) {
        packs = columns.packs();
        step = static_cast<int>(blockDim.x) / packs;
        row = static_cast<int>(threadIdx.x) / packs;
        pack = static_cast<int>(threadIdx.x) - row * packs;
    }
    // The threads left over when the last row of threads is incomplete have none.
    __device__ bool idle() const { return row >= step; }
};

// What each thread has of its channels becomes groups[local group], the moments of this block's rows.
template <int V>
__device__ void reduce_block(Columns columns, Place place, const float (&mean)[V], const float (&squares)[V],
                             float count, Moments* slots, Moments* groups) {
    if (!place.idle()) {
        store_segments(mean, squares, count, columns.first + place.pack * V, columns.group_channels,
                       slots + threadIdx.x, static_cast<int>(blockDim.x));
    }
    __syncthreads();
    const int warps = static_cast<int>(blockDim.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int first = columns.first_group(), count_groups = columns.groups();
    for (int local = static_cast<int>(threadIdx.x) / 32; local < count_groups; local += warps) {
        const Partials partials = partials_of(columns, first + local, place.step);
        const Moments moments = combine_warp(
            combine_partials(partials, place.packs, slots, static_cast<int>(blockDim.x), lane, 32));
        if (lane == 0) groups[local] = moments;
    }
    __syncthreads();
}

// Moments of a thread's channels over its rows; load(row) gives a pack.
template <typename T, int V, typename Load>
__device__ float accumulate_rows(Range rows, int step, Load load, float (&mean)[V], float (&squares)[V]) {
    float count = 0.0f;
    int row = rows.begin;
    for (; row + (batch - 1) * step < rows.end; row += batch * step) {
        Pack<T, V> packs[batch];
        FASTDIFF_UNROLL
        for (int i = 0; i < batch; ++i) packs[i] = load(row + i * step);
        const float share = batch / (count + batch);
        FASTDIFF_UNROLL
        for (int c = 0; c < V; ++c) {
            float x[batch];
            FASTDIFF_UNROLL
            for (int i = 0; i < batch; ++i) x[i] = to_float(packs[i].values[c]);
            accumulate(x, count, share, mean[c], squares[c]);
        }
        count += batch;
    }
    for (; row < rows.end; row += step) {
        const Pack<T, V> pack = load(row);
        const float share = 1.0f / (count + 1.0f);
        FASTDIFF_UNROLL
        for (int c = 0; c < V; ++c) {
            const float x[1] = {to_float(pack.values[c])};
            accumulate(x, count, share, mean[c], squares[c]);
        }
        count += 1.0f;
    }
    return count;
}

// ---- the result ---------------------------------------------------------------------------------

// A thread's channels: y = (x − mean) · scale + shift.
template <typename T, int V>
struct Channels {
    float mean[V], scale[V], shift[V];
    bool silu_after;

    // The parameters, which can be on their way while the statistics are computed.
    __device__ Channels(const Affine& affine, int first) : silu_after(affine.silu != 0) {
        FASTDIFF_UNROLL
        for (int c = 0; c < V; ++c) {
            scale[c] = parameter(affine.weight, affine.in_float, first + c, 1.0f);
            shift[c] = parameter(affine.bias, affine.in_float, first + c, 0.0f);
        }
    }

    static __device__ float parameter(const void* array, int in_float, int channel, float missing) {
        if (array == nullptr) return missing;
        if (in_float != 0) return static_cast<const float*>(array)[channel];
        return to_float(static_cast<const T*>(array)[channel]);
    }

    __device__ void normalise(const Statistics* groups, Columns columns, int first) {
        float inverse_deviation[V];
        spread(groups, columns, first, mean, inverse_deviation);
        FASTDIFF_UNROLL
        for (int c = 0; c < V; ++c) scale[c] *= inverse_deviation[c];
    }

    __device__ Pack<T, V> operator()(const Pack<T, V>& pack) const {
        Pack<T, V> result;
        FASTDIFF_UNROLL
        for (int c = 0; c < V; ++c) {
            float y = (to_float(pack.values[c]) - mean[c]) * scale[c] + shift[c];
            if (silu_after) y = silu(y);
            from_float(y, result.values[c]);
        }
        return result;
    }
};

// ---- one launch ----------------------------------------------------------------------------------

// The statistics of groups[] of all blocks of the cluster, combined in the same order by every one.
__device__ void combine_cluster(int count, const Moments* groups, float eps, Statistics* totals) {
    const int size = cluster_size();
    if (size > 1) cluster_barrier();
    for (int local = static_cast<int>(threadIdx.x); local < count; local += static_cast<int>(blockDim.x)) {
        Moments moments = groups[local];
        if (size > 1) {
            moments = Moments{0.0f, 0.0f, 0.0f};
            for (int rank = 0; rank < size; ++rank) {
                const Moments other{read_remote(&groups[local].count, rank),
                                    read_remote(&groups[local].mean, rank),
                                    read_remote(&groups[local].squares, rank)};
                moments = combine(moments, other);
            }
        }
        totals[local] = statistics(moments, eps);
    }
    // No block may end while another still reads its shared memory.
    if (size > 1) cluster_barrier();
    __syncthreads();
}

// Grid (blocks of columns · cluster, images).
template <typename T>
__device__ void one_launch(const T* x, Affine affine, T* out, Shape shape) {
    constexpr int V = widest<T>;
    const int rank = cluster_rank(), size = cluster_size();
    const Columns columns{static_cast<int>(blockIdx.x) / size * shape.columns, shape.columns,
                          shape.group_channels, V};
    const Place place(columns);
    const Range all = part_of(shape.pixels, rank, size);
    const Range rows{place.row, place.idle() ? 0 : all.end - all.begin};
    const int first = columns.first + place.pack * V;

    auto* stage = reinterpret_cast<Pack<T, V>*>(static_cast<unsigned char*>(shared_memory));
    auto* slots = reinterpret_cast<Moments*>(stage + (shape.pixels / size + 1) * place.packs);
    Moments* groups = slots + static_cast<int>(blockDim.x) * max_segments(V, shape.group_channels);
    auto* totals = reinterpret_cast<Statistics*>(groups + columns.groups());

    const T* corner = x + blockIdx.y * shape.image_stride + all.begin * shape.pixel_stride + first;
    for (int i = rows.begin; i < rows.end; i += place.step) {
        copy_async(&stage[i * place.packs + place.pack], corner + i * shape.pixel_stride);
    }
    Channels<T, V> channels(affine, first);
    wait_for_copies();

    float mean[V] = {}, squares[V] = {};
    const float count = accumulate_rows<T, V>(
        rows, place.step, [&](int i) { return stage[i * place.packs + place.pack]; }, mean, squares);
    reduce_block(columns, place, mean, squares, count, slots, groups);
    combine_cluster(columns.groups(), groups, affine.eps, totals);
    if (place.idle()) return;

    channels.normalise(totals, columns, first);
    T* result = out + (static_cast<int64_t>(blockIdx.y) * shape.pixels + all.begin) * shape.channels + first;
    for (int i = rows.begin; i < rows.end; i += place.step) {
        *reinterpret_cast<Pack<T, V>*>(result + static_cast<int64_t>(i) * shape.channels) =
            channels(stage[i * place.packs + place.pack]);
    }
}

// ---- two launches -------------------------------------------------------------------------------

// Grid (blocks of columns · splits, images); the last block of columns may be narrower.
struct Tile {
    Columns columns;
    Range rows;
    int split;
};

__device__ Tile tile_of(const Shape& shape, int splits, int pack, int block) {
    const int first = block / splits * shape.columns, left = shape.channels - first;
    return Tile{Columns{first, left < shape.columns ? left : shape.columns, shape.group_channels, pack},
                part_of(shape.pixels, block % splits, splits), block % splits};
}

// The moments of group `group` are parts[image][group][0 ... pieces · splits), one for each block that has a
// piece of its columns.
__device__ Moments* parts_of(Moments* parts, const Shape& shape, int splits, int pieces, int group) {
    const int groups = shape.channels / shape.group_channels;
    return parts + (static_cast<int64_t>(blockIdx.y) * groups + group) * pieces * splits;
}

template <typename T, int V>
__device__ void moments_of_parts(const T* x, Moments* parts, Shape shape, int splits, int pieces) {
    const Tile tile = tile_of(shape, splits, V, static_cast<int>(blockIdx.x));
    const Columns columns = tile.columns;
    const Place place(columns);
    const Range rows{tile.rows.begin + place.row, place.idle() ? 0 : tile.rows.end};
    const T* corner = x + blockIdx.y * shape.image_stride + columns.first + place.pack * V;

    auto* slots = reinterpret_cast<Moments*>(static_cast<unsigned char*>(shared_memory));
    Moments* groups = slots + static_cast<int>(blockDim.x) * max_segments(V, shape.group_channels);
    float mean[V] = {}, squares[V] = {};
    const float count = accumulate_rows<T, V>(
        rows, place.step,
        [&](int i) { return *reinterpret_cast<const Pack<T, V>*>(corner + i * shape.pixel_stride); }, mean,
        squares);
    reduce_block(columns, place, mean, squares, count, slots, groups);
    const int first_group = columns.first_group(), group_count = columns.groups();
    for (int local = static_cast<int>(threadIdx.x); local < group_count;
         local += static_cast<int>(blockDim.x)) {
        const int group = first_group + local;
        const int piece =
            columns.first / shape.columns - first_block(group, shape.group_channels, shape.columns);
        parts_of(parts, shape, splits, pieces, group)[piece * splits + tile.split] = groups[local];
    }
}

template <typename T, int V>
__device__ void apply_parts(const T* x, Moments* parts, Affine affine, T* out, Shape shape, int splits,
                            int pieces) {
    // From the end: what the first launch read last may still be in the L2 cache.
    const Tile tile = tile_of(shape, splits, V, static_cast<int>(gridDim.x - 1 - blockIdx.x));
    const Columns columns = tile.columns;
    const Place place(columns);
    const int first = columns.first + place.pack * V;
    Channels<T, V> channels(affine, first);

    auto* groups = reinterpret_cast<Statistics*>(static_cast<unsigned char*>(shared_memory));
    const int warps = static_cast<int>(blockDim.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int first_group = columns.first_group(), group_count = columns.groups();
    for (int local = static_cast<int>(threadIdx.x) / 32; local < group_count; local += warps) {
        const int group = first_group + local;
        const int own = last_block(group, shape.group_channels, shape.columns) -
                        first_block(group, shape.group_channels, shape.columns) + 1;
        const Moments* mine = parts_of(parts, shape, splits, pieces, group);
        Moments moments{0.0f, 0.0f, 0.0f};
        for (int i = lane; i < own * splits; i += 32) moments = combine(moments, mine[i]);
        moments = combine_warp(moments);
        if (lane == 0) groups[local] = statistics(moments, affine.eps);
    }
    __syncthreads();
    if (place.idle()) return;

    channels.normalise(groups, columns, first);
    const T* corner = x + blockIdx.y * shape.image_stride + first;
    T* result = out + static_cast<int64_t>(blockIdx.y) * shape.pixels * shape.channels + first;
    const auto read = [&](int i) {
        return *reinterpret_cast<const Pack<T, V>*>(corner + i * shape.pixel_stride);
    };
    const auto write = [&](int i, const Pack<T, V>& pack) {
        *reinterpret_cast<Pack<T, V>*>(result + static_cast<int64_t>(i) * shape.channels) = channels(pack);
    };
    int i = tile.rows.begin + place.row;
    for (; i + (batch - 1) * place.step < tile.rows.end; i += batch * place.step) {
        Pack<T, V> loaded[batch];
        FASTDIFF_UNROLL
        for (int k = 0; k < batch; ++k) loaded[k] = read(i + k * place.step);
        FASTDIFF_UNROLL
        for (int k = 0; k < batch; ++k) write(i + k * place.step, loaded[k]);
    }
    for (; i < tile.rows.end; i += place.step) write(i, read(i));
}

}  // namespace
}  // namespace fastdiff::cuda

using namespace fastdiff::cuda;

#define SHAPE \
    int pixels, int channels, int group_channels, int columns, int64_t image_stride, int64_t pixel_stride
#define AFFINE const void *weight, const void *bias, int in_float, float eps, int silu

#define MOMENTS_AND_APPLY(suffix, T, V)                                                                      \
    extern "C" __global__ void __launch_bounds__(max_threads, 1)                                             \
        group_norm_silu_moments##suffix(const T* x, Moments* parts, SHAPE, int splits, int pieces) {         \
        moments_of_parts<T, V>(x, parts,                                                                     \
                               Shape{pixels, channels, group_channels, columns, image_stride, pixel_stride}, \
                               splits, pieces);                                                              \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(max_threads, 1) group_norm_silu_apply##suffix(              \
        const T* x, Moments* parts, AFFINE, T* out, SHAPE, int splits, int pieces) {                         \
        apply_parts<T, V>(x, parts, Affine{weight, bias, in_float, eps, silu}, out,                          \
                          Shape{pixels, channels, group_channels, columns, image_stride, pixel_stride},      \
                          splits, pieces);                                                                   \
    }

#define KERNELS(suffix, T)                                                                           \
    extern "C" __global__ void __launch_bounds__(max_threads, 1)                                     \
        group_norm_silu##suffix(const T* x, AFFINE, T* out, SHAPE) {                                 \
        one_launch<T>(x, Affine{weight, bias, in_float, eps, silu}, out,                             \
                      Shape{pixels, channels, group_channels, columns, image_stride, pixel_stride}); \
    }                                                                                                \
    MOMENTS_AND_APPLY(suffix, T, widest<T>)                                                          \
    MOMENTS_AND_APPLY(_scalar##suffix, T, 1)

KERNELS(_f16, f16)
KERNELS(_bf16, bf16)
KERNELS(_f32, float)
