// Compiled once per instruction set; the contract is in kernels/scheduler_step.h.
#include "kernels/scheduler_step.h"

#include "cpu/dispatch.h"
#include "cpu/vec.h"

namespace fastdiff {
namespace {

// Loads and stores of a full register or, at the end, of `count` elements.
template <class I, bool Tail>
struct Access {
    using V = Vec<float, I>;
    std::size_t count;

    FASTDIFF_INLINE V load(const float* p) const {
        if constexpr (Tail) return V::load(p, count);
        return V::load(p);
    }
    FASTDIFF_INLINE void store(float* p, V v) const {
        if constexpr (Tail) {
            v.store(p, count);
        } else {
            v.store(p);
        }
    }
};

// `Unroll` registers from element i on. All loads of an element come before its stores: outputs may be
// inputs.
template <class I, int Unroll, bool Tail, bool Guidance>
FASTDIFF_INLINE void step(const SchedulerStepArgs& args, std::size_t i, Access<I, Tail> access) {
    using V = Vec<float, I>;
    V m[Unroll], out[Unroll];
    const V guidance = V::broadcast(args.guidance);
    const V sample_coef = V::broadcast(args.sample_coef);
    const V output_coef = V::broadcast(args.output_coef);
    for (int u = 0; u < Unroll; ++u) {
        const std::size_t at = i + u * V::width;
        m[u] = access.load(args.cond + at);
        if constexpr (Guidance) {
            const V uncond = access.load(args.uncond + at);
            m[u] = fmadd(guidance, m[u] - uncond, uncond);
        }
        out[u] = fmadd(output_coef, m[u], sample_coef * access.load(args.sample + at));
    }
    for (std::size_t k = 0; k < args.history_count; ++k) {
        const V coef = V::broadcast(args.history_coefs[k]);
        for (int u = 0; u < Unroll; ++u) {
            out[u] = fmadd(coef, access.load(args.history[k] + i + u * V::width), out[u]);
        }
    }
    if (args.noise != nullptr) {
        const V coef = V::broadcast(args.noise_coef);
        for (int u = 0; u < Unroll; ++u) {
            out[u] = fmadd(coef, access.load(args.noise + i + u * V::width), out[u]);
        }
    }
    for (int u = 0; u < Unroll; ++u) {
        const std::size_t at = i + u * V::width;
        access.store(args.out + at, out[u]);
        if (args.guided != nullptr) access.store(args.guided + at, m[u]);
    }
}

template <class I, bool Guidance>
FASTDIFF_INLINE void run(const SchedulerStepArgs& args) {
    constexpr std::size_t width = Vec<float, I>::width;
    constexpr int unroll = 4;
    std::size_t i = 0;
    for (; i + unroll * width <= args.size; i += unroll * width) {
        step<I, unroll, false, Guidance>(args, i, Access<I, false>{});
    }
    for (; i + width <= args.size; i += width) step<I, 1, false, Guidance>(args, i, Access<I, false>{});
    if (i < args.size) step<I, 1, true, Guidance>(args, i, Access<I, true>{args.size - i});
}

}  // namespace

template <class I>
void scheduler_step(const SchedulerStepArgs& args) {
    if (args.uncond != nullptr) {
        run<I, true>(args);
    } else {
        run<I, false>(args);
    }
}

template void scheduler_step<isa::FASTDIFF_ISA>(const SchedulerStepArgs& args);

}  // namespace fastdiff
