// resample: nearest upsampling by an integer and average pooling with stride = window, on NHWC activations.
// Most upsampling never reaches this kernel: conv2d repeats pixels while it loads them.
//
// Shapes    x (batch, height, width, channels) with x_stride floats between pixels. upsample: y (batch,
//           factor·height - crop_bottom, factor·width - crop_right, channels), fewer than `factor` cropped;
//           pool: y (batch, height / factor, width / factor, channels), what is left over at the right and
//           the bottom is not read. y_stride floats between pixels of y. factor is at least 1; any other size
//           may be zero.
// Aliasing  y does not overlap x.
// Threads   results do not depend on their number.
#pragma once

#include <cstddef>

#include "kernels/parallel.h"

namespace fastdiff {

struct ResampleArgs {
    std::size_t batch, height, width, channels, factor;
    bool pool;
    const float* x;
    std::size_t x_stride;
    float* y;
    std::size_t y_stride;
    std::size_t crop_bottom = 0, crop_right = 0;
};

}  // namespace fastdiff
