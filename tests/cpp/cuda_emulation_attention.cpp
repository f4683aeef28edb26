// The kernels of csrc/cuda/attention.cu for cuda_emulation_library.cpp's library, whose functions these are
// like.
#define FASTDIFF_CUDA_EMULATION
#include <cstddef>
#include <utility>

#include "cuda/attention.cu"

namespace {

template <typename... Args, std::size_t... Indices>
void call(void (*kernel)(Args...), unsigned x, unsigned y, void** arguments,
          std::index_sequence<Indices...>) {
    for (unsigned i = 0; i < x * y; ++i) {
        fastdiff::cuda::block_x = static_cast<int>(i % x);
        fastdiff::cuda::block_y = static_cast<int>(i / x);
        kernel(*static_cast<Args*>(arguments[Indices])...);
    }
}

template <typename... Args>
void call(void (*kernel)(Args...), unsigned x, unsigned y, void** arguments) {
    call(kernel, x, y, arguments, std::index_sequence_for<Args...>{});
}

}  // namespace

#define EMULATE(kernel, count)                                                               \
    extern "C" __attribute__((visibility("default"))) void emulate_##kernel(                 \
        unsigned x, unsigned y, unsigned threads, unsigned, std::size_t, void** arguments) { \
        if (threads != 32 * (count)) std::abort();                                           \
        call(kernel, x, y, arguments);                                                       \
    }
#define EMULATE_TYPES(size, rows, row_tiles, groups, warps, blocks) \
    EMULATE(attention_f16_##size##_##rows, warps)                   \
    EMULATE(attention_bf16_##size##_##rows, warps)

FASTDIFF_ATTENTION_SHAPES(EMULATE_TYPES)
