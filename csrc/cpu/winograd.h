// The one-dimensional transforms of Winograd's minimal filtering F(m, 3) (Lavin and Gray 2016, eq. 10 and
// after), for registers. Interpolation points: 0, ±1 and infinity for m = 2; 0, ±a, ±b and infinity for m
// = 4. The factors that make the products exact are all in the weights' transform (pack.cpp).
#pragma once

#include "cpu/vec.h"
#include "cpu/winograd_points.h"

namespace fastdiff::winograd {

template <int M>
struct Transform;

template <>
struct Transform<2> {
    template <class V>
    FASTDIFF_INLINE static void input(const V d[4], V t[4]) {
        t[0] = d[0] - d[2];
        t[1] = d[1] + d[2];
        t[2] = d[2] - d[1];
        t[3] = d[3] - d[1];
    }
    template <class V>
    FASTDIFF_INLINE static void output(const V t[4], V y[2]) {
        y[0] = t[0] + t[1] + t[2];
        y[1] = t[1] - t[2] + t[3];
    }
};

template <>
struct Transform<4> {
    // Values at p of the polynomials whose coefficients are d, without the factor (x - p) each.
    template <class V>
    FASTDIFF_INLINE static void input(const V d[6], V t[6]) {
        const V a1 = V::broadcast(a), b1 = V::broadcast(b), a2 = V::broadcast(a * a),
                b2 = V::broadcast(b * b);
        const V sum = V::broadcast(a * a + b * b), product = V::broadcast(a * a * b * b);
        t[0] = fmadd(product, d[0], fnmadd(sum, d[2], d[4]));
        const V even_a = fnmadd(b2, d[2], d[4]), odd_a = fnmadd(b2, d[1], d[3]);
        t[1] = fmadd(a1, odd_a, even_a);
        t[2] = fnmadd(a1, odd_a, even_a);
        const V even_b = fnmadd(a2, d[2], d[4]), odd_b = fnmadd(a2, d[1], d[3]);
        t[3] = fmadd(b1, odd_b, even_b);
        t[4] = fnmadd(b1, odd_b, even_b);
        t[5] = fmadd(product, d[1], fnmadd(sum, d[3], d[5]));
    }
    template <class V>
    FASTDIFF_INLINE static void output(const V t[6], V y[4]) {
        const V sum_a = t[1] + t[2], sum_b = t[3] + t[4];
        const V difference_a = t[1] - t[2], difference_b = t[3] - t[4];
        y[0] = t[0] + sum_a + sum_b;
        y[1] = fmadd(V::broadcast(a), difference_a, V::broadcast(b) * difference_b);
        y[2] = fmadd(V::broadcast(a * a), sum_a, V::broadcast(b * b) * sum_b);
        y[3] =
            fmadd(V::broadcast(a * a * a), difference_a, fmadd(V::broadcast(b * b * b), difference_b, t[5]));
    }
};

}  // namespace fastdiff::winograd
