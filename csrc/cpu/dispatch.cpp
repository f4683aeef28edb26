#include "cpu/dispatch.h"

namespace fastdiff {
namespace {

template <class I>
constexpr Kernels table{
    .attention = attention<I>,
    .conv2d = conv2d<I>,
    .elementwise = elementwise<I>,
    .embedding = embedding<I>,
    .group_norm_affine = group_norm_affine<I>,
    .group_norm_apply = group_norm_apply<I>,
    .group_norm_silu = group_norm_silu<I>,
    .group_norm_sums = group_norm_sums<I>,
    .layer_norm = layer_norm<I>,
    .linear = linear<I>,
    .resample = resample<I>,
    .scheduler_step = scheduler_step<I>,
    .timestep_embedding = timestep_embedding<I>,
    .token_match = token_match<I>,
    .token_merge = token_merge<I>,
    .token_unmerge = token_unmerge<I>,
};

}  // namespace

const Kernels& kernels(Isa isa) {
    switch (isa) {
#if FASTDIFF_HAVE_AVX512
        case Isa::avx512:
            return table<isa::Avx512>;
#endif
#if FASTDIFF_HAVE_AVX2
        case Isa::avx2:
            return table<isa::Avx2>;
#endif
        default:
            return table<isa::Portable>;
    }
}

}  // namespace fastdiff
