// One element of a sampler's step. fastdiff/kernels/reference.py specifies scheduler_step and table_step.
#pragma once

#include "host_device.h"

namespace fastdiff::cuda {

// The first columns of a table's row, TABLE_COLUMNS of reference.py; a coefficient for each slot follows.
struct Row {
    float guidance, sample, output, noise, estimate_sample, estimate_output, estimate_limit, estimate_weight,
        next_scale;
};
constexpr int row_columns = 9;

FASTDIFF_HD Row read_row(const float* row) {
    return Row{row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8]};
}

// Classifier-free guidance (Ho and Salimans 2022).
FASTDIFF_HD float guide(float cond, float uncond, float guidance) {
    return uncond + guidance * (cond - uncond);
}

FASTDIFF_HD float clamp(float x, float limit) {
    // Written so that NaN stays NaN.
    return x < -limit ? -limit : x > limit ? limit : x;
}

// d of one element: the row's combination of x and m, clipped by the row's limit or, if there is one, by the
// image's threshold, which divides it too.
FASTDIFF_HD float estimate(const Row& row, float sample, float output, const float* threshold) {
    const float d = row.estimate_sample * sample + row.estimate_output * output;
    return threshold == nullptr ? clamp(d, row.estimate_limit) : clamp(d, *threshold) / *threshold;
}

// x' of one element, from x, m, d and the slots, `stride` apart, as they are before the step; z is 0 without
// noise.
FASTDIFF_HD float advance(const Row& row, float sample, float output, float estimated, const float* slots,
                          int64_t stride, const float* slot_coefs, int slot_count, float noise) {
    float result = row.sample * sample + row.output * output;
    for (int k = 0; k < slot_count; ++k) result += slot_coefs[k] * slots[k * stride];
    result += row.noise * noise;
    if (row.estimate_weight != 0.0f) result += row.estimate_weight * estimated;
    return result;
}

}  // namespace fastdiff::cuda
