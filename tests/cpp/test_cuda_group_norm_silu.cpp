// The kernels of csrc/cuda/group_norm_silu.cu on the CPU, against the formula in double.
#define FASTDIFF_CUDA_EMULATION
#include <cmath>

#include "check.h"
#include "cuda/group_norm_silu.cu"

namespace fastdiff::tests {
namespace {

using cuda::bf16;
using cuda::f16;

struct Case {
    unsigned images;
    int pixels, channels, groups, columns;
    unsigned threads, parts;  // parts: blocks of a cluster, or splits
    int stride;               // between pixels of x, in elements
    bool silu, affine, affine_in_float;
    float centre;  // of the numbers, whose spread is about 1
};

template <typename T>
std::vector<T> rounded(const std::vector<float>& values, float centre = 0.0f) {
    std::vector<T> result(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) cuda::from_float(values[i] + centre, result[i]);
    return result;
}

template <typename T>
struct Data {
    std::vector<T> x, weight, bias, out;
    std::vector<float> weight32, bias32;

    explicit Data(const Case& c) {
        Random random(static_cast<std::uint64_t>(c.channels * 100 + c.pixels));
        const auto channels = static_cast<std::size_t>(c.channels);
        // Nothing follows the last pixel's channels.
        const std::size_t rows = c.images * static_cast<std::size_t>(c.pixels);
        x = rounded<T>(random.array((rows - 1) * static_cast<std::size_t>(c.stride) + channels), c.centre);
        weight = rounded<T>(random.array(channels));
        bias = rounded<T>(random.array(channels));
        for (T value : weight) weight32.push_back(cuda::to_float(value));
        for (T value : bias) bias32.push_back(cuda::to_float(value));
        out.resize(rows * channels);
    }
};

template <typename T>
void compare(const Case& c, const Data<T>& data, double tolerance) {
    const int per_group = c.channels / c.groups;
    double worst = 0.0;
    for (int n = 0; n < static_cast<int>(c.images); ++n) {
        for (int g = 0; g < c.groups; ++g) {
            const auto each = [&](auto visit) {
                for (int p = 0; p < c.pixels; ++p) {
                    for (int k = g * per_group; k < (g + 1) * per_group; ++k) {
                        const auto row = static_cast<std::size_t>(n * c.pixels + p);
                        visit(static_cast<double>(
                                  cuda::to_float(data.x[row * static_cast<std::size_t>(c.stride) +
                                                        static_cast<std::size_t>(k)])),
                              static_cast<std::size_t>(k),
                              row * static_cast<std::size_t>(c.channels) + static_cast<std::size_t>(k));
                    }
                }
            };
            const double count = static_cast<double>(per_group) * c.pixels;
            double mean = 0.0, variance = 0.0;
            each([&](double x, std::size_t, std::size_t) { mean += x / count; });
            each([&](double x, std::size_t, std::size_t) { variance += (x - mean) * (x - mean) / count; });
            each([&](double x, std::size_t channel, std::size_t where) {
                double y = (x - mean) / std::sqrt(variance + 1e-5);
                if (c.affine) y = y * data.weight32[channel] + data.bias32[channel];
                if (c.silu) y = y / (1.0 + std::exp(-y));
                worst =
                    std::fmax(worst, std::fabs(y - cuda::to_float(data.out[where])) / (1.0 + std::fabs(y)));
            });
        }
    }
    if (!(worst < tolerance)) {
        fail(__FILE__, __LINE__,
             "channels " + std::to_string(c.channels) + ", groups " + std::to_string(c.groups) + ", pixels " +
                 std::to_string(c.pixels) + ", parts " + std::to_string(c.parts) + ": off by " +
                 std::to_string(worst));
    }
}

template <typename T, typename Kernel>
void one_launch(const Case& c, Kernel kernel, double tolerance) {
    Data<T> data(c);
    constexpr int pack = cuda::widest<T>;
    const int group = c.channels / c.groups;
    const cuda::Columns columns{0, c.columns, group, pack};
    const std::size_t shared =
        static_cast<std::size_t>(c.pixels / static_cast<int>(c.parts) + 1) *
            static_cast<std::size_t>(columns.packs()) * 16 +
        sizeof(cuda::Moments) * (c.threads * static_cast<unsigned>(cuda::max_segments(pack, group)) +
                                 static_cast<unsigned>(columns.groups())) +
        sizeof(cuda::Statistics) * static_cast<unsigned>(columns.groups());
    const void* weight =
        c.affine_in_float ? static_cast<const void*>(data.weight32.data()) : data.weight.data();
    const void* bias = c.affine_in_float ? static_cast<const void*>(data.bias32.data()) : data.bias.data();
    emulation::launch({static_cast<unsigned>(c.channels / c.columns) * c.parts, c.images}, c.threads, c.parts,
                      shared, kernel, data.x.data(), c.affine ? weight : nullptr, c.affine ? bias : nullptr,
                      c.affine_in_float ? 1 : 0, 1e-5f, c.silu ? 1 : 0, data.out.data(), c.pixels, c.channels,
                      group, c.columns, std::int64_t{c.pixels} * c.stride, std::int64_t{c.stride});
    compare(c, data, tolerance);
}

template <typename T, typename Moments, typename Apply>
void two_launches(const Case& c, int pack, Moments moments, Apply apply, double tolerance) {
    Data<T> data(c);
    const int group = c.channels / c.groups, splits = static_cast<int>(c.parts);
    const int blocks = (c.channels + c.columns - 1) / c.columns;
    int pieces = 1;
    for (int g = 0; g < c.groups; ++g) {
        pieces = std::max(pieces,
                          cuda::last_block(g, group, c.columns) - cuda::first_block(g, group, c.columns) + 1);
    }
    const int most_groups = (c.columns + group - 2) / group + 1;
    std::vector<cuda::Moments> parts(c.images * static_cast<std::size_t>(c.groups * pieces * splits));
    const std::size_t shared =
        sizeof(cuda::Moments) * (c.threads * static_cast<unsigned>(cuda::max_segments(pack, group)) +
                                 static_cast<unsigned>(most_groups));
    const emulation::Dim3 grid{static_cast<unsigned>(blocks * splits), c.images};
    const std::int64_t pixel_stride = c.stride, image_stride = pixel_stride * c.pixels;
    emulation::launch(grid, c.threads, 1, shared, moments, data.x.data(), parts.data(), c.pixels, c.channels,
                      group, c.columns, image_stride, pixel_stride, splits, pieces);
    const void* weight = c.affine ? data.weight.data() : nullptr;
    const void* bias = c.affine ? data.bias.data() : nullptr;
    emulation::launch(grid, c.threads, 1, sizeof(cuda::Statistics) * static_cast<unsigned>(most_groups),
                      apply, data.x.data(), parts.data(), weight, bias, 0, 1e-5f, c.silu ? 1 : 0,
                      data.out.data(), c.pixels, c.channels, group, c.columns, image_stride, pixel_stride,
                      splits, pieces);
    compare(c, data, tolerance);
}

constexpr double f32_tolerance = 2e-6, f16_tolerance = 5.1e-4, bf16_tolerance = 4.1e-3;  // half a last place

void check_conversions() {
    // Every half survives the way to float and back; NaN stays NaN.
    for (unsigned bits = 0; bits < 0x10000; ++bits) {
        const f16 half{static_cast<std::uint16_t>(bits)};
        const bf16 brain{static_cast<std::uint16_t>(bits)};
        f16 half_again;
        bf16 brain_again;
        cuda::from_float(cuda::to_float(half), half_again);
        cuda::from_float(cuda::to_float(brain), brain_again);
        const bool half_nan = (bits & 0x7fffu) > 0x7c00u, brain_nan = (bits & 0x7fffu) > 0x7f80u;
        CHECK(half_nan ? std::isnan(cuda::to_float(half_again)) : half_again.bits == bits);
        CHECK(brain_nan ? std::isnan(cuda::to_float(brain_again)) : brain_again.bits == bits);
    }
    // Between two neighbours the nearer one wins, and half way the even one.
    for (unsigned bits = 0; bits < 0x7bff; ++bits) {
        const float low = cuda::to_float(f16{static_cast<std::uint16_t>(bits)});
        const float high = cuda::to_float(f16{static_cast<std::uint16_t>(bits + 1)});
        const float middle = (low + high) / 2;
        f16 below, tie, above;
        cuda::from_float(std::nextafter(middle, low), below);
        cuda::from_float(middle, tie);
        cuda::from_float(std::nextafter(middle, high), above);
        CHECK(below.bits == bits && above.bits == bits + 1 && tie.bits == bits + (bits & 1u));
    }
    f16 half;
    cuda::from_float(65519.0f, half);
    CHECK(half.bits == 0x7bff);
    cuda::from_float(-65520.0f, half);
    CHECK(half.bits == 0xfc00);
    bf16 brain;
    cuda::from_float(1.00390625f, brain);  // 1 + 2^-8: a tie, down to even
    CHECK(brain.bits == 0x3f80);
    cuda::from_float(1.01171875f, brain);  // 1 + 3·2^-8: a tie, up to even
    CHECK(brain.bits == 0x3f82);
}

}  // namespace

void test_cuda_group_norm_silu() {
    check_conversions();
    //                images pixels channels groups columns threads parts stride silu affine in_float centre
    const Case clusters[] = {
        {2, 9, 64, 8, 32, 32, 1, 64, true, true, false, 0.0f},     // a group is a pack
        {1, 37, 80, 8, 40, 64, 4, 80, true, true, true, 0.0f},     // groups of 10, as 320 channels have
        {2, 23, 64, 16, 64, 64, 2, 64, false, true, false, 0.0f},  // groups of 4: two in a pack
        {1, 16, 48, 16, 48, 96, 3, 48, true, false, false, 0.0f},  // of 3: up to four in a pack
        {1, 11, 32, 32, 16, 32, 2, 32, true, true, true, 0.0f},    // of 1
        {1, 50, 80, 1, 80, 32, 2, 80, true, true, false, 3.0f},    // one of all; threads left over
        {2, 5, 80, 2, 40, 64, 8, 96, true, true, false, 0.0f},     // more blocks than pixels; rows apart
        {1, 1, 40, 4, 40, 32, 1, 40, false, true, false, 0.0f},    // one pixel
        {1, 64, 32, 4, 32, 32, 2, 32, true, true, false, 30.0f},   // the mean far from 0
    };
    // Emulation is slow: the 16-bit types, whose packs are alike, take turns.
    int turn = 0;
    for (const Case& c : clusters) {
        one_launch<float>(c, group_norm_silu_f32, c.centre == 0.0f ? f32_tolerance : 1e-5);
        if (turn++ % 2 == 0) {
            one_launch<f16>(c, group_norm_silu_f16, f16_tolerance);
        } else {
            one_launch<bf16>(c, group_norm_silu_bf16, bf16_tolerance);
        }
    }
    const Case splits[] = {
        {2, 33, 64, 8, 32, 32, 3, 64, true, true, false, 0.0f},
        {1, 40, 80, 2, 32, 64, 2, 80, true, true, false,
         0.0f},  // groups of 40 in blocks of 32, the last of 16
        {1, 70, 80, 8, 80, 64, 5, 88, true, true, false, 0.0f},    // groups of 10
        {2, 7, 48, 1, 16, 32, 9, 48, false, false, false, 10.0f},  // more splits than pixels
    };
    for (const Case& c : splits) {
        two_launches<float>(c, 4, group_norm_silu_moments_f32, group_norm_silu_apply_f32,
                            c.centre == 0.0f ? f32_tolerance : 1e-5);
        if (turn++ % 2 == 0) {
            two_launches<f16>(c, 8, group_norm_silu_moments_f16, group_norm_silu_apply_f16, f16_tolerance);
        } else {
            two_launches<bf16>(c, 8, group_norm_silu_moments_bf16, group_norm_silu_apply_bf16,
                               bf16_tolerance);
        }
    }
    const Case scalars[] = {
        {2, 9, 37, 1, 16, 32, 2, 37, true, true, false, 0.0f},  // a prime number of channels, in three pieces
        {1, 21, 33, 3, 33, 64, 3, 35, true, true, false, 0.0f},
        {1, 13, 6, 6, 4, 32, 1, 6, false, true, false, 0.0f},
    };
    for (const Case& c : scalars) {
        two_launches<float>(c, 1, group_norm_silu_moments_scalar_f32, group_norm_silu_apply_scalar_f32,
                            f32_tolerance);
        if (turn++ % 2 == 0) {
            two_launches<f16>(c, 1, group_norm_silu_moments_scalar_f16, group_norm_silu_apply_scalar_f16,
                              f16_tolerance);
        } else {
            two_launches<bf16>(c, 1, group_norm_silu_moments_scalar_bf16, group_norm_silu_apply_scalar_bf16,
                               bf16_tolerance);
        }
    }
}

}  // namespace fastdiff::tests
