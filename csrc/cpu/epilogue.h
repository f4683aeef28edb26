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
FASTDIFF_INLINE Vec<float, I> finish(Vec<float, I> sum, const Epilogue& e, const float* vector,
                                     const float* residual, float* y, std::size_t c, std::size_t count) {
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
    return sum;
}

// What group_norm_silu asks of y: sums and sums of squares of the columns of one image, as doubles.
template <class I, std::size_t Columns>
struct ColumnSums {
    using D = Vec<double, I>;
    double sum[Columns], squares[Columns];

    FASTDIFF_INLINE void clear() {
        for (std::size_t i = 0; i < Columns; ++i) sum[i] = squares[i] = 0.0;
    }
    // Adds a register of y that begins at column j.
    FASTDIFF_INLINE void add(std::size_t j, Vec<float, I> y) {
        float values[Vec<float, I>::width];
        y.store(values);
        for (std::size_t i = 0; i < Vec<float, I>::width; i += D::width) {
            const D v = D::load_floats(values + i);
            (D::load(sum + j + i) + v).store(sum + j + i);
            fmadd(v, v, D::load(squares + j + i)).store(squares + j + i);
        }
    }
    // To (2, padded) doubles, at the first of `columns` channels; zero beyond the last channel that exists.
    FASTDIFF_INLINE void store(double* to, std::size_t padded, std::size_t columns) const {
        for (std::size_t i = 0; i < columns; ++i) {
            to[i] = sum[i];
            to[padded + i] = squares[i];
        }
    }
};

// silu?((x - mean) * scale + shift) of V::width channels, with affine (3, padded) at those channels.
template <class I>
FASTDIFF_INLINE Vec<float, I> normalise(Vec<float, I> x, const float* affine, std::size_t padded,
                                        bool with_silu) {
    using V = Vec<float, I>;
    const V y = fmadd(x - V::load(affine), V::load(affine + padded), V::load(affine + 2 * padded));
    return with_silu ? silu(y) : y;
}

// A pixel of `channels` channels, normalised. What is beyond the channels is not written.
template <class I>
FASTDIFF_INLINE void normalise_pixel(const float* x, float* y, std::size_t channels, const float* affine,
                                     std::size_t padded, bool with_silu) {
    using V = Vec<float, I>;
    std::size_t c = 0;
    for (; c + V::width <= channels; c += V::width) {
        normalise<I>(V::load(x + c), affine + c, padded, with_silu).store(y + c);
    }
    if (c < channels) {
        normalise<I>(V::load(x + c, channels - c), affine + c, padded, with_silu).store(y + c, channels - c);
    }
}

// Copies `count` half-precision weights to floats.
template <class I>
FASTDIFF_INLINE void widen(const std::uint16_t* from, float* to, std::size_t count) {
    using V = Vec<float, I>;
    for (std::size_t i = 0; i < count; i += V::width) V::load_half(from + i).store(to + i);
}

}  // namespace fastdiff
