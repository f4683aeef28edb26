// Checks of NumPy arrays on their way into a kernel. Each message says what was found and what was wanted.
#pragma once

#include <pybind11/numpy.h>

#include <optional>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace fastdiff::bindings {

namespace py = pybind11;

using Shape = std::vector<py::ssize_t>;

// Shape of an object that has passed input().
Shape shape_of(const py::object& array);
std::size_t size_of(const Shape& shape);
std::string to_string(const Shape& shape);

// The array's elements, after checking that it is a float32 NumPy array, C-contiguous and, when `shape` is
// given, of that shape. Throws InputError; `name` is the argument's.
const float* input(const py::object& array, const std::string& name, const Shape* shape = nullptr);

// As input, and writeable.
float* output(const py::object& array, const std::string& name, const Shape& shape);

// Throws InputError when the two overlap.
void refuse_overlap(const float* out, const std::string& out_name, const float* other,
                    const std::string& other_name, std::size_t out_size, std::size_t other_size);
// Throws InputError when two arrays of `size` overlap without being the same array.
void refuse_partial_overlap(const float* out, const std::string& out_name, const float* in,
                            const std::string& in_name, std::size_t size);

// The instruction set of one call: the named one, else the process's.
Isa choose_isa(const std::optional<std::string>& name);

void bind_attention(py::module_& module);
void bind_conv2d(py::module_& module);
void bind_elementwise(py::module_& module);
void bind_embedding(py::module_& module);
void bind_group_norm_silu(py::module_& module);
void bind_layer_norm(py::module_& module);
void bind_linear(py::module_& module);
void bind_native(py::module_& module);
void bind_randn(py::module_& module);
void bind_resample(py::module_& module);
void bind_scheduler_step(py::module_& module);
void bind_timestep_embedding(py::module_& module);
void bind_token_merging(py::module_& module);

}  // namespace fastdiff::bindings
