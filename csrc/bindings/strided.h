// Arrays with strides, and what else a call of a parallel kernel needs, on their way in from Python.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "runtime/aligned.h"
#include "runtime/thread_pool.h"

namespace fastdiff::bindings {

// A float32 array of any strides that are whole, non-negative numbers of floats.
struct Strided {
    std::string name;
    Shape shape;
    std::vector<std::size_t> strides;  // in floats; of an axis of length 1, or of an empty array, any number
    float* data;

    [[nodiscard]] std::size_t length(std::size_t axis) const { return static_cast<std::size_t>(shape[axis]); }
    [[nodiscard]] bool empty() const { return size_of(shape) == 0; }
};

// Throws InputError for what is not such an array of `axes` or more axes.
Strided strided(const py::object& array, const std::string& name, std::size_t axes);
// As strided, of this shape, writeable, and without two elements in one place.
Strided strided_output(const py::object& array, const std::string& name, const Shape& shape);

// Throws InputError unless the elements of the last axis lie side by side.
void require_contiguous_rows(const Strided& array);
// The stride of the axes [first, last) taken as one; throws InputError when they are not evenly spaced.
std::size_t common_stride(const Strided& array, std::size_t first, std::size_t last);

// Throws InputError when the two have an element in common.
void refuse_shared_memory(const py::object& out, const std::string& out_name, const py::object& other,
                          const std::string& other_name);
// As refuse_shared_memory, but the two may be the same array.
void refuse_partly_shared_memory(const py::object& out, const std::string& out_name, const py::object& other,
                                 const std::string& other_name);

// A pool for one call; throws InputError for a number of threads under 1.
ThreadPool make_pool(py::ssize_t threads);

using Scratch = Aligned<std::byte>;

}  // namespace fastdiff::bindings
