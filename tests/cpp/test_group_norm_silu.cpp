#include <cmath>

#include "check.h"
#include "cpu/dispatch.h"
#include "kernels/group_norm_silu.h"

namespace fastdiff::tests {
namespace {

// The formula of the contract, in double.
std::vector<double> reference(const GroupNormSiluArgs& a) {
    const std::size_t per_group = a.channels / a.groups;
    const auto at = [&](std::size_t n, std::size_t s, std::size_t c) {
        return a.layout == Layout::nhwc ? (n * a.spatial + s) * a.channels + c
                                        : (n * a.channels + c) * a.spatial + s;
    };
    std::vector<double> y(a.batch * a.spatial * a.channels);
    for (std::size_t n = 0; n < a.batch; ++n) {
        for (std::size_t g = 0; g < a.groups; ++g) {
            const double count = static_cast<double>(per_group * a.spatial);
            double mean = 0.0, variance = 0.0;
            for (std::size_t c = g * per_group; c < (g + 1) * per_group; ++c) {
                for (std::size_t s = 0; s < a.spatial; ++s) mean += a.x[at(n, s, c)] / count;
            }
            for (std::size_t c = g * per_group; c < (g + 1) * per_group; ++c) {
                for (std::size_t s = 0; s < a.spatial; ++s) {
                    variance += std::pow(a.x[at(n, s, c)] - mean, 2) / count;
                }
            }
            for (std::size_t c = g * per_group; c < (g + 1) * per_group; ++c) {
                for (std::size_t s = 0; s < a.spatial; ++s) {
                    double v = (a.x[at(n, s, c)] - mean) / std::sqrt(variance + a.eps);
                    v = v * (a.weight != nullptr ? a.weight[c] : 1.0) + (a.bias != nullptr ? a.bias[c] : 0.0);
                    y[at(n, s, c)] = a.silu ? v / (1.0 + std::exp(-v)) : v;
                }
            }
        }
    }
    return y;
}

void check(Isa isa, Layout layout, std::size_t batch, std::size_t spatial, std::size_t channels,
           std::size_t groups, bool silu, bool affine, bool in_place) {
    Random random(channels * 1000 + spatial);
    std::vector<float> x = random.array(batch * spatial * channels), y(x.size());
    const std::vector<float> weight = random.array(channels), bias = random.array(channels);
    GroupNormSiluArgs args{layout,  batch,   spatial,  channels, groups, x.data(), channels,
                           nullptr, nullptr, y.data(), channels, 1e-5,   silu,     nullptr};
    if (affine) {
        args.weight = weight.data();
        args.bias = bias.data();
    }
    const std::vector<double> wanted = reference(args);
    if (in_place) args.y = x.data();
    std::vector<double> scratch((group_norm_silu_scratch(args) + 7) / 8);
    args.scratch = scratch.data();
    kernels(isa).group_norm_silu(args, serial);
    double worst = 0.0;
    for (std::size_t i = 0; i < wanted.size(); ++i)
        worst = std::fmax(worst, std::fabs(args.y[i] - wanted[i]));
    if (!(worst < 2e-6)) {
        fail(__FILE__, __LINE__,
             "group_norm_silu on " + std::string(isa_name(isa)) + ", channels " + std::to_string(channels) +
                 ", spatial " + std::to_string(spatial) + ": largest difference " + std::to_string(worst));
    }
}

// Sums that somebody else gathered, pixel by pixel, and an apply between wider arrays.
void check_split(Isa isa, std::size_t channels) {
    constexpr std::size_t batch = 2, spatial = 5;
    const std::size_t padded = group_norm_padded(channels), stride = channels + 3;
    Random random(channels);
    const std::vector<float> x = random.array(batch * spatial * stride);
    std::vector<float> y(batch * spatial * channels, 7.0f), packed, affine(batch * 3 * padded);
    std::vector<double> sums(batch * spatial * 2 * padded);
    for (std::size_t pixel = 0; pixel < batch * spatial; ++pixel) {
        for (std::size_t c = 0; c < channels; ++c) {
            const double value = x[pixel * stride + c];
            packed.push_back(x[pixel * stride + c]);
            sums[2 * pixel * padded + c] = value;
            sums[(2 * pixel + 1) * padded + c] = value * value;
        }
    }
    GroupNormSiluArgs args{Layout::nhwc, batch,   spatial,  channels, 1,    packed.data(), channels,
                           nullptr,      nullptr, y.data(), channels, 1e-5, true,          nullptr};
    const std::vector<double> wanted = reference(args);
    args.x = x.data();
    args.x_stride = stride;
    kernels(isa).group_norm_affine(args, sums.data(), spatial, affine.data(), serial);
    kernels(isa).group_norm_apply(args, affine.data(), serial);
    for (std::size_t i = 0; i < wanted.size(); ++i) CHECK(std::fabs(y[i] - wanted[i]) < 2e-6);

    std::vector<double> found(batch * group_norm_parts(args) * 2 * padded);
    kernels(isa).group_norm_sums(args, found.data(), serial);
    CHECK(group_norm_parts(args) == 1);
    for (std::size_t c = 0; c < channels; ++c) {
        double sum = 0.0;
        for (std::size_t pixel = 0; pixel < spatial; ++pixel) sum += x[pixel * stride + c];
        CHECK(std::fabs(found[c] - sum) < 1e-12);
    }
}

}  // namespace

void test_group_norm_silu() {
    for (Isa isa : available_isas()) {
        for (std::size_t channels : {1, 15, 16, 37, 64}) check_split(isa, channels);
        for (Layout layout : {Layout::nhwc, Layout::nchw}) {
            // Every tail of every register width, around the block of eight rows.
            for (std::size_t channels = 1; channels <= 70; ++channels) {
                for (std::size_t spatial :
                     {std::size_t{1}, std::size_t{7}, std::size_t{8}, std::size_t{17}}) {
                    const bool odd = channels % 2 == 1;
                    check(isa, layout, 2, spatial, channels, odd ? 1 : 2, true, odd, channels % 3 == 0);
                }
            }
            // Many parts: 320 channels are divided every 56 pixels.
            check(isa, layout, 1, 500, 320, 32, true, true, false);
            check(isa, layout, 1, 9, 48, 48, false, true, false);
            check(isa, layout, 0, 9, 48, 4, true, true, false);
            check(isa, layout, 2, 0, 48, 4, true, true, false);
        }
    }
}

}  // namespace fastdiff::tests
