// scheduler_step: one step of a sampler with classifier-free guidance (Ho and Salimans 2022), element by
// element:
//
//   m   = uncond ? uncond + guidance * (cond - uncond) : cond
//   out = sample_coef * sample + output_coef * m + sum_k history_coefs[k] * history[k] + noise_coef * noise
//   guided = m
//
// Shapes    every array holds `size` floats; the layout does not matter.
// Null      uncond (no guidance), noise (no noise term) and guided (m is not kept) may be null.
// Aliasing  out and guided may each be exactly one of the inputs (the usual case: out is sample); the two
// must
//           not overlap each other, and no output may overlap an input in part.
// Scratch   none.
// Threads   runs on the calling thread; arrays may be split anywhere and the parts run in parallel.
#pragma once

#include <cstddef>

namespace fastdiff {

struct SchedulerStepArgs {
    // The number of saved buffers that a solver may combine; the longest table in use needs four.
    static constexpr std::size_t max_history = 8;

    std::size_t size;
    const float* sample;
    const float* cond;
    const float* uncond;
    float guidance;
    float sample_coef;
    float output_coef;
    std::size_t history_count;
    const float* history[max_history];
    float history_coefs[max_history];
    const float* noise;
    float noise_coef;
    float* out;
    float* guided;
};

}  // namespace fastdiff
