#include "runtime/session.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "kernels/error.h"
#include "runtime/error.h"
#include "runtime/launch.h"

namespace fastdiff {
namespace {

std::size_t bytes_of(const Graph& graph, int value, const Shape& shape) {
    return shape.elements() * (graph.values[static_cast<std::size_t>(value)].dtype == DType::int64 ? 8 : 4);
}

// The arrays that a stage touches are there, and no output lies over an input or another output.
void check_arrays(const Graph& graph, const Plan& plan, Stage stage, const Arrays& arrays) {
    if (arrays.inputs.size() != graph.inputs.size() || arrays.outputs.size() != graph.outputs.size()) {
        throw InputError("found " + std::to_string(arrays.inputs.size()) + " inputs and " +
                         std::to_string(arrays.outputs.size()) + " outputs, wanted " +
                         std::to_string(graph.inputs.size()) + " and " +
                         std::to_string(graph.outputs.size()));
    }
    const auto require = [&](const View& view) {
        if (view.buffer < 0) return;
        const Buffer& buffer = plan.buffers[static_cast<std::size_t>(view.buffer)];
        const bool input = buffer.place == Place::input;
        if (!input && buffer.place != Place::output) return;
        if ((input ? arrays.inputs[buffer.index] : arrays.outputs[buffer.index]) != nullptr) return;
        const int value = (input ? graph.inputs : graph.outputs)[buffer.index];
        throw InputError(graph.values[static_cast<std::size_t>(value)].name + " is missing");
    };
    for (const Step& step : plan.steps) {
        if (step.stage != stage) continue;
        for (const View& view : step.inputs) require(view);
        require(step.output);
    }
    struct Range {
        std::uintptr_t first, last;
    };
    std::vector<Range> ranges;
    const auto add = [&](const void* data, std::size_t bytes) {
        const auto first = reinterpret_cast<std::uintptr_t>(data);
        ranges.push_back({first, data == nullptr ? first : first + bytes});
    };
    for (std::size_t i = 0; i < graph.inputs.size(); ++i) {
        add(arrays.inputs[i], bytes_of(graph, graph.inputs[i], plan.input_shapes[i]));
    }
    for (std::size_t i = 0; i < graph.outputs.size(); ++i) {
        add(arrays.outputs[i], bytes_of(graph, graph.outputs[i], plan.output_shapes[i]));
        const Range output = ranges.back();
        for (std::size_t other = 0; other + 1 < ranges.size(); ++other) {
            if (output.first < ranges[other].last && ranges[other].first < output.last) {
                throw InputError(graph.values[static_cast<std::size_t>(graph.outputs[i])].name +
                                 " overlaps an input or another output, wanted separate memory");
            }
        }
    }
}

Graph read(std::span<const std::byte> bytes, const std::string& path) {
    try {
        return read_graph(bytes);
    } catch (const EngineVersionError& error) {
        throw EngineVersionError(path + ": " + error.what());
    } catch (const EngineError& error) {
        throw EngineError(path + ": " + error.what());
    }
}

}  // namespace

Module::Module(const std::string& path) : path_(path), file_(path), graph_(read(file_->bytes(), path)) {}

Module::Module(const std::string& name, std::span<const std::byte> bytes)
    : path_(name), graph_(read(bytes, name)) {}

std::size_t Module::weight_bytes() const {
    std::size_t total = 0;
    for (const Weight& weight : graph_.weights) total += weight.bytes;
    return total;
}

Session::Session(std::shared_ptr<const Module> module, std::size_t threads)
    : module_(std::move(module)), pool_(std::make_unique<ThreadPool>(threads)) {}

void Session::set_threads(std::size_t threads) {
    const std::lock_guard lock(turn_);
    if (threads == pool_->threads()) return;
    auto pool = std::make_unique<ThreadPool>(threads);
    plans_.clear();  // scratch memory depends on the number
    use(nullptr);
    pool_ = std::move(pool);
}

void Session::set_adapters(std::span<const LayerUpdate> updates) {
    const std::lock_guard lock(turn_);
    if (updates.empty() && !adapted_) return;
    std::shared_ptr<const AdaptedGraph> adapted;
    if (!updates.empty()) {
        adapted = std::make_shared<const AdaptedGraph>(module_->graph(), updates, pool_->parallel());
    }
    plans_.clear();
    use(nullptr);
    adapted_ = std::move(adapted);
}

std::size_t Session::adapter_bytes() {
    const std::lock_guard lock(turn_);
    return adapted_ ? adapted_->bytes() : 0;
}

std::shared_ptr<const Plan> Session::plan(const Sizes& sizes, std::size_t rows) {
    const std::lock_guard lock(turn_);
    return find_plan(sizes, rows);
}

std::shared_ptr<const Plan> Session::find_plan(const Sizes& sizes, std::size_t rows) {
    const auto known = std::find_if(plans_.begin(), plans_.end(), [&](const auto& plan) {
        return plan->sizes == sizes && plan->rows == rows;
    });
    if (known != plans_.end()) {
        plans_.splice(plans_.begin(), plans_, known);
    } else {
        // A plan points into its graph, so it keeps that alive.
        struct Held {
            std::shared_ptr<const Module> module;
            std::shared_ptr<const AdaptedGraph> adapted;
            Plan plan;
        };
        auto held = std::make_shared<const Held>(
            Held{module_, adapted_, make_plan(graph(), sizes, rows, pool_->threads())});
        plans_.push_front({held, &held->plan});
        if (plans_.size() > kept_plans) plans_.pop_back();
    }
    return plans_.front();
}

void Session::use(std::shared_ptr<const Plan> plan) {
    if (plan == current_) return;
    std::fill(std::begin(done_), std::end(done_), false);
    current_ = nullptr;
    if (plan && arena_.size() < plan->arena_bytes) {
        arena_ = Memory();  // first, so that the two are never held together
        arena_ = Memory(plan->arena_bytes);
    }
    current_ = std::move(plan);
}

void Session::run(const Sizes& sizes, const Arrays& arrays, const Cancel& cancel,
                  std::vector<double>* seconds) {
    const std::lock_guard lock(turn_);
    use(find_plan(sizes, 0));
    for (Stage stage : {Stage::prompt, Stage::schedule, Stage::step}) {
        check_arrays(graph(), *current_, stage, arrays);
        if (stage == Stage::prompt && seconds == nullptr && knows_prompt(arrays)) continue;
        execute(stage, 0, arrays, cancel, seconds);
        if (stage == Stage::prompt) keep_prompt(arrays);
    }
}

template <class F>
void Session::for_prompt_inputs(const Arrays& arrays, F&& f) const {
    std::vector<bool> seen(arrays.inputs.size());
    for (const Step& step : current_->steps) {
        if (step.stage != Stage::prompt) continue;
        for (const View& view : step.inputs) {
            if (view.buffer < 0) continue;
            const Buffer& buffer = current_->buffers[static_cast<std::size_t>(view.buffer)];
            if (buffer.place != Place::input || seen[buffer.index]) continue;
            seen[buffer.index] = true;
            f(std::span(
                static_cast<const std::byte*>(arrays.inputs[buffer.index]),
                bytes_of(graph(), graph().inputs[buffer.index], current_->input_shapes[buffer.index])));
        }
    }
}

bool Session::knows_prompt(const Arrays& arrays) const {
    if (!done_[static_cast<std::size_t>(Stage::prompt)]) return false;
    std::size_t at = 0;
    bool same = true;
    for_prompt_inputs(arrays, [&](std::span<const std::byte> input) {
        same = same && at + input.size() <= prompt_.size() &&
               std::memcmp(prompt_.data() + at, input.data(), input.size()) == 0;
        at += input.size();
    });
    return same && at == prompt_.size();
}

void Session::keep_prompt(const Arrays& arrays) {
    prompt_.clear();
    for_prompt_inputs(arrays, [&](std::span<const std::byte> input) {
        prompt_.insert(prompt_.end(), input.begin(), input.end());
    });
}

void Session::run_stage(Stage stage, const Sizes& sizes, std::size_t rows, std::size_t row,
                        const Arrays& arrays, const Cancel& cancel) {
    const std::lock_guard lock(turn_);
    if (rows == 0 || row >= rows) {
        throw InputError("row is " + std::to_string(row) + " of " + std::to_string(rows) +
                         ", wanted one below the number of rows");
    }
    use(find_plan(sizes, rows));
    check_arrays(graph(), *current_, stage, arrays);
    if (stage == Stage::step) {
        for (const Step& step : current_->steps) {
            if (step.stage == Stage::step || done_[static_cast<std::size_t>(step.stage)]) continue;
            throw InputError(std::string("the ") + (step.stage == Stage::prompt ? "prompt" : "schedule") +
                             " stage has not run for these sizes; run it before step");
        }
    }
    execute(stage, row, arrays, cancel);
}

void Session::execute(Stage stage, std::size_t row, const Arrays& arrays, const Cancel& cancel,
                      std::vector<double>* seconds) {
    using clock = std::chrono::steady_clock;
    const Plan& plan = *current_;
    done_[static_cast<std::size_t>(stage)] = false;
    const auto pointer = [&](const View& view) -> const void* {
        if (view.buffer < 0) return nullptr;
        const Buffer& buffer = plan.buffers[static_cast<std::size_t>(view.buffer)];
        const std::size_t bytes =
            (view.offset + row * view.row_step) * (buffer.dtype == DType::int64 ? 8 : 4);
        const void* base = buffer.data;
        if (buffer.place == Place::arena) base = arena_.data() + buffer.offset;
        if (buffer.place == Place::input) base = arrays.inputs[buffer.index];
        if (buffer.place == Place::output) base = arrays.outputs[buffer.index];
        return static_cast<const std::byte*>(base) + bytes;
    };
    const Kernels& table = kernels(active_isa());
    const Parallel parallel = pool_->parallel();
    for (const Step& step : plan.steps) {
        if (step.stage != stage) continue;
        if (cancel && cancel()) throw Cancelled();
        const auto begin = seconds != nullptr ? clock::now() : clock::time_point();
        std::array<const void*, 4> inputs{};
        for (std::size_t i = 0; i < std::min(step.inputs.size(), inputs.size()); ++i) {
            inputs[i] = pointer(step.inputs[i]);
        }
        const DType dtype = plan.buffers[static_cast<std::size_t>(step.output.buffer)].dtype;
        launch(step, dtype, inputs.data(), const_cast<void*>(pointer(step.output)),
               const_cast<void*>(pointer(step.sums)), arena_.data() + step.scratch_offset, table, parallel);
        if (seconds != nullptr) {
            seconds->push_back(std::chrono::duration<double>(clock::now() - begin).count());
        }
    }
    done_[static_cast<std::size_t>(stage)] = true;
}

std::size_t Session::arena_bytes() {
    const std::lock_guard lock(turn_);
    return arena_.size();
}

}  // namespace fastdiff
