// Times of one layer, for choosing its algorithm at build.
#pragma once

#include "cpu/isa.h"
#include "kernels/conv2d.h"
#include "kernels/linear.h"

namespace fastdiff {

// Median seconds of a run with weights that are not in the caches, as in a model, where a layer's turn comes
// after all others'. Activations are where the last run left them. Takes some `budget` seconds, one run at
// least.
double measure_conv2d(const Conv2dShape& shape, ConvAlgorithm algorithm, WeightType type,
                      const Parallel& parallel, Isa isa, double budget);
double measure_linear(std::size_t rows, std::size_t in, std::size_t out, Activation activation,
                      WeightType type, const Parallel& parallel, Isa isa, double budget);

}  // namespace fastdiff
