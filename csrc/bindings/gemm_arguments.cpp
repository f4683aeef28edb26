#include "bindings/gemm_arguments.h"

#include "kernels/error.h"
#include "runtime/aligned.h"

namespace fastdiff::bindings {

Activation parse_activation(const std::string& name) {
    if (name == "none") return Activation::none;
    if (name == "silu") return Activation::silu;
    if (name == "gelu") return Activation::gelu;
    if (name == "quick_gelu") return Activation::quick_gelu;
    if (name == "geglu") return Activation::geglu;
    throw InputError("activation: found '" + name + "', wanted none, silu, gelu, quick_gelu or geglu");
}

WeightType parse_weight_type(const std::string& precision) {
    if (precision == "fp32") return WeightType::fp32;
    if (precision == "fp16") return WeightType::fp16;
    throw InputError("precision: found '" + precision + "', wanted fp32 or fp16");
}

Rows rows_of(const py::object& array, const std::string& name, bool output) {
    if (!py::isinstance<py::array>(array)) {
        throw InputError(name + ": found " + py::type::of(array).attr("__name__").cast<std::string>() +
                         ", wanted a float32 NumPy array");
    }
    auto view = py::reinterpret_borrow<py::array>(array);
    if (!py::isinstance<py::array_t<float>>(array)) {
        throw InputError(name + ": found dtype " + py::str(view.dtype()).cast<std::string>() +
                         ", wanted float32");
    }
    Rows r{nullptr, shape_of(array), 1, 0, 0};
    const auto dims = static_cast<std::size_t>(view.ndim());
    if (dims == 0) throw InputError(name + ": found a scalar array, wanted at least one dimension");
    r.channels = static_cast<std::size_t>(r.shape[dims - 1]);
    r.stride = r.channels;
    bool regular = r.channels < 2 || view.strides(view.ndim() - 1) == 4;
    bool first = true;
    for (std::size_t axis = dims - 1; axis-- > 0;) {
        const auto length = static_cast<std::size_t>(r.shape[axis]);
        const py::ssize_t step = view.strides(static_cast<py::ssize_t>(axis));
        if (length > 1) {
            if (first) {
                r.stride = static_cast<std::size_t>(step) / 4;
                regular = regular && step >= 0 && step % 4 == 0;
            }
            regular = regular && step == static_cast<py::ssize_t>(4 * r.stride * r.rows);
            first = false;
        }
        r.rows *= length;
    }
    if (r.rows == 0 || r.channels == 0) regular = true;  // strides of empty arrays mean nothing
    if (!regular || (output && r.stride < r.channels && r.rows > 1)) {
        throw InputError(name + ": found an array of shape " + to_string(r.shape) +
                         " that is not rows of channels at one distance, wanted those; pass "
                         "numpy.ascontiguousarray(...)");
    }
    if (output && !view.writeable()) {
        throw InputError(name + ": found a read-only array, wanted one that can be written");
    }
    r.data = const_cast<float*>(static_cast<const float*>(view.data()));
    return r;
}

const void* packed_weights(const py::object& packed, std::size_t bytes) {
    if (!py::isinstance<py::array_t<std::uint8_t>>(packed)) {
        throw InputError("packed: found " + py::type::of(packed).attr("__name__").cast<std::string>() +
                         ", wanted the array of bytes that a pack function returned");
    }
    const auto view = py::reinterpret_borrow<py::array>(packed);
    const bool whole = view.ndim() == 1 && (view.flags() & py::array::c_style) != 0;
    if (!whole || static_cast<std::size_t>(view.size()) != bytes ||
        reinterpret_cast<std::uintptr_t>(view.data()) % 64 != 0) {
        throw InputError("packed: found " + std::to_string(view.size()) + " bytes, wanted " +
                         std::to_string(bytes) + " aligned to 64, packed for the same sizes and precision");
    }
    return view.data();
}

py::array_t<std::uint8_t> packed_array(std::size_t bytes) {
    std::uint8_t* data = aligned<std::uint8_t>(bytes).release();
    const py::capsule owner(data, [](void* p) { std::free(p); });
    return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(bytes), data, owner);
}

}  // namespace fastdiff::bindings
