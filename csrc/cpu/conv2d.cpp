// Compiled once per instruction set; the contract is in kernels/conv2d.h. This file holds the direct
// algorithm, an implicit GEMM: a row of A is an output pixel's window, one piece per kernel position, read
// where it lies.
#include "cpu/conv2d.h"

#include "cpu/blocks.h"
#include "cpu/dispatch.h"
#include "cpu/epilogue.h"
#include "cpu/gemm.h"

namespace fastdiff {
namespace {

constexpr std::size_t most_taps = 49;

struct Context {
    const Conv2dArgs& args;
    DirectBlocks blocks;
    const float* input;  // the padded copy, or x itself
    std::size_t step;    // floats between pixels of the input
    std::size_t width, height;
    std::ptrdiff_t tap[most_taps];
};

// One row of the padded, upsampled copy.
template <class I>
void copy_row(void* context, std::size_t index, std::size_t) {
    using V = Vec<float, I>;
    const Context& c = *static_cast<const Context*>(context);
    const Conv2dShape& s = c.args.shape;
    const DirectBlocks& b = c.blocks;
    float* row = static_cast<float*>(c.args.scratch) + index * b.copy_width * b.copy_step;
    const std::size_t image = index / b.copy_height;
    const std::size_t y = index % b.copy_height;
    const bool outside = y < s.pad_top || y >= s.pad_top + s.seen_height();
    for (std::size_t i = 0; i < b.copy_width; ++i) {
        float* to = row + i * b.copy_step;
        if (outside || i < s.pad_left || i >= s.pad_left + s.seen_width()) {
            for (std::size_t k = 0; k < b.copy_step; ++k) to[k] = 0.0f;
            continue;
        }
        const std::size_t source =
            (image * s.height + (y - s.pad_top) / s.upsample) * s.width + (i - s.pad_left) / s.upsample;
        const float* from = c.args.x + source * c.args.x_stride;
        if (c.args.affine != nullptr) {
            const std::size_t padded = round_up(s.in, 16);
            normalise_pixel<I>(from, to, s.in, c.args.affine + image * 3 * padded, padded,
                               c.args.affine_silu);
            continue;
        }
        std::size_t k = 0;
        for (; k + V::width <= s.in; k += V::width) V::load(from + k).store(to + k);
        if (k < s.in) V::load(from + k, s.in - k).store(to + k, s.in - k);
    }
}

// Sums of output rows [begin, end) for `panels` panels from panel `first`: [pixels][16·panels].
template <class I>
void multiply(const Context& c, Range rows, std::size_t first, std::size_t panels, float* sums,
              float* widened) {
    const Conv2dArgs& args = c.args;
    const Conv2dShape& s = args.shape;
    const std::size_t out_width = s.out_width(), out_height = s.out_height();
    const std::size_t taps = s.kernel_h * s.kernel_w;
    const std::size_t panel = taps * s.in * gemm::panel_width;
    const auto at_once = static_cast<std::size_t>(gemm::max_panels<I>);
    // Blocks of depth are whole taps, or parts of one.
    const bool whole = args.type == WeightType::fp32;
    const std::size_t size = whole ? sizeof(float) : sizeof(std::uint16_t);
    const std::size_t most_depth = whole ? depth_block : half_depth_block;
    const std::size_t taps_at_once = s.in >= most_depth ? 1 : most_depth / s.in;
    for (std::size_t begin = 0; begin < taps; begin += taps_at_once) {
        const std::size_t count = taps - begin < taps_at_once ? taps - begin : taps_at_once;
        for (std::size_t k = 0; k < s.in; k += most_depth) {
            const std::size_t depth = s.in - k < most_depth ? s.in - k : most_depth;
            for (std::size_t p = 0; p < panels;) {
                const std::size_t now = panels - p >= at_once ? at_once : 1;
                const std::size_t offset = (first + p) * panel + (begin * s.in + k) * gemm::panel_width;
                gemm::Tile t{};
                if (whole) {
                    t.b = static_cast<const float*>(args.weight) + offset;
                    t.panel = panel;
                } else {
                    const auto* half = static_cast<const std::uint16_t*>(args.weight) + offset;
                    t.b = widened;
                    t.panel = count * depth * gemm::panel_width;
                    for (std::size_t q = 0; q < now; ++q) {
                        widen<I>(half + q * panel, widened + q * t.panel, t.panel);
                    }
                }
                t.lda = s.stride * c.step;
                t.tap = c.tap + begin;
                t.taps = count;
                t.depth = depth;
                t.ldc = panels * gemm::panel_width;
                t.start_stride = t.ldc;
                const auto most = static_cast<std::size_t>(gemm::max_rows<I>(static_cast<int>(now)));
                const std::size_t parts = div_up(out_width, most);
                // The next taps or channels follow; after the last, the next panels' come.
                const bool last = k + depth == s.in && begin + count == taps;
                const std::size_t on = count * depth * gemm::panel_width + (last ? (now - 1) * panel : 0);
                const gemm::Ahead ahead{static_cast<const char*>(args.weight) + (offset + on) * size, now,
                                        panel * size, gemm::panel_width * size};
                const std::size_t tiles = (rows.end - rows.begin) * parts;
                for (std::size_t row = rows.begin; row < rows.end; ++row) {
                    const std::size_t image = row / out_height, y = row % out_height;
                    const float* line = c.input + (image * c.height + y * s.stride) * c.width * c.step + k;
                    float* out = sums + (row - rows.begin) * out_width * t.ldc + p * gemm::panel_width;
                    for (std::size_t i = 0; i < parts; ++i) {
                        const Range part = part_of(out_width, parts, i);
                        t.a = line + part.begin * t.lda;
                        t.c = out + part.begin * t.ldc;
                        t.start = begin > 0 || k > 0 ? t.c : nullptr;
                        gemm::fetch(t, ahead, (row - rows.begin) * parts + i, tiles);
                        gemm::tile_function<I>(static_cast<int>(part.end - part.begin),
                                               static_cast<int>(now))(t);
                    }
                }
                p += now;
            }
        }
    }
}

template <class I>
void item(void* context, std::size_t index, std::size_t thread) {
    using V = Vec<float, I>;
    const Context& c = *static_cast<const Context*>(context);
    const Conv2dArgs& args = c.args;
    const Conv2dShape& s = args.shape;
    const DirectBlocks& b = c.blocks;
    const std::size_t out_width = s.out_width(), out_height = s.out_height();
    const Range rows = part_of(s.batch * out_height, b.row_blocks, index % b.row_blocks);
    const Range groups = part_of(div_up(b.panels, group_panels), b.column_blocks, index / b.row_blocks);
    float* sums = static_cast<float*>(args.scratch) + b.copy + thread * (b.sums + b.weights);
    for (std::size_t group = groups.begin; group < groups.end; ++group) {
        const std::size_t first = group * group_panels;
        const std::size_t panels = b.panels - first < group_panels ? b.panels - first : group_panels;
        multiply<I>(c, rows, first, panels, sums, sums + b.sums);
        const std::size_t n = first * 16;
        const std::size_t columns = s.out - n < panels * 16 ? s.out - n : panels * 16;
        ColumnSums<I, 16 * group_panels> column_sums;
        const auto store_sums = [&](std::size_t image) {
            const std::size_t padded = round_up(s.out, 16);
            double* to = args.sums + (image * b.row_blocks + index % b.row_blocks) * 2 * padded + n;
            column_sums.store(to, padded, panels * 16);
        };
        if (args.sums != nullptr) {
            column_sums.clear();
            for (std::size_t image = 0; image < s.batch; ++image) store_sums(image);
        }
        for (std::size_t row = rows.begin; row < rows.end; ++row) {
            const std::size_t image = row / out_height;
            const float* vector = args.vector != nullptr ? args.vector + image * args.vector_stride : nullptr;
            for (std::size_t j = 0; j < columns; j += V::width) {
                const V added = added_channels<I>(args.bias, vector, n + j, columns - j);
                RegisterSums<I> gathered;
                gathered.clear();
                for (std::size_t i = 0; i < out_width; ++i) {
                    const std::size_t pixel = row * out_width + i;
                    const float* from = sums + (pixel - rows.begin * out_width) * panels * 16;
                    const float* residual = args.residual != nullptr
                                                ? args.residual + pixel * args.residual_stride + n + j
                                                : nullptr;
                    const V y = finish<I>(V::load(from + j) + added, args.activation, args.scale, residual,
                                          args.y + pixel * args.y_stride + n + j, columns - j);
                    if (args.sums != nullptr) gathered.add(y);
                }
                if (args.sums != nullptr) column_sums.add(j, gathered);
            }
            if (args.sums != nullptr && (row + 1 == rows.end || (row + 1) % out_height == 0)) {
                store_sums(image);
                column_sums.clear();
            }
        }
    }
}

}  // namespace

template <class I>
void conv2d_direct(const Conv2dArgs& args, const Parallel& parallel) {
    const Conv2dShape& s = args.shape;
    Context c{args, direct_blocks(args, parallel.threads), args.x, args.x_stride, s.width, s.height, {}};
    if (c.blocks.padded) {
        c.input = static_cast<const float*>(args.scratch);
        c.step = c.blocks.copy_step;
        c.width = c.blocks.copy_width;
        c.height = c.blocks.copy_height;
        parallel.run(parallel, s.batch * c.height, copy_row<I>, &c);
    }
    for (std::size_t tap = 0; tap < s.kernel_h * s.kernel_w; ++tap) {
        c.tap[tap] = static_cast<std::ptrdiff_t>((tap / s.kernel_w * c.width + tap % s.kernel_w) * c.step);
    }
    parallel.run(parallel, c.blocks.row_blocks * c.blocks.column_blocks, item<I>, &c);
}

template <class I>
void conv2d(const Conv2dArgs& args, const Parallel& parallel) {
    if (args.algorithm == ConvAlgorithm::direct) {
        conv2d_direct<I>(args, parallel);
    } else {
        conv2d_winograd<I>(args, parallel);
    }
}

template void conv2d<isa::FASTDIFF_ISA>(const Conv2dArgs&, const Parallel&);

}  // namespace fastdiff
