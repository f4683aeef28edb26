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
// inputs. Without Estimate d is m.
template <class I, int Unroll, bool Tail, bool Guidance, bool Estimate>
FASTDIFF_INLINE void step(const SchedulerStepArgs& args, std::size_t i, Access<I, Tail> access) {
    using V = Vec<float, I>;
    V d[Unroll], out[Unroll];  // d holds m at first
    const V guidance = V::broadcast(args.guidance);
    const V sample_coef = V::broadcast(args.sample_coef);
    const V output_coef = V::broadcast(args.output_coef);
    for (int u = 0; u < Unroll; ++u) {
        const std::size_t at = i + u * V::width;
        const V sample = access.load(args.sample + at);
        d[u] = access.load(args.cond + at);
        if constexpr (Guidance) {
            const V uncond = access.load(args.uncond + at);
            d[u] = fmadd(guidance, d[u] - uncond, uncond);
        }
        out[u] = fmadd(output_coef, d[u], sample_coef * sample);
        if constexpr (Estimate) {
            const V value =
                fmadd(V::broadcast(args.estimate_output), d[u], V::broadcast(args.estimate_sample) * sample);
            // In this order NaN stays.
            d[u] = min(V::broadcast(args.estimate_limit), max(V::broadcast(-args.estimate_limit), value));
        }
    }
    for (std::size_t k = 0; k < args.history_count; ++k) {
        const V coef = V::broadcast(args.history_coefs[k]);
        for (int u = 0; u < Unroll; ++u) {
            out[u] = fmadd(coef, access.load(args.history[k] + i + u * V::width), out[u]);
        }
    }
    if (args.estimate_coef != 0.0f) {
        const V coef = V::broadcast(args.estimate_coef);
        for (int u = 0; u < Unroll; ++u) out[u] = fmadd(coef, d[u], out[u]);
    }
    if (args.noise != nullptr) {
        const V coef = V::broadcast(args.noise_coef);
        for (int u = 0; u < Unroll; ++u) {
            out[u] = fmadd(coef, access.load(args.noise + i + u * V::width), out[u]);
        }
    }
    const V next_scale = V::broadcast(args.next_scale);
    for (int u = 0; u < Unroll; ++u) {
        const std::size_t at = i + u * V::width;
        access.store(args.out + at, out[u]);
        if (args.estimate != nullptr) access.store(args.estimate + at, d[u]);
        if (args.next == nullptr) continue;
        const V next = next_scale * out[u];
        access.store(args.next + at, next);
        if (args.next_again != nullptr) access.store(args.next_again + at, next);
    }
}

template <class I, bool Guidance, bool Estimate>
FASTDIFF_INLINE void run(const SchedulerStepArgs& args) {
    constexpr std::size_t width = Vec<float, I>::width;
    constexpr int unroll = 4;
    std::size_t i = 0;
    for (; i + unroll * width <= args.size; i += unroll * width) {
        step<I, unroll, false, Guidance, Estimate>(args, i, Access<I, false>{});
    }
    for (; i + width <= args.size; i += width) {
        step<I, 1, false, Guidance, Estimate>(args, i, Access<I, false>{});
    }
    if (i < args.size) step<I, 1, true, Guidance, Estimate>(args, i, Access<I, true>{args.size - i});
}

}  // namespace

template <class I>
void scheduler_step(const SchedulerStepArgs& args) {
    const bool is_output = args.estimate_sample == 0.0f && args.estimate_output == 1.0f &&
                           args.estimate_limit == __builtin_inff();
    const bool used = args.estimate != nullptr || args.estimate_coef != 0.0f;
    const bool estimate = used && !is_output;
    if (args.uncond != nullptr) {
        estimate ? run<I, true, true>(args) : run<I, true, false>(args);
    } else {
        estimate ? run<I, false, true>(args) : run<I, false, false>(args);
    }
}

template void scheduler_step<isa::FASTDIFF_ISA>(const SchedulerStepArgs& args);

}  // namespace fastdiff
