// The sampling loop over a U-Net's session: fastdiff/samplers/loop.py and the denoiser of fastdiff/denoise.py
// in one call per picture, bit for bit.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "kernels/randn.h"
#include "runtime/session.h"

namespace fastdiff {

// Coefficients of the sample x and the model output m.
struct Linear {
    double sample, output;
};

// One model evaluation and the update that follows it; the fields of fastdiff/samplers/table.py's Step that a
// linear table has.
struct SamplerStep {
    struct History {
        std::size_t slot;
        double coef;
    };
    // d, `value` clipped to ±limit, and the weight of its term.
    struct Estimate {
        Linear value;
        double weight, limit;
    };
    double timestep = 0.0;
    Linear update{0.0, 0.0};
    double input_scale = 1.0;
    std::vector<History> history;
    std::optional<double> noise_coef;  // none: draws no noise
    std::optional<std::size_t> save_sample, save_output;
    std::optional<Estimate> estimate;
    std::optional<double> guidance;  // instead of the call's
};

struct SamplerTable {
    std::vector<SamplerStep> steps;
    std::size_t slots = 0;
    std::optional<double> start_noise;  // noise of this standard deviation is added to the first sample
};

// Whether noise is drawn, at the start or in a step.
bool draws_noise(const SamplerTable& table);

struct SampleArguments {
    // One per input of the graph, in its order; "sample" and "timestep" are the loop's and not read. Those
    // that the prompt stage reads have the batch of the model: twice that of the latents where any step is
    // guided, first without the prompt, then with it. A step whose guidance is 1 runs both halves then, too.
    std::vector<const void*> inputs;
    std::vector<Shape> shapes;
    // Latents, unit noise times the table's first sigma at the start and the result at the end.
    float* latents;
    Shape shape;
    double guidance = 1.0;   // 1: none
    Randn* noise = nullptr;  // for tables that draw noise
};

// Called after every model evaluation with the number of those done, the number of all, and the latents,
// valid until it returns. An exception that it throws stops the loop and passes through.
using StepCallback = std::function<void(std::size_t done, std::size_t total, std::span<const float> latents)>;

// Runs all steps of `table`. The session serves nobody else meanwhile. Throws InputError for a module that is
// no U-Net (inputs "sample" and "timestep", the first output of the sample's shape), for shapes that do not
// fit, a table whose slots are out of range, a guidance that is not finite and a table that draws noise
// without a generator; else as Session::run does. After an exception the latents are as they were.
void sample(Session& session, const SamplerTable& table, const SampleArguments& arguments,
            const StepCallback& callback = {}, const Cancel& cancel = {});

}  // namespace fastdiff
