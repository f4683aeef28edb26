#include "bindings/arrays.h"

#include <cstdint>

#include "kernels/error.h"

namespace fastdiff::bindings {

Shape shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

std::string to_string(const Shape& shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (i > 0) text += ", ";
        text += std::to_string(shape[i]);
    }
    if (shape.size() == 1) text += ",";
    return text + ")";
}

const float* input(const py::array& array, const char* name, const Shape* shape) {
    const std::string prefix = std::string(name) + ": ";
    if (!py::isinstance<py::array_t<float>>(array)) {
        throw InputError(prefix + "found dtype " + py::str(array.dtype()).cast<std::string>() +
                         ", wanted float32");
    }
    if (shape != nullptr && shape_of(array) != *shape) {
        throw InputError(prefix + "found shape " + to_string(shape_of(array)) + ", wanted " +
                         to_string(*shape));
    }
    if (!(array.flags() & py::array::c_style)) {
        throw InputError(prefix + "found an array that is not C-contiguous, of shape " +
                         to_string(shape_of(array)) + "; pass numpy.ascontiguousarray(...)");
    }
    return static_cast<const float*>(array.data());
}

float* output(py::array& array, const char* name, const Shape& shape) {
    input(array, name, &shape);
    if (!array.writeable()) {
        throw InputError(std::string(name) + ": found a read-only array, wanted one that can be written");
    }
    return static_cast<float*>(array.mutable_data());
}

void refuse_overlap(const float* out, const char* out_name, const float* other, const char* other_name,
                    std::size_t out_size, std::size_t other_size) {
    const auto a = reinterpret_cast<std::uintptr_t>(out), b = reinterpret_cast<std::uintptr_t>(other);
    if (out_size == 0 || other_size == 0) return;
    if (a < b + other_size * sizeof(float) && b < a + out_size * sizeof(float)) {
        throw InputError(std::string(out_name) + ": found an array that overlaps " + other_name +
                         ", wanted separate memory");
    }
}

void refuse_partial_overlap(const float* out, const char* out_name, const float* in, const char* in_name,
                            std::size_t size) {
    if (out != in) refuse_overlap(out, out_name, in, in_name, size, size);
}

Isa choose_isa(const std::optional<std::string>& name) {
    return name ? require_isa(*name, "isa") : active_isa();
}

}  // namespace fastdiff::bindings
