// group_norm_silu: group normalisation (Wu and He 2018), then SiLU if asked for:
//
//   y = silu?((x - mean[n, g]) / sqrt(var[n, g] + eps) * weight[c] + bias[c]),   g = c / (channels / groups)
//
// mean and var (biased) run over the group's channels and all spatial positions of one sample.
//
// Shapes    x, y (batch, spatial, channels) in Layout::nhwc, with x_stride, y_stride floats between pixels;
//           (batch, channels, spatial) in Layout::nchw, contiguous, the strides are not read.
//           weight, bias (channels,); null stands for ones and for zeros.
//           `spatial` is the product of all spatial sizes. groups divides channels. Any size may be zero.
// Precision sums and sums of squares in double, of which a product of two floats fills 48 of the 53 bits; the
//           mean is subtracted in two parts. A mean of 1e4 times the standard deviation costs no digits of y.
// Aliasing  y may be exactly x (with the same stride); otherwise the two must not overlap.
// Scratch   group_norm_silu_scratch(args) bytes, aligned to 64, no content expected or left.
// Threads   results do not depend on their number.
//
// In NHWC it is three functions, which others call when they have the sums already, or apply the result
// while they load x:
//
//   group_norm_sums    x → sums (batch, parts, 2, padded) doubles: for each channel the sum and the sum of
//                      squares over one part of the pixels. Reads batch, spatial, channels, x, x_stride.
//   group_norm_affine  sums, any number of parts → affine (batch, 3, padded) floats: the channel's mean,
//   scale
//                      and shift. Reads batch, spatial, channels, groups, weight, bias, eps. A sample's
//                      first part becomes the sum of all.
//   group_norm_apply   y = silu?((x - mean) · scale + shift). Reads batch, spatial, channels, x, y, their
//                      strides and silu.
//
// padded = group_norm_padded(channels); what lies beyond the channels is written, zero in affine, and never
// read into a result, so that whole registers may be loaded and stored.
#pragma once

#include <cstddef>

#include "kernels/parallel.h"

namespace fastdiff {

enum class Layout { nhwc, nchw };

struct GroupNormSiluArgs {
    Layout layout;
    std::size_t batch;
    std::size_t spatial;
    std::size_t channels;
    std::size_t groups;
    const float* x;
    std::size_t x_stride;
    const float* weight;
    const float* bias;
    float* y;
    std::size_t y_stride;
    double eps;
    bool silu;
    void* scratch;
};

// Bytes of scratch that group_norm_silu needs for these sizes and this layout; may be zero.
std::size_t group_norm_silu_scratch(const GroupNormSiluArgs& args);

constexpr std::size_t group_norm_padded(std::size_t channels) { return (channels + 15) / 16 * 16; }

// The parts into which group_norm_sums divides a sample's pixels: of equal size but for the last, at least 1.
std::size_t group_norm_parts(const GroupNormSiluArgs& args);

}  // namespace fastdiff
