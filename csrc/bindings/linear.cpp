#include "kernels/linear.h"

#include <pybind11/stl.h>

#include "bindings/gemm_arguments.h"
#include "cpu/dispatch.h"
#include "kernels/error.h"
#include "runtime/measure.h"

namespace fastdiff::bindings {
namespace {

py::array_t<std::uint8_t> pack(const py::object& weight, const std::string& precision) {
    const float* data = input(weight, "weight");
    const Shape shape = shape_of(weight);
    if (shape.size() != 2) {
        throw InputError("weight: found shape " + to_string(shape) + ", wanted (outputs, inputs)");
    }
    const auto outputs = static_cast<std::size_t>(shape[0]), in = static_cast<std::size_t>(shape[1]);
    const WeightType type = parse_weight_type(precision);
    py::array_t<std::uint8_t> packed = packed_array(linear_packed_bytes(in, outputs, type));
    linear_pack(data, in, outputs, type, packed.mutable_data());
    return packed;
}

void run(const py::object& x, const py::object& packed, const py::object& bias, const py::object& residual,
         const std::string& activation, double scale, const std::string& precision, const py::object& out,
         py::ssize_t threads, const std::optional<std::string>& isa) {
    const Strided source = strided(x, "x", 1);
    Shape shape = source.shape;
    if (py::isinstance<py::array>(out)) shape.back() = shape_of(out).empty() ? 0 : shape_of(out).back();
    const Rows from = rows_of(source), to = rows_of(strided_output(out, "out", shape));
    LinearArgs args{};
    args.rows = from.count;
    args.in = from.channels;
    args.out = to.channels;
    args.x = from.data;
    args.x_stride = from.stride;
    args.activation = parse_activation(activation);
    const std::size_t outputs = args.activation == Activation::geglu ? 2 * args.out : args.out;
    args.type = parse_weight_type(precision);
    args.weight = packed_weights(packed, linear_packed_bytes(args.in, outputs, args.type));
    const Shape per_output{static_cast<py::ssize_t>(outputs)};
    if (!bias.is_none()) args.bias = input(bias, "bias", &per_output);
    if (!residual.is_none()) {
        const Strided array = strided(residual, "residual", 1);
        if (array.shape != shape) {
            throw InputError("residual: found shape " + to_string(array.shape) + ", wanted " +
                             to_string(shape));
        }
        const Rows r = rows_of(array);
        refuse_partly_shared_memory(out, "out", residual, "residual");
        args.residual = r.data;
        args.residual_stride = r.stride;
    }
    refuse_shared_memory(out, "out", x, "x");
    args.y = to.data;
    args.y_stride = to.stride;
    args.scale = static_cast<float>(scale);
    const Kernels& table = kernels(choose_isa(isa));
    const py::gil_scoped_release release;
    ThreadPool pool = make_pool(threads);
    const Scratch scratch = aligned<std::byte>(linear_scratch(args, pool.threads()));
    args.scratch = scratch.get();
    table.linear(args, pool.parallel());
}

std::size_t packed_bytes(std::size_t in, std::size_t outputs, const std::string& precision) {
    return linear_packed_bytes(in, outputs, parse_weight_type(precision));
}

double measure(std::size_t rows, std::size_t in, std::size_t out, const std::string& activation,
               const std::string& precision, py::ssize_t threads, double budget,
               const std::optional<std::string>& isa) {
    const Activation function = parse_activation(activation);
    const WeightType type = parse_weight_type(precision);
    const Isa chosen = choose_isa(isa);
    const py::gil_scoped_release release;
    ThreadPool pool = make_pool(threads);
    return measure_linear(rows, in, out, function, type, pool.parallel(), chosen, budget);
}

}  // namespace

void bind_linear(py::module_& module) {
    module.def("linear_pack", &pack, py::arg("weight"), py::arg("precision") = "fp32",
               "Weights (outputs, inputs) in the order in which linear reads them.");
    module.def("linear_packed_bytes", &packed_bytes, py::arg("inputs"), py::arg("outputs"),
               py::arg("precision") = "fp32", "Size of what linear_pack returns.");
    module.def("linear", &run, py::arg("x"), py::arg("packed"), py::arg("bias"), py::arg("residual"),
               py::arg("activation"), py::arg("scale"), py::arg("precision"), py::arg("out"),
               py::arg("threads") = 1, py::arg("isa") = py::none(), "See fastdiff.kernels.linear.");
    module.def("measure_linear", &measure, py::arg("rows"), py::arg("inputs"), py::arg("outputs"),
               py::arg("activation"), py::arg("precision"), py::arg("threads"), py::arg("budget"),
               py::arg("isa") = py::none(), "Median seconds with weights that are not in the caches.");
}

}  // namespace fastdiff::bindings
