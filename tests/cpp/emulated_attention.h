// What csrc/cuda/attention.cu is compiled with on a CPU in place of mma.h: a kernel is called once for each
// block of its grid, and runs the block's warps.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "emulated_warp.h"

#define __global__
#define __launch_bounds__(...)

namespace fastdiff::cuda {

inline int block_x, block_y;

template <class Shape, bool Bfloat>
void run(const AttentionArgs& args, int heads) {
    using Warp = tests::EmulatedWarp<Bfloat>;
    const int faults = tests::emulate_block<Bfloat>(
        Shape::warps, Shape::shared_bytes, tests::EmulatedBlock::Copies::when_waited_for, [&](Warp& warp) {
            Attention<Shape, Warp>(args, warp, block_x, block_y % heads, block_y / heads).run();
        });
    if (faults != 0) {
        std::fprintf(stderr, "attention.cu: %d addresses off or in conflict\n", faults);
        std::abort();
    }
}

}  // namespace fastdiff::cuda
