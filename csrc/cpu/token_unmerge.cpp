// Compiled once per instruction set; the contract is in kernels/token_unmerge.h.
#include "kernels/token_unmerge.h"

#include "cpu/dispatch.h"
#include "cpu/vec.h"

namespace fastdiff {
namespace {

// Tokens of one item: some ten microseconds of work.
std::size_t tokens_per_item(const TokenUnmergeArgs& args) { return 16384 / (args.channels + 1) + 1; }

std::size_t items_per_picture(const TokenUnmergeArgs& args) {
    return (args.tokens + tokens_per_item(args) - 1) / tokens_per_item(args);
}

template <class I>
void copy(void* context, std::size_t item, std::size_t) {
    using V = Vec<float, I>;
    const auto& args = *static_cast<const TokenUnmergeArgs*>(context);
    const std::size_t items = items_per_picture(args), some = tokens_per_item(args);
    const std::size_t image = item / items, first = item % items * some, channels = args.channels;
    const std::size_t last = args.tokens - first < some ? args.tokens : first + some;
    const std::int64_t* plan = args.plan + image * args.tokens;
    for (std::size_t i = first; i < last; ++i) {
        const float* x = args.x + image * args.x_batch + static_cast<std::size_t>(plan[i]) * args.x_stride;
        float* y = args.y + image * args.y_batch + i * args.y_stride;
        std::size_t c = 0;
        for (; c + V::width <= channels; c += V::width) V::load(x + c).store(y + c);
        if (c < channels) V::load(x + c, channels - c).store(y + c, channels - c);
    }
}

}  // namespace

template <class I>
void token_unmerge(const TokenUnmergeArgs& args, const Parallel& parallel) {
    parallel.run(parallel, args.batch * items_per_picture(args), copy<I>,
                 const_cast<TokenUnmergeArgs*>(&args));
}

template void token_unmerge<isa::FASTDIFF_ISA>(const TokenUnmergeArgs& args, const Parallel& parallel);

}  // namespace fastdiff
