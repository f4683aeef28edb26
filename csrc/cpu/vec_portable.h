// Vec from GCC's and Clang's vector extensions: 16 bytes, which every x86-64 (SSE2) and every 64-bit Arm
// (NEON) has. Included by vec.h only. __builtin_memcpy of a register is an unaligned load or store.
#pragma once

namespace fastdiff {

template <>
struct Vec<float, isa::Portable> {
    static constexpr std::size_t width = 4;
    typedef float Register __attribute__((vector_size(16)));
    typedef std::int32_t Bits __attribute__((vector_size(16)));
    Register v;

    FASTDIFF_INLINE static Vec zero() { return {Register{}}; }
    FASTDIFF_INLINE static Vec broadcast(float s) { return {Register{s, s, s, s}}; }
    FASTDIFF_INLINE static Vec load(const float* p) {
        Vec r;
        __builtin_memcpy(&r.v, p, sizeof(r.v));
        return r;
    }
    FASTDIFF_INLINE static Vec load(const float* p, std::size_t n) {
        float lanes[width] = {};
        for (std::size_t i = 0; i < n && i < width; ++i) lanes[i] = p[i];
        return load(lanes);
    }
    // Half precision has 5 exponent bits of bias 15: shifted into a float's place, the value is 2^-112 of
    // what it should be, but for infinity and NaN, whose exponent becomes a float's largest.
    FASTDIFF_INLINE static Vec load_half(const std::uint16_t* p) {
        const Bits half = {p[0], p[1], p[2], p[3]};
        const Bits magnitude = (half & 0x7fff) << 13;
        const Register scaled = reinterpret_cast<Register>(magnitude) * 0x1p112f;
        const Bits special = (half & 0x7c00) == 0x7c00;
        const Bits bits = reinterpret_cast<Bits>(scaled) | (special & 0x7f800000);
        return {reinterpret_cast<Register>(bits | ((half & 0x8000) << 16))};
    }
    FASTDIFF_INLINE void store(float* p) const { __builtin_memcpy(p, &v, sizeof(v)); }
    FASTDIFF_INLINE void store(float* p, std::size_t n) const {
        float lanes[width];
        store(lanes);
        for (std::size_t i = 0; i < n && i < width; ++i) p[i] = lanes[i];
    }
    [[nodiscard]] FASTDIFF_INLINE Vec first(std::size_t n) const {
        Vec r = zero();
        for (std::size_t i = 0; i < n && i < width; ++i) r.v[i] = v[i];
        return r;
    }
};

template <>
struct Vec<double, isa::Portable> {
    static constexpr std::size_t width = 2;
    typedef double Register __attribute__((vector_size(16)));
    Register v;

    FASTDIFF_INLINE static Vec zero() { return {Register{}}; }
    FASTDIFF_INLINE static Vec load(const double* p) {
        Vec r;
        __builtin_memcpy(&r.v, p, sizeof(r.v));
        return r;
    }
    FASTDIFF_INLINE static Vec load_floats(const float* p) { return {Register{p[0], p[1]}}; }
    FASTDIFF_INLINE static Vec widen(Vec<float, isa::Portable> x, std::size_t part) {
        return {Register{x.v[2 * part], x.v[2 * part + 1]}};
    }
    FASTDIFF_INLINE static Vec load_floats(const float* p, std::size_t n) {
        return {Register{n > 0 ? p[0] : 0.0, n > 1 ? p[1] : 0.0}};
    }
    FASTDIFF_INLINE void store(double* p) const { __builtin_memcpy(p, &v, sizeof(v)); }
};

using FloatPortable = Vec<float, isa::Portable>;
using DoublePortable = Vec<double, isa::Portable>;

FASTDIFF_INLINE FloatPortable operator+(FloatPortable a, FloatPortable b) { return {a.v + b.v}; }
FASTDIFF_INLINE FloatPortable operator-(FloatPortable a, FloatPortable b) { return {a.v - b.v}; }
FASTDIFF_INLINE FloatPortable operator*(FloatPortable a, FloatPortable b) { return {a.v * b.v}; }
FASTDIFF_INLINE FloatPortable operator/(FloatPortable a, FloatPortable b) { return {a.v / b.v}; }
// With NaN in b, min and max return b.
FASTDIFF_INLINE FloatPortable min(FloatPortable a, FloatPortable b) { return {a.v < b.v ? a.v : b.v}; }
FASTDIFF_INLINE FloatPortable max(FloatPortable a, FloatPortable b) { return {a.v > b.v ? a.v : b.v}; }
// Two roundings where the others have one: SSE2 has no fused multiply-add.
FASTDIFF_INLINE FloatPortable fmadd(FloatPortable a, FloatPortable b, FloatPortable c) {
    return {a.v * b.v + c.v};
}
FASTDIFF_INLINE FloatPortable fnmadd(FloatPortable a, FloatPortable b, FloatPortable c) {
    return {c.v - a.v * b.v};
}
FASTDIFF_INLINE FloatPortable select_less(FloatPortable a, FloatPortable b, FloatPortable x,
                                          FloatPortable y) {
    return {a.v < b.v ? x.v : y.v};
}
FASTDIFF_INLINE FloatPortable sqrt(FloatPortable a) {
    for (int i = 0; i < 4; ++i) a.v[i] = __builtin_sqrtf(a.v[i]);
    return a;
}
// Adding 1.5 * 2^23 leaves no bits for a fraction; valid below 2^22.
FASTDIFF_INLINE FloatPortable round(FloatPortable a) {
    const FloatPortable magic = FloatPortable::broadcast(12582912.0f);
    return (a + magic) - magic;
}
// n is a whole number and the result a normal float: n is added to the exponent's bits.
FASTDIFF_INLINE FloatPortable scale_by_power_of_two(FloatPortable a, FloatPortable n) {
    using Bits = FloatPortable::Bits;
    const Bits exponent = __builtin_convertvector(n.v, Bits) << 23;
    return {reinterpret_cast<FloatPortable::Register>(reinterpret_cast<Bits>(a.v) + exponent)};
}
FASTDIFF_INLINE FloatPortable reciprocal(FloatPortable a) { return FloatPortable::broadcast(1.0f) / a; }
FASTDIFF_INLINE float reduce_add(FloatPortable a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
FASTDIFF_INLINE void transpose(FloatPortable (&rows)[4]) {
    const FloatPortable::Register r0 = rows[0].v, r1 = rows[1].v, r2 = rows[2].v, r3 = rows[3].v;
    for (int i = 0; i < 4; ++i) rows[i].v = FloatPortable::Register{r0[i], r1[i], r2[i], r3[i]};
}

FASTDIFF_INLINE DoublePortable operator+(DoublePortable a, DoublePortable b) { return {a.v + b.v}; }
FASTDIFF_INLINE DoublePortable fmadd(DoublePortable a, DoublePortable b, DoublePortable c) {
    return {a.v * b.v + c.v};
}
FASTDIFF_INLINE double reduce_add(DoublePortable a) { return a.v[0] + a.v[1]; }

}  // namespace fastdiff
