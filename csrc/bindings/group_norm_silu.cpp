#include "kernels/group_norm_silu.h"

#include <pybind11/stl.h>

#include "bindings/strided.h"
#include "cpu/dispatch.h"
#include "kernels/error.h"

namespace fastdiff::bindings {
namespace {

Layout parse_layout(const std::string& name) {
    if (name == "NHWC") return Layout::nhwc;
    if (name == "NCHW") return Layout::nchw;
    throw InputError("layout: found '" + name + "', wanted 'NHWC' or 'NCHW'");
}

void run(const py::object& x, const py::object& weight, const py::object& bias, py::ssize_t groups,
         double eps, bool silu, const std::string& layout, const py::object& out, py::ssize_t threads,
         const std::optional<std::string>& isa) {
    GroupNormSiluArgs args{};
    args.layout = parse_layout(layout);
    const Strided from = strided(x, "x", 2);
    const Shape& shape = from.shape;
    const py::ssize_t channels = args.layout == Layout::nhwc ? shape.back() : shape[1];
    if (groups < 1 || channels < 1 || channels % groups != 0) {
        throw InputError("num_groups: found " + std::to_string(groups) + " for x of shape " +
                         to_string(shape) + ", wanted a divisor of its " + std::to_string(channels) +
                         " channels (" + layout + ")");
    }
    if (!(eps >= 0.0)) throw InputError("eps: found " + std::to_string(eps) + ", wanted a number >= 0");

    const Shape per_channel{channels};
    if (!weight.is_none()) args.weight = input(weight, "weight", &per_channel);
    if (!bias.is_none()) args.bias = input(bias, "bias", &per_channel);
    const Strided to = strided_output(out, "out", shape);
    if (args.layout == Layout::nhwc) {
        require_contiguous_rows(from);
        require_contiguous_rows(to);
        args.x_stride = common_stride(from, 0, shape.size() - 1);
        args.y_stride = common_stride(to, 0, shape.size() - 1);
        args.x = from.data;
        args.y = to.data;
    } else {
        args.x = input(x, "x");
        args.y = output(out, "out", shape);
    }
    refuse_partly_shared_memory(out, "out", x, "x");
    if (args.weight) refuse_shared_memory(out, "out", weight, "weight");
    if (args.bias) refuse_shared_memory(out, "out", bias, "bias");
    const Kernels& table = kernels(choose_isa(isa));
    ThreadPool pool = make_pool(threads);
    if (to.empty()) return;

    args.batch = static_cast<std::size_t>(shape[0]);
    args.channels = static_cast<std::size_t>(channels);
    args.spatial = size_of(shape) / (args.batch * args.channels);
    args.groups = static_cast<std::size_t>(groups);
    args.eps = eps;
    args.silu = silu;
    const py::gil_scoped_release release;
    const Scratch scratch = aligned<std::byte>(group_norm_silu_scratch(args));
    args.scratch = scratch.get();
    table.group_norm_silu(args, pool.parallel());
}

}  // namespace

void bind_group_norm_silu(py::module_& module) {
    module.def("group_norm_silu", &run, py::arg("x"), py::arg("weight"), py::arg("bias"),
               py::arg("num_groups"), py::arg("eps"), py::arg("silu"), py::arg("layout"), py::arg("out"),
               py::arg("threads") = 1, py::arg("isa") = py::none(), "See fastdiff.kernels.group_norm_silu.");
}

}  // namespace fastdiff::bindings
