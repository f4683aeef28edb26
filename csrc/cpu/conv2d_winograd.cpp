// Compiled once per instruction set; the contract is in kernels/conv2d.h. Winograd's minimal filtering F(m×m,
// 3×3) (Lavin and Gray 2016): tiles of (m+2)² pixels are transformed, multiplied with transformed weights
// point by point, as (m+2)² GEMMs over the channels, and transformed back to m×m pixels.
//
// Work goes in rounds of as many tiles as stay in the last-level cache once transformed. In a round all
// threads first transform, then multiply; a thread's sums for a block of tiles and 32 channels stay in its
// own cache until they are transformed back and stored.
#include "cpu/blocks.h"
#include "cpu/conv2d.h"
#include "cpu/epilogue.h"
#include "cpu/gemm.h"
#include "cpu/winograd.h"
#include "cpu/winograd_weights.h"

namespace fastdiff {
namespace {

struct Context {
    const Conv2dArgs& args;
    WinogradBlocks blocks;
    const float* zeros;
    float* transformed;  // [point][tile of the round][channel]
    float* strip;        // normalised rows of the input, of the round
    float* scratch;      // of the threads
    Range tiles;         // of the round
    std::size_t round;
};

struct Place {
    std::size_t image, y, x;  // of the first output pixel
};

FASTDIFF_INLINE Place place_of(std::size_t tile, const WinogradBlocks& b) {
    const std::size_t per_image = b.tiles_high * b.tiles_wide;
    const std::size_t rest = tile % per_image;
    return {tile / per_image, rest / b.tiles_wide * b.m, rest % b.tiles_wide * b.m};
}

// V::width channels of a tile, from the pixels' pointers to (m+2)² points that lie `plane` floats apart.
template <class I, int M>
FASTDIFF_INLINE void transform_input(const float* const* pixel, std::size_t channel, std::size_t count,
                                     float* to, std::size_t plane) {
    using V = Vec<float, I>;
    using T = winograd::Transform<M>;
    constexpr int n = M + 2;
    V half[n][n];  // transformed along y
#pragma GCC unroll 6
    for (int x = 0; x < n; ++x) {
        V d[n], t[n];
#pragma GCC unroll 6
        for (int y = 0; y < n; ++y) {
            const float* p = pixel[y * n + x] + channel;
            d[y] = count >= V::width ? V::load(p) : V::load(p, count);
        }
        T::input(d, t);
#pragma GCC unroll 6
        for (int y = 0; y < n; ++y) half[y][x] = t[y];
    }
#pragma GCC unroll 6
    for (int y = 0; y < n; ++y) {
        V t[n];
        T::input(half[y], t);
#pragma GCC unroll 6
        for (int x = 0; x < n; ++x) t[x].store(to + static_cast<std::size_t>(y * n + x) * plane);
    }
}

// Row `index` of those of x that the round needs, normalised.
template <class I>
void normalise_row(const Context& c, std::size_t index) {
    const Conv2dShape& s = c.args.shape;
    const std::size_t per_image = c.blocks.tiles_high * c.blocks.tiles_wide;
    std::size_t row = index;
    Strip strip = strip_of(s, c.blocks, c.tiles, c.tiles.begin / per_image);
    while (row >= strip.end - strip.begin) {
        row -= strip.end - strip.begin;
        strip = strip_of(s, c.blocks, c.tiles, strip.image + 1);
    }
    const float* affine = c.args.affine + strip.image * 3 * c.blocks.zeros;
    const std::size_t from = (strip.image * s.height + strip.begin + row) * s.width;
    float* to = c.strip + index * s.width * c.blocks.zeros;
    for (std::size_t x = 0; x < s.width; ++x) {
        normalise_pixel<I>(c.args.x + (from + x) * c.args.x_stride, to + x * c.blocks.zeros, s.in, affine,
                           c.blocks.zeros, c.args.affine_silu);
    }
}

FASTDIFF_INLINE std::size_t strip_rows(const Context& c, std::size_t image) {
    const std::size_t per_image = c.blocks.tiles_high * c.blocks.tiles_wide;
    std::size_t rows = 0;
    for (std::size_t i = c.tiles.begin / per_image; i < image; ++i) {
        const Strip strip = strip_of(c.args.shape, c.blocks, c.tiles, i);
        rows += strip.end - strip.begin;
    }
    return rows;
}

template <class I, int M>
void transform_tile(const Context& c, std::size_t index) {
    using V = Vec<float, I>;
    const Conv2dArgs& args = c.args;
    const Conv2dShape& s = args.shape;
    constexpr std::size_t n = M + 2;
    const Place place = place_of(c.tiles.begin + index, c.blocks);
    const float* pixel[n * n];
    const float* picture = args.x + place.image * s.height * s.width * args.x_stride;
    std::size_t step = args.x_stride, first_row = 0;
    if (args.affine != nullptr) {
        picture = c.strip + strip_rows(c, place.image) * s.width * c.blocks.zeros;
        step = c.blocks.zeros;
        first_row = strip_of(s, c.blocks, c.tiles, place.image).begin;
    }
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) {
            const std::size_t y = place.y + i, x = place.x + j;  // with padding
            const bool inside = y >= s.pad_top && y - s.pad_top < s.seen_height() && x >= s.pad_left &&
                                x - s.pad_left < s.seen_width();
            pixel[i * n + j] = c.zeros;
            if (!inside) continue;
            const std::size_t row = (y - s.pad_top) / s.upsample - first_row;
            pixel[i * n + j] = picture + (row * s.width + (x - s.pad_left) / s.upsample) * step;
        }
    }
    float* to = c.transformed + index * c.blocks.row;
    std::size_t channel = 0;
    for (; channel + V::width <= s.in; channel += V::width) {
        transform_input<I, M>(pixel, channel, V::width, to + channel, c.blocks.plane);
    }
    if (channel < s.in) transform_input<I, M>(pixel, channel, s.in - channel, to + channel, c.blocks.plane);
}

// Sums of the block's tiles for a group's panels over a range of depth, at all points:
// [point][tile][16·panels]. Ranges after the first add to the sums.
template <class I, class Weights>
void multiply(const Context& c, Range tiles, std::size_t panels, Range depth, const Weights& weights,
              float* sums) {
    const WinogradBlocks& b = c.blocks;
    const auto at_once = static_cast<std::size_t>(gemm::max_panels<I>);
    constexpr std::ptrdiff_t tap = 0;
    gemm::Tile t{};
    t.lda = b.row;
    t.tap = &tap;
    t.taps = 1;
    t.depth = depth.end - depth.begin;
    t.ldc = t.start_stride = panels * gemm::panel_width;
    for (std::size_t point = 0; point < b.points; ++point) {
        for (std::size_t p = 0; p < panels;) {
            const std::size_t now = panels - p >= at_once ? at_once : 1;
            weights.set(t, point, p, now);
            const auto most = static_cast<std::size_t>(gemm::max_rows<I>(static_cast<int>(now)));
            const std::size_t count = tiles.end - tiles.begin, parts = div_up(count, most);
            for (std::size_t i = 0; i < parts; ++i) {
                const Range part = part_of(count, parts, i);
                t.a = c.transformed + point * b.plane + (tiles.begin + part.begin) * b.row + depth.begin;
                t.c = sums + (point * b.block_tiles + part.begin) * t.ldc + p * gemm::panel_width;
                t.start = depth.begin > 0 ? t.c : nullptr;
                weights.fetch(t, point, p, now, i, parts);
                gemm::tile_function<I>(static_cast<int>(part.end - part.begin), static_cast<int>(now))(t);
            }
            p += now;
        }
    }
}

template <class I>
void multiply_group(const Context& c, Range tiles, std::size_t first, std::size_t panels, float* sums,
                    float* weights) {
    const std::size_t in = c.args.shape.in;
    if (c.args.algorithm != ConvAlgorithm::winograd2_plain) {
        multiply<I>(c, tiles, panels, {0, in}, StoredWeights<I>{c.args, c.blocks.points, first, weights},
                    sums);
        return;
    }
    const std::size_t parts = div_up(in, plain_depth);
    for (std::size_t i = 0; i < parts; ++i) {
        const PlainWeights<I> plain{c.args, first, panels, part_of(in, parts, i), weights};
        plain.transform();
        multiply<I>(c, tiles, panels, plain.depth, plain, sums);
    }
}

// V::width channels of a tile's output, from its sums, `step` floats apart, to the pixels that exist.
template <class I, int M>
FASTDIFF_INLINE void transform_output(const Context& c, const Place& place, const float* sums,
                                      std::size_t step, std::size_t channel, std::size_t count,
                                      ColumnSums<I, 16 * group_panels>& column_sums, std::size_t column) {
    using V = Vec<float, I>;
    using T = winograd::Transform<M>;
    constexpr int n = M + 2;
    const Conv2dArgs& args = c.args;
    const std::size_t height = args.shape.out_height(), width = args.shape.out_width();
    V half[n][M];  // transformed along x
#pragma GCC unroll 6
    for (int y = 0; y < n; ++y) {
        V t[n];
#pragma GCC unroll 6
        for (int x = 0; x < n; ++x) t[x] = V::load(sums + static_cast<std::size_t>(y * n + x) * step);
        T::output(t, half[y]);
    }
    V result[M][M];
#pragma GCC unroll 4
    for (int x = 0; x < M; ++x) {
        V t[n], r[M];
#pragma GCC unroll 6
        for (int y = 0; y < n; ++y) t[y] = half[y][x];
        T::output(t, r);
#pragma GCC unroll 4
        for (int y = 0; y < M; ++y) result[y][x] = r[y];
    }
    const float* vector = args.vector != nullptr ? args.vector + place.image * args.vector_stride : nullptr;
    const V added = added_channels<I>(args.bias, vector, channel, count);
    const std::size_t rows = height - place.y < M ? height - place.y : M;
    const std::size_t columns = width - place.x < M ? width - place.x : M;
    RegisterSums<I> gathered;
    gathered.clear();
#pragma GCC unroll 4
    for (std::size_t y = 0; y < M; ++y) {
        if (y >= rows) break;
        const std::size_t line = (place.image * height + place.y + y) * width + place.x;
#pragma GCC unroll 4
        for (std::size_t x = 0; x < M; ++x) {
            if (x >= columns) break;
            const std::size_t pixel = line + x;
            const float* residual =
                args.residual != nullptr ? args.residual + pixel * args.residual_stride + channel : nullptr;
            const V value = finish<I>(result[y][x] + added, args.activation, args.scale, residual,
                                      args.y + pixel * args.y_stride + channel, count);
            gathered.add(value);
        }
    }
    if (args.sums != nullptr) column_sums.add(column, gathered);
}

// Begins to load the residual of a tile's pixels, for `panels` panels of channels from `channel` on.
template <class I, int M>
FASTDIFF_INLINE void fetch_residual(const Context& c, const Place& place, std::size_t channel,
                                    std::size_t panels) {
    const Conv2dArgs& args = c.args;
    const std::size_t height = args.shape.out_height(), width = args.shape.out_width();
    for (std::size_t y = place.y; y < place.y + M && y < height; ++y) {
        const float* line =
            args.residual + ((place.image * height + y) * width + place.x) * args.residual_stride + channel;
        for (std::size_t x = 0; x < M && place.x + x < width; ++x) {
            for (std::size_t panel = 0; panel < panels; ++panel) {
                __builtin_prefetch(line + x * args.residual_stride + panel * gemm::panel_width);
            }
        }
    }
}

template <class I, int M>
void multiply_block(void* context, std::size_t index, std::size_t thread) {
    using V = Vec<float, I>;
    const Context& c = *static_cast<const Context*>(context);
    const WinogradBlocks& b = c.blocks;
    const std::size_t out = c.args.shape.out;
    // Consecutive items share their weights.
    const std::size_t group = index / b.tile_blocks;
    const Range tiles = part_of(c.tiles.end - c.tiles.begin, b.tile_blocks, index % b.tile_blocks);
    const std::size_t first = group * group_panels;
    const std::size_t panels = b.panels - first < group_panels ? b.panels - first : group_panels;
    float* sums = c.scratch + thread * (b.sums + b.weights);
    multiply_group<I>(c, tiles, first, panels, sums, sums + b.sums);
    const std::size_t ldc = panels * 16;
    ColumnSums<I, 16 * group_panels> column_sums;
    const auto store_sums = [&](std::size_t image) {
        const std::size_t padded = round_up(out, 16), part = c.round * b.tile_blocks + index % b.tile_blocks;
        double* to = c.args.sums + (image * b.rounds * b.tile_blocks + part) * 2 * padded + first * 16;
        column_sums.store(to, padded, ldc);
    };
    if (c.args.sums != nullptr) {
        column_sums.clear();
        for (std::size_t image = 0; image < c.args.shape.batch; ++image) store_sums(image);
    }
    for (std::size_t tile = tiles.begin; tile < tiles.end; ++tile) {
        const Place place = place_of(c.tiles.begin + tile, b);
        if (c.args.residual != nullptr && tile + 1 < tiles.end) {
            fetch_residual<I, M>(c, place_of(c.tiles.begin + tile + 1, b), first * 16, panels);
        }
        for (std::size_t j = 0; j < ldc && first * 16 + j < out; j += V::width) {
            transform_output<I, M>(c, place, sums + (tile - tiles.begin) * ldc + j, b.block_tiles * ldc,
                                   first * 16 + j, out - first * 16 - j, column_sums, j);
        }
        const bool last = tile + 1 == tiles.end;
        if (c.args.sums != nullptr && (last || place_of(c.tiles.begin + tile + 1, b).image != place.image)) {
            store_sums(place.image);
            column_sums.clear();
        }
    }
}

// function(c, i) for all i < count, in a few items per thread.
template <void (*function)(const Context&, std::size_t)>
void for_each(const Context& c, std::size_t count, const Parallel& parallel) {
    struct Job {
        const Context& c;
        std::size_t count, items;
    };
    const std::size_t most = 4 * parallel.threads;
    Job job{c, count, count < most ? count : most};
    parallel.run(
        parallel, job.items,
        [](void* context, std::size_t item, std::size_t) {
            const Job& j = *static_cast<const Job*>(context);
            const Range range = part_of(j.count, j.items, item);
            for (std::size_t i = range.begin; i < range.end; ++i) function(j.c, i);
        },
        &job);
}

template <class I, int M>
void run(Context& c, const Parallel& parallel) {
    const WinogradBlocks& b = c.blocks;
    for (std::size_t round = 0; round < b.rounds; ++round) {
        c.tiles = part_of(b.tiles, b.rounds, round);
        c.round = round;
        if (c.args.affine != nullptr) {
            const std::size_t per_image = b.tiles_high * b.tiles_wide;
            for_each<normalise_row<I>>(c, strip_rows(c, (c.tiles.end - 1) / per_image + 1), parallel);
        }
        for_each<transform_tile<I, M>>(c, c.tiles.end - c.tiles.begin, parallel);
        parallel.run(parallel, b.groups * b.tile_blocks, multiply_block<I, M>, &c);
    }
}

}  // namespace

template <class I>
void conv2d_winograd(const Conv2dArgs& args, const Parallel& parallel) {
    Context c{args, winograd_blocks(args), nullptr, nullptr, nullptr, nullptr, {}, 0};
    auto* zeros = static_cast<float*>(args.scratch);
    for (std::size_t i = 0; i < c.blocks.zeros; ++i) zeros[i] = 0.0f;
    c.zeros = zeros;
    c.transformed = zeros + c.blocks.zeros;
    c.strip = c.transformed + c.blocks.points * c.blocks.plane;
    c.scratch = c.strip + c.blocks.strip;
    if (c.blocks.m == 2) {
        run<I, 2>(c, parallel);
    } else {
        run<I, 4>(c, parallel);
    }
}

template void conv2d_winograd<isa::FASTDIFF_ISA>(const Conv2dArgs&, const Parallel&);

}  // namespace fastdiff
