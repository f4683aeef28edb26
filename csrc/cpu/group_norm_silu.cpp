// Compiled once per instruction set; the contract is in kernels/group_norm_silu.h.
//
// Two passes over a sample. NHWC works on blocks of pixels: within a block the channel loop is outside, so
// that sums or parameters of a few channels stay in registers while the block stays in the first-level cache.
#include "kernels/group_norm_silu.h"

#include "cpu/dispatch.h"
#include "cpu/vec.h"

namespace fastdiff {
namespace {

struct Moments {
    double mean;
    double rstd;
};

// y = act((x - mean) * scale + shift): mean is the float nearest to the mean, shift holds what that leaves
// out.
struct Affine {
    float mean;
    float scale;
    float shift;
};

// (x - mean_of_group) * rstd * weight + bias for one channel.
template <class I>
FASTDIFF_INLINE Affine make_affine(const Moments& m, const GroupNormSiluArgs& args, std::size_t c) {
    const double weight = args.weight != nullptr ? args.weight[c] : 1.0;
    const double bias = args.bias != nullptr ? args.bias[c] : 0.0;
    const float near = static_cast<float>(m.mean);
    return {near, static_cast<float>(m.rstd * weight),
            static_cast<float>(bias - (m.mean - static_cast<double>(near)) * m.rstd * weight)};
}

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

// One group of one sample.
template <class I, bool Silu>
void nchw(void* context, std::size_t group, std::size_t) {
    const GroupNormSiluArgs& args = *static_cast<const GroupNormSiluArgs*>(context);
    const std::size_t per_group = args.channels / args.groups;
    const std::size_t size = per_group * args.spatial;
    const float* x = args.x + group * size;
    float* y = args.y + group * size;
    double sum, squares;
    sums<I>(x, size, &sum, &squares);
    const Moments m = moments<I>(sum, squares, static_cast<double>(size), args.eps);
    for (std::size_t k = 0; k < per_group; ++k) {
        const std::size_t c = group % args.groups * per_group + k;
        apply<I, Silu>(x + k * args.spatial, y + k * args.spatial, args.spatial, make_affine<I>(m, args, c));
    }
}

// ---- NHWC: a channel is a column

constexpr std::size_t block = 8;  // pixels of which a few channels are summed or written at a time

// How group_norm_sums and group_norm_apply divide the pixels of a sample: a thread is to find some ten
// microseconds of work in a part, and the sums of all parts are to take little room. Never by the number of
// threads, which the sums' rounding would show.
struct Parts {
    std::size_t pixels, count;
};

Parts divide(const GroupNormSiluArgs& args) {
    constexpr std::size_t elements = 16384, most = 32;
    std::size_t pixels = args.channels > 0 ? elements / args.channels : 0;
    if (pixels * most < args.spatial) pixels = (args.spatial + most - 1) / most;
    pixels = (pixels + block) / block * block;
    return {pixels, args.spatial > pixels ? (args.spatial + pixels - 1) / pixels : 1};
}

struct NhwcContext {
    const GroupNormSiluArgs& args;
    Parts parts;
    double* sums;
    float* affine;
};

// Adds `rows` rows of `Unroll` registers of channels, the last one of `count` channels if Tail, to sum[] and
// squares[].
template <class I, int Unroll, bool Tail>
FASTDIFF_INLINE void add_columns(const float* x, std::size_t rows, std::size_t stride, std::size_t count,
                                 double* sum, double* squares) {
    using D = Vec<double, I>;
    D s[Unroll], q[Unroll];
    for (int u = 0; u < Unroll; ++u) {
        s[u] = D::load(sum + u * D::width);
        q[u] = D::load(squares + u * D::width);
    }
    for (std::size_t r = 0; r < rows; ++r, x += stride) {
        for (int u = 0; u < Unroll; ++u) {
            const D v = Tail ? D::load_floats(x, count) : D::load_floats(x + u * D::width);
            s[u] = s[u] + v;
            q[u] = fmadd(v, v, q[u]);
        }
    }
    for (int u = 0; u < Unroll; ++u) {
        s[u].store(sum + u * D::width);
        q[u].store(squares + u * D::width);
    }
}

// One part of one sample.
template <class I>
void nhwc_sums(void* context, std::size_t item, std::size_t) {
    using D = Vec<double, I>;
    constexpr int unroll = 4;
    const auto& [args, parts, all_sums, affine] = *static_cast<const NhwcContext*>(context);
    const std::size_t channels = args.channels, padded = group_norm_padded(channels), stride = args.x_stride;
    double* sum = all_sums + item * 2 * padded;
    double* squares = sum + padded;
    for (std::size_t i = 0; i < 2 * padded; ++i) sum[i] = 0.0;
    const std::size_t first = item % parts.count * parts.pixels;
    const std::size_t last = args.spatial - first < parts.pixels ? args.spatial : first + parts.pixels;
    for (std::size_t row = first; row < last; row += block) {
        const std::size_t rows = last - row < block ? last - row : block;
        const float* x = args.x + (item / parts.count * args.spatial + row) * stride;
        std::size_t c = 0;
        for (; c + unroll * D::width <= channels; c += unroll * D::width) {
            add_columns<I, unroll, false>(x + c, rows, stride, 0, sum + c, squares + c);
        }
        for (; c + D::width <= channels; c += D::width) {
            add_columns<I, 1, false>(x + c, rows, stride, 0, sum + c, squares + c);
        }
        if (c < channels) add_columns<I, 1, true>(x + c, rows, stride, channels - c, sum + c, squares + c);
    }
}

// One sample.
template <class I>
void nhwc_affine(void* context, std::size_t n, std::size_t) {
    const auto& [args, parts, all_sums, all_affine] = *static_cast<const NhwcContext*>(context);
    const std::size_t padded = group_norm_padded(args.channels), per_group = args.channels / args.groups;
    double* total = all_sums + n * parts.count * 2 * padded;
    for (std::size_t part = 1; part < parts.count; ++part) {
        const double* row = total + part * 2 * padded;
        for (std::size_t i = 0; i < 2 * padded; ++i) total[i] += row[i];
    }
    float* affine = all_affine + n * 3 * padded;
    for (std::size_t first = 0; first < args.channels; first += per_group) {
        double sum = 0.0, squares = 0.0;
        for (std::size_t c = first; c < first + per_group; ++c) {
            sum += total[c];
            squares += total[padded + c];
        }
        const Moments m = moments<I>(sum, squares, static_cast<double>(per_group * args.spatial), args.eps);
        for (std::size_t c = first; c < first + per_group; ++c) {
            const Affine channel = make_affine<I>(m, args, c);
            affine[c] = channel.mean;
            affine[padded + c] = channel.scale;
            affine[2 * padded + c] = channel.shift;
        }
    }
    for (std::size_t c = args.channels; c < padded; ++c) {
        affine[c] = affine[padded + c] = affine[2 * padded + c] = 0.0f;
    }
}

// One part of one sample.
template <class I, bool Silu>
void nhwc_apply(void* context, std::size_t item, std::size_t) {
    using V = Vec<float, I>;
    const auto& [args, parts, sums, all_affine] = *static_cast<const NhwcContext*>(context);
    const std::size_t channels = args.channels, padded = group_norm_padded(channels);
    const std::size_t n = item / parts.count, first = item % parts.count * parts.pixels;
    const std::size_t last = args.spatial - first < parts.pixels ? args.spatial : first + parts.pixels;
    const float* affine = all_affine + n * 3 * padded;
    for (std::size_t row = first; row < last; row += block) {
        const std::size_t rows = last - row < block ? last - row : block;
        const float* x = args.x + (n * args.spatial + row) * args.x_stride;
        float* y = args.y + (n * args.spatial + row) * args.y_stride;
        for (std::size_t c = 0; c < channels; c += V::width) {
            const V mean = V::load(affine + c), scale = V::load(affine + padded + c),
                    shift = V::load(affine + 2 * padded + c);
            const std::size_t count = channels - c;
            if (count >= V::width) {
                for (std::size_t r = 0; r < rows; ++r) {
                    const V v = V::load(x + r * args.x_stride + c);
                    normalise<I, Silu>(v, mean, scale, shift).store(y + r * args.y_stride + c);
                }
            } else {
                for (std::size_t r = 0; r < rows; ++r) {
                    const V v = V::load(x + r * args.x_stride + c, count);
                    normalise<I, Silu>(v, mean, scale, shift).store(y + r * args.y_stride + c, count);
                }
            }
        }
    }
}

}  // namespace

template <class I>
void group_norm_sums(const GroupNormSiluArgs& args, double* sums, const Parallel& parallel) {
    NhwcContext context{args, divide(args), sums, nullptr};
    parallel.run(parallel, args.batch * context.parts.count, nhwc_sums<I>, &context);
}

template <class I>
void group_norm_affine(const GroupNormSiluArgs& args, double* sums, std::size_t parts, float* affine,
                       const Parallel& parallel) {
    NhwcContext context{args, {0, parts}, sums, affine};
    parallel.run(parallel, args.batch, nhwc_affine<I>, &context);
}

template <class I>
void group_norm_apply(const GroupNormSiluArgs& args, const float* affine, const Parallel& parallel) {
    NhwcContext context{args, divide(args), nullptr, const_cast<float*>(affine)};
    parallel.run(parallel, args.batch * context.parts.count,
                 args.silu ? nhwc_apply<I, true> : nhwc_apply<I, false>, &context);
}

template <class I>
void group_norm_silu(const GroupNormSiluArgs& args, const Parallel& parallel) {
    if (args.layout == Layout::nchw) {
        parallel.run(parallel, args.batch * args.groups, args.silu ? nchw<I, true> : nchw<I, false>,
                     const_cast<GroupNormSiluArgs*>(&args));
        return;
    }
    const std::size_t parts = group_norm_parts(args);
    double* sums = static_cast<double*>(args.scratch);
    float* affine =
        reinterpret_cast<float*>(sums + args.batch * parts * 2 * group_norm_padded(args.channels));
    group_norm_sums<I>(args, sums, parallel);
    group_norm_affine<I>(args, sums, parts, affine, parallel);
    group_norm_apply<I>(args, affine, parallel);
}

template void group_norm_sums<isa::FASTDIFF_ISA>(const GroupNormSiluArgs&, double*, const Parallel&);
template void group_norm_affine<isa::FASTDIFF_ISA>(const GroupNormSiluArgs&, double*, std::size_t, float*,
                                                   const Parallel&);
template void group_norm_apply<isa::FASTDIFF_ISA>(const GroupNormSiluArgs&, const float*, const Parallel&);
template void group_norm_silu<isa::FASTDIFF_ISA>(const GroupNormSiluArgs&, const Parallel&);

#if FASTDIFF_ISA_PORTABLE
std::size_t group_norm_parts(const GroupNormSiluArgs& args) { return divide(args).count; }

std::size_t group_norm_silu_scratch(const GroupNormSiluArgs& args) {
    if (args.layout == Layout::nchw) return 0;
    const std::size_t per_channel = 2 * sizeof(double) * group_norm_parts(args) + 3 * sizeof(float);
    return args.batch * group_norm_padded(args.channels) * per_channel;
}
#endif

}  // namespace fastdiff
