// Compiled once per instruction set; the contract is in kernels/group_norm_silu.h.
//
// Two passes over a sample. NHWC works on blocks of rows: within a block the channel loop is outside, so that
// sums or parameters of a few channels stay in registers while the block stays in the first-level cache.
#include "kernels/group_norm_silu.h"

#include "cpu/dispatch.h"
#include "cpu/vec.h"

namespace fastdiff {
namespace {

// y = act((x - mean) * scale + shift): mean is the float nearest to the mean, shift holds what that leaves
// out.
struct Affine {
    float mean;
    float scale;
    float shift;
};

// (x - mean_of_group) * rstd * weight + bias for one channel.
template <class I>
FASTDIFF_INLINE Affine make_affine(double mean, double rstd, const GroupNormSiluArgs& args, std::size_t c) {
    const double weight = args.weight != nullptr ? args.weight[c] : 1.0;
    const double bias = args.bias != nullptr ? args.bias[c] : 0.0;
    const float near = static_cast<float>(mean);
    return {near, static_cast<float>(rstd * weight),
            static_cast<float>(bias - (mean - static_cast<double>(near)) * rstd * weight)};
}

struct Moments {
    double mean;
    double rstd;
};

template <class I>
FASTDIFF_INLINE Moments moments(double sum, double squares, double count, double eps) {
    const double mean = sum / count;
    double variance = squares / count - mean * mean;
    if (variance < 0.0) variance = 0.0;  // rounding; NaN passes
    return {mean, 1.0 / __builtin_sqrt(variance + eps)};
}

template <class I, bool Silu>
FASTDIFF_INLINE Vec<float, I> normalise(Vec<float, I> x, Vec<float, I> mean, Vec<float, I> scale,
                                        Vec<float, I> shift) {
    const Vec<float, I> y = fmadd(x - mean, scale, shift);
    if constexpr (Silu) return silu(y);
    return y;
}

// ---- NCHW: a group is contiguous
// --------------------------------------------------------------------------------

// Sum and sum of squares of `size` floats.
template <class I>
FASTDIFF_INLINE void sums(const float* x, std::size_t size, double* sum, double* squares) {
    using D = Vec<double, I>;
    constexpr int unroll = 4;
    D s[unroll], q[unroll];
    for (int u = 0; u < unroll; ++u) s[u] = q[u] = D::zero();
    std::size_t i = 0;
    for (; i + unroll * D::width <= size; i += unroll * D::width) {
        for (int u = 0; u < unroll; ++u) {
            const D v = D::load_floats(x + i + u * D::width);
            s[u] = s[u] + v;
            q[u] = fmadd(v, v, q[u]);
        }
    }
    for (; i < size; i += D::width) {
        const D v = size - i < D::width ? D::load_floats(x + i, size - i) : D::load_floats(x + i);
        s[0] = s[0] + v;
        q[0] = fmadd(v, v, q[0]);
    }
    *sum = reduce_add((s[0] + s[1]) + (s[2] + s[3]));
    *squares = reduce_add((q[0] + q[1]) + (q[2] + q[3]));
}

template <class I, bool Silu>
FASTDIFF_INLINE void apply(const float* x, float* y, std::size_t size, Affine affine) {
    using V = Vec<float, I>;
    const V mean = V::broadcast(affine.mean), scale = V::broadcast(affine.scale),
            shift = V::broadcast(affine.shift);
    std::size_t i = 0;
    for (; i + V::width <= size; i += V::width) {
        normalise<I, Silu>(V::load(x + i), mean, scale, shift).store(y + i);
    }
    if (i < size) normalise<I, Silu>(V::load(x + i, size - i), mean, scale, shift).store(y + i, size - i);
}

template <class I, bool Silu>
void nchw(const GroupNormSiluArgs& args) {
    const std::size_t per_group = args.channels / args.groups;
    const std::size_t size = per_group * args.spatial;
    for (std::size_t group = 0; group < args.batch * args.groups; ++group) {
        const float* x = args.x + group * size;
        float* y = args.y + group * size;
        double sum, squares;
        sums<I>(x, size, &sum, &squares);
        const Moments m = moments<I>(sum, squares, static_cast<double>(size), args.eps);
        for (std::size_t k = 0; k < per_group; ++k) {
            const std::size_t c = group % args.groups * per_group + k;
            apply<I, Silu>(x + k * args.spatial, y + k * args.spatial, args.spatial,
                           make_affine<I>(m.mean, m.rstd, args, c));
        }
    }
}

// ---- NHWC: a channel is a column
// ----------------------------------------------------------------------------------

// Adds `rows` rows of `Unroll` registers of channels to sum[] and squares[].
template <class I, int Unroll>
FASTDIFF_INLINE void add_columns(const float* x, std::size_t rows, std::size_t stride, double* sum,
                                 double* squares) {
    using D = Vec<double, I>;
    D s[Unroll], q[Unroll];
    for (int u = 0; u < Unroll; ++u) {
        s[u] = D::load(sum + u * D::width);
        q[u] = D::load(squares + u * D::width);
    }
    for (std::size_t r = 0; r < rows; ++r, x += stride) {
        for (int u = 0; u < Unroll; ++u) {
            const D v = D::load_floats(x + u * D::width);
            s[u] = s[u] + v;
            q[u] = fmadd(v, v, q[u]);
        }
    }
    for (int u = 0; u < Unroll; ++u) {
        s[u].store(sum + u * D::width);
        q[u].store(squares + u * D::width);
    }
}

// The last `count` channels, fewer than a register.
template <class I>
FASTDIFF_INLINE void add_column_tail(const float* x, std::size_t rows, std::size_t stride, std::size_t count,
                                     double* sum, double* squares) {
    using D = Vec<double, I>;
    D s = D::load(sum), q = D::load(squares);
    for (std::size_t r = 0; r < rows; ++r, x += stride) {
        const D v = D::load_floats(x, count);
        s = s + v;
        q = fmadd(v, v, q);
    }
    s.store(sum);
    q.store(squares);
}

// Per-channel arrays, padded so that whole registers may be loaded and stored at their end.
struct NhwcScratch {
    static constexpr std::size_t padding = 16;
    double* sum;
    double* squares;
    float* mean;
    float* scale;
    float* shift;
};

template <class I, bool Silu>
FASTDIFF_INLINE void apply_rows(const float* x, float* y, std::size_t rows, std::size_t channels,
                                const NhwcScratch& scratch) {
    using V = Vec<float, I>;
    std::size_t c = 0;
    for (; c + V::width <= channels; c += V::width) {
        const V mean = V::load(scratch.mean + c), scale = V::load(scratch.scale + c),
                shift = V::load(scratch.shift + c);
        for (std::size_t r = 0; r < rows; ++r) {
            const std::size_t at = r * channels + c;
            normalise<I, Silu>(V::load(x + at), mean, scale, shift).store(y + at);
        }
    }
    if (c < channels) {
        const std::size_t count = channels - c;
        const V mean = V::load(scratch.mean + c), scale = V::load(scratch.scale + c),
                shift = V::load(scratch.shift + c);
        for (std::size_t r = 0; r < rows; ++r) {
            const std::size_t at = r * channels + c;
            normalise<I, Silu>(V::load(x + at, count), mean, scale, shift).store(y + at, count);
        }
    }
}

template <class I>
FASTDIFF_INLINE void channel_sums(const float* x, std::size_t spatial, std::size_t channels,
                                  const NhwcScratch& scratch) {
    using D = Vec<double, I>;
    constexpr int unroll = 4;
    constexpr std::size_t block = 8;
    for (std::size_t c = 0; c < channels + NhwcScratch::padding; ++c)
        scratch.sum[c] = scratch.squares[c] = 0.0;
    for (std::size_t row = 0; row < spatial; row += block) {
        const std::size_t rows = spatial - row < block ? spatial - row : block;
        const float* from = x + row * channels;
        std::size_t c = 0;
        for (; c + unroll * D::width <= channels; c += unroll * D::width) {
            add_columns<I, unroll>(from + c, rows, channels, scratch.sum + c, scratch.squares + c);
        }
        for (; c + D::width <= channels; c += D::width) {
            add_columns<I, 1>(from + c, rows, channels, scratch.sum + c, scratch.squares + c);
        }
        if (c < channels) {
            add_column_tail<I>(from + c, rows, channels, channels - c, scratch.sum + c, scratch.squares + c);
        }
    }
}

template <class I, bool Silu>
void nhwc(const GroupNormSiluArgs& args) {
    const std::size_t channels = args.channels, padded = channels + NhwcScratch::padding;
    const std::size_t per_group = channels / args.groups;
    double* doubles = static_cast<double*>(args.scratch);
    float* floats = reinterpret_cast<float*>(doubles + 2 * padded);
    const NhwcScratch scratch{doubles, doubles + padded, floats, floats + padded, floats + 2 * padded};
    for (std::size_t c = channels; c < padded; ++c)
        scratch.mean[c] = scratch.scale[c] = scratch.shift[c] = 0.0f;

    for (std::size_t n = 0; n < args.batch; ++n) {
        const float* x = args.x + n * args.spatial * channels;
        float* y = args.y + n * args.spatial * channels;
        channel_sums<I>(x, args.spatial, channels, scratch);
        for (std::size_t first = 0; first < channels; first += per_group) {
            double sum = 0.0, squares = 0.0;
            for (std::size_t c = first; c < first + per_group; ++c) {
                sum += scratch.sum[c];
                squares += scratch.squares[c];
            }
            const Moments m =
                moments<I>(sum, squares, static_cast<double>(per_group * args.spatial), args.eps);
            for (std::size_t c = first; c < first + per_group; ++c) {
                const Affine affine = make_affine<I>(m.mean, m.rstd, args, c);
                scratch.mean[c] = affine.mean;
                scratch.scale[c] = affine.scale;
                scratch.shift[c] = affine.shift;
            }
        }
        constexpr std::size_t block = 8;
        for (std::size_t row = 0; row < args.spatial; row += block) {
            const std::size_t rows = args.spatial - row < block ? args.spatial - row : block;
            apply_rows<I, Silu>(x + row * channels, y + row * channels, rows, channels, scratch);
        }
    }
}

}  // namespace

template <class I>
void group_norm_silu(const GroupNormSiluArgs& args) {
    if (args.layout == Layout::nhwc) {
        if (args.silu) {
            nhwc<I, true>(args);
        } else {
            nhwc<I, false>(args);
        }
    } else if (args.silu) {
        nchw<I, true>(args);
    } else {
        nchw<I, false>(args);
    }
}

template void group_norm_silu<isa::FASTDIFF_ISA>(const GroupNormSiluArgs& args);

#if FASTDIFF_ISA_PORTABLE
std::size_t group_norm_silu_scratch(const GroupNormSiluArgs& args) {
    const std::size_t padded = args.channels + NhwcScratch::padding;
    return args.layout == Layout::nhwc ? padded * (2 * sizeof(double) + 3 * sizeof(float)) : 0;
}
#endif

}  // namespace fastdiff
