#include "cpu/dispatch.h"

namespace fastdiff {
namespace {

template <class I>
constexpr Kernels table{
    .conv2d = conv2d<I>,
    .group_norm_silu = group_norm_silu<I>,
    .linear = linear<I>,
    .scheduler_step = scheduler_step<I>,
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
