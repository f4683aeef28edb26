// Where the products of a Winograd convolution find their weights: stored in transformed form, or plain and
// transformed on the way. Both say what a tile multiplies with (set) and what it fetches meanwhile (fetch).
// Included by conv2d_winograd.cpp only, which is compiled per instruction set.
#pragma once

#include "cpu/blocks.h"
#include "cpu/epilogue.h"
#include "cpu/gemm.h"

namespace fastdiff {

// Transformed weights as they are stored, for the panels of a group; halves are widened into scratch.
template <class I>
struct StoredWeights {
    const Conv2dArgs& args;
    std::size_t points, first;
    float* widened;

    [[nodiscard]] std::size_t matrix() const { return args.shape.in * gemm::panel_width; }
    // Sets B of a tile for `count` panels from the group's panel `p` at a point.
    FASTDIFF_INLINE void set(gemm::Tile& t, std::size_t point, std::size_t p, std::size_t count) const {
        const std::size_t offset = ((first + p) * points + point) * matrix();
        if (args.type == WeightType::fp32) {
            t.b = static_cast<const float*>(args.weight) + offset;
            t.panel = points * matrix();
            return;
        }
        const auto* half = static_cast<const std::uint16_t*>(args.weight) + offset;
        for (std::size_t q = 0; q < count; ++q) {
            widen<I>(half + q * points * matrix(), widened + q * matrix(), matrix());
        }
        t.b = widened;
        t.panel = matrix();
    }
    // Sets what tile `index` of `tiles` fetches: the next point's weights, after the last the next panels'.
    FASTDIFF_INLINE void fetch(gemm::Tile& t, std::size_t point, std::size_t p, std::size_t count,
                               std::size_t index, std::size_t tiles) const {
        const std::size_t size = args.type == WeightType::fp32 ? sizeof(float) : sizeof(std::uint16_t);
        const std::size_t next =
            ((first + p) * points + point + 1 + (point + 1 < points ? 0 : (count - 1) * points)) * matrix();
        gemm::fetch(t,
                    {static_cast<const char*>(args.weight) + next * size, count, points * matrix() * size,
                     gemm::panel_width * size},
                    index, tiles);
    }
};

// F(2×2) of the plain weights (as conv2d_direct takes them) for a group's panels and a range of depth.
template <class I>
struct PlainWeights {
    const Conv2dArgs& args;
    std::size_t first, panels;
    Range depth;
    float* transformed;  // [panel][point], plain_step(depth) floats each: [depth][16]

    static constexpr std::size_t taps = 9, points = 16;

    // In elements, of a panel's tap from channel `k` on.
    [[nodiscard]] std::size_t offset(std::size_t panel, std::size_t tap, std::size_t k) const {
        return ((panel * taps + tap) * args.shape.in + k) * gemm::panel_width;
    }
    [[nodiscard]] std::size_t matrix() const { return (depth.end - depth.begin) * gemm::panel_width; }
    [[nodiscard]] std::size_t step() const { return plain_step(depth.end - depth.begin); }

    template <WeightType Type>
    FASTDIFF_INLINE static Vec<float, I> load(const void* weight, std::size_t at) {
        using V = Vec<float, I>;
        if constexpr (Type == WeightType::fp32) return V::load(static_cast<const float*>(weight) + at);
        return V::load_half(static_cast<const std::uint16_t*>(weight) + at);
    }
    template <WeightType Type>
    void transform_as() const {
        using V = Vec<float, I>;
        const V half = V::broadcast(0.5f);
        // G g of three weights.
        const auto transform = [&](const V* g, V* t) {
            const V outer = half * (g[0] + g[2]), inner = half * g[1];
            t[0] = g[0];
            t[1] = outer + inner;
            t[2] = outer - inner;
            t[3] = g[2];
        };
        for (std::size_t p = 0; p < panels; ++p) {
            float* to = transformed + p * points * step();
            for (std::size_t j = 0; j < matrix(); j += V::width) {
                const std::size_t from = offset(first + p, 0, depth.begin) + j;
                V columns[3][4];
#pragma GCC unroll 3
                for (std::size_t x = 0; x < 3; ++x) {
                    V g[3];
#pragma GCC unroll 3
                    for (std::size_t y = 0; y < 3; ++y) {
                        g[y] =
                            load<Type>(args.weight, from + (3 * y + x) * args.shape.in * gemm::panel_width);
                    }
                    transform(g, columns[x]);
                }
#pragma GCC unroll 4
                for (std::size_t y = 0; y < 4; ++y) {
                    const V g[3] = {columns[0][y], columns[1][y], columns[2][y]};
                    V t[4];
                    transform(g, t);
#pragma GCC unroll 4
                    for (std::size_t x = 0; x < 4; ++x) t[x].store(to + (4 * y + x) * step() + j);
                }
            }
        }
    }
    void transform() const {
        if (args.type == WeightType::fp32) {
            transform_as<WeightType::fp32>();
        } else {
            transform_as<WeightType::fp16>();
        }
    }

    FASTDIFF_INLINE void set(gemm::Tile& t, std::size_t point, std::size_t p, std::size_t) const {
        t.b = transformed + (p * points + point) * step();
        t.panel = points * step();
    }
    // The plain weights of the next range of depth, after the last those of the next panels: one tap of one
    // panel each.
    FASTDIFF_INLINE void fetch(gemm::Tile& t, std::size_t point, std::size_t, std::size_t, std::size_t index,
                               std::size_t tiles) const {
        const std::size_t stream = point * tiles + index;
        t.next = t.b;
        t.next_step = 0;
        if (stream >= panels * taps) return;
        const bool last = depth.end == args.shape.in;
        const std::size_t at =
            offset(first + (last ? panels : 0) + stream / taps, stream % taps, last ? 0 : depth.end);
        const std::size_t size = args.type == WeightType::fp32 ? sizeof(float) : sizeof(std::uint16_t);
        t.next = reinterpret_cast<const float*>(static_cast<const char*>(args.weight) + at * size);
        t.next_step = gemm::panel_width * size / sizeof(float);
    }
};

}  // namespace fastdiff
