// The 16-bit floating types and 16-byte loads and stores of the CUDA kernels, without CUDA's own headers,
// which NVRTC does not bring. On the host the same conversions in integer arithmetic, for tests.
#pragma once

#include "host_device.h"

namespace fastdiff::cuda {

struct f16 {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};

FASTDIFF_HD uint32_t float_bits(float x) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(x);
#else
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
#endif
}

FASTDIFF_HD float bits_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
#endif
}

FASTDIFF_HD float to_float(float x) { return x; }

FASTDIFF_HD float to_float(bf16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }

FASTDIFF_HD float to_float(f16 x) {
#ifdef __CUDA_ARCH__
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
    return result;
#else
    const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31u,
                   mantissa = x.bits & 0x3ffu;
    if (exponent == 31) return bits_float(sign | 0x7f800000u | mantissa << 13);
    if (exponent != 0) return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
    const float small = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -small : small;
#endif
}

// Rounded to the nearest, ties to even; what is too large becomes infinite.
FASTDIFF_HD void from_float(float x, float& out) { out = x; }

FASTDIFF_HD void from_float(float x, bf16& out) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
    const uint32_t bits = float_bits(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    out.bits = static_cast<uint16_t>(nan ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}

FASTDIFF_HD void from_float(float x, f16& out) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
    const uint32_t bits = float_bits(x), magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7fffu;
    } else if (magnitude >= 0x477ff000u) {  // 65520 and more
        half = 0x7c00u;
    } else if (magnitude >= 0x38800000u) {
        half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    } else {  // subnormal: adding 0.5 leaves multiples of 2^-24 in the low bits
        half = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
    }
    out.bits = static_cast<uint16_t>((bits >> 16 & 0x8000u) | half);
#endif
}

// Size consecutive elements that are loaded and stored at once.
template <typename T, int Size>
struct alignas(sizeof(T) * Size) Pack {
    T values[Size];
};

// The widest pack of T: 16 bytes.
template <typename T>
constexpr int widest = 16 / static_cast<int>(sizeof(T));

}  // namespace fastdiff::cuda
