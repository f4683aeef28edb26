#include "kernels/group_norm_silu.h"

#include <pybind11/stl.h>

#include <memory>

#include "bindings/arrays.h"
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
         double eps, bool silu, const std::string& layout, const py::object& out,
         const std::optional<std::string>& isa) {
    GroupNormSiluArgs args{};
    args.layout = parse_layout(layout);
    args.x = input(x, "x");
    const Shape shape = shape_of(x);
    if (shape.size() < 2) {
        throw InputError("x: found shape " + to_string(shape) +
                         ", wanted at least a batch and a channel dimension");
    }
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
    args.y = output(out, "out", shape);
    const std::size_t size = size_of(shape);
    refuse_partial_overlap(args.y, "out", args.x, "x", size);
    const auto channel_count = static_cast<std::size_t>(channels);
    if (args.weight) refuse_overlap(args.y, "out", args.weight, "weight", size, channel_count);
    if (args.bias) refuse_overlap(args.y, "out", args.bias, "bias", size, channel_count);
    if (size == 0) return;

    args.batch = static_cast<std::size_t>(shape[0]);
    args.channels = channel_count;
    args.spatial = size / (args.batch * args.channels);
    args.groups = static_cast<std::size_t>(groups);
    args.eps = eps;
    args.silu = silu;
    const Kernels& table = kernels(choose_isa(isa));
    const py::gil_scoped_release release;
    const std::unique_ptr<std::byte[]> scratch(new std::byte[group_norm_silu_scratch(args)]);
    args.scratch = scratch.get();
    table.group_norm_silu(args);
}

}  // namespace

void bind_group_norm_silu(py::module_& module) {
    module.def("group_norm_silu", &run, py::arg("x"), py::arg("weight"), py::arg("bias"),
               py::arg("num_groups"), py::arg("eps"), py::arg("silu"), py::arg("layout"), py::arg("out"),
               py::arg("isa") = py::none(), "See fastdiff.kernels.group_norm_silu.");
}

}  // namespace fastdiff::bindings
