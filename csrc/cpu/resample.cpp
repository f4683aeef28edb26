// Compiled once per instruction set; the contract is in kernels/resample.h.
#include "kernels/resample.h"

#include "cpu/dispatch.h"
#include "cpu/vec.h"

namespace fastdiff {
namespace {

// One row of x becomes `factor` rows of y, fewer for the last one of a picture that is cropped: each number
// is read once.
template <class I>
void upsample(void* context, std::size_t row, std::size_t) {
    using V = Vec<float, I>;
    const auto& args = *static_cast<const ResampleArgs*>(context);
    const std::size_t factor = args.factor;
    const std::size_t out_row = (args.width * factor - args.crop_right) * args.y_stride;
    const std::size_t image = row / args.height, line = row % args.height;
    const std::size_t high = factor - (line + 1 == args.height ? args.crop_bottom : 0);
    const float* x = args.x + row * args.width * args.x_stride;
    float* y = args.y + (row * factor - image * args.crop_bottom) * out_row;
    for (std::size_t w = 0; w < args.width; ++w, x += args.x_stride, y += factor * args.y_stride) {
        const std::size_t wide = factor - (w + 1 == args.width ? args.crop_right : 0);
        for (std::size_t c = 0; c < args.channels; c += V::width) {
            const std::size_t count = args.channels - c;
            const V v = count < V::width ? V::load(x + c, count) : V::load(x + c);
            for (std::size_t i = 0; i < high; ++i) {
                for (std::size_t j = 0; j < wide; ++j) {
                    float* to = y + i * out_row + j * args.y_stride + c;
                    if (count < V::width) {
                        v.store(to, count);
                    } else {
                        v.store(to);
                    }
                }
            }
        }
    }
}

// One row of y, of `factor` rows of x.
template <class I>
void pool(void* context, std::size_t row, std::size_t) {
    using V = Vec<float, I>;
    const auto& args = *static_cast<const ResampleArgs*>(context);
    const std::size_t factor = args.factor, height = args.height / factor, width = args.width / factor;
    const std::size_t in_row = args.width * args.x_stride;
    const float* x = args.x + (row / height * args.height + row % height * factor) * in_row;
    float* y = args.y + row * width * args.y_stride;
    const V scale = V::broadcast(1.0f / static_cast<float>(factor * factor));
    for (std::size_t w = 0; w < width; ++w, x += factor * args.x_stride, y += args.y_stride) {
        for (std::size_t c = 0; c < args.channels; c += V::width) {
            const std::size_t count = args.channels - c;
            V sum = V::zero();
            for (std::size_t i = 0; i < factor; ++i) {
                for (std::size_t j = 0; j < factor; ++j) {
                    const float* from = x + i * in_row + j * args.x_stride + c;
                    sum = sum + (count < V::width ? V::load(from, count) : V::load(from));
                }
            }
            if (count < V::width) {
                (sum * scale).store(y + c, count);
            } else {
                (sum * scale).store(y + c);
            }
        }
    }
}

}  // namespace

template <class I>
void resample(const ResampleArgs& args, const Parallel& parallel) {
    auto* context = const_cast<ResampleArgs*>(&args);
    if (args.pool) {
        parallel.run(parallel, args.batch * (args.height / args.factor), pool<I>, context);
    } else {
        parallel.run(parallel, args.batch * args.height, upsample<I>, context);
    }
}

template void resample<isa::FASTDIFF_ISA>(const ResampleArgs& args, const Parallel& parallel);

}  // namespace fastdiff
