#include "runtime/elementwise_loops.h"

#include <algorithm>

namespace fastdiff {

void run_elementwise(const std::vector<ElementwiseAxis>& axes, ElementwiseArgs args, const Kernels& kernels,
                     const Parallel& parallel) {
    const std::size_t inner = std::min<std::size_t>(axes.size(), 4), outer = axes.size() - inner;
    for (std::size_t i = 0; i < 4; ++i) {
        const bool used = i >= 4 - inner;
        const ElementwiseAxis axis = used ? axes[outer + i - (4 - inner)] : ElementwiseAxis{1, 0, 0, 0};
        args.sizes[i] = axis.size;
        args.y_strides[i] = axis.y;
        args.a_strides[i] = axis.a;
        args.b_strides[i] = axis.b;
    }
    std::size_t rounds = 1;
    for (std::size_t i = 0; i < outer; ++i) rounds *= axes[i].size;
    for (std::size_t round = 0; round < rounds; ++round) {
        ElementwiseArgs part = args;
        std::size_t rest = round;
        for (std::size_t i = outer; i-- > 0;) {
            const std::size_t at = rest % axes[i].size;
            rest /= axes[i].size;
            part.y += at * axes[i].y;
            part.a += at * axes[i].a;
            if (part.b != nullptr) part.b += at * axes[i].b;
        }
        kernels.elementwise(part, parallel);
    }
}

}  // namespace fastdiff
