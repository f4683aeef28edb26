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

Shape shape_of(const py::array& array);
std::string to_string(const Shape& shape);

// The array's elements, after checking that it is float32, C-contiguous and, when `shape` is given, of that
// shape. Throws InputError; `name` is the argument's.
const float* input(const py::array& array, const char* name, const Shape* shape = nullptr);

// As input, and writeable.
float* output(py::array& array, const char* name, const Shape& shape);

// Throws InputError when `size` floats at `out` overlap `size` floats at `in` without being the same floats.
void refuse_partial_overlap(const float* out, const char* out_name, const float* in, const char* in_name,
                            std::size_t size);
// Throws InputError when they overlap at all.
void refuse_overlap(const float* out, const char* out_name, const float* other, const char* other_name,
                    std::size_t out_size, std::size_t other_size);

// The instruction set of one call: the named one, else the process's.
Isa choose_isa(const std::optional<std::string>& name);

void bind_randn(py::module_& module);
void bind_scheduler_step(py::module_& module);

}  // namespace fastdiff::bindings
