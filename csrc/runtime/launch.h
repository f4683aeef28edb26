// From a plan's step to the kernel that runs it.
#pragma once

#include <cstddef>

#include "cpu/dispatch.h"
#include "kernels/parallel.h"
#include "runtime/plan.h"

namespace fastdiff {

// Whether the node's kernel can read this input, or write its output, with the view's strides. Inputs of
// elementwise ops always pass; whether they go together is as_elementwise's to say.
bool can_read(const Node& node, std::size_t input, const View& view);
bool can_write(const Node& node, const View& view);
// Whether the kernel may write its output over this input, given the same view.
bool may_overwrite(const Node& node, std::size_t input);

std::size_t scratch_bytes(const Step& step, std::size_t threads);

// Runs a step; `inputs` and `output` point at the views' first elements. Throws InputError for token ids that
// are out of range.
void launch(const Step& step, DType dtype, const void* const* inputs, void* output, void* scratch,
            const Kernels& kernels, const Parallel& parallel);

}  // namespace fastdiff
