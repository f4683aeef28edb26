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

// One model evaluation and the update that follows it; the fields of fastdiff/samplers/table.py's Step.
struct SamplerStep {
    struct History {
        std::size_t slot;
        double coef;
    };
    struct Clip {
        Linear x0;
        double limit, weight;
    };
    double timestep = 0.0;
    Linear update{0.0, 0.0};
    double input_scale = 1.0;
    std::vector<History> history;
    double noise_coef = 0.0;
    std::optional<std::size_t> save_sample, save_output;
    std::optional<Clip> clip;
};

struct SamplerTable {
    std::vector<SamplerStep> steps;
    std::size_t slots = 0;
    bool stochastic = false;
};

struct SampleArguments {
    // One per input of the graph, in its order; "sample" and "timestep" are the loop's and not read. Those
    // that the prompt stage reads have the batch of the model: twice that of the latents with guidance, first
    // without the prompt, then with it.
    std::vector<const void*> inputs;
    std::vector<Shape> shapes;
    // Latents, unit noise times the table's first sigma at the start and the result at the end.
    float* latents;
    Shape shape;
    double guidance = 1.0;   // 1: none
    Randn* noise = nullptr;  // for stochastic tables: one array of the latents' size per step
};

// Called after every model evaluation with the number of those done, the number of all, and the latents,
// valid until it returns. An exception that it throws stops the loop and passes through.
using StepCallback = std::function<void(std::size_t done, std::size_t total, std::span<const float> latents)>;

// Runs all steps of `table`. The session serves nobody else meanwhile. Throws InputError for a module that is
// no U-Net (inputs "sample" and "timestep", one output of the sample's shape), for shapes that do not fit, a
// table whose slots are out of range, a guidance that is not finite and a stochastic table without noise;
// else as Session::run does. After an exception the latents are as they were.
void sample(Session& session, const SamplerTable& table, const SampleArguments& arguments,
            const StepCallback& callback = {}, const Cancel& cancel = {});

}  // namespace fastdiff
