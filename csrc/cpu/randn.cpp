// Plain C++, compiled once: the multiply-adds are written out, so that the result does not depend on the
// compiler or the instruction set. Latents are small; 16,384 numbers take well under a millisecond.
#include "kernels/randn.h"

#include <bit>
#include <cmath>

#include "cpu/isa.h"

namespace fastdiff {
namespace {

constexpr std::size_t block_size = 16;
constexpr std::size_t half = block_size / 2;
constexpr double pi = 3.14159265358979323846;

struct SinCos {
    float sin, cos;
};

// Cephes logf (Moshier): x = 2^e·m with m in [√½, √2), log x = e·log 2 + P(m − 1), log 2 in two parts.
// For normal x > 0.
float cephes_log(float x) {
    constexpr float coefs[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                               -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                               2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
    constexpr float log2_low = -2.12194440e-4f, log2_high = 0.693359375f;
    const auto bits = std::bit_cast<std::uint32_t>(x);
    auto exponent = static_cast<float>(static_cast<int>(bits >> 23) - 126);
    auto m = std::bit_cast<float>((bits & 0x007fffffu) | 0x3f000000u);  // in [0.5, 1)
    if (m < 0.707106781186547524f) {
        exponent -= 1.0f;
        m = (m - 1.0f) + m;
    } else {
        m -= 1.0f;
    }
    const float square = m * m;
    float y = coefs[0];
    for (std::size_t i = 1; i < std::size(coefs); ++i) y = std::fma(y, m, coefs[i]);
    y = std::fma(y * m, square, exponent * log2_low);
    y -= square * 0.5f;
    return std::fma(exponent, log2_high, m + y);
}

// Cephes sinf and cosf: x minus a multiple of π/2 (in three parts) lies in [−π/4, π/4], where two polynomials
// hold. For 0 <= x < 8192.
SinCos cephes_sincos(float x) {
    constexpr float four_over_pi = 1.27323954473516f;
    const int octant = (static_cast<int>(x * four_over_pi) + 1) & ~1;
    const auto n = static_cast<float>(octant);
    x = std::fma(n, -0.78515625f, x);
    x = std::fma(n, -2.4187564849853515625e-4f, x);
    x = std::fma(n, -3.77489497744594108e-8f, x);

    const float square = x * x;
    float even = 2.443315711809948e-5f;
    even = std::fma(even, square, -1.388731625493765e-3f);
    even = std::fma(even, square, 4.166664568298827e-2f);
    even = std::fma(even * square, square, -(square * 0.5f)) + 1.0f;
    float odd = -1.9515295891e-4f;
    odd = std::fma(odd, square, 8.3321608736e-3f);
    odd = std::fma(odd, square, -1.6666654611e-1f);
    odd = std::fma(odd * square, x, x);

    const bool swap = (octant & 2) != 0;
    const float sin = swap ? even : odd, cos = swap ? odd : even;
    return {(octant & 4) != 0 ? -sin : sin, ((octant + 2) & 4) != 0 ? -cos : cos};
}

}  // namespace

BoxMuller native_box_muller() { return isa_available(Isa::avx2) ? BoxMuller::cephes : BoxMuller::libm; }

Randn::Randn(std::uint64_t seed, BoxMuller method)
    : engine_(static_cast<std::mt19937::result_type>(seed & 0xffffffffu)), method_(method) {}

void Randn::fill(float* out, std::size_t size) {
    if (size < block_size) {
        for (std::size_t i = 0; i < size; ++i) out[i] = static_cast<float>(normal_double());
        return;
    }
    for (std::size_t i = 0; i < size; ++i) out[i] = uniform();
    for (std::size_t i = 0; i + block_size <= size; i += block_size) transform(out + i);
    if (size % block_size != 0) {
        float* last = out + size - block_size;
        for (std::size_t i = 0; i < block_size; ++i) last[i] = uniform();
        transform(last);
    }
}

// In place: uniforms to normals. Adding zero turns −0 into +0, as PyTorch's `normal * std + mean` does.
void Randn::transform(float* block) const {
    constexpr auto two_pi = static_cast<float>(2.0 * pi);
    for (std::size_t i = 0; i < half; ++i) {
        const float u1 = 1.0f - block[i], u2 = block[i + half];  // u1 in (0, 1] for the logarithm
        float log_u1;
        SinCos angle;
        if (method_ == BoxMuller::cephes) {
            log_u1 = cephes_log(u1);
            angle = cephes_sincos(two_pi * u2);
        } else {
            const auto theta = static_cast<float>(2.0 * pi * u2);
            log_u1 = std::log(u1);
            angle = {std::sin(theta), std::cos(theta)};
        }
        const float radius = std::sqrt(-2.0f * log_u1);
        block[i] = radius * angle.cos + 0.0f;
        block[i + half] = radius * angle.sin + 0.0f;
    }
}

float Randn::uniform() { return static_cast<float>(engine_() & 0xffffffu) * 0x1p-24f; }

double Randn::uniform_double() {
    const std::uint64_t high = engine_(), low = engine_();
    return static_cast<double>((high << 32 | low) & 0x1fffffffffffffu) * 0x1p-53;
}

double Randn::normal_double() {
    if (kept_) {
        const double normal = *kept_;
        kept_.reset();
        return normal + 0.0;
    }
    const double u1 = uniform_double(), u2 = uniform_double();
    const double radius = std::sqrt(-2.0 * std::log1p(-u2)), theta = 2.0 * pi * u1;
    kept_ = radius * std::sin(theta);
    return radius * std::cos(theta) + 0.0;
}

}  // namespace fastdiff
