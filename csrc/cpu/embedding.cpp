// Compiled once per instruction set; the contract is in kernels/embedding.h.
#include "kernels/embedding.h"

#include "cpu/dispatch.h"
#include "cpu/vec.h"

namespace fastdiff {
namespace {

// Rows of one item: some ten microseconds of work.
std::size_t rows_per_item(const EmbeddingArgs& args) { return 16384 / (args.channels + 1) + 1; }

// IEEE 754 binary16. Shifted into place, its exponent is too small by 112, which a product mends for
// subnormal numbers too; infinity and NaN get the exponent of theirs first.
FASTDIFF_INLINE float half_to_float(std::uint16_t half) {
    std::uint32_t bits = (half & 0x7fffu) << 13;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    __builtin_memcpy(&bits, &value, sizeof value);
    if ((half & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u;
    bits |= (half & 0x8000u) << 16;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

template <class I>
void rows(void* context, std::size_t item, std::size_t) {
    using V = Vec<float, I>;
    const auto& args = *static_cast<const EmbeddingArgs*>(context);
    const std::size_t some = rows_per_item(args), first = item * some, channels = args.channels;
    const std::size_t last = args.rows - first < some ? args.rows : first + some;
    for (std::size_t r = first; r < last; ++r) {
        const std::size_t at = static_cast<std::size_t>(args.ids[r]) * channels;
        float* y = args.y + r * args.y_stride;
        if (args.type == WeightType::fp16) {
            const std::uint16_t* from = static_cast<const std::uint16_t*>(args.table) + at;
            for (std::size_t c = 0; c < channels; ++c) y[c] = half_to_float(from[c]);
            continue;
        }
        const float* from = static_cast<const float*>(args.table) + at;
        std::size_t c = 0;
        for (; c + V::width <= channels; c += V::width) V::load(from + c).store(y + c);
        if (c < channels) V::load(from + c, channels - c).store(y + c, channels - c);
    }
}

}  // namespace

template <class I>
void embedding(const EmbeddingArgs& args, const Parallel& parallel) {
    const std::size_t some = rows_per_item(args);
    parallel.run(parallel, (args.rows + some - 1) / some, rows<I>, const_cast<EmbeddingArgs*>(&args));
}

template void embedding<isa::FASTDIFF_ISA>(const EmbeddingArgs& args, const Parallel& parallel);

#if FASTDIFF_ISA_PORTABLE
std::size_t embedding_invalid(const EmbeddingArgs& args) {
    for (std::size_t r = 0; r < args.rows; ++r) {
        if (args.ids[r] < 0 || static_cast<std::uint64_t>(args.ids[r]) >= args.count) return r;
    }
    return args.rows;
}
#endif

}  // namespace fastdiff
