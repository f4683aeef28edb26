// group_norm_silu: group normalisation (Wu and He 2018), then SiLU if asked for:
//
//   y = silu?((x - mean[n, g]) / sqrt(var[n, g] + eps) * weight[c] + bias[c]),   g = c / (channels / groups)
//
// mean and var (biased) run over the group's channels and all spatial positions of one sample.
//
// Shapes    x, y   (batch, spatial, channels) in Layout::nhwc, (batch, channels, spatial) in Layout::nchw;
// contiguous
//           weight, bias  (channels,); null stands for ones and for zeros
//           `spatial` is the product of all spatial sizes. groups divides channels. Any size may be zero.
// Precision sums and sums of squares in double, of which a product of two floats fills 48 of the 53 bits; the
// mean is
//           subtracted in two parts. A mean of 1e4 times the standard deviation costs no digits of y.
// Aliasing  y may be exactly x; otherwise the two must not overlap.
// Scratch   group_norm_silu_scratch(args) bytes, aligned to 8, no content expected or left.
// Threads   runs on the calling thread; samples are independent of each other.
#pragma once

#include <cstddef>

namespace fastdiff {

enum class Layout { nhwc, nchw };

struct GroupNormSiluArgs {
    Layout layout;
    std::size_t batch;
    std::size_t spatial;
    std::size_t channels;
    std::size_t groups;
    const float* x;
    const float* weight;
    const float* bias;
    float* y;
    double eps;
    bool silu;
    void* scratch;
};

// Bytes of scratch that a call with these sizes and this layout needs; may be zero.
std::size_t group_norm_silu_scratch(const GroupNormSiluArgs& args);

}  // namespace fastdiff
