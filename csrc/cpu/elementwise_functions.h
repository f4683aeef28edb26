// What elementwise.cpp computes: one struct per function, with a call() on registers.
#pragma once

#include "cpu/vec.h"
#include "kernels/elementwise.h"

namespace fastdiff::elementwise_functions {

// The parameters of a call, as registers.
template <class I>
struct Parameters {
    Vec<float, I> scalar, low, high;
};

#define FASTDIFF_UNARY(name, expression)                                                 \
    template <class I>                                                                   \
    struct name {                                                                        \
        using V = Vec<float, I>;                                                         \
        FASTDIFF_INLINE static V call([[maybe_unused]] const Parameters<I>& p, V x, V) { \
            return expression;                                                           \
        }                                                                                \
    }
#define FASTDIFF_BINARY(name, expression)                                                    \
    template <class I>                                                                       \
    struct name {                                                                            \
        using V = Vec<float, I>;                                                             \
        FASTDIFF_INLINE static V call(const Parameters<I>&, V a, V b) { return expression; } \
    }

// Of inputs outside exp's range: zero below (the smallest normal number is near exp(-87.3)), infinity above.
template <class I>
FASTDIFF_INLINE Vec<float, I> full_exp(Vec<float, I> x) {
    using V = Vec<float, I>;
    const V least = V::broadcast(-86.0f), most = V::broadcast(88.72f);
    const V y = exp(max(least, min(most, x)));
    const V above = select_less(most, x, V::broadcast(__builtin_huge_valf()), y);
    return select_less(x, V::broadcast(-87.3f), V::zero(), above);
}

// Cephes' tanhf: near zero an odd polynomial, since 1 - 2 / (1 + exp(2x)) would leave few digits.
template <class I>
FASTDIFF_INLINE Vec<float, I> tanh(Vec<float, I> x) {
    using V = Vec<float, I>;
    const V z = x * x;
    V p = V::broadcast(-5.70498872745e-3f);
    p = fmadd(p, z, V::broadcast(2.06390887954e-2f));
    p = fmadd(p, z, V::broadcast(-5.37397155531e-2f));
    p = fmadd(p, z, V::broadcast(1.33314422036e-1f));
    p = fmadd(p, z, V::broadcast(-3.33332819422e-1f));
    const V near = fmadd(p * z, x, x);
    const V one = V::broadcast(1.0f), two = V::broadcast(2.0f);
    const V far = fnmadd(two, sigmoid(V::broadcast(-2.0f) * x), one);
    return select_less(max(V::zero() - x, x), V::broadcast(0.625f), near, far);
}

// 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3). Under -20 it is zero, and
// infinity times zero is not met.
template <class I>
FASTDIFF_INLINE Vec<float, I> gelu_tanh(Vec<float, I> x) {
    using V = Vec<float, I>;
    x = max(V::broadcast(-20.0f), x);
    const V u = fmadd(x * x * V::broadcast(0.044715f), x, x);
    return x * sigmoid(u * V::broadcast(1.5957691216f));
}

// Of the C library, in double: they serve a few hundred numbers.
template <class I, class F>
FASTDIFF_INLINE Vec<float, I> by_lane(Vec<float, I> x, F f) {
    float lanes[Vec<float, I>::width];
    x.store(lanes);
    for (float& lane : lanes) lane = static_cast<float>(f(static_cast<double>(lane)));
    return Vec<float, I>::load(lanes);
}

FASTDIFF_UNARY(Copy, x);
FASTDIFF_UNARY(Silu, silu(x));
FASTDIFF_UNARY(Gelu, gelu(x));
FASTDIFF_UNARY(QuickGelu, quick_gelu(x));
FASTDIFF_UNARY(GeluTanh, gelu_tanh(x));
FASTDIFF_UNARY(Relu, max(V::zero(), x));
FASTDIFF_UNARY(Sigmoid, sigmoid(x));
FASTDIFF_UNARY(Tanh, tanh(x));
FASTDIFF_UNARY(Exp, full_exp(x));
FASTDIFF_UNARY(Sin, by_lane(x, [](double v) { return __builtin_sin(v); }));
FASTDIFF_UNARY(Cos, by_lane(x, [](double v) { return __builtin_cos(v); }));
FASTDIFF_UNARY(Sqrt, sqrt(x));
FASTDIFF_UNARY(Negate, x* V::broadcast(-1.0f));
FASTDIFF_UNARY(Clamp, min(p.high, max(p.low, x)));
FASTDIFF_UNARY(AddScalar, x + p.scalar);
FASTDIFF_UNARY(MulScalar, x* p.scalar);
FASTDIFF_BINARY(Add, a + b);
FASTDIFF_BINARY(Subtract, a - b);
FASTDIFF_BINARY(Multiply, a* b);
FASTDIFF_BINARY(Divide, a / b);

#undef FASTDIFF_UNARY
#undef FASTDIFF_BINARY

}  // namespace fastdiff::elementwise_functions
