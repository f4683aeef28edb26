// Plain versions of kernels, until the real ones replace them: weights are packed as they are, in fp32.
#include "kernels/embedding.h"

namespace fastdiff {

std::size_t embedding_invalid(const EmbeddingArgs& args) {
    for (std::size_t row = 0; row < args.rows; ++row) {
        if (args.ids[row] < 0 || args.ids[row] >= static_cast<std::int64_t>(args.count)) return row;
    }
    return args.rows;
}

}  // namespace fastdiff
