// The kernels of csrc/cuda/ on the CPU as a shared library, so that tests can launch them from Python with
// the arguments that the GPU would get: emulate_<kernel>(grid x, grid y, threads, cluster, shared bytes,
// arguments), arguments being what cuLaunchKernel takes, a pointer to each.
#define FASTDIFF_CUDA_EMULATION
#include <utility>

#include "cuda/group_norm_silu.cu"
#include "cuda/scheduler_step.cu"

namespace {

using fastdiff::emulation::Dim3;

template <typename... Args, std::size_t... Indices>
void call(void (*kernel)(Args...), unsigned x, unsigned y, unsigned threads, unsigned cluster,
          std::size_t shared, void** arguments, std::index_sequence<Indices...>) {
    fastdiff::emulation::launch(Dim3{x, y}, threads, cluster, shared, kernel,
                                *static_cast<Args*>(arguments[Indices])...);
}

template <typename... Args>
void call(void (*kernel)(Args...), unsigned x, unsigned y, unsigned threads, unsigned cluster,
          std::size_t shared, void** arguments) {
    call(kernel, x, y, threads, cluster, shared, arguments, std::index_sequence_for<Args...>{});
}

}  // namespace

#define EMULATE(kernel)                                                                                     \
    extern "C" __attribute__((visibility("default"))) void emulate_##kernel(                                \
        unsigned x, unsigned y, unsigned threads, unsigned cluster, std::size_t shared, void** arguments) { \
        call(kernel, x, y, threads, cluster, shared, arguments);                                            \
    }
#define EMULATE_TYPES(kernel) EMULATE(kernel##_f32) EMULATE(kernel##_f16) EMULATE(kernel##_bf16)

EMULATE_TYPES(group_norm_silu)
EMULATE_TYPES(group_norm_silu_moments)
EMULATE_TYPES(group_norm_silu_apply)
EMULATE_TYPES(group_norm_silu_moments_scalar)
EMULATE_TYPES(group_norm_silu_apply_scalar)
EMULATE_TYPES(scheduler_step)
EMULATE_TYPES(table_step)
EMULATE(normal)
