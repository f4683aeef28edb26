// Elementwise kernels over any number of axes.
#pragma once

#include <vector>

#include "cpu/dispatch.h"
#include "kernels/parallel.h"
#include "runtime/view.h"

namespace fastdiff {

// The kernel takes the last four axes, the others are loops here. args has the function, its parameters and
// the first elements.
void run_elementwise(const std::vector<ElementwiseAxis>& axes, ElementwiseArgs args, const Kernels& kernels,
                     const Parallel& parallel);

}  // namespace fastdiff
