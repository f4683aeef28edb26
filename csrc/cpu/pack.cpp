// Packing of weights for linear and conv2d, and what callers ask before a call. One layout for all
// instruction sets, so this file is compiled once.
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/blocks.h"
#include "cpu/winograd_points.h"

namespace fastdiff {
namespace {

constexpr std::size_t width = 16;

// The nearest half-precision number, ties to even (IEEE 754); too large becomes infinity.
std::uint16_t to_half(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits >= 0x47800000u)
        return static_cast<std::uint16_t>(sign | (bits > 0x7f800000u ? 0x7e00u : 0x7c00u));
    if (bits < 0x38800000u) {  // below 2^-14: steps of 2^-24
        float magnitude;
        std::memcpy(&magnitude, &bits, sizeof magnitude);
        return static_cast<std::uint16_t>(sign |
                                          static_cast<std::uint16_t>(std::nearbyint(magnitude * 0x1p24f)));
    }
    bits += 0xfffu + (bits >> 13 & 1u);
    return static_cast<std::uint16_t>(sign | (bits - 0x38000000u) >> 13);
}

class Writer {
  public:
    Writer(void* to, WeightType type) : to_(to), type_(type) {}
    void put(std::size_t index, float value) {
        if (type_ == WeightType::fp32) {
            static_cast<float*>(to_)[index] = value;
        } else {
            static_cast<std::uint16_t*>(to_)[index] = to_half(value);
        }
    }

  private:
    void* to_;
    WeightType type_;
};

std::size_t bytes(std::size_t count, WeightType type) {
    return round_up(count * (type == WeightType::fp32 ? 4 : 2), 64);
}

// G of F(m, 3): [m + 2][3], in double.
std::vector<double> weight_transform(std::size_t m) {
    std::vector<double> points{0.0};
    if (m == 2) {
        points.insert(points.end(), {1.0, -1.0});
    } else {
        points.insert(points.end(), {winograd::a, -winograd::a, winograd::b, -winograd::b});
    }
    std::vector<double> g;
    for (double p : points) {
        double product = 1.0;
        for (double q : points) product *= q == p ? 1.0 : p - q;
        if (m == 2 && p == 0.0) product = -product;  // Transform<2> has the signs of Lavin and Gray
        for (double power : {1.0, p, p * p}) g.push_back(power / product);
    }
    g.insert(g.end(), {0.0, 0.0, 1.0});
    return g;
}

// Whether an algorithm takes the weights as they are, in one layout.
bool is_plain(ConvAlgorithm algorithm) {
    return algorithm == ConvAlgorithm::direct || algorithm == ConvAlgorithm::winograd2_plain;
}

void pack_winograd(const float* weight, const Conv2dShape& shape, std::size_t m, WeightType type,
                   void* packed) {
    const std::size_t n = m + 2, points = n * n;
    const std::vector<double> g = weight_transform(m);
    std::memset(packed, 0, bytes(div_up(shape.out, width) * points * shape.in * width, type));
    Writer writer(packed, type);
    for (std::size_t o = 0; o < shape.out; ++o) {
        for (std::size_t i = 0; i < shape.in; ++i) {
            const float* w = weight + (o * shape.in + i) * 9;
            double half[6][3];  // G w
            for (std::size_t r = 0; r < n; ++r) {
                for (std::size_t c = 0; c < 3; ++c) {
                    half[r][c] = g[3 * r] * w[c] + g[3 * r + 1] * w[3 + c] + g[3 * r + 2] * w[6 + c];
                }
            }
            for (std::size_t r = 0; r < n; ++r) {
                for (std::size_t c = 0; c < n; ++c) {
                    const double value =
                        half[r][0] * g[3 * c] + half[r][1] * g[3 * c + 1] + half[r][2] * g[3 * c + 2];
                    const std::size_t matrix = o / width * points + r * n + c;
                    writer.put((matrix * shape.in + i) * width + o % width, static_cast<float>(value));
                }
            }
        }
    }
}

}  // namespace

std::size_t linear_packed_bytes(std::size_t in, std::size_t outputs, WeightType type) {
    return bytes(div_up(outputs, width) * in * width, type);
}

void linear_pack(const float* weight, std::size_t in, std::size_t outputs, WeightType type, void* packed) {
    std::memset(packed, 0, linear_packed_bytes(in, outputs, type));
    Writer writer(packed, type);
    for (std::size_t o = 0; o < outputs; ++o) {
        for (std::size_t i = 0; i < in; ++i) {
            writer.put((o / width * in + i) * width + o % width, weight[o * in + i]);
        }
    }
}

std::size_t linear_scratch(const LinearArgs& args, std::size_t threads) {
    const LinearBlocks b = linear_blocks(args, threads);
    return threads * (b.sums + b.weights) * sizeof(float);
}

bool conv2d_supports(const Conv2dShape& shape, ConvAlgorithm algorithm) {
    const std::size_t taps = shape.kernel_h * shape.kernel_w;
    if (algorithm == ConvAlgorithm::direct) return taps >= 1 && taps <= 49;
    return shape.kernel_h == 3 && shape.kernel_w == 3 && shape.stride == 1;
}

std::size_t conv2d_packed_bytes(const Conv2dShape& shape, ConvAlgorithm algorithm, WeightType type) {
    const std::size_t matrices = is_plain(algorithm)                     ? shape.kernel_h * shape.kernel_w
                                 : algorithm == ConvAlgorithm::winograd2 ? 16
                                                                         : 36;
    return bytes(div_up(shape.out, width) * matrices * shape.in * width, type);
}

void conv2d_pack(const float* weight, const Conv2dShape& shape, ConvAlgorithm algorithm, WeightType type,
                 void* packed) {
    if (!is_plain(algorithm)) {
        pack_winograd(weight, shape, algorithm == ConvAlgorithm::winograd2 ? 2 : 4, type, packed);
        return;
    }
    std::memset(packed, 0, conv2d_packed_bytes(shape, algorithm, type));
    Writer writer(packed, type);
    const std::size_t taps = shape.kernel_h * shape.kernel_w;
    for (std::size_t o = 0; o < shape.out; ++o) {
        for (std::size_t i = 0; i < shape.in; ++i) {
            for (std::size_t tap = 0; tap < taps; ++tap) {
                const std::size_t row = (o / width * taps + tap) * shape.in + i;
                writer.put(row * width + o % width, weight[(o * shape.in + i) * taps + tap]);
            }
        }
    }
}

std::size_t conv2d_scratch(const Conv2dArgs& args, std::size_t threads) {
    if (args.algorithm == ConvAlgorithm::direct) {
        const DirectBlocks b = direct_blocks(args, threads);
        return (b.copy + threads * (b.sums + b.weights)) * sizeof(float);
    }
    const WinogradBlocks b = winograd_blocks(args);
    return (b.zeros + b.points * b.plane + b.strip + threads * (b.sums + b.weights)) * sizeof(float);
}

std::size_t conv2d_sum_parts(const Conv2dArgs& args) {
    if (args.algorithm == ConvAlgorithm::direct) return direct_blocks(args, 1).row_blocks;
    const WinogradBlocks b = winograd_blocks(args);
    return b.rounds * b.tile_blocks;
}

// Winograd pays when its many weights are used for enough tiles. On the machine of the committed results
// F(4×4) is ahead from 128 pixels on and F(2×2) from 32; where memory is slower than the cores, as on many,
// F(4×4) needs more.
ConvAlgorithm conv2d_choose(const Conv2dShape& shape, unsigned available, std::size_t) {
    const auto has = [&](ConvAlgorithm algorithm) {
        return (available >> static_cast<unsigned>(algorithm) & 1u) != 0 && conv2d_supports(shape, algorithm);
    };
    const std::size_t pixels = shape.batch * shape.out_height() * shape.out_width();
    if (has(ConvAlgorithm::winograd4) && pixels >= 256) return ConvAlgorithm::winograd4;
    if (has(ConvAlgorithm::winograd2_plain) && pixels >= 32 && pixels < 128)
        return ConvAlgorithm::winograd2_plain;
    if (has(ConvAlgorithm::winograd2) && pixels >= 32) return ConvAlgorithm::winograd2;
    if (has(ConvAlgorithm::winograd2_plain) && pixels >= 32) return ConvAlgorithm::winograd2_plain;
    for (auto algorithm : {ConvAlgorithm::direct, ConvAlgorithm::winograd2_plain, ConvAlgorithm::winograd2,
                           ConvAlgorithm::winograd4}) {
        if (has(algorithm)) return algorithm;
    }
    return ConvAlgorithm::direct;
}

}  // namespace fastdiff
