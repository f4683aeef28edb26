// Flash attention for the head sizes of Stable Diffusion 1.5 on tensor cores (Dao et al. 2022; Dao 2023), as
// one warp's program over the few primitives of a Warp: attention.cu runs it with the GPU's instructions, the
// tests with emulated ones, 32 lanes in lockstep.
//
// A block takes `block_rows` queries of one head; each of its warps keeps 16 · RowTiles of them in registers.
// Keys come in groups of 32, in tiles of Groups groups that are copied while the tile before is used. What a
// warp does for a group: scores S = Q Kᵀ, P = 2^(scale · S - offset), result += P V.
//
// The offset of a row is its maximum when it was last looked at, less `headroom`. It is looked at only when a
// sum of P's goes beyond `limit`, before any of them leaves fp16's range: in most groups there is neither a
// maximum to find nor a result to rescale (Zadouri et al. 2026, FlashAttention-4, rescale by a threshold as
// well, but take every maximum). For that group the scores are computed once more.
#pragma once

#include "attention_layout.h"

namespace fastdiff::cuda {

// ---- What a warp holds ----

template <class Shape>
struct AttentionLane {
    uint32_t q[Shape::row_tiles][Shape::steps][4];
    uint32_t q_tail[Shape::row_tiles][2];
    float s[Shape::row_tiles][4][4];
    uint32_t p[Shape::row_tiles][2][4];
    float y[Shape::row_tiles][Shape::chunks][4];
    float group_sum[Shape::row_tiles][2], sum[Shape::row_tiles][2], offset[Shape::row_tiles][2];
    uint32_t right[4];
};

template <class Shape, class Warp>
struct Attention {
    using Lane = AttentionLane<Shape>;
    static constexpr int row_tiles = Shape::row_tiles, steps = Shape::steps, chunks = Shape::chunks;
    static constexpr float headroom = 8.0f;   // log₂ of the largest P of a group that was looked at
    static constexpr float limit = 32768.0f;  // of a lane's sum of 8 P's; fp16 ends at 65504

    const AttentionArgs& args;
    Warp& warp;
    typename Warp::template PerLane<Lane> lanes;
    const uint16_t *query, *key, *value;
    uint16_t* y;
    int first_row;

    FASTDIFF_DEVICE Attention(const AttentionArgs& a, Warp& w, int block, int head, int batch)
        : args(a),
          warp(w),
          query(a.query + batch * a.query_batch + head * Shape::size),
          key(a.key + batch * a.key_batch + head * Shape::size),
          value(a.value + batch * a.value_batch + head * Shape::size),
          y(a.y + batch * a.y_batch + head * Shape::size),
          first_row(block * Shape::block_rows + w.index() * Shape::warp_rows) {}

    // Rows beyond the last are copies of it: what comes of them is never stored.
    FASTDIFF_DEVICE void load_queries() {
        warp.each([&](int lane) {
            Lane& l = lanes[lane];
            FASTDIFF_UNROLL
            for (int i = 0; i < row_tiles; ++i) {
                FASTDIFF_UNROLL
                for (int r = 0; r < 4; ++r) {
                    const int row = first_row + 16 * i + left_row(lane, r);
                    const uint16_t* from =
                        query +
                        static_cast<int64_t>(row < args.queries ? row : args.queries - 1) * args.query_row +
                        left_column(lane, r);
                    FASTDIFF_UNROLL
                    for (int k = 0; k < steps; ++k) l.q[i][k][r] = Warp::load_pair(from + 16 * k);
                    if constexpr (Shape::tail != 0) {
                        if (r < 2) l.q_tail[i][r] = Warp::load_pair(from + 16 * steps);
                    }
                }
                FASTDIFF_UNROLL
                for (int c = 0; c < chunks; ++c) {
                    FASTDIFF_UNROLL
                    for (int e = 0; e < 4; ++e) l.y[i][c][e] = 0.0f;
                }
                FASTDIFF_UNROLL
                for (int h = 0; h < 2; ++h) {
                    l.sum[i][h] = 0.0f;
                    l.offset[i][h] = Warp::minus_infinity();
                }
            }
        });
    }

    // Starts the copies of a tile of keys and values; a thread copies one chunk of every copy_rows-th row.
    // Rows beyond the last are copies of it: their scores are hidden later, but a value that is not a number
    // would get through a weight of 0. Which chunk is a thread's is computed each time: registers are what
    // there is least of.
    FASTDIFF_DEVICE void copy_tile(int tile) {
        constexpr int step = Shape::copy_rows;
        const int first = tile * Shape::tile_keys, at = tile % 2 * 2 * Shape::tile_bytes;
        const bool whole = first + Shape::tile_keys <= args.keys;
        if (first < args.keys) {
            warp.each([&](int lane) {
                const int thread = Warp::anew(32 * warp.index() + lane);
                const int start = thread / chunks, chunk = thread % chunks;
                if (start >= step) return;
                if (whole) {
                    const uint16_t* k =
                        key + 8 * chunk + (first + start) * static_cast<int64_t>(args.key_row);
                    const uint16_t* v =
                        value + 8 * chunk + (first + start) * static_cast<int64_t>(args.value_row);
                    FASTDIFF_UNROLL
                    for (int pass = 0; pass * step < Shape::tile_keys; ++pass) {
                        if (start + pass * step >= Shape::tile_keys) break;
                        const int to = at + shared_offset<Shape>(start + pass * step, chunk);
                        warp.copy(lane, to, k + pass * (step * static_cast<int64_t>(args.key_row)));
                        warp.copy(lane, to + Shape::tile_bytes,
                                  v + pass * (step * static_cast<int64_t>(args.value_row)));
                    }
                } else {
                    FASTDIFF_NO_UNROLL
                    for (int row = start; row < Shape::tile_keys; row += step) {
                        const int64_t source = first + row < args.keys ? first + row : args.keys - 1;
                        const int to = at + shared_offset<Shape>(row, chunk);
                        warp.copy(lane, to, key + 8 * chunk + source * args.key_row);
                        warp.copy(lane, to + Shape::tile_bytes, value + 8 * chunk + source * args.value_row);
                    }
                }
            });
        }
        warp.commit();
    }

    // S = Q Kᵀ for the group of keys at byte `at`, of which the first is `first`.
    FASTDIFF_DEVICE void scores(int at, int first) {
        warp.each([&](int lane) {
            FASTDIFF_UNROLL
            for (int i = 0; i < row_tiles; ++i) {
                FASTDIFF_UNROLL
                for (int n = 0; n < 4; ++n) {
                    FASTDIFF_UNROLL
                    for (int e = 0; e < 4; ++e) lanes[lane].s[i][n][e] = 0.0f;
                }
            }
        });
        FASTDIFF_UNROLL
        for (int k = 0; k < steps; ++k) {
            FASTDIFF_UNROLL
            for (int half = 0; half < 2; ++half) {
                warp.template load<false>(
                    [&](int lane) {
                        return at + 16 * half * Shape::row_bytes +
                               shared_offset<Shape>(key_row(lane), 2 * k + key_chunk(lane));
                    },
                    [&](int lane) { return lanes[lane].right; });
                FASTDIFF_UNROLL
                for (int i = 0; i < row_tiles; ++i) {
                    FASTDIFF_UNROLL
                    for (int m = 0; m < 2; ++m) {
                        warp.template multiply<16>([&](int lane) {
                            Lane& l = lanes[lane];
                            return typename Warp::Operands{l.s[i][2 * half + m], l.q[i][k], l.right + 2 * m};
                        });
                    }
                }
            }
        }
        if constexpr (Shape::tail != 0) {
            warp.template load<false>([&](int lane) { return at + shared_offset<Shape>(lane, chunks - 1); },
                                      [&](int lane) { return lanes[lane].right; });
            FASTDIFF_UNROLL
            for (int i = 0; i < row_tiles; ++i) {
                FASTDIFF_UNROLL
                for (int n = 0; n < 4; ++n) {
                    warp.template multiply<8>([&](int lane) {
                        Lane& l = lanes[lane];
                        return typename Warp::Operands{l.s[i][n], l.q_tail[i], l.right + n};
                    });
                }
            }
        }
        if (first + Shape::group_keys > args.keys) hide(args.keys - first);
    }

    // Scores of keys from `count` on become -∞, their weights 0.
    FASTDIFF_DEVICE void hide(int count) {
        warp.each([&](int lane) {
            FASTDIFF_UNROLL
            for (int n = 0; n < 4; ++n) {
                FASTDIFF_UNROLL
                for (int e = 0; e < 4; ++e) {
                    if (8 * n + mma_column(lane, e) < count) continue;
                    FASTDIFF_UNROLL
                    for (int i = 0; i < row_tiles; ++i) lanes[lane].s[i][n][e] = Warp::minus_infinity();
                }
            }
        });
    }

    // P and its sums from S. In a left operand, registers 0 and 2 are the upper rows, 1 and 3 the lower.
    FASTDIFF_DEVICE void weights() {
        warp.each([&](int lane) {
            Lane& l = lanes[lane];
            FASTDIFF_UNROLL
            for (int i = 0; i < row_tiles; ++i) {
                FASTDIFF_UNROLL
                for (int n = 0; n < 4; ++n) {
                    FASTDIFF_UNROLL
                    for (int h = 0; h < 2; ++h) {
                        const float a = Warp::exp2(Warp::fma(l.s[i][n][2 * h], args.scale, -l.offset[i][h]));
                        const float b =
                            Warp::exp2(Warp::fma(l.s[i][n][2 * h + 1], args.scale, -l.offset[i][h]));
                        l.group_sum[i][h] = (n == 0 ? a : l.group_sum[i][h] + a) + b;
                        l.p[i][n / 2][n % 2 * 2 + h] = Warp::pack(a, b);
                    }
                }
            }
        });
    }

    // The offsets are made anew for the group whose scores are in S, and what was summed up is rescaled.
    FASTDIFF_DEVICE void raise_offsets() {
        FASTDIFF_UNROLL
        for (int i = 0; i < row_tiles; ++i) {
            FASTDIFF_UNROLL
            for (int h = 0; h < 2; ++h) {
                warp.each([&](int lane) {
                    Lane& l = lanes[lane];
                    float largest = l.s[i][0][2 * h];
                    FASTDIFF_UNROLL
                    for (int n = 0; n < 4; ++n) {
                        largest = Warp::max(largest, Warp::max(l.s[i][n][2 * h], l.s[i][n][2 * h + 1]));
                    }
                    l.group_sum[i][h] = largest;
                });
                warp.quad_max([&](int lane) -> float& { return lanes[lane].group_sum[i][h]; });
                warp.each([&](int lane) {
                    Lane& l = lanes[lane];
                    const float offset = Warp::max(l.offset[i][h], l.group_sum[i][h] * args.scale - headroom);
                    const float factor = Warp::exp2(l.offset[i][h] - offset);
                    l.offset[i][h] = offset;
                    l.sum[i][h] *= factor;
                    FASTDIFF_UNROLL
                    for (int c = 0; c < chunks; ++c) {
                        l.y[i][c][2 * h] *= factor;
                        l.y[i][c][2 * h + 1] *= factor;
                    }
                });
            }
        }
    }

    FASTDIFF_DEVICE void add_sums() {
        warp.each([&](int lane) {
            FASTDIFF_UNROLL
            for (int i = 0; i < row_tiles; ++i) {
                FASTDIFF_UNROLL
                for (int h = 0; h < 2; ++h) lanes[lane].sum[i][h] += lanes[lane].group_sum[i][h];
            }
        });
    }

    FASTDIFF_DEVICE bool overflows() {
        return warp.any([&](int lane) {
            const Lane& l = lanes[lane];
            float largest = Warp::max(l.group_sum[0][0], l.group_sum[0][1]);
            FASTDIFF_UNROLL
            for (int i = 1; i < row_tiles; ++i) {
                largest = Warp::max(largest, Warp::max(l.group_sum[i][0], l.group_sum[i][1]));
            }
            return largest > limit;
        });
    }

    // y += P V with the group of values at byte `at`.
    FASTDIFF_DEVICE void accumulate(int at) {
        FASTDIFF_UNROLL
        for (int c = 0; c < chunks; ++c) {
            warp.template load<true>([&](int lane) { return at + shared_offset<Shape>(lane, c); },
                                     [&](int lane) { return lanes[lane].right; });
            FASTDIFF_UNROLL
            for (int i = 0; i < row_tiles; ++i) {
                FASTDIFF_UNROLL
                for (int half = 0; half < 2; ++half) {
                    warp.template multiply<16>([&](int lane) {
                        Lane& l = lanes[lane];
                        return typename Warp::Operands{l.y[i][c], l.p[i][half], l.right + 2 * half};
                    });
                }
            }
        }
    }

    // Places are computed here anew: kept from load_queries on, they would cost registers all the way.
    FASTDIFF_DEVICE void store() {
        FASTDIFF_UNROLL
        for (int i = 0; i < row_tiles; ++i) {
            FASTDIFF_UNROLL
            for (int h = 0; h < 2; ++h) {
                warp.quad_sum([&](int lane) -> float& { return lanes[lane].sum[i][h]; });
                warp.each([&](int lane) {
                    const Lane& l = lanes[lane];
                    const int row = Warp::anew(first_row + mma_row(lane, 0)) + 16 * i + 8 * h;
                    if (row >= args.queries) return;
                    const float factor = Warp::reciprocal(l.sum[i][h]);
                    uint16_t* to =
                        y + row * static_cast<int64_t>(args.y_row) + Warp::anew(mma_column(lane, 0));
                    FASTDIFF_UNROLL
                    for (int c = 0; c < chunks; ++c) {
                        Warp::store_pair(
                            to + 8 * c, Warp::pack(l.y[i][c][2 * h] * factor, l.y[i][c][2 * h + 1] * factor));
                    }
                });
            }
        }
    }

    FASTDIFF_DEVICE void run() {
        copy_tile(0);
        load_queries();
        const int tiles = (args.keys + Shape::tile_keys - 1) / Shape::tile_keys;
        FASTDIFF_NO_UNROLL
        for (int tile = 0; tile < tiles; ++tile) {
            warp.template wait<0>();  // for this thread's copies; then for everyone's, and for the last
                                      // tile's use
            warp.sync();
            copy_tile(tile + 1);
            FASTDIFF_NO_UNROLL
            for (int part = 0; part < Shape::groups; ++part) {
                const int first = tile * Shape::tile_keys + part * Shape::group_keys;
                if (first >= args.keys) break;
                const int at = tile % 2 * 2 * Shape::tile_bytes + part * Shape::group_bytes;
                scores(at, first);
                if (first == 0) raise_offsets();
                weights();
                if (overflows()) {
                    scores(at, first);
                    raise_offsets();
                    weights();
                }
                add_sums();
                accumulate(at + Shape::tile_bytes);
            }
        }
        store();
    }
};

}  // namespace fastdiff::cuda
