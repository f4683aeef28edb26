// What linear and conv2d do to finished sums: y = scale * (activation(sum + bias + vector) + residual).
// Included by the files that are compiled per instruction set only.
#pragma once

#include "cpu/vec.h"
#include "kernels/activation.h"

namespace fastdiff {

template <class I>
FASTDIFF_INLINE Vec<float, I> activate(Vec<float, I> x, Activation activation) {
    switch (activation) {
        case Activation::silu:
            return silu(x);
        case Activation::gelu:
            return gelu(x);
        case Activation::quick_gelu:
            return quick_gelu(x);
        default:
            return x;
    }
}

// Where results go and what is added to them. Pointers are at the first channel; null leaves a term out.
struct Epilogue {
    const float* bias;
    Activation activation;
    float scale;
};

// Finishes up to V::width channels of one row: `sum` belongs to channel `c`, of which `count` exist.
template <class I>
FASTDIFF_INLINE void finish(Vec<float, I> sum, const Epilogue& e, const float* vector, const float* residual,
                            float* y, std::size_t c, std::size_t count) {
    using V = Vec<float, I>;
    const bool whole = count >= V::width;
    const auto load = [&](const float* p) { return whole ? V::load(p + c) : V::load(p + c, count); };
    if (e.bias != nullptr) sum = sum + load(e.bias);
    if (vector != nullptr) sum = sum + load(vector);
    if (e.activation != Activation::none) sum = activate<I>(sum, e.activation);
    if (residual != nullptr) sum = sum + load(residual);
    if (e.scale != 1.0f) sum = sum * V::broadcast(e.scale);
    if (whole) {
        sum.store(y + c);
    } else {
        sum.store(y + c, count);
    }
}

// Copies `count` half-precision weights to floats.
template <class I>
FASTDIFF_INLINE void widen(const std::uint16_t* from, float* to, std::size_t count) {
    using V = Vec<float, I>;
    for (std::size_t i = 0; i < count; i += V::width) V::load_half(from + i).store(to + i);
}

}  // namespace fastdiff
