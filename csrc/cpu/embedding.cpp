// Compiled once per instruction set; the contract is in kernels/embedding.h.
#include "kernels/embedding.h"

#include "cpu/dispatch.h"
#include "cpu/vec.h"

namespace fastdiff {
namespace {

// Rows of one item: some ten microseconds of work.
std::size_t rows_per_item(const EmbeddingArgs& args) { return 16384 / (args.channels + 1) + 1; }

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
            std::size_t c = 0;
            for (; c + V::width <= channels; c += V::width) V::load_half(from + c).store(y + c);
            if (c < channels) {  // the table may end here
                std::uint16_t rest[V::width] = {};
                for (std::size_t i = 0; c + i < channels; ++i) rest[i] = from[c + i];
                V::load_half(rest).store(y + c, channels - c);
            }
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
