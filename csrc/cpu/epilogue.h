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

// Up to V::width floats, `count` of which exist.
template <class I>
FASTDIFF_INLINE Vec<float, I> load_some(const float* p, std::size_t count) {
    using V = Vec<float, I>;
    return count >= V::width ? V::load(p) : V::load(p, count);
}

// Finishes and stores up to V::width channels of one row, `count` of which exist: y = scale *
// (activation(sum) + residual). Bias and vector are in the sum; residual may be null.
template <class I>
FASTDIFF_INLINE Vec<float, I> finish(Vec<float, I> sum, Activation activation, float scale,
                                     const float* residual, float* y, std::size_t count) {
    using V = Vec<float, I>;
    if (activation != Activation::none) sum = activate<I>(sum, activation);
    if (residual != nullptr) sum = sum + load_some<I>(residual, count);
    sum = sum * V::broadcast(scale);
    if (count >= V::width) {
        sum.store(y);
    } else {
        sum.store(y, count);
    }
    return sum;
}

// bias + vector of up to V::width channels; either may be null.
template <class I>
FASTDIFF_INLINE Vec<float, I> added_channels(const float* bias, const float* vector, std::size_t channel,
                                             std::size_t count) {
    Vec<float, I> sum = Vec<float, I>::zero();
    if (bias != nullptr) sum = load_some<I>(bias + channel, count);
    if (vector != nullptr) sum = sum + load_some<I>(vector + channel, count);
    return sum;
}

// Sums and sums of squares of one register's channels over a few pixels, as doubles.
template <class I>
struct RegisterSums {
    using D = Vec<double, I>;
    static constexpr std::size_t parts = Vec<float, I>::width / D::width;
    D sum[parts], squares[parts];

    FASTDIFF_INLINE void clear() {
        for (std::size_t i = 0; i < parts; ++i) sum[i] = squares[i] = D::zero();
    }
    FASTDIFF_INLINE void add(Vec<float, I> y) {
        for (std::size_t i = 0; i < parts; ++i) {
            const D v = D::widen(y, i);
            sum[i] = sum[i] + v;
            squares[i] = fmadd(v, v, squares[i]);
        }
    }
};

// What group_norm_silu asks of y: sums and sums of squares of the columns of one image, as doubles.
template <class I, std::size_t Columns>
struct ColumnSums {
    using D = Vec<double, I>;
    double sum[Columns], squares[Columns];

    FASTDIFF_INLINE void clear() {
        for (std::size_t i = 0; i < Columns; ++i) sum[i] = squares[i] = 0.0;
    }
    // Adds what was gathered of the columns from j on.
    FASTDIFF_INLINE void add(std::size_t j, const RegisterSums<I>& gathered) {
        for (std::size_t i = 0; i < RegisterSums<I>::parts; ++i) {
            double* s = sum + j + i * D::width;
            double* q = squares + j + i * D::width;
            (D::load(s) + gathered.sum[i]).store(s);
            (D::load(q) + gathered.squares[i]).store(q);
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
