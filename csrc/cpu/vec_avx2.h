// Vec for AVX2 with FMA. Included by vec.h only.
#pragma once

#include <immintrin.h>

namespace fastdiff {

template <>
struct Vec<float, isa::Avx2> {
    static constexpr std::size_t width = 8;
    __m256 v;

    FASTDIFF_INLINE static Vec zero() { return {_mm256_setzero_ps()}; }
    FASTDIFF_INLINE static Vec broadcast(float s) { return {_mm256_set1_ps(s)}; }
    FASTDIFF_INLINE static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
    FASTDIFF_INLINE static Vec load(const float* p, std::size_t n) {
        return {_mm256_maskload_ps(p, mask(n))};
    }
    FASTDIFF_INLINE static Vec load_half(const std::uint16_t* p) {
        return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
    }
    FASTDIFF_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
    FASTDIFF_INLINE void store(float* p, std::size_t n) const { _mm256_maskstore_ps(p, mask(n), v); }
    [[nodiscard]] FASTDIFF_INLINE Vec first(std::size_t n) const {
        return {_mm256_and_ps(v, _mm256_castsi256_ps(mask(n)))};
    }

  private:
    FASTDIFF_INLINE static __m256i mask(std::size_t n) {
        const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lanes);
    }
};

template <>
struct Vec<double, isa::Avx2> {
    static constexpr std::size_t width = 4;
    __m256d v;

    FASTDIFF_INLINE static Vec zero() { return {_mm256_setzero_pd()}; }
    FASTDIFF_INLINE static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
    FASTDIFF_INLINE static Vec load_floats(const float* p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
    FASTDIFF_INLINE static Vec load_floats(const float* p, std::size_t n) {
        const __m128i mask = _mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(n)), _mm_setr_epi32(0, 1, 2, 3));
        return {_mm256_cvtps_pd(_mm_maskload_ps(p, mask))};
    }
    FASTDIFF_INLINE static Vec widen(Vec<float, isa::Avx2> x, std::size_t part) {
        return {_mm256_cvtps_pd(part == 0 ? _mm256_castps256_ps128(x.v) : _mm256_extractf128_ps(x.v, 1))};
    }
    FASTDIFF_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
};

using FloatAvx2 = Vec<float, isa::Avx2>;
using DoubleAvx2 = Vec<double, isa::Avx2>;

FASTDIFF_INLINE FloatAvx2 operator+(FloatAvx2 a, FloatAvx2 b) { return {_mm256_add_ps(a.v, b.v)}; }
FASTDIFF_INLINE FloatAvx2 operator-(FloatAvx2 a, FloatAvx2 b) { return {_mm256_sub_ps(a.v, b.v)}; }
FASTDIFF_INLINE FloatAvx2 operator*(FloatAvx2 a, FloatAvx2 b) { return {_mm256_mul_ps(a.v, b.v)}; }
FASTDIFF_INLINE FloatAvx2 operator/(FloatAvx2 a, FloatAvx2 b) { return {_mm256_div_ps(a.v, b.v)}; }
// With NaN in b, min and max return b.
FASTDIFF_INLINE FloatAvx2 min(FloatAvx2 a, FloatAvx2 b) { return {_mm256_min_ps(a.v, b.v)}; }
FASTDIFF_INLINE FloatAvx2 max(FloatAvx2 a, FloatAvx2 b) { return {_mm256_max_ps(a.v, b.v)}; }
FASTDIFF_INLINE FloatAvx2 fmadd(FloatAvx2 a, FloatAvx2 b, FloatAvx2 c) {
    return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
FASTDIFF_INLINE FloatAvx2 fnmadd(FloatAvx2 a, FloatAvx2 b, FloatAvx2 c) {
    return {_mm256_fnmadd_ps(a.v, b.v, c.v)};
}
FASTDIFF_INLINE FloatAvx2 select_less(FloatAvx2 a, FloatAvx2 b, FloatAvx2 x, FloatAvx2 y) {
    return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
FASTDIFF_INLINE FloatAvx2 sqrt(FloatAvx2 a) { return {_mm256_sqrt_ps(a.v)}; }
FASTDIFF_INLINE FloatAvx2 round(FloatAvx2 a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// n is a whole number and the result a normal float: n is added to the exponent's bits.
FASTDIFF_INLINE FloatAvx2 scale_by_power_of_two(FloatAvx2 a, FloatAvx2 n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n.v), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.v), exponent))};
}
FASTDIFF_INLINE FloatAvx2 reciprocal(FloatAvx2 a) { return FloatAvx2::broadcast(1.0f) / a; }
FASTDIFF_INLINE float reduce_add(FloatAvx2 a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// Pairs, then quadruples within 128-bit lanes, then the lanes themselves.
FASTDIFF_INLINE void transpose(FloatAvx2 (&rows)[8]) {
    __m256 a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
        a[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        rows[i].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        rows[i + 4].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

FASTDIFF_INLINE DoubleAvx2 operator+(DoubleAvx2 a, DoubleAvx2 b) { return {_mm256_add_pd(a.v, b.v)}; }
FASTDIFF_INLINE DoubleAvx2 fmadd(DoubleAvx2 a, DoubleAvx2 b, DoubleAvx2 c) {
    return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}
FASTDIFF_INLINE double reduce_add(DoubleAvx2 a) {
    const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}

}  // namespace fastdiff
