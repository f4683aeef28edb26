// Compiled once per instruction set; the contract is in kernels/token_match.h.
//
// The cosines are a product of matrices of which only the largest of each row is kept: destinations are
// normalised and packed in panels of two registers, sources taken as they are, in blocks of a few rows, and
// their own norm divides the result alone.
#include "kernels/token_match.h"

#include "cpu/dispatch.h"
#include "cpu/vec.h"

#if FASTDIFF_ISA_PORTABLE
#include <algorithm>
#include <numeric>
#endif

namespace fastdiff {
namespace {

constexpr std::size_t widest_panel = 32;  // of any instruction set
constexpr std::size_t block = 6;          // rows of sources in registers
constexpr std::size_t blocks = 4;         // of an item

std::size_t sources_of(const TokenMatchArgs& args) {
    return args.height * args.width - token_destinations(args.height, args.width);
}
std::size_t panels_bytes(const TokenMatchArgs& args) {
    const std::size_t found = token_destinations(args.height, args.width);
    const std::size_t padded = (found + widest_panel - 1) / widest_panel * widest_panel;
    return args.batch * padded * args.channels * sizeof(float);
}
std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// The scratch memory's parts.
struct Parts {
    float* panels;         // (batch, panels, channels, panel)
    float* scores;         // (batch, sources)
    float* matches;        // likewise, numbers of destinations
    std::uint32_t* order;  // likewise
};
Parts parts_of(const TokenMatchArgs& args) {
    auto* at = static_cast<std::byte*>(args.scratch);
    const std::size_t each = aligned(args.batch * sources_of(args) * sizeof(float));
    Parts parts{};
    parts.panels = reinterpret_cast<float*>(at);
    at += aligned(panels_bytes(args));
    parts.scores = reinterpret_cast<float*>(at);
    parts.matches = reinterpret_cast<float*>(at + each);
    parts.order = reinterpret_cast<std::uint32_t*>(at + 2 * each);
    return parts;
}

// The place in the picture of a source by its number: in even rows of whole squares only odd columns, and a
// last odd column, are sources; elsewhere every token.
std::size_t source_token(const TokenMatchArgs& args, std::size_t source) {
    const std::size_t squares = args.height / 2, width = args.width;
    const std::size_t sparse = width - width / 2, both = sparse + width;
    if (source >= squares * both) return 2 * squares * width + (source - squares * both);
    const std::size_t row = source / both, rest = source % both;
    if (rest >= sparse) return (2 * row + 1) * width + (rest - sparse);
    return 2 * row * width + (rest < width / 2 ? 2 * rest + 1 : width - 1);
}

template <class I>
float norm(const float* x, std::size_t channels) {
    using V = Vec<float, I>;
    V sum = V::zero();
    std::size_t c = 0;
    for (; c + V::width <= channels; c += V::width) {
        const V v = V::load(x + c);
        sum = fmadd(v, v, sum);
    }
    if (c < channels) {
        const V v = V::load(x + c, channels - c);
        sum = fmadd(v, v, sum);
    }
    float root[V::width];
    sqrt(V::broadcast(reduce_add(sum))).store(root);
    return root[0] > 1e-12f ? root[0] : 1e-12f;
}

template <class I>
struct Matching {
    using V = Vec<float, I>;
    static constexpr std::size_t panel = 2 * V::width;

    // Normalises and packs one panel of destinations.
    static void pack(void* context, std::size_t item, std::size_t) {
        const auto& args = *static_cast<const TokenMatchArgs*>(context);
        const std::size_t found = token_destinations(args.height, args.width);
        const std::size_t panels = (found + panel - 1) / panel;
        const std::size_t image = item / panels, first = item % panels * panel;
        float* to = parts_of(args).panels + item * args.channels * panel;
        for (std::size_t column = 0; column < panel; ++column) {
            const std::size_t d = first + column;
            if (d >= found) {
                for (std::size_t c = 0; c < args.channels; ++c) to[c * panel + column] = 0.0f;
                continue;
            }
            const std::size_t token = d / (args.width / 2) * 2 * args.width + d % (args.width / 2) * 2;
            const float* x = args.x + image * args.x_batch + token * args.x_stride;
            const float inverse = 1.0f / norm<I>(x, args.channels);
            for (std::size_t c = 0; c < args.channels; ++c) to[c * panel + column] = x[c] * inverse;
        }
    }

    // The matches of some sources of one picture.
    static void match(void* context, std::size_t item, std::size_t) {
        const auto& args = *static_cast<const TokenMatchArgs*>(context);
        const Parts parts = parts_of(args);
        const std::size_t sources = sources_of(args), found = token_destinations(args.height, args.width);
        const std::size_t panels = (found + panel - 1) / panel, some = block * blocks;
        const std::size_t items = (sources + some - 1) / some;
        const std::size_t image = item / items, first = item % items * some;
        const std::size_t count = sources - first < some ? sources - first : some;
        // a block that is not full repeats its last row
        const float* rows[block * blocks];
        for (std::size_t i = 0; i < some; ++i) {
            const std::size_t source = first + (i < count ? i : count - 1);
            rows[i] = args.x + image * args.x_batch + source_token(args, source) * args.x_stride;
        }
        constexpr float lowest = -3.4e38f;
        float best[block * blocks][panel], at[block * blocks][panel], lanes[panel], beyond[panel];
        for (std::size_t i = 0; i < some; ++i) {
            for (std::size_t lane = 0; lane < panel; ++lane) {
                best[i][lane] = lowest;
                at[i][lane] = 0.0f;
            }
        }
        for (std::size_t lane = 0; lane < panel; ++lane) {
            lanes[lane] = static_cast<float>(lane);
            beyond[lane] = (panels - 1) * panel + lane < found ? 0.0f : 2.0f * lowest;  // -infinity
        }
        const float* b = parts.panels + image * panels * args.channels * panel;
        for (std::size_t p = 0; p < panels; ++p, b += args.channels * panel) {
            for (std::size_t i = 0; i < count; i += block) {
                V sums[block][2];
                product(rows + i, b, args.channels, sums);
                for (std::size_t half = 0; half < 2; ++half) {
                    const V number =
                        V::load(lanes + half * V::width) + V::broadcast(static_cast<float>(p * panel));
                    const V masked = p + 1 == panels ? V::load(beyond + half * V::width) : V::zero();
                    for (std::size_t r = 0; r < block; ++r) {
                        float* const kept = best[i + r] + half * V::width;
                        float* const numbers = at[i + r] + half * V::width;
                        const V old = V::load(kept), sum = sums[r][half] + masked;
                        select_less(old, sum, number, V::load(numbers)).store(numbers);
                        select_less(old, sum, sum, old).store(kept);
                    }
                }
            }
        }
        for (std::size_t i = 0; i < count; ++i) {
            float score = best[i][0], match = at[i][0];
            for (std::size_t lane = 1; lane < panel; ++lane) {
                if (best[i][lane] > score || (best[i][lane] == score && at[i][lane] < match)) {
                    score = best[i][lane];
                    match = at[i][lane];
                }
            }
            parts.scores[image * sources + first + i] = score / norm<I>(rows[i], args.channels);
            parts.matches[image * sources + first + i] = match;
        }
    }

    FASTDIFF_INLINE static void product(const float* const* rows, const float* b, std::size_t channels,
                                        V (&sums)[block][2]) {
        for (auto& sum : sums) sum[0] = sum[1] = V::zero();
        for (std::size_t c = 0; c < channels; ++c, b += panel) {
            const V left = V::load(b), right = V::load(b + V::width);
            for (std::size_t r = 0; r < block; ++r) {
                const V a = V::broadcast(rows[r][c]);
                sums[r][0] = fmadd(a, left, sums[r][0]);
                sums[r][1] = fmadd(a, right, sums[r][1]);
            }
        }
    }

    static void choose(void* context, std::size_t image, std::size_t) {
        const auto& args = *static_cast<const TokenMatchArgs*>(context);
        const Parts parts = parts_of(args);
        token_match_choose(args, parts.scores, parts.matches, image, parts.order + image * sources_of(args));
    }
};

}  // namespace

template <class I>
void token_match(const TokenMatchArgs& args, const Parallel& parallel) {
    using M = Matching<I>;
    void* const context = const_cast<TokenMatchArgs*>(&args);
    const std::size_t found = token_destinations(args.height, args.width);
    const std::size_t some = block * blocks;
    parallel.run(parallel, args.batch * ((found + M::panel - 1) / M::panel), M::pack, context);
    parallel.run(parallel, args.batch * ((sources_of(args) + some - 1) / some), M::match, context);
    parallel.run(parallel, args.batch, M::choose, context);
}

template void token_match<isa::FASTDIFF_ISA>(const TokenMatchArgs& args, const Parallel& parallel);

#if FASTDIFF_ISA_PORTABLE
std::size_t token_match_scratch(const TokenMatchArgs& args) {
    return aligned(panels_bytes(args)) + 3 * aligned(args.batch * sources_of(args) * sizeof(float));
}

void token_match_choose(const TokenMatchArgs& args, const float* scores, const float* matches,
                        std::size_t image, std::uint32_t* order) {
    const std::size_t sources = sources_of(args), found = token_destinations(args.height, args.width);
    const float* score = scores + image * sources;
    const float* match = matches + image * sources;
    std::int64_t* plan = args.plan + image * args.height * args.width;
    for (std::size_t d = 0; d < found; ++d) {
        plan[d / (args.width / 2) * 2 * args.width + d % (args.width / 2) * 2] = static_cast<std::int64_t>(d);
    }
    // NaN counts as the lowest: an order all the same
    const auto value = [&](std::uint32_t s) { return score[s] == score[s] ? score[s] : -3.4e38f; };
    std::iota(order, order + sources, 0u);
    std::nth_element(order, order + args.merged, order + sources, [&](std::uint32_t a, std::uint32_t b) {
        const float left = value(a), right = value(b);
        return left > right || (left == right && a < b);
    });
    for (std::size_t s = 0; s < sources; ++s) plan[source_token(args, s)] = -1;
    for (std::size_t i = 0; i < args.merged; ++i) {
        plan[source_token(args, order[i])] = static_cast<std::int64_t>(match[order[i]]);
    }
    auto next = static_cast<std::int64_t>(found);
    for (std::size_t s = 0; s < sources; ++s) {
        std::int64_t& row = plan[source_token(args, s)];
        if (row < 0) row = next++;
    }
}
#endif

}  // namespace fastdiff
