#include "bindings/arrays.h"

#include <cstdint>

#include "kernels/error.h"

namespace fastdiff::bindings {

Shape shape_of(const py::object& array) {
    const auto view = py::reinterpret_borrow<py::array>(array);
    return {view.shape(), view.shape() + view.ndim()};
}

std::size_t size_of(const Shape& shape) {
    std::size_t size = 1;
    for (py::ssize_t length : shape) size *= static_cast<std::size_t>(length);
    return size;
}

std::string to_string(const Shape& shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (i > 0) text += ", ";
        text += std::to_string(shape[i]);
    }
    if (shape.size() == 1) text += ",";
    return text + ")";
}

const float* input(const py::object& array, const std::string& name, const Shape* shape) {
    if (!py::isinstance<py::array>(array)) {
        throw InputError(name + ": found " + py::type::of(array).attr("__name__").cast<std::string>() +
                         ", wanted a float32 NumPy array");
    }
    const auto view = py::reinterpret_borrow<py::array>(array);
    if (!py::isinstance<py::array_t<float>>(array)) {
        throw InputError(name + ": found dtype " + py::str(view.dtype()).cast<std::string>() +
                         ", wanted float32");
    }
    if (shape != nullptr && shape_of(array) != *shape) {
        throw InputError(name + ": found shape " + to_string(shape_of(array)) + ", wanted " +
                         to_string(*shape));
    }
    if (!(view.flags() & py::array::c_style)) {
        throw InputError(
            name + ": found an array of shape " + to_string(shape_of(array)) +
            " that is not C-contiguous, wanted a contiguous one; pass numpy.ascontiguousarray(...)");
    }
    return static_cast<const float*>(view.data());
}

float* output(const py::object& array, const std::string& name, const Shape& shape) {
    input(array, name, &shape);
    auto view = py::reinterpret_borrow<py::array>(array);
    if (!view.writeable())
        throw InputError(name + ": found a read-only array, wanted one that can be written");
    return static_cast<float*>(view.mutable_data());
}

void refuse_overlap(const float* out, const std::string& out_name, const float* other,
                    const std::string& other_name, std::size_t out_size, std::size_t other_size) {
    if (out_size == 0 || other_size == 0) return;
    const auto a = reinterpret_cast<std::uintptr_t>(out), b = reinterpret_cast<std::uintptr_t>(other);
    if (a < b + other_size * sizeof(float) && b < a + out_size * sizeof(float)) {
        throw InputError(out_name + ": found an array that overlaps " + other_name +
                         ", wanted separate memory");
    }
}

void refuse_partial_overlap(const float* out, const std::string& out_name, const float* in,
                            const std::string& in_name, std::size_t size) {
    if (out != in) refuse_overlap(out, out_name, in, in_name, size, size);
}

Isa choose_isa(const std::optional<std::string>& name) {
    return name ? require_isa(*name, "isa") : active_isa();
}

}  // namespace fastdiff::bindings
