// The inner loop that linear and conv2d share: C = A · B for a few rows of A and panels of 16 columns of B.
// Included by the files that are compiled per instruction set only.
//
//   A   rows with a constant stride, read where they lie: nothing is packed. A row is `taps` pieces of
//   `depth`
//       floats, piece t beginning at tap[t] floats from the row's start (a convolution's kernel positions).
//   B   panels of 16 columns, [taps · depth][16], `panel` floats apart.
//   C   [rows][16 · panels], with `ldc` floats between rows: start + bias + A · B. `start` is another matrix
//   of
//       that size with `start_stride` floats between rows (C itself where a block of depth goes on with
//       another's sums), `bias` a row; null stands for zeros.
//
// While a tile runs it fetches `next`, what a later one needs, into the second-level cache: one line each
// step of the loop, `next_step` floats after the one before. Weights are read but a few times and come from
// memory, in pieces (panels, pages) that the processor's own prefetching does not look beyond.
//
// All of C stays in registers while the loop runs over depth. Sums are taken in the order of depth whatever
// the number of rows and panels, so that results do not depend on how work is split.
#pragma once

#include "cpu/vec.h"

namespace fastdiff::gemm {

inline constexpr std::size_t panel_width = 16;

struct Tile {
    const float* a;
    std::size_t lda;
    const std::ptrdiff_t* tap;
    std::size_t taps;
    std::size_t depth;
    const float* b;
    std::size_t panel;
    float* c;
    std::size_t ldc;
    const float* start;
    std::size_t start_stride;
    const float* bias;
    const float* next;
    std::size_t next_step;
};

// Weights that come after those of a tile, `depth` rows of `panels` panels: `panel` bytes apart, `row` bytes
// each.
struct Ahead {
    const void* from;
    std::size_t panels, panel, row;
};
// Sets what tile `index` of `tiles` that share B fetches: together they fetch all of it, each a part of a
// panel.
FASTDIFF_INLINE void fetch(Tile& t, const Ahead& ahead, std::size_t index, std::size_t tiles) {
    const std::size_t sharing = tiles / ahead.panels > 0 ? tiles / ahead.panels : 1;  // tiles per panel
    const std::size_t panel = index / sharing;
    t.next = t.b;
    t.next_step = 0;
    if (panel >= ahead.panels) return;
    t.next_step = (ahead.row / sizeof(float) + sharing - 1) / sharing;
    t.next = reinterpret_cast<const float*>(static_cast<const char*>(ahead.from) + panel * ahead.panel) +
             index % sharing * t.next_step * t.taps * t.depth;
}

// Rows per tile for a number of panels: accumulators, panels and one broadcast value fill the registers.
template <class I>
struct Registers;
template <>
struct Registers<isa::Avx512> {
    static constexpr int rows1 = 14, rows2 = 14, rows4 = 6;
};
template <>
struct Registers<isa::Avx2> {
    static constexpr int rows1 = 6, rows2 = 0, rows4 = 0;
};
template <>
struct Registers<isa::Portable> {
#if defined(__aarch64__)
    static constexpr int rows1 = 6, rows2 = 0, rows4 = 0;
#else
    static constexpr int rows1 = 2, rows2 = 0, rows4 = 0;
#endif
};

template <class I>
constexpr int max_rows(int panels) {
    using R = Registers<I>;
    return panels == 1 ? R::rows1 : panels == 2 ? R::rows2 : panels == 4 ? R::rows4 : 0;
}

// Most panels that a tile takes at once.
template <class I>
inline constexpr int max_panels = max_rows<I>(2) > 0 ? 2 : 1;

template <class I, int Rows, int Panels>
void tile(const Tile& t) {
    using V = Vec<float, I>;
    constexpr int per_panel = static_cast<int>(panel_width / V::width);
    constexpr int columns = Panels * per_panel;
    V acc[Rows][columns];
    if (t.start != nullptr) {
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
            for (int j = 0; j < columns; ++j)
                acc[r][j] = V::load(t.start + r * t.start_stride + j * V::width);
        }
    } else {
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
            for (int j = 0; j < columns; ++j) acc[r][j] = V::zero();
        }
    }
    if (t.bias != nullptr) {
#pragma GCC unroll 16
        for (int j = 0; j < columns; ++j) {
            const V bias = V::load(t.bias + j * V::width);
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) acc[r][j] = acc[r][j] + bias;
        }
    }
    const std::size_t lda = t.lda;
    const std::size_t panel = t.panel;
    const float* b = t.b;
    const float* next = t.next;
    for (std::size_t step = 0; step < t.taps; ++step) {
        // Five rows each are reached from one pointer with the strides 1, 2, 3 and 4 times lda.
        const float* a0 = t.a + t.tap[step];
        const float* a5 = a0 + 5 * lda;
        const float* a10 = a0 + 10 * lda;
        for (std::size_t k = 0; k < t.depth; ++k) {
            V column[columns];
#pragma GCC unroll 16
            for (int j = 0; j < columns; ++j) {
                column[j] = V::load(b + (j / per_panel) * panel + (j % per_panel) * V::width);
            }
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) {
                const float* base = r < 5 ? a0 : r < 10 ? a5 : a10;
                const V x = V::broadcast(base[(r % 5) * lda]);
#pragma GCC unroll 16
                for (int j = 0; j < columns; ++j) acc[r][j] = fmadd(x, column[j], acc[r][j]);
            }
            __builtin_prefetch(next, 0, 2);
            next += t.next_step;
            b += panel_width;
            ++a0;
            ++a5;
            ++a10;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
        for (int j = 0; j < columns; ++j) acc[r][j].store(t.c + r * t.ldc + j * V::width);
    }
}

using TileFunction = void (*)(const Tile&);

template <class I, int Panels, int... R>
struct TileTable {
    static constexpr TileFunction functions[] = {tile<I, R, Panels>...};
};
template <class I, int Panels, int N, int... R>
struct MakeTileTable : MakeTileTable<I, Panels, N - 1, N, R...> {};
template <class I, int Panels, int... R>
struct MakeTileTable<I, Panels, 0, R...> : TileTable<I, Panels, R...> {};

// `rows` <= max_rows<I>(panels).
template <class I>
FASTDIFF_INLINE TileFunction tile_function(int rows, int panels) {
    if constexpr (max_rows<I>(4) > 0) {
        if (panels == 4) return MakeTileTable<I, 4, max_rows<I>(4)>::functions[rows - 1];
    }
    if constexpr (max_rows<I>(2) > 0) {
        if (panels == 2) return MakeTileTable<I, 2, max_rows<I>(2)>::functions[rows - 1];
    }
    return MakeTileTable<I, 1, max_rows<I>(1)>::functions[rows - 1];
}

}  // namespace fastdiff::gemm
