// The functions of fastdiff.h about modules, sessions and sampling.
#include <memory>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "kernels/scheduler_step.h"
#include "runtime/c_status.h"
#include "runtime/error.h"
#include "runtime/loop.h"

static_assert(FASTDIFF_MAX_RANK == fastdiff::max_rank);
static_assert(FASTDIFF_MAX_HISTORY == fastdiff::SchedulerStepArgs::max_history);

struct fastdiff_module {
    std::shared_ptr<const fastdiff::Module> module;
};

struct fastdiff_session {
    fastdiff::Session session;
};

struct fastdiff_generator {
    fastdiff::Randn state;
};

namespace fastdiff {
namespace {

void require(bool condition, const char* what) {
    if (!condition) throw InputError(std::string(what) + " is NULL");
}

std::size_t thread_count(std::size_t threads) {
    if (threads > 1024)
        throw InputError("threads: found " + std::to_string(threads) + ", wanted at most 1024");
    return threads == 0 ? ThreadPool::available() : threads;
}

const Value& value_of(const Graph& graph, int id) { return graph.values[static_cast<std::size_t>(id)]; }

void describe_tensor(const Module& module, const std::vector<int>& ids, std::size_t index,
                     fastdiff_tensor* tensor) {
    require(tensor != nullptr, "tensor");
    if (index >= ids.size()) {
        throw InputError("index is " + std::to_string(index) + ", wanted one below " +
                         std::to_string(ids.size()));
    }
    const Value& value = value_of(module.graph(), ids[index]);
    *tensor = {value.name.c_str(),
               value.dtype == DType::int64 ? FASTDIFF_INT64 : FASTDIFF_FLOAT32,
               value.shape.size(),
               {}};
    for (std::size_t axis = 0; axis < value.shape.size(); ++axis) {
        const Dim& dim = value.shape[axis];
        const bool fixed = dim.size() == 1 && dim[0].kind == Token::Kind::number && dim[0].operand > 0;
        tensor->sizes[axis] = fixed ? static_cast<std::size_t>(dim[0].operand) : 0;
    }
}

Shape shape_of(const fastdiff_array& array, const std::string& name) {
    if (array.rank > max_rank) {
        throw InputError(name + ": found rank " + std::to_string(array.rank) + ", wanted at most " +
                         std::to_string(max_rank));
    }
    Shape shape;
    for (std::size_t axis = 0; axis < array.rank; ++axis) shape.push_back(array.sizes[axis]);
    return shape;
}

std::vector<Shape> shapes_of(const Graph& graph, const fastdiff_array* inputs) {
    require(inputs != nullptr || graph.inputs.empty(), "inputs");
    std::vector<Shape> shapes;
    for (std::size_t i = 0; i < graph.inputs.size(); ++i) {
        shapes.push_back(shape_of(inputs[i], value_of(graph, graph.inputs[i]).name));
    }
    return shapes;
}

std::vector<const void*> data_of(const Graph& graph, const fastdiff_array* inputs) {
    std::vector<const void*> data;
    for (std::size_t i = 0; i < graph.inputs.size(); ++i) data.push_back(inputs[i].data);
    return data;
}

SamplerTable table_of(const fastdiff_step* steps, std::size_t count, std::size_t slots) {
    require(steps != nullptr || count == 0, "steps");
    SamplerTable table;
    table.slots = slots;
    const auto slot = [](std::size_t index) {
        return index == FASTDIFF_NO_SLOT ? std::nullopt : std::optional<std::size_t>(index);
    };
    for (std::size_t i = 0; i < count; ++i) {
        const fastdiff_step& from = steps[i];
        SamplerStep step;
        step.timestep = from.timestep;
        step.update = {from.sample, from.output};
        step.input_scale = from.input_scale;
        if (from.has_noise != 0) step.noise_coef = from.noise;
        if (from.has_guidance != 0) step.guidance = from.guidance;
        if (from.history_count > FASTDIFF_MAX_HISTORY) {
            throw InputError("step " + std::to_string(i) + " has " + std::to_string(from.history_count) +
                             " history terms, wanted at most " + std::to_string(FASTDIFF_MAX_HISTORY));
        }
        for (std::size_t k = 0; k < from.history_count; ++k) {
            step.history.push_back({from.history_slots[k], from.history_coefs[k]});
        }
        step.save_sample = slot(from.save_sample);
        step.save_output = slot(from.save_output);
        if (from.has_estimate != 0) {
            if (!(from.estimate_limit >= 0.0)) {
                throw InputError("step " + std::to_string(i) + " has estimate_limit " +
                                 std::to_string(from.estimate_limit) + ", wanted 0 or more");
            }
            step.estimate = SamplerStep::Estimate{
                {from.estimate_sample, from.estimate_output}, from.estimate_weight, from.estimate_limit};
        }
        table.steps.push_back(std::move(step));
    }
    return table;
}

}  // namespace
}  // namespace fastdiff

using fastdiff::guarded;
using fastdiff::require;

fastdiff_status fastdiff_module_open(const char* path, fastdiff_module** module) {
    return guarded([&] {
        require(path != nullptr, "path");
        require(module != nullptr, "module");
        *module = new fastdiff_module{std::make_shared<const fastdiff::Module>(path)};
    });
}

void fastdiff_module_close(fastdiff_module* module) { delete module; }

size_t fastdiff_module_input_count(const fastdiff_module* module) {
    return module == nullptr ? 0 : module->module->graph().inputs.size();
}

size_t fastdiff_module_output_count(const fastdiff_module* module) {
    return module == nullptr ? 0 : module->module->graph().outputs.size();
}

fastdiff_status fastdiff_module_input(const fastdiff_module* module, size_t index, fastdiff_tensor* tensor) {
    return guarded([&] {
        require(module != nullptr, "module");
        fastdiff::describe_tensor(*module->module, module->module->graph().inputs, index, tensor);
    });
}

fastdiff_status fastdiff_module_output(const fastdiff_module* module, size_t index, fastdiff_tensor* tensor) {
    return guarded([&] {
        require(module != nullptr, "module");
        fastdiff::describe_tensor(*module->module, module->module->graph().outputs, index, tensor);
    });
}

fastdiff_status fastdiff_session_open(const fastdiff_module* module, size_t threads,
                                      fastdiff_session** session) {
    return guarded([&] {
        require(module != nullptr, "module");
        require(session != nullptr, "session");
        *session = new fastdiff_session{{module->module, fastdiff::thread_count(threads)}};
    });
}

void fastdiff_session_close(fastdiff_session* session) { delete session; }

fastdiff_status fastdiff_session_set_threads(fastdiff_session* session, size_t threads) {
    return guarded([&] {
        require(session != nullptr, "session");
        session->session.set_threads(fastdiff::thread_count(threads));
    });
}

fastdiff_status fastdiff_session_output_sizes(fastdiff_session* session, const fastdiff_array* inputs,
                                              fastdiff_array* outputs) {
    return guarded([&] {
        require(session != nullptr, "session");
        const fastdiff::Graph& graph = session->session.module().graph();
        require(outputs != nullptr || graph.outputs.empty(), "outputs");
        const auto sizes = fastdiff::find_sizes(graph, fastdiff::shapes_of(graph, inputs));
        const auto plan = session->session.plan(sizes);
        for (std::size_t i = 0; i < plan->output_shapes.size(); ++i) {
            const fastdiff::Shape& shape = plan->output_shapes[i];
            outputs[i].rank = shape.rank();
            for (std::size_t axis = 0; axis < shape.rank(); ++axis) outputs[i].sizes[axis] = shape[axis];
        }
    });
}

fastdiff_status fastdiff_session_run(fastdiff_session* session, const fastdiff_array* inputs,
                                     const fastdiff_array* outputs, fastdiff_poll poll, void* context) {
    return guarded([&] {
        require(session != nullptr, "session");
        const fastdiff::Graph& graph = session->session.module().graph();
        require(outputs != nullptr || graph.outputs.empty(), "outputs");
        const auto sizes = fastdiff::find_sizes(graph, fastdiff::shapes_of(graph, inputs));
        const auto plan = session->session.plan(sizes);
        std::vector<void*> results;
        for (std::size_t i = 0; i < graph.outputs.size(); ++i) {
            const std::string& name = fastdiff::value_of(graph, graph.outputs[i]).name;
            const fastdiff::Shape found = fastdiff::shape_of(outputs[i], name);
            if (!(found == plan->output_shapes[i])) {
                throw fastdiff::InputError(name + ": found shape " + to_string(found) + ", wanted " +
                                           to_string(plan->output_shapes[i]));
            }
            results.push_back(outputs[i].data);
        }
        fastdiff::Cancel cancel;
        if (poll != nullptr) cancel = [&] { return poll(context) != 0; };
        session->session.run(sizes, {fastdiff::data_of(graph, inputs), results}, cancel);
    });
}

fastdiff_status fastdiff_generator_open(uint64_t seed, fastdiff_generator** generator) {
    return guarded([&] {
        require(generator != nullptr, "generator");
        *generator = new fastdiff_generator{fastdiff::Randn(seed, fastdiff::native_box_muller())};
    });
}

void fastdiff_generator_close(fastdiff_generator* generator) { delete generator; }

fastdiff_status fastdiff_generator_randn(fastdiff_generator* generator, float* out, size_t size) {
    return guarded([&] {
        require(generator != nullptr, "generator");
        require(out != nullptr || size == 0, "out");
        generator->state.fill(out, size);
    });
}

fastdiff_status fastdiff_session_sample(fastdiff_session* session, const fastdiff_step* steps,
                                        size_t step_count, size_t slot_count, const fastdiff_array* inputs,
                                        double guidance, fastdiff_generator* generator,
                                        const fastdiff_array* latents, fastdiff_step_callback callback,
                                        void* context) {
    return guarded([&] {
        require(session != nullptr, "session");
        require(latents != nullptr && latents->data != nullptr, "latents");
        const fastdiff::Graph& graph = session->session.module().graph();
        fastdiff::SampleArguments arguments{};
        arguments.shapes = fastdiff::shapes_of(graph, inputs);
        arguments.inputs = fastdiff::data_of(graph, inputs);
        arguments.latents = static_cast<float*>(latents->data);
        arguments.shape = fastdiff::shape_of(*latents, "latents");
        arguments.guidance = guidance;
        arguments.noise = generator == nullptr ? nullptr : &generator->state;
        fastdiff::StepCallback after_step;
        if (callback != nullptr) {
            after_step = [&](std::size_t done, std::size_t total, std::span<const float> x) {
                if (callback(context, done, total, x.data()) != 0) throw fastdiff::Cancelled();
            };
        }
        const fastdiff::SamplerTable table = fastdiff::table_of(steps, step_count, slot_count);
        fastdiff::sample(session->session, table, arguments, after_step);
    });
}
