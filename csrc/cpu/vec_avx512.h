// Vec for AVX-512 (F, BW, DQ, VL). Included by vec.h only.
#pragma once

#include <immintrin.h>

namespace fastdiff {

template <>
struct Vec<float, isa::Avx512> {
    static constexpr std::size_t width = 16;
    __m512 v;

    FASTDIFF_INLINE static Vec zero() { return {_mm512_setzero_ps()}; }
    FASTDIFF_INLINE static Vec broadcast(float s) { return {_mm512_set1_ps(s)}; }
    FASTDIFF_INLINE static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    FASTDIFF_INLINE static Vec load(const float* p, std::size_t n) {
        return {_mm512_maskz_loadu_ps(mask(n), p)};
    }
    FASTDIFF_INLINE static Vec load_half(const std::uint16_t* p) {
        return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
    }
    FASTDIFF_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
    FASTDIFF_INLINE void store(float* p, std::size_t n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
    [[nodiscard]] FASTDIFF_INLINE Vec first(std::size_t n) const { return {_mm512_maskz_mov_ps(mask(n), v)}; }

  private:
    FASTDIFF_INLINE static __mmask16 mask(std::size_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
};

template <>
struct Vec<double, isa::Avx512> {
    static constexpr std::size_t width = 8;
    __m512d v;

    FASTDIFF_INLINE static Vec zero() { return {_mm512_setzero_pd()}; }
    FASTDIFF_INLINE static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
    FASTDIFF_INLINE static Vec load_floats(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
    FASTDIFF_INLINE static Vec load_floats(const float* p, std::size_t n) {
        return {_mm512_cvtps_pd(_mm256_maskz_loadu_ps(static_cast<__mmask8>((1u << n) - 1u), p))};
    }
    FASTDIFF_INLINE static Vec widen(Vec<float, isa::Avx512> x, std::size_t part) {
        return {_mm512_cvtps_pd(part == 0 ? _mm512_castps512_ps256(x.v)
                                          : _mm512_maskz_extractf32x8_ps(0xff, x.v, 1))};
    }
    FASTDIFF_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
};

using FloatAvx512 = Vec<float, isa::Avx512>;
using DoubleAvx512 = Vec<double, isa::Avx512>;

FASTDIFF_INLINE FloatAvx512 operator+(FloatAvx512 a, FloatAvx512 b) { return {_mm512_add_ps(a.v, b.v)}; }
FASTDIFF_INLINE FloatAvx512 operator-(FloatAvx512 a, FloatAvx512 b) { return {_mm512_sub_ps(a.v, b.v)}; }
FASTDIFF_INLINE FloatAvx512 operator*(FloatAvx512 a, FloatAvx512 b) { return {_mm512_mul_ps(a.v, b.v)}; }
FASTDIFF_INLINE FloatAvx512 operator/(FloatAvx512 a, FloatAvx512 b) { return {_mm512_div_ps(a.v, b.v)}; }
// With NaN in b, min and max return b.
FASTDIFF_INLINE FloatAvx512 min(FloatAvx512 a, FloatAvx512 b) { return {_mm512_min_ps(a.v, b.v)}; }
FASTDIFF_INLINE FloatAvx512 max(FloatAvx512 a, FloatAvx512 b) { return {_mm512_max_ps(a.v, b.v)}; }
FASTDIFF_INLINE FloatAvx512 fmadd(FloatAvx512 a, FloatAvx512 b, FloatAvx512 c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
FASTDIFF_INLINE FloatAvx512 fnmadd(FloatAvx512 a, FloatAvx512 b, FloatAvx512 c) {
    return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}
FASTDIFF_INLINE FloatAvx512 select_less(FloatAvx512 a, FloatAvx512 b, FloatAvx512 x, FloatAvx512 y) {
    return {_mm512_mask_mov_ps(y.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), x.v)};
}
FASTDIFF_INLINE FloatAvx512 sqrt(FloatAvx512 a) { return {_mm512_maskz_sqrt_ps(0xffff, a.v)}; }
FASTDIFF_INLINE FloatAvx512 round(FloatAvx512 a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FASTDIFF_INLINE FloatAvx512 scale_by_power_of_two(FloatAvx512 a, FloatAvx512 n) {
    return {_mm512_scalef_ps(a.v, n.v)};
}
// 14 bits from the table and one Newton step: 1 to 2 ulp, and a third of a division's time.
FASTDIFF_INLINE FloatAvx512 reciprocal(FloatAvx512 a) {
    const FloatAvx512 r{_mm512_rcp14_ps(a.v)};
    return fmadd(r, fnmadd(a, r, FloatAvx512::broadcast(1.0f)), r);
}
// Not _mm512_reduce_add_ps; see the one of doubles.
FASTDIFF_INLINE float reduce_add(FloatAvx512 a) {
    const __m256 half =
        _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, a.v, 0), _mm512_maskz_extractf32x8_ps(0xff, a.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// Pairs, then quadruples within 128-bit lanes, then the lanes themselves in two rounds.
FASTDIFF_INLINE void transpose(FloatAvx512 (&rows)[16]) {
    __m512 a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
        a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        const __m512d low0 = _mm512_castps_pd(a[i]), low1 = _mm512_castps_pd(a[i + 2]);
        const __m512d high0 = _mm512_castps_pd(a[i + 1]), high1 = _mm512_castps_pd(a[i + 3]);
        b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low0, low1));
        b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low0, low1));
        b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high0, high1));
        b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high0, high1));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        a[i] = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
        a[i + 4] = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
        a[i + 8] = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        rows[i].v = _mm512_shuffle_f32x4(a[i], a[i + 8], 0x88);
        rows[i + 8].v = _mm512_shuffle_f32x4(a[i], a[i + 8], 0xdd);
    }
}

FASTDIFF_INLINE DoubleAvx512 operator+(DoubleAvx512 a, DoubleAvx512 b) { return {_mm512_add_pd(a.v, b.v)}; }
FASTDIFF_INLINE DoubleAvx512 fmadd(DoubleAvx512 a, DoubleAvx512 b, DoubleAvx512 c) {
    return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}
// Not _mm512_reduce_add_pd, which starts from an undefined register as well, and warns.
FASTDIFF_INLINE double reduce_add(DoubleAvx512 a) {
    const __m256d half =
        _mm256_add_pd(_mm512_maskz_extractf64x4_pd(0xff, a.v, 0), _mm512_maskz_extractf64x4_pd(0xff, a.v, 1));
    const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
    return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}

}  // namespace fastdiff
