// The two ways in which conv2d.cpp computes a convolution; per instruction set.
#pragma once

#include "kernels/conv2d.h"

namespace fastdiff {

template <class I>
void conv2d_direct(const Conv2dArgs& args, const Parallel& parallel);
template <class I>
void conv2d_winograd(const Conv2dArgs& args, const Parallel& parallel);

}  // namespace fastdiff
