#include "kernels/timestep_embedding.h"

#include <pybind11/stl.h>

#include "bindings/strided.h"
#include "cpu/dispatch.h"
#include "kernels/error.h"

namespace fastdiff::bindings {
namespace {

const float* take(const py::object& array, const std::string& name) {
    const float* data = input(array, name);
    if (shape_of(array).size() != 1) {
        throw InputError(name + ": found shape " + to_string(shape_of(array)) + ", wanted one axis");
    }
    return data;
}

void run(const py::object& timesteps, const py::object& frequencies, bool sine_first, const py::object& out,
         py::ssize_t threads, const std::optional<std::string>& isa) {
    TimestepEmbeddingArgs args{};
    args.timesteps = take(timesteps, "timesteps");
    args.frequencies = take(frequencies, "frequencies");
    const py::ssize_t rows = shape_of(timesteps)[0], half = shape_of(frequencies)[0];
    const Strided y = strided_output(out, "out", {rows, 2 * half});
    require_contiguous_rows(y);
    refuse_shared_memory(out, "out", timesteps, "timesteps");
    refuse_shared_memory(out, "out", frequencies, "frequencies");
    args.rows = static_cast<std::size_t>(rows);
    args.half = static_cast<std::size_t>(half);
    args.y = y.data;
    args.y_stride = y.strides[0];
    args.sine_first = sine_first;
    const Kernels& table = kernels(choose_isa(isa));
    ThreadPool pool = make_pool(threads);
    const py::gil_scoped_release release;
    table.timestep_embedding(args, pool.parallel());
}

}  // namespace

void bind_timestep_embedding(py::module_& module) {
    module.def("timestep_embedding", &run, py::arg("timesteps"), py::arg("frequencies"),
               py::arg("sine_first"), py::arg("out"), py::arg("threads") = 1, py::arg("isa") = py::none(),
               "See fastdiff.kernels.timestep_embedding.");
}

}  // namespace fastdiff::bindings
