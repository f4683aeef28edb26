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

// Where tiles put what they compute, and what they begin with.
struct Target {
    float* c;
    std::size_t ldc;
    const float* start;
    std::size_t start_stride;
    const float* bias;  // of W's columns
};

// `rows` rows times `count` panels of W, `step` panels apart, from panel `first`, to [rows][16·count].
template <class I>
void multiply(const Context& c, std::size_t row, std::size_t rows, std::size_t first, std::size_t count,
              std::size_t step, const Target& target, float* widened) {
    const LinearArgs& args = c.args;
    const std::size_t panel = args.in * gemm::panel_width;
    constexpr std::ptrdiff_t tap = 0;
    const auto at_once = static_cast<std::size_t>(
        count >= 4 && gemm::max_rows<I>(4) > 0 && rows <= few_rows ? 4 : gemm::max_panels<I>);
    const bool whole = args.type == WeightType::fp32;
    const std::size_t most_depth = whole ? depth_block : half_depth_block;
    const std::size_t size = whole ? sizeof(float) : sizeof(std::uint16_t);
    for (std::size_t k = 0; k < args.in; k += most_depth) {
        const std::size_t depth = args.in - k < most_depth ? args.in - k : most_depth;
        for (std::size_t p = 0; p < count;) {
            const std::size_t panels = count - p >= at_once ? at_once : 1;
            const std::size_t offset = (first + p * step) * panel + k * gemm::panel_width;
            const char* weight = static_cast<const char*>(args.weight) + offset * size;
            gemm::Tile t{};
            if (whole) {
                t.b = reinterpret_cast<const float*>(weight);
                t.panel = step * panel;
            } else {
                t.b = widened;
                t.panel = depth * gemm::panel_width;
                for (std::size_t q = 0; q < panels; ++q) {
                    const auto* half = reinterpret_cast<const std::uint16_t*>(weight) + q * step * panel;
                    widen<I>(half, widened + q * t.panel, t.panel);
                }
            }
            // Deeper in these panels, or the top of the next.
            const std::size_t on = k + depth < args.in
                                       ? depth * gemm::panel_width
                                       : (step > 1 ? 1 : panels) * panel - k * gemm::panel_width;
            const gemm::Ahead ahead{weight + on * size, panels, step * panel * size,
                                    gemm::panel_width * size};
            t.lda = args.x_stride;
            t.tap = &tap;
            t.taps = 1;
            t.depth = depth;
            t.ldc = target.ldc;
            const auto most = static_cast<std::size_t>(gemm::max_rows<I>(static_cast<int>(panels)));
            const std::size_t parts = div_up(rows, most);
            for (std::size_t i = 0; i < parts; ++i) {
                const Range part = part_of(rows, parts, i);
                t.a = args.x + (row + part.begin) * args.x_stride + k;
                t.c = target.c + part.begin * t.ldc + p * gemm::panel_width;
                if (k > 0) {
                    t.start = t.c;
                    t.start_stride = t.ldc;
                } else {
                    t.start_stride = target.start_stride;
                    if (target.start != nullptr) {
                        t.start = target.start + part.begin * t.start_stride + p * gemm::panel_width;
                    }
                    if (target.bias != nullptr) t.bias = target.bias + p * step * gemm::panel_width;
                }
                gemm::fetch(t, ahead, i, parts);
                gemm::tile_function<I>(static_cast<int>(part.end - part.begin), static_cast<int>(panels))(t);
            }
            p += panels;
        }
    }
}

// One register of y, `count` channels of it from channel `n`; its sums are at `sums`, its gates' at
// sums[gate].
template <class I, Activation A>
FASTDIFF_INLINE void store_register(const LinearArgs& args, std::size_t row, std::size_t n, std::size_t count,
                                    const float* sums, std::size_t gate) {
    using V = Vec<float, I>;
    V sum = load_some<I>(sums, count) + added_channels<I>(args.bias, nullptr, n, count);
    if constexpr (A == Activation::geglu) {
        sum = sum * gelu(load_some<I>(sums + gate, count) +
                         added_channels<I>(args.bias, nullptr, args.out + n, count));
    }
    const float* residual =
        args.residual != nullptr ? args.residual + row * args.residual_stride + n : nullptr;
    finish<I>(sum, A == Activation::geglu ? Activation::none : A, args.scale, residual,
              args.y + row * args.y_stride + n, count);
}

// y of `columns` channels from channel `n` on, from sums with `ldc` floats between rows.
template <class I, Activation A>
void store_rows(const LinearArgs& args, Range rows, std::size_t n, std::size_t columns, const float* sums,
                std::size_t ldc, std::size_t gate) {
    constexpr std::size_t width = Vec<float, I>::width;
    for (std::size_t row = rows.begin; row < rows.end; ++row, sums += ldc) {
        std::size_t j = 0;
        for (; j + width <= columns; j += width) {
            store_register<I, A>(args, row, n + j, width, sums + j, gate);
        }
        if (j < columns) store_register<I, A>(args, row, n + j, columns - j, sums + j, gate);
    }
}

template <class I>
void store(const LinearArgs& args, Range rows, std::size_t n, std::size_t columns, const float* sums,
           std::size_t ldc, std::size_t gate) {
    const auto with = [&]<Activation A>() { store_rows<I, A>(args, rows, n, columns, sums, ldc, gate); };
    switch (args.activation) {
        case Activation::none:
            return with.template operator()<Activation::none>();
        case Activation::silu:
            return with.template operator()<Activation::silu>();
        case Activation::gelu:
            return with.template operator()<Activation::gelu>();
        case Activation::quick_gelu:
            return with.template operator()<Activation::quick_gelu>();
        case Activation::geglu:
            return with.template operator()<Activation::geglu>();
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
        multiply<I>(c, rows.begin, count, 0, c.w_panels, 1, {sums, ldc, nullptr, 0, nullptr}, widened);
        store<I>(args, rows, 0, args.out, sums, ldc, args.out);
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
                multiply<I>(c, rows.begin, count, first + p, 2, c.gate, {sums, 32, nullptr, 0, nullptr},
                            widened);
                store<I>(args, rows, n + 16 * p, 16, sums, 32, 16);
            }
        } else if (args.activation == Activation::none && args.scale == 1.0f && columns == panels * 16) {
            // The tiles compute y itself.
            const float* residual =
                args.residual != nullptr ? args.residual + rows.begin * args.residual_stride + n : nullptr;
            const float* bias = args.bias != nullptr ? args.bias + n : nullptr;
            float* y = args.y + rows.begin * args.y_stride + n;
            multiply<I>(c, rows.begin, count, first, panels, 1,
                        {y, args.y_stride, residual, args.residual_stride, bias}, widened);
        } else {
            const std::size_t ldc = panels * 16;
            multiply<I>(c, rows.begin, count, first, panels, 1, {sums, ldc, nullptr, 0, nullptr}, widened);
            store<I>(args, rows, n, columns, sums, ldc, 0);
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
