// From a plan's step to the kernel that runs it.
#pragma once

#include <cstddef>

#include "cpu/dispatch.h"
#include "kernels/parallel.h"
#include "runtime/plan.h"

namespace fastdiff {

// Whether the node's kernel can read this input, or write its output, with the view's strides.
bool can_read(const Node& node, std::size_t input, const View& view);
bool can_write(const Node& node, const View& view);
// Whether the kernel may write its output over this input, given the same view.
bool may_overwrite(const Node& node, std::size_t input);

// Floats of a convolution's sums, and of the affine of a norm over x.
std::size_t conv2d_sums_size(const Step& step);
std::size_t affine_size(const Shape& x);

std::size_t scratch_bytes(const Step& step, std::size_t threads);

// Runs a step; `inputs`, `output` and `sums` point at the views' first elements. Throws InputError for token
// ids that are out of range.
void launch(const Step& step, DType dtype, const void* const* inputs, void* output, void* sums, void* scratch,
            const Kernels& kernels, const Parallel& parallel);

}  // namespace fastdiff
