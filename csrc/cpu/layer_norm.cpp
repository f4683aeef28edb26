// Compiled once per instruction set; the contract is in kernels/layer_norm.h.
//
// Three passes over a row, which the first-level cache holds.
#include "kernels/layer_norm.h"

#include "cpu/dispatch.h"
#include "cpu/vec.h"

namespace fastdiff {
namespace {

template <class I>
FASTDIFF_INLINE float sum(const float* x, std::size_t size) {
    using V = Vec<float, I>;
    constexpr int unroll = 4;
    V s[unroll];
    for (int u = 0; u < unroll; ++u) s[u] = V::zero();
    std::size_t c = 0;
    for (; c + unroll * V::width <= size; c += unroll * V::width) {
        for (int u = 0; u < unroll; ++u) s[u] = s[u] + V::load(x + c + u * V::width);
    }
    for (; c + V::width <= size; c += V::width) s[0] = s[0] + V::load(x + c);
    if (c < size) s[1] = s[1] + V::load(x + c, size - c);
    return reduce_add((s[0] + s[1]) + (s[2] + s[3]));
}

// Sum and sum of squares of x - mean.
template <class I>
FASTDIFF_INLINE void sum_differences(const float* x, std::size_t size, float mean, float* sum,
                                     float* squares) {
    using V = Vec<float, I>;
    constexpr int unroll = 4;
    const V centre = V::broadcast(mean);
    V s[unroll], q[unroll];
    for (int u = 0; u < unroll; ++u) s[u] = q[u] = V::zero();
    std::size_t c = 0;
    for (; c + unroll * V::width <= size; c += unroll * V::width) {
        for (int u = 0; u < unroll; ++u) {
            const V d = V::load(x + c + u * V::width) - centre;
            s[u] = s[u] + d;
            q[u] = fmadd(d, d, q[u]);
        }
    }
    for (; c + V::width <= size; c += V::width) {
        const V d = V::load(x + c) - centre;
        s[0] = s[0] + d;
        q[0] = fmadd(d, d, q[0]);
    }
    if (c < size) {
        const V d = V::load(x + c, size - c) - centre.first(size - c);  // zero beyond the row
        s[1] = s[1] + d;
        q[1] = fmadd(d, d, q[1]);
    }
    *sum = reduce_add((s[0] + s[1]) + (s[2] + s[3]));
    *squares = reduce_add((q[0] + q[1]) + (q[2] + q[3]));
}

template <class I>
FASTDIFF_INLINE void row(const LayerNormArgs& args, const float* x, float* y) {
    using V = Vec<float, I>;
    const std::size_t size = args.channels;
    const float count = static_cast<float>(size);
    const float near = sum<I>(x, size) / count;
    float differences, squares;
    sum_differences<I>(x, size, near, &differences, &squares);
    const double rest = differences / count;
    double variance = squares / count - rest * rest;
    if (variance < 0.0) variance = 0.0;  // rounding; NaN passes
    const double rstd = 1.0 / __builtin_sqrt(variance + args.eps);
    const V mean = V::broadcast(near), scale = V::broadcast(static_cast<float>(rstd)),
            shift = V::broadcast(static_cast<float>(-rest * rstd));
    const auto normalise = [&](V v, V weight, V bias) {
        return fmadd(fmadd(v - mean, scale, shift), weight, bias);
    };
    V weight = V::broadcast(1.0f), bias = V::zero();
    std::size_t c = 0;
    for (; c + V::width <= size; c += V::width) {
        if (args.weight != nullptr) weight = V::load(args.weight + c);
        if (args.bias != nullptr) bias = V::load(args.bias + c);
        normalise(V::load(x + c), weight, bias).store(y + c);
    }
    if (c < size) {
        const std::size_t left = size - c;
        if (args.weight != nullptr) weight = V::load(args.weight + c, left);
        if (args.bias != nullptr) bias = V::load(args.bias + c, left);
        normalise(V::load(x + c, left), weight, bias).store(y + c, left);
    }
}

// Rows of one item: some ten microseconds of work.
std::size_t rows_per_item(const LayerNormArgs& args) { return 16384 / (args.channels + 1) + 1; }

template <class I>
void rows(void* context, std::size_t item, std::size_t) {
    const auto& args = *static_cast<const LayerNormArgs*>(context);
    const std::size_t some = rows_per_item(args), first = item * some;
    const std::size_t last = args.rows - first < some ? args.rows : first + some;
    for (std::size_t r = first; r < last; ++r)
        row<I>(args, args.x + r * args.x_stride, args.y + r * args.y_stride);
}

}  // namespace

template <class I>
void layer_norm(const LayerNormArgs& args, const Parallel& parallel) {
    if (args.channels == 0) return;
    const std::size_t some = rows_per_item(args);
    parallel.run(parallel, (args.rows + some - 1) / some, rows<I>, const_cast<LayerNormArgs*>(&args));
}

template void layer_norm<isa::FASTDIFF_ISA>(const LayerNormArgs& args, const Parallel& parallel);

}  // namespace fastdiff
