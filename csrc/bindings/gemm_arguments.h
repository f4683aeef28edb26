// Arguments that linear and conv2d have in common, on their way from Python.
#pragma once

#include <memory>

#include "bindings/strided.h"
#include "kernels/activation.h"

namespace fastdiff::bindings {

Activation parse_activation(const std::string& name);
WeightType parse_weight_type(const std::string& precision);

// An array (…, channels) seen as rows of channels with one stride between them.
struct Rows {
    float* data;
    std::size_t count, channels, stride;
};
// Throws InputError unless the last axis is contiguous and the others are rows at one distance.
Rows rows_of(const Strided& array);

// `packed` as bytes, after checking its size and alignment.
const void* packed_weights(const py::object& packed, std::size_t bytes);
// Memory for weights: a NumPy array of bytes, aligned to 64.
py::array_t<std::uint8_t> packed_array(std::size_t bytes);

}  // namespace fastdiff::bindings
