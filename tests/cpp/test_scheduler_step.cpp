#include <cmath>

#include "check.h"
#include "cpu/dispatch.h"
#include "kernels/scheduler_step.h"

namespace fastdiff::tests {
namespace {

void check(Isa isa, std::size_t size, std::size_t history_count, bool with_uncond, bool with_noise,
           bool keep_estimate, int inputs) {
    Random random(size);
    std::vector<float> sample = random.array(size);
    const std::vector<float> cond = random.array(size), uncond = random.array(size),
                             noise = random.array(size);
    std::vector<std::vector<float>> history;
    std::vector<float> estimate(size), next(size), again(size);
    SchedulerStepArgs args;
    args.size = size;
    args.sample = args.out = sample.data();
    args.cond = cond.data();
    if (with_uncond) args.uncond = uncond.data();
    args.guidance = 2.5f;
    args.sample_coef = 0.875f;
    args.output_coef = -0.25f;
    args.history_count = history_count;
    for (std::size_t k = 0; k < history_count; ++k) {
        history.push_back(random.array(size));
        args.history[k] = history[k].data();
        args.history_coefs[k] = 0.5f - static_cast<float>(k);
    }
    if (with_noise) args.noise = noise.data();
    args.noise_coef = 0.125f;
    args.estimate_sample = 0.5f;
    args.estimate_output = -1.25f;
    args.estimate_limit = 0.75f;
    args.estimate_coef = history_count % 2 == 0 ? 0.375f : 0.0f;
    if (keep_estimate) args.estimate = estimate.data();
    args.next_scale = 0.5f;
    if (inputs > 0) args.next = next.data();
    if (inputs > 1) args.next_again = again.data();

    std::vector<double> wanted(size), wanted_estimate(size);
    for (std::size_t i = 0; i < size; ++i) {
        const double c = cond[i], u = uncond[i];
        const double m = with_uncond ? u + 2.5 * (c - u) : c;
        wanted_estimate[i] = std::fmin(0.75, std::fmax(-0.75, 0.5 * sample[i] - 1.25 * m));
        wanted[i] = 0.875 * sample[i] - 0.25 * m;
        for (std::size_t k = 0; k < history_count; ++k) {
            wanted[i] += (0.5 - static_cast<double>(k)) * history[k][i];
        }
        wanted[i] += static_cast<double>(args.estimate_coef) * wanted_estimate[i];
        if (with_noise) wanted[i] += 0.125 * noise[i];
    }
    kernels(isa).scheduler_step(args);
    double worst = 0.0;
    for (std::size_t i = 0; i < size; ++i) {
        worst = std::fmax(worst, std::fabs(sample[i] - wanted[i]));
        if (keep_estimate) worst = std::fmax(worst, std::fabs(estimate[i] - wanted_estimate[i]));
        if (inputs > 0) worst = std::fmax(worst, std::fabs(next[i] - 0.5f * sample[i]));
        if (inputs > 1) worst = std::fmax(worst, std::fabs(again[i] - next[i]));
    }
    if (!(worst < 2e-5)) {
        fail(__FILE__, __LINE__,
             "scheduler_step on " + std::string(isa_name(isa)) + ", size " + std::to_string(size) +
                 ": largest difference " + std::to_string(worst));
    }
}

}  // namespace

void test_scheduler_step() {
    for (Isa isa : available_isas()) {
        for (std::size_t size = 0; size <= 140;
             ++size) {  // two unrolled blocks of the widest register and a tail
            check(isa, size, size % 9, size % 2 == 0, size % 3 == 0, size % 5 != 0,
                  static_cast<int>(size / 5 % 3));
        }
        check(isa, 989, 0, false, false, false, 0);
        check(isa, 989, SchedulerStepArgs::max_history, true, true, true, 2);
    }
}

}  // namespace fastdiff::tests
