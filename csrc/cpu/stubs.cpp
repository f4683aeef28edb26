// Plain versions of kernels, until the real ones replace them.
#include "cpu/dispatch.h"

namespace fastdiff {
namespace {

float act(Activation a, float v, float gate) {
    switch (a) {
        case Activation::silu:
            return v / (1 + __builtin_expf(-v));
        case Activation::gelu:
            return 0.5f * v * (1 + __builtin_erff(v * 0.70710678f));
        case Activation::quick_gelu:
            return v / (1 + __builtin_expf(-1.702f * v));
        case Activation::geglu:
            return v * 0.5f * gate * (1 + __builtin_erff(gate * 0.70710678f));
        default:
            return v;
    }
}

float unary(const ElementwiseArgs& p, float v) {
    switch (p.function) {
        case Elementwise::silu:
            return act(Activation::silu, v, 0);
        case Elementwise::gelu:
            return act(Activation::gelu, v, 0);
        case Elementwise::quick_gelu:
            return act(Activation::quick_gelu, v, 0);
        case Elementwise::gelu_tanh:
            return 0.5f * v * (1 + __builtin_tanhf(0.7978845608f * (v + 0.044715f * v * v * v)));
        case Elementwise::relu:
            return v > 0 ? v : 0;
        case Elementwise::sigmoid:
            return 1 / (1 + __builtin_expf(-v));
        case Elementwise::tanh:
            return __builtin_tanhf(v);
        case Elementwise::exp:
            return __builtin_expf(v);
        case Elementwise::sin:
            return __builtin_sinf(v);
        case Elementwise::cos:
            return __builtin_cosf(v);
        case Elementwise::sqrt:
            return __builtin_sqrtf(v);
        case Elementwise::negate:
            return -v;
        case Elementwise::clamp:
            return v < p.low ? p.low : v > p.high ? p.high : v;
        case Elementwise::add_scalar:
            return v + p.scalar;
        case Elementwise::mul_scalar:
            return v * p.scalar;
        default:
            return v;
    }
}

}  // namespace

template <class I>
void layer_norm(const LayerNormArgs& p, const Parallel&) {
    for (std::size_t r = 0; r < p.rows; ++r) {
        const float* x = p.x + r * p.x_stride;
        double mean = 0, var = 0;
        for (std::size_t c = 0; c < p.channels; ++c) mean += x[c];
        mean /= static_cast<double>(p.channels);
        for (std::size_t c = 0; c < p.channels; ++c) var += (x[c] - mean) * (x[c] - mean);
        const double rstd = 1 / __builtin_sqrt(var / static_cast<double>(p.channels) + p.eps);
        for (std::size_t c = 0; c < p.channels; ++c) {
            p.y[r * p.y_stride + c] =
                static_cast<float>((x[c] - mean) * rstd) * (p.weight ? p.weight[c] : 1) +
                (p.bias ? p.bias[c] : 0);
        }
    }
}

template <class I>
void elementwise(const ElementwiseArgs& p, const Parallel&) {
    std::size_t n[4];
    for (n[0] = 0; n[0] < p.sizes[0]; ++n[0]) {
        for (n[1] = 0; n[1] < p.sizes[1]; ++n[1]) {
            for (n[2] = 0; n[2] < p.sizes[2]; ++n[2]) {
                for (n[3] = 0; n[3] < p.sizes[3]; ++n[3]) {
                    std::size_t a = 0, b = 0, y = 0;
                    for (int k = 0; k < 4; ++k) {
                        a += n[k] * p.a_strides[k];
                        b += n[k] * p.b_strides[k];
                        y += n[k] * p.y_strides[k];
                    }
                    const float u = p.a[a];
                    p.y[y] = p.function == Elementwise::add        ? u + p.b[b]
                             : p.function == Elementwise::subtract ? u - p.b[b]
                             : p.function == Elementwise::multiply ? u * p.b[b]
                             : p.function == Elementwise::divide   ? u / p.b[b]
                                                                   : unary(p, u);
                }
            }
        }
    }
}

template <class I>
void embedding(const EmbeddingArgs& p, const Parallel&) {
    for (std::size_t r = 0; r < p.rows; ++r) {
        for (std::size_t c = 0; c < p.channels; ++c) {
            p.y[r * p.y_stride + c] =
                static_cast<const float*>(p.table)[static_cast<std::size_t>(p.ids[r]) * p.channels + c];
        }
    }
}

template <class I>
void timestep_embedding(const TimestepEmbeddingArgs& p, const Parallel&) {
    for (std::size_t r = 0; r < p.rows; ++r) {
        for (std::size_t k = 0; k < p.half; ++k) {
            const float v = p.timesteps[r] * p.frequencies[k];
            p.y[r * p.y_stride + k + (p.sine_first ? p.half : 0)] = static_cast<float>(__builtin_cos(v));
            p.y[r * p.y_stride + k + (p.sine_first ? 0 : p.half)] = static_cast<float>(__builtin_sin(v));
        }
    }
}

template <class I>
void resample(const ResampleArgs& p, const Parallel&) {
    const std::size_t f = p.factor, oh = p.pool ? p.height / f : p.height * f,
                      ow = p.pool ? p.width / f : p.width * f;
    for (std::size_t b = 0; b < p.batch; ++b) {
        for (std::size_t y = 0; y < oh; ++y) {
            for (std::size_t x = 0; x < ow; ++x) {
                for (std::size_t c = 0; c < p.channels; ++c) {
                    float v = 0;
                    for (std::size_t dy = 0; dy < (p.pool ? f : 1); ++dy) {
                        for (std::size_t dx = 0; dx < (p.pool ? f : 1); ++dx) {
                            const std::size_t iy = p.pool ? y * f + dy : y / f,
                                              ix = p.pool ? x * f + dx : x / f;
                            v += p.x[((b * p.height + iy) * p.width + ix) * p.x_stride + c];
                        }
                    }
                    p.y[((b * oh + y) * ow + x) * p.y_stride + c] =
                        p.pool ? v / static_cast<float>(f * f) : v;
                }
            }
        }
    }
}

#if FASTDIFF_ISA_AVX512
using Tag = isa::Avx512;
#elif FASTDIFF_ISA_AVX2
using Tag = isa::Avx2;
#else
using Tag = isa::Portable;
#endif
template void layer_norm<Tag>(const LayerNormArgs&, const Parallel&);
template void elementwise<Tag>(const ElementwiseArgs&, const Parallel&);
template void embedding<Tag>(const EmbeddingArgs&, const Parallel&);
template void timestep_embedding<Tag>(const TimestepEmbeddingArgs&, const Parallel&);
template void resample<Tag>(const ResampleArgs&, const Parallel&);

}  // namespace fastdiff
