#include "kernels/layer_norm.h"

#include <pybind11/stl.h>

#include "bindings/strided.h"
#include "cpu/dispatch.h"
#include "kernels/error.h"

namespace fastdiff::bindings {
namespace {

void run(const py::object& x, const py::object& weight, const py::object& bias, double eps,
         const py::object& out, py::ssize_t threads, const std::optional<std::string>& isa) {
    const Strided from = strided(x, "x", 1);
    const Strided to = strided_output(out, "out", from.shape);
    require_contiguous_rows(from);
    require_contiguous_rows(to);
    if (!(eps >= 0.0)) throw InputError("eps: found " + std::to_string(eps) + ", wanted a number >= 0");
    const std::size_t axes = from.shape.size();
    const Shape per_channel{from.shape.back()};
    LayerNormArgs args{};
    args.channels = from.length(axes - 1);
    args.x = from.data;
    args.x_stride = common_stride(from, 0, axes - 1);
    args.y = to.data;
    args.y_stride = common_stride(to, 0, axes - 1);
    args.eps = eps;
    refuse_partly_shared_memory(out, "out", x, "x");
    if (!weight.is_none()) {
        args.weight = input(weight, "weight", &per_channel);
        refuse_shared_memory(out, "out", weight, "weight");
    }
    if (!bias.is_none()) {
        args.bias = input(bias, "bias", &per_channel);
        refuse_shared_memory(out, "out", bias, "bias");
    }
    const Kernels& table = kernels(choose_isa(isa));
    ThreadPool pool = make_pool(threads);
    if (to.empty()) return;

    args.rows = size_of(from.shape) / args.channels;
    const py::gil_scoped_release release;
    table.layer_norm(args, pool.parallel());
}

}  // namespace

void bind_layer_norm(py::module_& module) {
    module.def("layer_norm", &run, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("eps"),
               py::arg("out"), py::arg("threads") = 1, py::arg("isa") = py::none(),
               "See fastdiff.kernels.layer_norm.");
}

}  // namespace fastdiff::bindings
