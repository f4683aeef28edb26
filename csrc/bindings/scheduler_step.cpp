#include "kernels/scheduler_step.h"

#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "cpu/dispatch.h"
#include "kernels/error.h"

namespace fastdiff::bindings {
namespace {

void run(const py::object& sample, const py::object& cond, const py::object& uncond, double guidance,
         double sample_coef, double output_coef, const std::vector<py::object>& history,
         const std::vector<double>& history_coefs, const py::object& noise, double noise_coef,
         const py::object& out, const py::object& guided, const std::optional<std::string>& isa) {
    if (history.size() != history_coefs.size()) {
        throw InputError("history_coefs: found " + std::to_string(history_coefs.size()) +
                         " coefficients, wanted one for each of the " + std::to_string(history.size()) +
                         " arrays in history");
    }
    if (history.size() > SchedulerStepArgs::max_history) {
        throw InputError("history: found " + std::to_string(history.size()) + " arrays, wanted at most " +
                         std::to_string(SchedulerStepArgs::max_history));
    }
    if (noise.is_none() && noise_coef != 0.0) {
        throw InputError("noise: found None with noise_coef " + std::to_string(noise_coef) +
                         ", wanted an array or noise_coef 0");
    }

    SchedulerStepArgs args{};
    std::vector<std::pair<const float*, std::string>> inputs;
    args.sample = input(sample, "sample");
    inputs.emplace_back(args.sample, "sample");
    const Shape shape = shape_of(sample);
    args.size = size_of(shape);
    const auto take = [&](const py::object& array, const std::string& name) {
        inputs.emplace_back(input(array, name, &shape), name);
        return inputs.back().first;
    };
    args.cond = take(cond, "cond");
    if (!uncond.is_none()) args.uncond = take(uncond, "uncond");
    args.guidance = static_cast<float>(guidance);
    args.sample_coef = static_cast<float>(sample_coef);
    args.output_coef = static_cast<float>(output_coef);
    args.history_count = history.size();
    for (std::size_t k = 0; k < history.size(); ++k) {
        args.history[k] = take(history[k], "history[" + std::to_string(k) + "]");
        args.history_coefs[k] = static_cast<float>(history_coefs[k]);
    }
    if (!noise.is_none()) args.noise = take(noise, "noise");
    args.noise_coef = static_cast<float>(noise_coef);
    args.out = output(out, "out", shape);
    args.guided = output(guided, "guided", shape);
    for (const auto& [data, name] : inputs) {
        refuse_partial_overlap(args.out, "out", data, name, args.size);
        refuse_partial_overlap(args.guided, "guided", data, name, args.size);
    }
    refuse_overlap(args.guided, "guided", args.out, "out", args.size, args.size);

    const Kernels& table = kernels(choose_isa(isa));
    const py::gil_scoped_release release;
    table.scheduler_step(args);
}

}  // namespace

void bind_scheduler_step(py::module_& module) {
    module.def("scheduler_step", &run, py::arg("sample"), py::arg("cond"), py::arg("uncond"),
               py::arg("guidance"), py::arg("sample_coef"), py::arg("output_coef"), py::arg("history"),
               py::arg("history_coefs"), py::arg("noise"), py::arg("noise_coef"), py::arg("out"),
               py::arg("guided"), py::arg("isa") = py::none(), "See fastdiff.kernels.scheduler_step.");
}

}  // namespace fastdiff::bindings
