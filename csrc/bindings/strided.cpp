#include "bindings/strided.h"

#include <utility>

#include "kernels/error.h"

namespace fastdiff::bindings {
namespace {

std::string strides_of(const py::array& view) {
    return to_string(Shape(view.strides(), view.strides() + view.ndim()));
}

// The first byte of an array and the first after it, whatever lies between its elements.
std::pair<const char*, const char*> extent(const py::object& array) {
    const auto view = py::reinterpret_borrow<py::array>(array);
    const char* first = static_cast<const char*>(view.data());
    const char* last = first;
    if (view.size() == 0) return {first, first};
    for (py::ssize_t axis = 0; axis < view.ndim(); ++axis) {
        const py::ssize_t reach = (view.shape(axis) - 1) * view.strides(axis);
        (reach < 0 ? first : last) += reach;
    }
    return {first, last + view.itemsize()};
}

}  // namespace

Strided strided(const py::object& array, const std::string& name, std::size_t axes) {
    if (!py::isinstance<py::array>(array)) {
        throw InputError(name + ": found " + py::type::of(array).attr("__name__").cast<std::string>() +
                         ", wanted a float32 NumPy array");
    }
    const auto view = py::reinterpret_borrow<py::array>(array);
    if (!py::isinstance<py::array_t<float>>(array)) {
        throw InputError(name + ": found dtype " + py::str(view.dtype()).cast<std::string>() +
                         ", wanted float32");
    }
    Strided result{name, shape_of(array), {}, const_cast<float*>(static_cast<const float*>(view.data()))};
    if (result.shape.size() < axes) {
        throw InputError(name + ": found shape " + to_string(result.shape) + ", wanted at least " +
                         std::to_string(axes) + (axes == 1 ? " axis" : " axes"));
    }
    for (py::ssize_t axis = 0; axis < view.ndim(); ++axis) {
        const py::ssize_t stride = view.strides(axis);
        const bool matters = view.shape(axis) > 1 && view.size() > 0;
        if (matters && (stride < 0 || stride % static_cast<py::ssize_t>(sizeof(float)) != 0)) {
            throw InputError(name + ": found strides of " + strides_of(view) +
                             " bytes, wanted multiples of 4, none negative; pass "
                             "numpy.ascontiguousarray(...)");
        }
        result.strides.push_back(matters ? static_cast<std::size_t>(stride) / sizeof(float) : 1);
    }
    return result;
}

Strided strided_output(const py::object& array, const std::string& name, const Shape& shape) {
    Strided result = strided(array, name, 0);
    if (result.shape != shape) {
        throw InputError(name + ": found shape " + to_string(result.shape) + ", wanted " + to_string(shape));
    }
    if (!py::reinterpret_borrow<py::array>(array).writeable()) {
        throw InputError(name + ": found a read-only array, wanted one that can be written");
    }
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        if (!result.empty() && shape[axis] > 1 && result.strides[axis] == 0) {
            throw InputError(name + ": found a broadcast array, wanted one with a place for each element");
        }
    }
    return result;
}

void require_contiguous_rows(const Strided& array) {
    if (!array.empty() && array.shape.back() > 1 && array.strides.back() != 1) {
        throw InputError(array.name + ": found a stride of " + std::to_string(array.strides.back()) +
                         " floats on the last axis of an array of shape " + to_string(array.shape) +
                         ", wanted 1; pass numpy.ascontiguousarray(...)");
    }
}

std::size_t common_stride(const Strided& array, std::size_t first, std::size_t last) {
    std::size_t stride = 0, extent = 0;
    for (std::size_t axis = last; axis-- > first && !array.empty();) {
        if (array.length(axis) == 1) continue;
        if (extent == 0) {
            stride = array.strides[axis];
            extent = array.length(axis);
        } else if (array.strides[axis] == stride * extent) {
            extent *= array.length(axis);
        } else {
            throw InputError(array.name + ": found axes " + std::to_string(first) + " to " +
                             std::to_string(last - 1) + " of an array of shape " + to_string(array.shape) +
                             " unevenly spaced, wanted one distance between rows; pass "
                             "numpy.ascontiguousarray(...)");
        }
    }
    return stride;
}

void refuse_shared_memory(const py::object& out, const std::string& out_name, const py::object& other,
                          const std::string& other_name) {
    // NumPy's exact answer takes some ten microseconds.
    const auto a = extent(out), b = extent(other);
    if (a.second <= b.first || b.second <= a.first) return;
    if (py::module_::import("numpy").attr("shares_memory")(out, other).cast<bool>()) {
        throw InputError(out_name + ": found an array that overlaps " + other_name +
                         ", wanted separate memory");
    }
}

void refuse_partly_shared_memory(const py::object& out, const std::string& out_name, const py::object& other,
                                 const std::string& other_name) {
    const auto a = py::reinterpret_borrow<py::array>(out), b = py::reinterpret_borrow<py::array>(other);
    bool same = a.data() == b.data() && shape_of(out) == shape_of(other);
    for (py::ssize_t axis = 0; same && axis < a.ndim(); ++axis) {
        same = a.shape(axis) == 1 || a.strides(axis) == b.strides(axis);
    }
    if (!same) refuse_shared_memory(out, out_name, other, other_name);
}

ThreadPool make_pool(py::ssize_t threads) {
    if (threads < 1) {
        throw InputError("threads: found " + std::to_string(threads) + ", wanted at least 1");
    }
    return ThreadPool(static_cast<std::size_t>(threads));
}

}  // namespace fastdiff::bindings
