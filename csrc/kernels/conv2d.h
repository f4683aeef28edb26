// conv2d: y = scale * (activation(conv(upsample(x)) + bias + vector) + residual) on NHWC activations.
//
// Shapes    x (batch, height, width, in) with x_stride floats between pixels; upsampling by nearest repeats
//           each pixel `upsample` times in both directions before the kernel sees it, but for the last
//           crop_bottom rows and crop_right columns of the larger picture, fewer than `upsample`. y (batch,
//           out_height, out_width, out) with y_stride; residual as y with residual_stride, or null; bias
//           (out,) or null; vector (batch, out) with vector_stride floats between images (0: one for all), or
//           null.
//
// Two more arguments take group_norm_silu apart, so that it needs no pass over memory of its own
// (group_norm_silu.h says what affine and sums hold):
//   affine  (batch, 3, padded in) floats or null: the convolution sees silu?((x - mean) · scale + shift) in
//           place of x; padding stays zero
//   sums    (batch, conv2d_sum_parts, 2, padded out) doubles or null: receives the sums and sums of squares
//   of y
//
// Padding   zeros, may differ on the four sides. Stride is the same in both directions; no dilation, no
// groups. Weights   conv2d_pack lays (out, in, kernel_h, kernel_w) out for one algorithm; the layout is the
// same for
//           all instruction sets. Winograd F(m×m, 3×3) (Lavin and Gray 2016) takes 3×3 kernels with stride 1.
// Aliasing  y may be exactly residual (with the same stride); otherwise y overlaps no input.
// Scratch   conv2d_scratch(args, threads) bytes, aligned to 64.
// Threads   results do not depend on their number.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/activation.h"
#include "kernels/parallel.h"

namespace fastdiff {

// winograd2_plain is F(2×2, 3×3) on the weights of `direct`, transformed while it computes: where there are
// few tiles, reading half the bytes is worth more than the transform costs.
enum class ConvAlgorithm : std::uint8_t { direct, winograd2, winograd4, winograd2_plain };

struct Conv2dShape {
    std::size_t batch, height, width, in, out;
    std::size_t kernel_h, kernel_w, stride;
    std::size_t pad_top, pad_bottom, pad_left, pad_right;
    std::size_t upsample;                         // 1 or 2
    std::size_t crop_bottom = 0, crop_right = 0;  // of the upsampled picture

    // Of the picture that the kernel sees, without padding.
    [[nodiscard, gnu::always_inline]] constexpr std::size_t seen_height() const {
        return height * upsample - crop_bottom;
    }
    [[nodiscard, gnu::always_inline]] constexpr std::size_t seen_width() const {
        return width * upsample - crop_right;
    }
    [[nodiscard, gnu::always_inline]] constexpr std::size_t out_height() const {
        return (seen_height() + pad_top + pad_bottom - kernel_h) / stride + 1;
    }
    [[nodiscard, gnu::always_inline]] constexpr std::size_t out_width() const {
        return (seen_width() + pad_left + pad_right - kernel_w) / stride + 1;
    }
};

struct Conv2dArgs {
    Conv2dShape shape;
    ConvAlgorithm algorithm;
    WeightType type;
    const float* x;
    std::size_t x_stride;
    const void* weight;
    const float* bias;
    const float* vector;
    std::size_t vector_stride;
    const float* residual;
    std::size_t residual_stride;
    float* y;
    std::size_t y_stride;
    Activation activation;  // not geglu
    float scale;
    const float* affine;
    bool affine_silu;
    double* sums;
    void* scratch;
};

// Whether the algorithm can compute a convolution of this shape (sizes of the picture do not matter).
bool conv2d_supports(const Conv2dShape& shape, ConvAlgorithm algorithm);
// The algorithm that is expected to be fastest among those whose bit (1 << algorithm) is set in `available`.
ConvAlgorithm conv2d_choose(const Conv2dShape& shape, unsigned available, std::size_t threads);

// Multiples of 64.
std::size_t conv2d_packed_bytes(const Conv2dShape& shape, ConvAlgorithm algorithm, WeightType type);
// weight (out, in, kernel_h, kernel_w), contiguous; `packed` has conv2d_packed_bytes and is aligned to 64.
void conv2d_pack(const float* weight, const Conv2dShape& shape, ConvAlgorithm algorithm, WeightType type,
                 void* packed);

// Into how many parts a sample's sums are divided; does not depend on the number of threads.
std::size_t conv2d_sum_parts(const Conv2dArgs& args);

std::size_t conv2d_scratch(const Conv2dArgs& args, std::size_t threads);

}  // namespace fastdiff
