#include "bindings/gemm_arguments.h"

#include "kernels/error.h"
#include "kernels/names.h"
#include "runtime/aligned.h"

namespace fastdiff::bindings {

Activation parse_activation(const std::string& name) {
    if (const Activation* found = find_named(activation_names, name)) return *found;
    throw InputError("activation: found '" + name + "', wanted none, silu, gelu, quick_gelu or geglu");
}

WeightType parse_weight_type(const std::string& precision) {
    if (precision == "fp32") return WeightType::fp32;
    if (precision == "fp16") return WeightType::fp16;
    throw InputError("precision: found '" + precision + "', wanted fp32 or fp16");
}

Rows rows_of(const Strided& array) {
    require_contiguous_rows(array);
    const std::size_t axes = array.shape.size();
    Rows r{array.data, 1, array.length(axes - 1), 0};
    for (std::size_t axis = 0; axis + 1 < axes; ++axis) r.count *= array.length(axis);
    r.stride = r.count > 1 && !array.empty() ? common_stride(array, 0, axes - 1) : r.channels;
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
