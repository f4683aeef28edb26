// Arguments that linear and conv2d have in common, on their way from Python.
#pragma once

#include <memory>

#include "bindings/arrays.h"
#include "kernels/activation.h"
#include "runtime/thread_pool.h"

namespace fastdiff::bindings {

Activation parse_activation(const std::string& name);
WeightType parse_weight_type(const std::string& precision);

// An array (…, channels) seen as rows of channels with one stride between them.
struct Rows {
    float* data;
    Shape shape;
    std::size_t rows, channels, stride;
};
// Throws InputError unless it is a float32 NumPy array of at least one dimension whose last axis is
// contiguous and whose other axes are rows at one distance. Rows of an `output` must not overlap.
Rows rows_of(const py::object& array, const std::string& name, bool output = false);

// `packed` as bytes, after checking its size and alignment.
const void* packed_weights(const py::object& packed, std::size_t bytes);
// Memory for weights: a NumPy array of bytes, aligned to 64.
py::array_t<std::uint8_t> packed_array(std::size_t bytes);

}  // namespace fastdiff::bindings
