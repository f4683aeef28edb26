#include "kernels/resample.h"

#include <pybind11/stl.h>

#include "bindings/strided.h"
#include "cpu/dispatch.h"
#include "kernels/error.h"

namespace fastdiff::bindings {
namespace {

void run(const py::object& x, py::ssize_t factor, const std::array<py::ssize_t, 2>& crop, bool pooling,
         const py::object& out, py::ssize_t threads, const std::optional<std::string>& isa) {
    const Strided from = strided(x, "x", 4);
    if (from.shape.size() != 4) {
        throw InputError("x: found shape " + to_string(from.shape) +
                         ", wanted four axes: batch, height, width, channels");
    }
    if (factor < 1) throw InputError("factor: found " + std::to_string(factor) + ", wanted at least 1");
    Shape shape = from.shape;
    for (std::size_t axis : {1, 2}) {
        const py::ssize_t cropped = crop[axis - 1];
        if (cropped < 0 || cropped >= factor || (cropped > 0 && (pooling || shape[axis] == 0))) {
            throw InputError("crop: found " + std::to_string(cropped) + ", wanted 0 to " +
                             std::to_string(pooling || shape[axis] == 0 ? 0 : factor - 1));
        }
        shape[axis] = pooling ? shape[axis] / factor : shape[axis] * factor - cropped;
    }
    const Strided to = strided_output(out, "out", shape);
    require_contiguous_rows(from);
    require_contiguous_rows(to);
    refuse_shared_memory(out, "out", x, "x");
    ResampleArgs args{};
    args.batch = from.length(0);
    args.height = from.length(1);
    args.width = from.length(2);
    args.channels = from.length(3);
    args.factor = static_cast<std::size_t>(factor);
    args.pool = pooling;
    args.crop_bottom = static_cast<std::size_t>(crop[0]);
    args.crop_right = static_cast<std::size_t>(crop[1]);
    args.x = from.data;
    args.x_stride = common_stride(from, 0, 3);
    args.y = to.data;
    args.y_stride = common_stride(to, 0, 3);
    const Kernels& table = kernels(choose_isa(isa));
    ThreadPool pool = make_pool(threads);
    if (to.empty()) return;
    const py::gil_scoped_release release;
    table.resample(args, pool.parallel());
}

}  // namespace

void bind_resample(py::module_& module) {
    module.def("resample", &run, py::arg("x"), py::arg("factor"), py::arg("crop"), py::arg("pool"),
               py::arg("out"), py::arg("threads") = 1, py::arg("isa") = py::none(),
               "See fastdiff.kernels.upsample_nearest2d and avg_pool2d.");
}

}  // namespace fastdiff::bindings
