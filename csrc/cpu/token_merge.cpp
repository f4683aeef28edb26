// Compiled once per instruction set; the contract is in kernels/token_merge.h.
#include "kernels/token_merge.h"

#include "cpu/dispatch.h"
#include "cpu/vec.h"

namespace fastdiff {
namespace {

constexpr std::size_t slab = 64;  // channels of an item

std::size_t slabs_of(const TokenMergeArgs& args) { return (args.channels + slab - 1) / slab; }

// One over the number of tokens of each row of a picture.
void count(void* context, std::size_t image, std::size_t) {
    const auto& args = *static_cast<const TokenMergeArgs*>(context);
    float* shares = static_cast<float*>(args.scratch) + image * args.rows;
    const std::int64_t* plan = args.plan + image * args.tokens;
    for (std::size_t m = 0; m < args.rows; ++m) shares[m] = 0.0f;
    for (std::size_t i = 0; i < args.tokens; ++i) shares[plan[i]] += 1.0f;
    for (std::size_t m = 0; m < args.rows; ++m) shares[m] = shares[m] > 1.0f ? 1.0f / shares[m] : 1.0f;
}

template <class I>
void add(void* context, std::size_t item, std::size_t) {
    using V = Vec<float, I>;
    const auto& args = *static_cast<const TokenMergeArgs*>(context);
    const std::size_t image = item / slabs_of(args), first = item % slabs_of(args) * slab;
    const std::size_t channels = args.channels - first < slab ? args.channels - first : slab;
    const float* shares = static_cast<const float*>(args.scratch) + image * args.rows;
    const std::int64_t* plan = args.plan + image * args.tokens;
    const float* x = args.x + image * args.x_batch + first;
    float* const y = args.y + image * args.y_batch + first;
    for (std::size_t m = 0; m < args.rows; ++m) {
        float* row = y + m * args.y_stride;
        std::size_t c = 0;
        for (; c + V::width <= channels; c += V::width) V::zero().store(row + c);
        if (c < channels) V::zero().store(row + c, channels - c);
    }
    for (std::size_t i = 0; i < args.tokens; ++i, x += args.x_stride) {
        float* row = y + static_cast<std::size_t>(plan[i]) * args.y_stride;
        std::size_t c = 0;
        for (; c + V::width <= channels; c += V::width) (V::load(row + c) + V::load(x + c)).store(row + c);
        if (c < channels) {
            const std::size_t rest = channels - c;
            (V::load(row + c, rest) + V::load(x + c, rest)).store(row + c, rest);
        }
    }
    for (std::size_t m = 0; m < args.rows; ++m) {
        if (shares[m] == 1.0f) continue;
        const V share = V::broadcast(shares[m]);
        float* row = y + m * args.y_stride;
        std::size_t c = 0;
        for (; c + V::width <= channels; c += V::width) (V::load(row + c) * share).store(row + c);
        if (c < channels) (V::load(row + c, channels - c) * share).store(row + c, channels - c);
    }
}

}  // namespace

template <class I>
void token_merge(const TokenMergeArgs& args, const Parallel& parallel) {
    void* const context = const_cast<TokenMergeArgs*>(&args);
    parallel.run(parallel, args.batch, count, context);
    parallel.run(parallel, args.batch * slabs_of(args), add<I>, context);
}

template void token_merge<isa::FASTDIFF_ISA>(const TokenMergeArgs& args, const Parallel& parallel);

#if FASTDIFF_ISA_PORTABLE
std::size_t token_merge_scratch(const TokenMergeArgs& args) { return args.batch * args.rows * sizeof(float); }

std::size_t token_plan_invalid(const std::int64_t* plan, std::size_t count, std::size_t rows) {
    for (std::size_t i = 0; i < count; ++i) {
        if (plan[i] < 0 || static_cast<std::uint64_t>(plan[i]) >= rows) return i;
    }
    return count;
}
#endif

}  // namespace fastdiff
