// Compiled once per instruction set, as all kernels are, though it has only the C library's sine and cosine
// to call: once per schedule. The contract is in kernels/timestep_embedding.h.
#include "kernels/timestep_embedding.h"

#include "cpu/dispatch.h"

namespace fastdiff {
namespace {

template <class I>
void row(void* context, std::size_t r, std::size_t) {
    const auto& args = *static_cast<const TimestepEmbeddingArgs*>(context);
    float* cosine = args.y + r * args.y_stride + (args.sine_first ? args.half : 0);
    float* sine = args.y + r * args.y_stride + (args.sine_first ? 0 : args.half);
    for (std::size_t i = 0; i < args.half; ++i) {
        const float angle = args.timesteps[r] * args.frequencies[i];
        cosine[i] = static_cast<float>(__builtin_cos(static_cast<double>(angle)));
        sine[i] = static_cast<float>(__builtin_sin(static_cast<double>(angle)));
    }
}

}  // namespace

template <class I>
void timestep_embedding(const TimestepEmbeddingArgs& args, const Parallel& parallel) {
    parallel.run(parallel, args.rows, row<I>, const_cast<TimestepEmbeddingArgs*>(&args));
}

template void timestep_embedding<isa::FASTDIFF_ISA>(const TimestepEmbeddingArgs& args,
                                                    const Parallel& parallel);

}  // namespace fastdiff
