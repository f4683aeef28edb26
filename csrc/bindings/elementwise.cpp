#include "kernels/elementwise.h"

#include <pybind11/stl.h>

#include "bindings/strided.h"
#include "cpu/dispatch.h"
#include "kernels/error.h"
#include "kernels/names.h"

namespace fastdiff::bindings {
namespace {

constexpr std::size_t axes = 4;

Elementwise parse_function(const std::string& name) {
    if (const Elementwise* function = find_named(elementwise_names, name)) return *function;
    std::string known;
    for (const auto& entry : elementwise_names) {
        known.append(known.empty() ? "" : ", ").append(entry.name);
    }
    throw InputError("function: found '" + name + "', wanted one of " + known);
}

void take_strides(const Strided& array, std::size_t (&strides)[axes]) {
    const std::size_t missing = axes - array.shape.size();
    for (std::size_t i = 0; i < axes; ++i) strides[i] = i < missing ? 0 : array.strides[i - missing];
}

void run(const std::string& function, const py::object& a, const py::object& b, double scalar, double low,
         double high, const py::object& out, py::ssize_t threads, const std::optional<std::string>& isa) {
    ElementwiseArgs args{};
    args.function = parse_function(function);
    const bool binary = args.function >= Elementwise::add;
    if (b.is_none() == binary) {
        throw InputError("b: found " + std::string(b.is_none() ? "None" : "an array") + " for " + function +
                         ", wanted " + (binary ? "an array" : "None"));
    }
    const Strided left = strided(a, "a", 0);
    if (left.shape.size() > axes) {
        throw InputError("a: found shape " + to_string(left.shape) + ", wanted at most 4 axes");
    }
    const Strided y = strided_output(out, "out", left.shape);
    refuse_partly_shared_memory(out, "out", a, "a");
    args.a = left.data;
    take_strides(left, args.a_strides);
    args.y = y.data;
    take_strides(y, args.y_strides);
    if (binary) {
        const Strided right = strided(b, "b", 0);
        if (right.shape != left.shape) {
            throw InputError("b: found shape " + to_string(right.shape) + ", wanted " +
                             to_string(left.shape));
        }
        refuse_partly_shared_memory(out, "out", b, "b");
        args.b = right.data;
        take_strides(right, args.b_strides);
    }
    const std::size_t missing = axes - left.shape.size();
    for (std::size_t i = 0; i < axes; ++i) args.sizes[i] = i < missing ? 1 : left.length(i - missing);
    args.scalar = static_cast<float>(scalar);
    args.low = static_cast<float>(low);
    args.high = static_cast<float>(high);
    const Kernels& table = kernels(choose_isa(isa));
    ThreadPool pool = make_pool(threads);
    const py::gil_scoped_release release;
    table.elementwise(args, pool.parallel());
}

}  // namespace

void bind_elementwise(py::module_& module) {
    module.def("elementwise", &run, py::arg("function"), py::arg("a"), py::arg("b"), py::arg("scalar"),
               py::arg("low"), py::arg("high"), py::arg("out"), py::arg("threads") = 1,
               py::arg("isa") = py::none(), "See fastdiff.kernels.elementwise.");
}

}  // namespace fastdiff::bindings
