// Plain versions of kernels, until the real ones replace them: weights are packed as they are, in fp32.
#include <bit>
#include <cstring>

#include "kernels/conv2d.h"
#include "kernels/embedding.h"
#include "kernels/linear.h"

namespace fastdiff {

std::size_t linear_packed_bytes(std::size_t in, std::size_t outputs, WeightType) {
    return (in * outputs * 4 + 63) / 64 * 64;
}
void linear_pack(const float* weight, std::size_t in, std::size_t outputs, WeightType, void* packed) {
    std::memcpy(packed, weight, in * outputs * 4);
}
std::size_t linear_scratch(const LinearArgs&, std::size_t) { return 0; }

bool conv2d_supports(const Conv2dShape& shape, ConvAlgorithm algorithm) {
    return algorithm == ConvAlgorithm::direct ||
           (shape.kernel_h == 3 && shape.kernel_w == 3 && shape.stride == 1);
}
ConvAlgorithm conv2d_choose(const Conv2dShape&, unsigned available, std::size_t) {
    return static_cast<ConvAlgorithm>(std::countr_zero(available));
}
std::size_t conv2d_packed_bytes(const Conv2dShape& s, ConvAlgorithm, WeightType) {
    return (s.in * s.out * s.kernel_h * s.kernel_w * 4 + 63) / 64 * 64;
}
void conv2d_pack(const float* weight, const Conv2dShape& s, ConvAlgorithm, WeightType, void* packed) {
    std::memcpy(packed, weight, s.in * s.out * s.kernel_h * s.kernel_w * 4);
}
std::size_t conv2d_scratch(const Conv2dArgs&, std::size_t) { return 128; }

std::size_t embedding_invalid(const EmbeddingArgs& args) {
    for (std::size_t row = 0; row < args.rows; ++row) {
        if (args.ids[row] < 0 || args.ids[row] >= static_cast<std::int64_t>(args.count)) return row;
    }
    return args.rows;
}

}  // namespace fastdiff
