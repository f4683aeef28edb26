// Compiled once per instruction set; the contract is in kernels/linear.h.
#include "kernels/linear.h"

#include "cpu/blocks.h"
#include "cpu/dispatch.h"
#include "cpu/epilogue.h"
#include "cpu/gemm.h"

namespace fastdiff {
namespace {

struct Context {
    const LinearArgs& args;
    LinearBlocks blocks;
    std::size_t w_panels;  // panels of W
    std::size_t gate;      // panels between a column of y and its gate (geglu)
};

// Sums of `rows` rows for `count` panels of W, `step` panels apart, from panel `first`: [rows][16·count].
template <class I>
void multiply(const Context& c, std::size_t row, std::size_t rows, std::size_t first, std::size_t count,
              std::size_t step, float* sums, float* widened) {
    const LinearArgs& args = c.args;
    const std::size_t panel = args.in * gemm::panel_width;
    constexpr std::ptrdiff_t tap = 0;
    const auto at_once = static_cast<std::size_t>(
        count >= 4 && gemm::max_rows<I>(4) > 0 && rows <= few_rows ? 4 : gemm::max_panels<I>);
    for (std::size_t k = 0; k < args.in; k += depth_block) {
        const std::size_t depth = args.in - k < depth_block ? args.in - k : depth_block;
        for (std::size_t p = 0; p < count;) {
            const std::size_t panels = count - p >= at_once ? at_once : 1;
            const std::size_t offset = (first + p * step) * panel + k * gemm::panel_width;
            gemm::Tile t{};
            if (args.type == WeightType::fp32) {
                t.b = static_cast<const float*>(args.weight) + offset;
                t.panel = step * panel;
            } else {
                const auto* half = static_cast<const std::uint16_t*>(args.weight) + offset;
                t.b = widened;
                t.panel = depth * gemm::panel_width;
                for (std::size_t q = 0; q < panels; ++q) {
                    widen<I>(half + q * step * panel, widened + q * t.panel, t.panel);
                }
            }
            t.lda = args.x_stride;
            t.tap = &tap;
            t.taps = 1;
            t.depth = depth;
            t.ldc = count * gemm::panel_width;
            t.accumulate = k > 0;
            const auto most = static_cast<std::size_t>(gemm::max_rows<I>(static_cast<int>(panels)));
            const std::size_t parts = div_up(rows, most);
            for (std::size_t i = 0; i < parts; ++i) {
                const Range part = part_of(rows, parts, i);
                t.a = args.x + (row + part.begin) * args.x_stride + k;
                t.c = sums + part.begin * t.ldc + p * gemm::panel_width;
                gemm::tile_function<I>(static_cast<int>(part.end - part.begin), static_cast<int>(panels))(t);
            }
            p += panels;
        }
    }
}

// y of `columns` channels from channel `n` on; their sums are at sums[0], their gates' at sums[gate].
template <class I>
void store(const Context& c, std::size_t row, std::size_t rows, std::size_t n, std::size_t columns,
           const float* sums, std::size_t ldc, std::size_t gate) {
    using V = Vec<float, I>;
    const LinearArgs& args = c.args;
    const Epilogue e{args.bias, args.activation, args.scale};
    for (std::size_t r = 0; r < rows; ++r) {
        const float* residual =
            args.residual != nullptr ? args.residual + (row + r) * args.residual_stride : nullptr;
        float* y = args.y + (row + r) * args.y_stride;
        for (std::size_t j = 0; j < columns; j += V::width) {
            const std::size_t count = columns - j;
            V sum = count >= V::width ? V::load(sums + r * ldc + j) : V::load(sums + r * ldc + j, count);
            if (args.activation != Activation::geglu) {
                finish<I>(sum, e, nullptr, residual, y, n + j, count);
                continue;
            }
            const auto load = [&](const float* p) {
                return count >= V::width ? V::load(p) : V::load(p, count);
            };
            V b = load(sums + r * ldc + gate + j);
            if (args.bias != nullptr) {
                sum = sum + load(args.bias + n + j);
                b = b + load(args.bias + args.out + n + j);
            }
            finish<I>(sum * gelu(b), {nullptr, Activation::none, args.scale}, nullptr, residual, y, n + j,
                      count);
        }
    }
}

template <class I>
void item(void* context, std::size_t index, std::size_t thread) {
    const Context& c = *static_cast<const Context*>(context);
    const LinearArgs& args = c.args;
    const LinearBlocks& b = c.blocks;
    const bool geglu = args.activation == Activation::geglu;
    // Consecutive items share their columns of W, which are more than their rows of x.
    const Range rows = part_of(args.rows, b.row_blocks, index % b.row_blocks);
    const std::size_t count = rows.end - rows.begin;
    float* sums = static_cast<float*>(args.scratch) + thread * (b.sums + b.weights);
    float* widened = sums + b.sums;
    if (geglu && args.out % 16 != 0) {  // gates do not begin at a panel: all columns at once
        const std::size_t ldc = c.w_panels * 16;
        multiply<I>(c, rows.begin, count, 0, c.w_panels, 1, sums, widened);
        store<I>(c, rows.begin, count, 0, args.out, sums, ldc, args.out);
        return;
    }
    const std::size_t groups = div_up(b.panels, b.panels_at_once);
    const Range range = part_of(groups, b.column_blocks, index / b.row_blocks);
    for (std::size_t group = range.begin; group < range.end; ++group) {
        const std::size_t first = group * b.panels_at_once;
        const std::size_t panels = b.panels - first < b.panels_at_once ? b.panels - first : b.panels_at_once;
        const std::size_t n = first * 16;
        const std::size_t columns = args.out - n < panels * 16 ? args.out - n : panels * 16;
        if (geglu) {
            for (std::size_t p = 0; p < panels; ++p) {
                multiply<I>(c, rows.begin, count, first + p, 2, c.gate, sums, widened);
                store<I>(c, rows.begin, count, n + 16 * p, 16, sums, 32, 16);
            }
        } else {
            multiply<I>(c, rows.begin, count, first, panels, 1, sums, widened);
            store<I>(c, rows.begin, count, n, columns, sums, panels * 16, 0);
        }
    }
}

}  // namespace

template <class I>
void linear(const LinearArgs& args, const Parallel& parallel) {
    Context c{args, linear_blocks(args, parallel.threads), 0, div_up(args.out, 16)};
    c.w_panels = div_up(args.activation == Activation::geglu ? 2 * args.out : args.out, 16);
    parallel.run(parallel, c.blocks.row_blocks * c.blocks.column_blocks, item<I>, &c);
}

template void linear<isa::FASTDIFF_ISA>(const LinearArgs&, const Parallel&);

}  // namespace fastdiff
