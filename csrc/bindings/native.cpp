// The native engine's modules and sessions. fastdiff/targets/native wraps them into a Session.
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>

#include "bindings/arrays.h"
#include "bindings/native_arguments.h"
#include "kernels/error.h"
#include "runtime/error.h"
#include "runtime/loop.h"

namespace fastdiff::bindings {
namespace {

using Inputs = std::map<std::string, py::object>;

std::size_t index(int id) { return static_cast<std::size_t>(id); }

// A session, and the arrays of one call.
class NativeSession {
  public:
    NativeSession(std::shared_ptr<Module> module, std::size_t threads)
        : session_(std::move(module), checked(threads)) {}

    py::dict run(const Inputs& named) {
        const Graph& graph = session_.module().graph();
        std::vector<fastdiff::Shape> shapes;
        const std::vector<const void*> inputs = take(named, false, shapes);
        const Sizes sizes = find_sizes(graph, shapes);
        py::dict result = make_outputs(sizes, 0);
        call(inputs, result,
             [&](const Arrays& arrays, const Cancel& cancel) { session_.run(sizes, arrays, cancel); });
        return result;
    }

    // Seconds of each step of the plan for these inputs, in the order of its lines.
    std::vector<double> profile(const Inputs& named) {
        std::vector<fastdiff::Shape> shapes;
        const std::vector<const void*> inputs = take(named, false, shapes);
        const Sizes sizes = find_sizes(session_.module().graph(), shapes);
        py::dict result = make_outputs(sizes, 0);
        std::vector<double> seconds;
        call(inputs, result, [&](const Arrays& arrays, const Cancel& cancel) {
            session_.run(sizes, arrays, cancel, &seconds);
        });
        return seconds;
    }

    py::dict run_stage(const std::string& stage_name, const Inputs& named,
                       const std::map<std::string, std::int64_t>& named_sizes, std::size_t rows,
                       std::size_t row) {
        const Graph& graph = session_.module().graph();
        const Stage stage = parse_stage(stage_name);
        const Sizes sizes = parse_sizes(graph, named_sizes);
        std::vector<fastdiff::Shape> shapes;
        const std::vector<const void*> inputs = take(named, true, shapes);
        const auto plan = make_plan(sizes, rows);
        for (std::size_t i = 0; i < shapes.size(); ++i) {
            if (inputs[i] == nullptr || shapes[i] == plan->input_shapes[i]) continue;
            throw InputError(graph.values[index(graph.inputs[i])].name + ": found shape " +
                             to_string(shapes[i]) + ", wanted " + to_string(plan->input_shapes[i]));
        }
        py::dict result = stage == Stage::step ? make_outputs(sizes, rows) : py::dict();
        call(inputs, result, [&](const Arrays& arrays, const Cancel& cancel) {
            session_.run_stage(stage, sizes, rows, row, arrays, cancel);
        });
        return result;
    }

    // fastdiff/samplers/loop.py's sample over this session; `table` is a StepTable.
    py::array_t<float> sample(const py::object& table, const py::object& latents, const Inputs& named,
                              double guidance, Randn* noise, const py::object& callback) {
        const Graph& graph = session_.module().graph();
        SampleArguments arguments{};
        arguments.inputs = take(named, true, arguments.shapes);
        const Value described{"latents", DType::float32, {}, Stage::step};
        const auto* first = static_cast<const float*>(read_array(latents, described, arguments.shape));
        for (std::size_t i = 0; i < graph.inputs.size(); ++i) {
            const std::string& name = graph.values[index(graph.inputs[i])].name;
            if (arguments.inputs[i] == nullptr && name != "sample" && name != "timestep") {
                throw InputError("input " + name + " is missing");
            }
        }
        py::array_t<float> result(std::vector<py::ssize_t>(arguments.shape.begin(), arguments.shape.end()));
        std::copy_n(first, arguments.shape.elements(), result.mutable_data());
        arguments.latents = result.mutable_data();
        arguments.guidance = guidance;
        arguments.noise = noise;
        const SamplerTable steps = parse_table(table);
        StepCallback after_step;
        if (!callback.is_none()) {
            after_step = [&](std::size_t done, std::size_t total, std::span<const float> x) {
                const py::gil_scoped_acquire acquire;
                // A view of the loop's buffer, kept from being written to.
                const py::capsule owner(x.data(), [](void*) {});
                py::array_t<float> view(
                    std::vector<py::ssize_t>(arguments.shape.begin(), arguments.shape.end()), x.data(),
                    owner);
                view.attr("flags").attr("writeable") = false;
                callback(done, total, view);
            };
        }
        interruptible(
            [&](const Cancel& cancel) { fastdiff::sample(session_, steps, arguments, after_step, cancel); });
        return result;
    }

    std::string plan(const std::map<std::string, std::int64_t>& sizes, std::size_t rows) {
        return fastdiff::describe(*make_plan(parse_sizes(session_.module().graph(), sizes), rows));
    }
    std::size_t planned_bytes(const std::map<std::string, std::int64_t>& sizes, std::size_t rows) {
        return make_plan(parse_sizes(session_.module().graph(), sizes), rows)->arena_bytes;
    }
    std::size_t arena_bytes() {
        const py::gil_scoped_release release;
        return session_.arena_bytes();
    }
    // `updates` maps the id of a layer's value to its parts (first row, down, up, scale).
    void set_adapters(const std::map<int, std::vector<AdapterPart>>& updates) {
        std::vector<LayerUpdate> layers;
        for (const auto& [value, parts] : updates) {
            LayerUpdate& update = layers.emplace_back(LayerUpdate{value, {}});
            for (const AdapterPart& part : parts) update.parts.push_back(parse_low_rank(part));
        }
        const py::gil_scoped_release release;
        session_.set_adapters(layers);
    }
    std::size_t adapter_bytes() {
        const py::gil_scoped_release release;
        return session_.adapter_bytes();
    }
    std::size_t threads() const { return session_.threads(); }
    void set_threads(std::size_t threads) {
        const py::gil_scoped_release release;
        session_.set_threads(checked(threads));
    }

  private:
    static std::size_t checked(std::size_t threads) {
        if (threads < 1 || threads > 1024) {
            throw InputError("threads: found " + std::to_string(threads) + ", wanted 1 to 1024");
        }
        return threads;
    }

    std::shared_ptr<const Plan> make_plan(const Sizes& sizes, std::size_t rows) {
        const py::gil_scoped_release release;
        return session_.plan(sizes, rows);
    }

    // Data and shapes of the inputs in the graph's order; null for those that may be and are missing.
    std::vector<const void*> take(const Inputs& named, bool partial,
                                  std::vector<fastdiff::Shape>& shapes) const {
        const Graph& graph = session_.module().graph();
        std::vector<const void*> result;
        std::size_t used = 0;
        for (int id : graph.inputs) {
            const Value& value = graph.values[index(id)];
            const auto found = named.find(value.name);
            fastdiff::Shape shape;
            if (found != named.end()) {
                result.push_back(read_array(found->second, value, shape));
                ++used;
            } else if (partial) {
                result.push_back(nullptr);
            } else {
                throw InputError("input " + value.name + " is missing");
            }
            shapes.push_back(shape);
        }
        if (used != named.size()) {
            std::string names;
            for (int id : graph.inputs) names += (names.empty() ? "" : ", ") + graph.values[index(id)].name;
            throw InputError("found an unknown input, wanted " + names);
        }
        return result;
    }

    py::dict make_outputs(const Sizes& sizes, std::size_t rows) {
        const Graph& graph = session_.module().graph();
        const auto plan = make_plan(sizes, rows);
        py::dict result;
        for (std::size_t i = 0; i < graph.outputs.size(); ++i) {
            const Value& value = graph.values[index(graph.outputs[i])];
            const fastdiff::Shape& shape = plan->output_shapes[i];
            const std::vector<py::ssize_t> sizes_of(shape.begin(), shape.end());
            result[py::str(value.name)] = py::array(py::dtype(dtype_name(value.dtype)), sizes_of);
        }
        return result;
    }

    template <class Body>
    void call(const std::vector<const void*>& inputs, const py::dict& results, const Body& body) {
        const Graph& graph = session_.module().graph();
        std::vector<void*> outputs;
        for (int id : graph.outputs) {
            const py::str name(graph.values[index(id)].name);
            outputs.push_back(results.contains(name) ? py::array(results[name]).mutable_data() : nullptr);
        }
        interruptible([&](const Cancel& cancel) { body(Arrays{inputs, outputs}, cancel); });
    }

    // Runs `body` without the GIL; Ctrl-C stops it between two kernels.
    template <class Body>
    static void interruptible(const Body& body) {
        bool interrupted = false;
        auto last = std::chrono::steady_clock::now();
        const Cancel cancel = [&] {
            // Taking the GIL costs more than a small kernel; a twentieth of a second is soon enough.
            const auto now = std::chrono::steady_clock::now();
            if (now - last < std::chrono::milliseconds(50)) return false;
            last = now;
            const py::gil_scoped_acquire acquire;
            interrupted = PyErr_CheckSignals() != 0;
            return interrupted;
        };
        try {
            const py::gil_scoped_release release;
            body(cancel);
        } catch (const Cancelled&) {
            if (interrupted) throw py::error_already_set();
            throw;
        }
    }

    Session session_;
};

}  // namespace

void bind_native(py::module_& module) {
    py::class_<Module, std::shared_ptr<Module>>(module, "NativeModule",
                                                "A native module's file, mapped and checked.")
        .def(py::init([](const std::string& path) {
                 const py::gil_scoped_release release;
                 return std::make_shared<Module>(path);
             }),
             py::arg("path"))
        .def_property_readonly("inputs",
                               [](const Module& m) { return describe(m.graph().inputs, m.graph()); })
        .def_property_readonly("outputs",
                               [](const Module& m) { return describe(m.graph().outputs, m.graph()); })
        .def_property_readonly("symbols", [](const Module& m) { return describe_symbols(m.graph()); })
        .def_property_readonly("nodes", [](const Module& m) { return m.graph().nodes.size(); })
        .def_property_readonly("weight_bytes", &Module::weight_bytes);
    py::class_<NativeSession>(module, "NativeSession", "Runs a NativeModule; sessions share its weights.")
        .def(py::init<std::shared_ptr<Module>, std::size_t>(), py::arg("module"), py::arg("threads"))
        .def("profile", &NativeSession::profile, py::arg("inputs"))
        .def("run", &NativeSession::run, py::arg("inputs"))
        .def("run_stage", &NativeSession::run_stage, py::arg("stage"), py::arg("inputs"), py::arg("sizes"),
             py::arg("rows"), py::arg("row") = 0)
        .def("sample", &NativeSession::sample, py::arg("table"), py::arg("latents"), py::arg("inputs"),
             py::arg("guidance") = 1.0, py::arg("noise") = nullptr, py::arg("callback") = py::none())
        .def("plan", &NativeSession::plan, py::arg("sizes"), py::arg("rows") = 0)
        .def("planned_bytes", &NativeSession::planned_bytes, py::arg("sizes"), py::arg("rows") = 0)
        .def("set_adapters", &NativeSession::set_adapters, py::arg("updates"))
        .def_property_readonly("adapter_bytes", &NativeSession::adapter_bytes)
        .def_property_readonly("arena_bytes", &NativeSession::arena_bytes)
        .def_property("threads", &NativeSession::threads, &NativeSession::set_threads);
}

}  // namespace fastdiff::bindings
