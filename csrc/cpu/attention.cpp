// Compiled once per instruction set; the contract is in kernels/attention.h.
//
// The lanes of a register are queries: the scores are computed transposed, Sᵀ = K Qᵀ, and so is the result,
// Oᵀ += Vᵀ Pᵀ. Maxima and sums over keys are then sums of registers, and the numbers that the two GEMMs
// broadcast are those of K and V, in the order they have in memory. Q is transposed once per block of
// queries, O once at its end.
//
//   item         (batch, head, block of queries): Qᵀ, Oᵀ, maxima and sums of the whole block in scratch
//   block_keys   the keys of one round: K and V are copied to scratch, so that their strides cannot collide
//   in
//                the caches and an odd head size is filled up with zeros
//   panel        1 to 3 registers of queries
#include "kernels/attention.h"

#include "cpu/dispatch.h"
#include "cpu/vec.h"

namespace fastdiff {
namespace {

constexpr std::size_t block_keys = 96;
// Rows of V and K are filled up to a multiple of this, the most that a micro-kernel of any instruction set
// takes at once.
constexpr std::size_t granule = 8;
constexpr std::size_t max_panel = 48;
constexpr float log2e = 1.44269504088896341f;

constexpr std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

// What is the same for all items. Sizes do not depend on the instruction set, so that scratch does not.
struct Plan {
    std::size_t block_queries;  // a multiple of 16
    std::size_t blocks;
    std::size_t value_padded;
    // Floats from the beginning of a thread's part of the scratch, each a multiple of 16.
    std::size_t q, o, max, sum, s, k, v, floats;
};

Plan make_plan(const AttentionArgs& args) {
    Plan plan{};
    // Qᵀ and Oᵀ of the block and K and V of a round are to stay in a second-level cache of 1 MB.
    const std::size_t target = args.size + args.value_size > 512 ? 96 : 240;
    plan.blocks = (args.queries + target - 1) / target;
    plan.block_queries = round_up((args.queries + plan.blocks - 1) / (plan.blocks > 0 ? plan.blocks : 1), 16);
    // Rounding up may leave the last blocks without queries.
    plan.blocks = (args.queries + plan.block_queries - 1) / (plan.block_queries > 0 ? plan.block_queries : 1);
    plan.value_padded = round_up(args.value_size, granule);
    plan.o = plan.q + plan.block_queries * args.size;
    plan.max = plan.o + plan.block_queries * plan.value_padded;
    plan.sum = plan.max + plan.block_queries;
    plan.s = plan.sum + plan.block_queries;
    plan.k = plan.s + block_keys * max_panel;
    plan.v = plan.k + round_up(block_keys * args.size, 16);
    plan.floats = plan.v + round_up(block_keys * plan.value_padded, 16);
    return plan;
}

// -inf in the lanes of queries that do not see a key: starting at lane 16 - n, the first n.
constexpr float hidden = -__builtin_huge_valf();
constexpr float staircase[32] = {hidden, hidden, hidden, hidden, hidden, hidden, hidden, hidden,
                                 hidden, hidden, hidden, hidden, hidden, hidden, hidden, hidden};

template <class I>
struct Attention {
    using V = Vec<float, I>;
    static constexpr std::size_t width = V::width;
    // Rows of K, or columns of V, that a micro-kernel broadcasts: rows × 3 accumulators, 3 registers of the
    // other operand and one more leave no register unused.
    static constexpr int rows = width == 16 ? 8 : 4;

    const AttentionArgs& args;
    Plan plan;

    // Copies `count` rows of `size` floats; those up to `padded` and rows up to a multiple of the granule
    // become zeros.
    static void copy(const float* from, std::size_t stride, std::size_t count, std::size_t size,
                     std::size_t padded, float* to) {
        for (std::size_t r = 0; r < count; ++r, from += stride, to += padded) {
            std::size_t c = 0;
            for (; c + width <= size; c += width) V::load(from + c).store(to + c);
            if (c < size) V::load(from + c, size - c).store(to + c, size - c);
            for (c = size; c < padded; ++c) to[c] = 0.0f;
        }
        const std::size_t missing = round_up(count, granule) - count;
        for (std::size_t i = 0; i < missing * padded; ++i) to[i] = 0.0f;
    }

    // `count` queries to a panel (size, lanes), times scale; lanes without a query are zero.
    void load_queries(const float* from, std::size_t count, std::size_t lanes, float* panel) const {
        const V scale = V::broadcast(args.scale * log2e);
        for (std::size_t lane = 0; lane < lanes; lane += width) {
            for (std::size_t c = 0; c < args.size; c += width) {
                const std::size_t channels = args.size - c < width ? args.size - c : width;
                V tile[width];
                for (std::size_t i = 0; i < width; ++i) {
                    const float* row = from + (lane + i) * args.query_stride + c;
                    if (lane + i >= count) {
                        tile[i] = V::zero();
                    } else {
                        tile[i] = scale * (channels < width ? V::load(row, channels) : V::load(row));
                    }
                }
                transpose(tile);
                for (std::size_t i = 0; i < channels; ++i) tile[i].store(panel + (c + i) * lanes + lane);
            }
        }
    }

    // The panel's Oᵀ divided by the sums, to `count` rows of y.
    void store_result(const float* panel, const float* sum, std::size_t lanes, std::size_t count,
                      float* y) const {
        for (std::size_t lane = 0; lane < lanes; lane += width) {
            const V divisor = V::load(sum + lane);
            const std::size_t queries = count < lane ? 0 : (count - lane < width ? count - lane : width);
            for (std::size_t c = 0; c < args.value_size; c += width) {
                const std::size_t channels = args.value_size - c < width ? args.value_size - c : width;
                V tile[width];
                for (std::size_t i = 0; i < width; ++i) {
                    tile[i] = i < channels ? V::load(panel + (c + i) * lanes + lane) / divisor : V::zero();
                }
                transpose(tile);
                for (std::size_t i = 0; i < queries; ++i) {
                    float* row = y + (lane + i) * args.y_stride + c;
                    if (channels < width) {
                        tile[i].store(row, channels);
                    } else {
                        tile[i].store(row);
                    }
                }
            }
        }
    }

    // Sᵀ of `rows` keys: (rows, lanes) = K (rows, size) · Qᵀ (size, lanes); `max` gathers the maxima over
    // keys. A masked tile begins `offset` keys after the panel's first query.
    template <int N, bool Masked>
    FASTDIFF_INLINE void scores(const float* k, const float* q, float* s, int valid, V (&max)[N],
                                std::ptrdiff_t offset) const {
        V acc[rows][N];
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 3
            for (int n = 0; n < N; ++n) acc[r][n] = V::zero();
        }
        const std::size_t size = args.size;
        for (std::size_t c = 0; c < size; ++c, q += N * width) {
            V right[N];
#pragma GCC unroll 3
            for (int n = 0; n < N; ++n) right[n] = V::load(q + n * width);
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) {
                const V left = V::broadcast(k[r * size + c]);
#pragma GCC unroll 3
                for (int n = 0; n < N; ++n) acc[r][n] = fmadd(left, right[n], acc[r][n]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            if (r >= valid) break;
#pragma GCC unroll 3
            for (int n = 0; n < N; ++n) {
                if constexpr (Masked) {
                    std::ptrdiff_t later = offset + r - n * static_cast<std::ptrdiff_t>(width);
                    later = later < 0 ? 0 : (later > 16 ? 16 : later);
                    acc[r][n] = acc[r][n] + V::load(staircase + 16 - later);
                }
                max[n] = fastdiff::max(acc[r][n], max[n]);
                acc[r][n].store(s + (r * N + n) * width);
            }
        }
    }

    // Oᵀ of `rows` columns of V: o (rows, lanes) = correction · o + Vᵀ · Pᵀ (keys, lanes). The round's sum is
    // taken by itself: thousands of keys added to one number would lose a digit.
    template <int N>
    FASTDIFF_INLINE void accumulate(const float* v, const float* p, std::size_t keys,
                                    const V (&correction)[N], float* o) const {
        V acc[rows][N];
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 3
            for (int n = 0; n < N; ++n) acc[r][n] = V::zero();
        }
        for (std::size_t j = 0; j < keys; ++j, p += N * width, v += plan.value_padded) {
            V right[N];
#pragma GCC unroll 3
            for (int n = 0; n < N; ++n) right[n] = V::load(p + n * width);
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) {
                const V left = V::broadcast(v[r]);
#pragma GCC unroll 3
                for (int n = 0; n < N; ++n) acc[r][n] = fmadd(left, right[n], acc[r][n]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 3
            for (int n = 0; n < N; ++n) {
                float* to = o + (r * N + n) * width;
                fmadd(correction[n], V::load(to), acc[r][n]).store(to);
            }
        }
    }

    // One panel of N registers of queries, of which the first is `query`, with one round of `keys` keys, of
    // which the first is `key`.
    template <int N>
    void round(float* scratch, std::size_t lane, std::size_t query, std::size_t key, std::size_t keys) const {
        if (args.causal && key + keys > query + N * width) {
            if (key >= query + N * width) return;
            keys = query + N * width - key;
        }
        const float* q = scratch + plan.q + lane * args.size;
        float* s = scratch + plan.s;
        V old[N], max[N];
        for (int n = 0; n < N; ++n) max[n] = old[n] = V::load(scratch + plan.max + lane + n * width);
        for (std::size_t j = 0; j < keys; j += rows) {
            const float* k = scratch + plan.k + j * args.size;
            const int valid = keys - j < rows ? static_cast<int>(keys - j) : rows;
            const std::ptrdiff_t offset = static_cast<std::ptrdiff_t>(key + j - query);
            if (args.causal && offset + valid > 1) {
                scores<N, true>(k, q, s + j * N * width, valid, max, offset);
            } else {
                scores<N, false>(k, q, s + j * N * width, valid, max, 0);
            }
        }

        // P = 2^(S - max). The bound keeps exp2 in its range; what it adds is under 2^-125 of the sum.
        const V bound = V::broadcast(-125.0f);
        V sum[N], correction[N];
        for (int n = 0; n < N; ++n) sum[n] = V::zero();
        for (std::size_t j = 0; j < keys; ++j) {
            float* row = s + j * N * width;
#pragma GCC unroll 3
            for (int n = 0; n < N; ++n) {
                const V p = exp2(fastdiff::max(bound, V::load(row + n * width) - max[n]));
                sum[n] = sum[n] + p;
                p.store(row + n * width);
            }
        }
        for (int n = 0; n < N; ++n) {
            float* total = scratch + plan.sum + lane + n * width;
            correction[n] = exp2(fastdiff::max(bound, old[n] - max[n]));
            fmadd(correction[n], V::load(total), sum[n]).store(total);
            max[n].store(scratch + plan.max + lane + n * width);
        }

        float* o = scratch + plan.o + lane * plan.value_padded;
        for (std::size_t c = 0; c < plan.value_padded; c += rows) {
            accumulate<N>(scratch + plan.v + c, s, keys, correction, o + c * N * width);
        }
    }

    // Calls f(first lane, registers) for the panels of a block: threes, and twos where a one would be left.
    template <class F>
    FASTDIFF_INLINE static void for_panels(std::size_t lanes, F&& f) {
        for (std::size_t lane = 0; lane < lanes;) {
            const std::size_t left = (lanes - lane) / width;
            const std::size_t n = left == 4 || left == 2 ? 2 : (left < 3 ? left : 3);
            f(lane, n);
            lane += n * width;
        }
    }

    void run(std::size_t item, std::size_t thread) const {
        const std::size_t block = item % plan.blocks, head = item / plan.blocks % args.heads,
                          batch = item / plan.blocks / args.heads;
        const std::size_t first = block * plan.block_queries;
        const std::size_t count =
            args.queries - first < plan.block_queries ? args.queries - first : plan.block_queries;
        const std::size_t lanes = round_up(count, width);
        float* scratch = static_cast<float*>(args.scratch) + thread * plan.floats;
        const float* query =
            args.query + batch * args.query_batch + first * args.query_stride + head * args.size;
        const float* key = args.key + batch * args.key_batch + head * args.size;
        const float* value = args.value + batch * args.value_batch + head * args.value_size;
        float* y = args.y + batch * args.y_batch + first * args.y_stride + head * args.value_size;

        for (std::size_t i = 0; i < lanes; ++i) {
            scratch[plan.max + i] = hidden;
            // Without keys the result is zero, not 0 / 0.
            scratch[plan.sum + i] = args.keys > 0 ? 0.0f : 1.0f;
        }
        for (std::size_t i = 0; i < lanes * plan.value_padded; ++i) scratch[plan.o + i] = 0.0f;
        for_panels(lanes, [&](std::size_t lane, std::size_t n) {
            const std::size_t rest = count - lane < n * width ? count - lane : n * width;
            load_queries(query + lane * args.query_stride, rest, n * width,
                         scratch + plan.q + lane * args.size);
        });

        const std::size_t seen = args.causal && first + count < args.keys ? first + count : args.keys;
        for (std::size_t j = 0; j < seen; j += block_keys) {
            const std::size_t keys = seen - j < block_keys ? seen - j : block_keys;
            copy(key + j * args.key_stride, args.key_stride, keys, args.size, args.size, scratch + plan.k);
            copy(value + j * args.value_stride, args.value_stride, keys, args.value_size, plan.value_padded,
                 scratch + plan.v);
            for_panels(lanes, [&](std::size_t lane, std::size_t n) {
                if (n == 3) {
                    round<3>(scratch, lane, first + lane, j, keys);
                } else if (n == 2) {
                    round<2>(scratch, lane, first + lane, j, keys);
                } else {
                    round<1>(scratch, lane, first + lane, j, keys);
                }
            });
        }
        for_panels(lanes, [&](std::size_t lane, std::size_t n) {
            store_result(scratch + plan.o + lane * plan.value_padded, scratch + plan.sum + lane, n * width,
                         count - lane, y + lane * args.y_stride);
        });
    }
};

}  // namespace

template <class I>
void attention(const AttentionArgs& args, const Parallel& parallel) {
    Attention<I> context{args, make_plan(args)};
    parallel.run(
        parallel, args.batch * args.heads * context.plan.blocks,
        [](void* self, std::size_t item, std::size_t thread) {
            static_cast<const Attention<I>*>(self)->run(item, thread);
        },
        &context);
}

template void attention<isa::FASTDIFF_ISA>(const AttentionArgs& args, const Parallel& parallel);

#if FASTDIFF_ISA_PORTABLE
std::size_t attention_scratch(const AttentionArgs& args, std::size_t threads) {
    return make_plan(args).floats * sizeof(float) * threads;
}
#endif

}  // namespace fastdiff
