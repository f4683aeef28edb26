// scheduler_step: one step of a sampler with classifier-free guidance (Ho and Salimans 2022), element by
// element and in one pass over memory:
//
//   m        = uncond ? uncond + guidance * (cond - uncond) : cond
//   d        = clamp(estimate_sample * sample + estimate_output * m, -estimate_limit, estimate_limit)
//   x'       = sample_coef * sample + output_coef * m + sum_k history_coefs[k] * history[k]
//              + estimate_coef * d + noise_coef * noise
//   out      = x'
//   estimate = d
//   next     = next_again = next_scale * x'
//
// Shapes    every array holds `size` floats; the layout does not matter.
// Null      uncond (no guidance), noise (no noise term), estimate (d is not kept), next and next_again (the
//           model's next input is not wanted, or wanted once) may be null.
// Defaults  0, 1 and infinity as the estimate's coefficients and limit make d = m, bit for bit. The term of d
//           counts where estimate_coef is not 0. NaN is not clamped away.
// Aliasing  each of out, estimate, next and next_again may be exactly one of the inputs (the usual case: out
// is
//           sample); outputs must not overlap each other, and no output may overlap an input in part.
// Scratch   none.
// Threads   runs on the calling thread; arrays may be split anywhere and the parts run in parallel.
#pragma once

#include <cstddef>

namespace fastdiff {

struct SchedulerStepArgs {
    // The number of saved buffers that a solver may combine.
    static constexpr std::size_t max_history = 8;

    std::size_t size = 0;
    const float* sample = nullptr;
    const float* cond = nullptr;
    const float* uncond = nullptr;
    float guidance = 1.0f;
    float sample_coef = 0.0f;
    float output_coef = 0.0f;
    std::size_t history_count = 0;
    const float* history[max_history] = {};
    float history_coefs[max_history] = {};
    const float* noise = nullptr;
    float noise_coef = 0.0f;
    float estimate_sample = 0.0f;
    float estimate_output = 1.0f;
    float estimate_limit = __builtin_inff();
    float estimate_coef = 0.0f;
    float next_scale = 1.0f;
    float* out = nullptr;
    float* estimate = nullptr;
    float* next = nullptr;
    float* next_again = nullptr;
};

}  // namespace fastdiff
