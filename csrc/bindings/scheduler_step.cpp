#include "kernels/scheduler_step.h"

#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "cpu/dispatch.h"
#include "kernels/error.h"

namespace fastdiff::bindings {
namespace {

struct Named {
    const float* data;
    const char* name;
};

constexpr const char* history_names[SchedulerStepArgs::max_history] = {
    "history[0]", "history[1]", "history[2]", "history[3]",
    "history[4]", "history[5]", "history[6]", "history[7]"};

void run(const py::object& sample, const py::object& cond, const py::object& uncond, double guidance,
         double sample_coef, double output_coef, const std::vector<py::object>& history,
         const std::vector<double>& history_coefs, const py::object& noise, double noise_coef,
         double estimate_sample, double estimate_output, double estimate_limit, double estimate_coef,
         double next_scale, const py::object& out, const py::object& estimate, const py::object& next,
         const py::object& next_again, const std::optional<std::string>& isa) {
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

    if (!(estimate_limit >= 0.0)) {
        throw InputError("estimate_limit: found " + std::to_string(estimate_limit) + ", wanted 0 or more");
    }

    SchedulerStepArgs args;
    Named inputs[4 + SchedulerStepArgs::max_history];
    std::size_t count = 0;
    args.sample = input(sample, "sample");
    inputs[count++] = {args.sample, "sample"};
    const Shape shape = shape_of(sample);
    args.size = size_of(shape);
    const auto take = [&](const py::object& array, const char* name) {
        const float* const data = input(array, name, &shape);
        inputs[count++] = {data, name};
        return data;
    };
    args.cond = take(cond, "cond");
    if (!uncond.is_none()) args.uncond = take(uncond, "uncond");
    args.guidance = static_cast<float>(guidance);
    args.sample_coef = static_cast<float>(sample_coef);
    args.output_coef = static_cast<float>(output_coef);
    args.history_count = history.size();
    for (std::size_t k = 0; k < history.size(); ++k) {
        args.history[k] = take(history[k], history_names[k]);
        args.history_coefs[k] = static_cast<float>(history_coefs[k]);
    }
    if (!noise.is_none()) args.noise = take(noise, "noise");
    args.noise_coef = static_cast<float>(noise_coef);
    args.estimate_sample = static_cast<float>(estimate_sample);
    args.estimate_output = static_cast<float>(estimate_output);
    args.estimate_limit = static_cast<float>(estimate_limit);
    args.estimate_coef = static_cast<float>(estimate_coef);
    args.next_scale = static_cast<float>(next_scale);

    Named outputs[4];
    std::size_t given = 0;
    outputs[given++] = {args.out = output(out, "out", shape), "out"};
    if (!estimate.is_none()) {
        outputs[given++] = {args.estimate = output(estimate, "estimate", shape), "estimate"};
    }
    if (!next.is_none()) outputs[given++] = {args.next = output(next, "next", shape), "next"};
    if (!next_again.is_none()) {
        if (next.is_none()) throw InputError("next_again: found an array without next, wanted next first");
        outputs[given++] = {args.next_again = output(next_again, "next_again", shape), "next_again"};
    }
    for (std::size_t k = 0; k < given; ++k) {
        for (std::size_t i = 0; i < count; ++i) {
            refuse_partial_overlap(outputs[k].data, outputs[k].name, inputs[i].data, inputs[i].name,
                                   args.size);
        }
        for (std::size_t other = 0; other < k; ++other) {
            refuse_overlap(outputs[k].data, outputs[k].name, outputs[other].data, outputs[other].name,
                           args.size, args.size);
        }
    }

    const Kernels& table = kernels(choose_isa(isa));
    const py::gil_scoped_release release;
    table.scheduler_step(args);
}

}  // namespace

void bind_scheduler_step(py::module_& module) {
    module.def("scheduler_step", &run, py::arg("sample"), py::arg("cond"), py::arg("uncond"),
               py::arg("guidance"), py::arg("sample_coef"), py::arg("output_coef"), py::arg("history"),
               py::arg("history_coefs"), py::arg("noise"), py::arg("noise_coef"), py::arg("estimate_sample"),
               py::arg("estimate_output"), py::arg("estimate_limit"), py::arg("estimate_coef"),
               py::arg("next_scale"), py::arg("out"), py::arg("estimate"), py::arg("next"),
               py::arg("next_again"), py::arg("isa") = py::none(), "See fastdiff.kernels.scheduler_step.");
}

}  // namespace fastdiff::bindings
