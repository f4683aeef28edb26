// Vec<T, I>: one register of T on the instruction set I. A kernel file is written once against it and
// compiled once per instruction set.
//
//   using V = Vec<float, I>;               V::width floats
//   V::load(p), V::load(p, n)              unaligned; with n < width the rest is zero and is not read
//   v.store(p), v.store(p, n)              likewise: nothing beyond n is written
//   v.first(n)                             the first n floats, zero beyond
//   V::broadcast(s), V::zero()
//   + - * /, fmadd(a, b, c) = a*b + c, fnmadd(a, b, c) = c - a*b, min, max, reduce_add
//   select_less(a, b, x, y)                x in the lanes where a < b, else y
//   sqrt, round, scale_by_power_of_two(v, n), reciprocal, exp, exp2
//   transpose(V (&rows)[width])            width × width floats, in place
//   V::load_half(p)                        V::width half-precision numbers
//   Vec<double, I>                         half as wide, for accumulating: load_floats widens while loading,
//                                          widen(x, part) one of the two halves of a register
//
// Every file sees the specialisation of its own instruction set only, all functions are inlined into their
// caller, and kernels hold no function that is not a template on I or local to the file. Otherwise the linker
// could pick an AVX-512 copy of an inline function for everyone. For the same reason this header includes no
// C++ standard header with inline functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/isa_tags.h"

#ifndef FASTDIFF_INLINE
#define FASTDIFF_INLINE [[gnu::always_inline]] inline
#endif

namespace fastdiff {

template <class T, class I>
struct Vec;

}  // namespace fastdiff

#if FASTDIFF_ISA_AVX512
#include "cpu/vec_avx512.h"
#elif FASTDIFF_ISA_AVX2
#include "cpu/vec_avx2.h"
#else
#include "cpu/vec_portable.h"
#endif

namespace fastdiff {

// exp(x) to about 2 ulp for x in [-86, 88]. Outside, any number: callers clamp, as their own formula allows.
// NaN stays NaN or becomes a number: callers that must keep it combine the result with x. Cody and Waite
// (1980): x = n ln2 + r with |r| <= ln2 / 2, exp(x) = 2^n exp(r); the polynomial is Cephes' expf.
template <class I>
FASTDIFF_INLINE Vec<float, I> exp(Vec<float, I> x) {
    using V = Vec<float, I>;
    const V n = round(x * V::broadcast(1.44269504088896341f));
    // ln2 in two parts; the first has so few bits that its product with n is exact.
    V r = fnmadd(n, V::broadcast(0.693359375f), x);
    r = fnmadd(n, V::broadcast(-2.12194440e-4f), r);
    V p = V::broadcast(1.9875691500e-4f);
    p = fmadd(p, r, V::broadcast(1.3981999507e-3f));
    p = fmadd(p, r, V::broadcast(8.3334519073e-3f));
    p = fmadd(p, r, V::broadcast(4.1665795894e-2f));
    p = fmadd(p, r, V::broadcast(1.6666665459e-1f));
    p = fmadd(p, r, V::broadcast(5.0000001201e-1f));
    p = fmadd(p * r, r, r + V::broadcast(1.0f));
    return scale_by_power_of_two(p, n);
}

// 2^x to about 1 ulp for x in [-125, 127], exact for whole numbers; otherwise as exp. The polynomial is the
// minimax one of degree 6 on [-1/2, 1/2].
template <class I>
FASTDIFF_INLINE Vec<float, I> exp2(Vec<float, I> x) {
    using V = Vec<float, I>;
    const V n = round(x);
    const V r = x - n;
    V p = V::broadcast(1.5345810971e-4f);
    p = fmadd(p, r, V::broadcast(1.3399932068e-3f));
    p = fmadd(p, r, V::broadcast(9.6184890717e-3f));
    p = fmadd(p, r, V::broadcast(5.5503286421e-2f));
    p = fmadd(p, r, V::broadcast(2.4022646248e-1f));
    p = fmadd(p, r, V::broadcast(6.9314718246e-1f));
    p = fmadd(p, r, V::broadcast(1.0f));
    return scale_by_power_of_two(p, n);
}

// x * sigmoid(x) (Hendrycks and Gimpel 2016; Ramachandran et al. 2017). NaN stays NaN.
template <class I>
FASTDIFF_INLINE Vec<float, I> silu(Vec<float, I> x) {
    using V = Vec<float, I>;
    // Below -80 the result is under 1e-32 either way, and the denominator would overflow.
    x = max(V::broadcast(-80.0f), x);
    const V e = exp(V::zero() - min(V::broadcast(86.0f), x));
    return x * reciprocal(V::broadcast(1.0f) + e);
}

// 1 / (1 + exp(-x)).
template <class I>
FASTDIFF_INLINE Vec<float, I> sigmoid(Vec<float, I> x) {
    using V = Vec<float, I>;
    const V e = exp(V::zero() - max(V::broadcast(-86.0f), min(V::broadcast(86.0f), x)));
    return reciprocal(V::broadcast(1.0f) + e);
}

// x * Phi(x) with the exact normal distribution (Hendrycks and Gimpel 2016), to 1e-7 plus a rounding: as
// max(x, 0) - |x| Phi(-|x|), so that nothing cancels. The polynomial is log2 of Phi(-a) for a in [0, 14],
// fitted to the error that it leaves in the product; it falls on to -156. Infinity stays infinity, NaN stays
// NaN.
template <class I>
FASTDIFF_INLINE Vec<float, I> gelu(Vec<float, I> x) {
    using V = Vec<float, I>;
    const V a = min(V::broadcast(14.0f), max(V::zero() - x, x));
    V p = V::broadcast(-4.5206218e-7f);
    p = fmadd(p, a, V::broadcast(1.0037824723e-5f));
    p = fmadd(p, a, V::broadcast(-4.2088162445e-5f));
    p = fmadd(p, a, V::broadcast(-4.9940263852e-4f));
    p = fmadd(p, a, V::broadcast(7.5617674738e-3f));
    p = fmadd(p, a, V::broadcast(-5.2864734083e-2f));
    p = fmadd(p, a, V::broadcast(-4.5907539129e-1f));
    p = fmadd(p, a, V::broadcast(-1.1511225700f));
    p = fmadd(p, a, V::broadcast(-1.0f));
    return fnmadd(a, exp2(max(V::broadcast(-125.0f), p)), max(V::zero(), x));
}

// x * sigmoid(1.702 x), the approximation of gelu in section 2 of the same paper.
template <class I>
FASTDIFF_INLINE Vec<float, I> quick_gelu(Vec<float, I> x) {
    using V = Vec<float, I>;
    return silu(V::broadcast(1.702f) * x) * V::broadcast(1.0f / 1.702f);
}

}  // namespace fastdiff
