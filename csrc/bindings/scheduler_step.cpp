#include "kernels/scheduler_step.h"

#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "cpu/dispatch.h"
#include "kernels/error.h"

namespace fastdiff::bindings {
namespace {

using OptionalArray = std::optional<py::array>;

void run(const py::array& sample, const py::array& cond, const OptionalArray& uncond, double guidance,
         double sample_coef, double output_coef, const std::vector<py::array>& history,
         const std::vector<double>& history_coefs, const OptionalArray& noise, double noise_coef,
         py::array out, std::optional<py::array> guided, const std::optional<std::string>& isa) {
    const Shape shape = shape_of(sample);
    if (history.size() != history_coefs.size()) {
        throw InputError("history_coefs: found " + std::to_string(history_coefs.size()) +
                         " coefficients, wanted one for each of the " + std::to_string(history.size()) +
                         " arrays in history");
    }
    if (history.size() > SchedulerStepArgs::max_history) {
        throw InputError("history: found " + std::to_string(history.size()) + " arrays, wanted at most " +
                         std::to_string(SchedulerStepArgs::max_history));
    }
    if (!noise && noise_coef != 0.0) {
        throw InputError("noise: found None with noise_coef " + std::to_string(noise_coef) +
                         ", wanted an array or noise_coef 0");
    }

    SchedulerStepArgs args{};
    std::vector<std::pair<const float*, std::string>> inputs;
    const auto take = [&](const py::array& array, const std::string& name) {
        inputs.emplace_back(input(array, name.c_str(), &shape), name);
        return inputs.back().first;
    };
    args.size = static_cast<std::size_t>(sample.size());
    args.sample = take(sample, "sample");
    args.cond = take(cond, "cond");
    if (uncond) args.uncond = take(*uncond, "uncond");
    args.guidance = static_cast<float>(guidance);
    args.sample_coef = static_cast<float>(sample_coef);
    args.output_coef = static_cast<float>(output_coef);
    args.history_count = history.size();
    for (std::size_t k = 0; k < history.size(); ++k) {
        args.history[k] = take(history[k], "history[" + std::to_string(k) + "]");
        args.history_coefs[k] = static_cast<float>(history_coefs[k]);
    }
    if (noise) args.noise = take(*noise, "noise");
    args.noise_coef = static_cast<float>(noise_coef);
    args.out = output(out, "out", shape);
    if (guided) args.guided = output(*guided, "guided", shape);

    for (const auto& [data, name] : inputs) {
        refuse_partial_overlap(args.out, "out", data, name.c_str(), args.size);
        if (guided) refuse_partial_overlap(args.guided, "guided", data, name.c_str(), args.size);
    }
    if (guided) refuse_overlap(args.guided, "guided", args.out, "out", args.size, args.size);

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
