// Running a module: the mapped file, which any number of sessions share, and a session with memory of its
// own.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/adapters.h"
#include "runtime/arena.h"
#include "runtime/engine_file.h"
#include "runtime/plan.h"
#include "runtime/thread_pool.h"

namespace fastdiff {

// A module file, open and immutable. Throws EngineError with the path in its message.
class Module {
  public:
    explicit Module(const std::string& path);
    // A file's bytes in memory, aligned to 64, that outlive the module; `name` is for messages.
    Module(const std::string& name, std::span<const std::byte> bytes);
    Module(const Module&) = delete;
    Module& operator=(const Module&) = delete;

    [[nodiscard]] const Graph& graph() const { return graph_; }
    [[nodiscard]] const std::string& path() const { return path_; }
    // Bytes of the weights, which are mapped and shared between sessions and processes.
    [[nodiscard]] std::size_t weight_bytes() const;

  private:
    std::string path_;
    std::optional<MappedFile> file_;
    Graph graph_;
};

// Polled between kernel calls: true stops the run with Cancelled.
using Cancel = std::function<bool()>;

// Pointers to contiguous arrays, one per input and one per output of the graph, in its order.
struct Arrays {
    std::span<const void* const> inputs;
    std::span<void* const> outputs;
};

// One caller's state: an arena, plans for the last few sizes, threads. Concurrent calls take turns.
class Session {
  public:
    // `threads` of at least 1.
    Session(std::shared_ptr<const Module> module, std::size_t threads);

    [[nodiscard]] const Module& module() const { return *module_; }
    [[nodiscard]] std::size_t threads() const { return pool_->threads(); }
    // Discards plans and what the prompt and schedule stages left.
    void set_threads(std::size_t threads);

    // Runs with these updates of the module's weights from now on, in place of those that it had; without any
    // as if it never had some. Discards what set_threads does. Throws InputError, and stays as it was then.
    void set_adapters(std::span<const LayerUpdate> updates);
    // Bytes of the updates, which are this session's own.
    std::size_t adapter_bytes();

    // The plan for these sizes, from the cache or new. Throws as make_plan does.
    std::shared_ptr<const Plan> plan(const Sizes& sizes, std::size_t rows = 0);

    // Runs all stages. Throws InputError for sizes out of range, a missing array or outputs that overlap an
    // input; Cancelled; std::bad_alloc. Results of an earlier run_stage are lost. The prompt stage is left
    // out where its inputs are byte for byte those of the last run, as they are in a loop over a picture's
    // steps. `seconds` receives the time of each of the plan's steps, in their order, and has all of them
    // run.
    void run(const Sizes& sizes, const Arrays& arrays, const Cancel& cancel = {},
             std::vector<double>* seconds = nullptr);

    // Runs one stage for `rows` timesteps: prompt and schedule once each in any order, then step as often as
    // wanted, each time for the timestep of index `row`. Inputs that the stage does not read, and outputs of
    // stages before step, may be null. An input of the schedule stage has `rows` as its batch. Stages without
    // nodes need not be run. Throws as run does, and InputError when what the step needs has not been
    // computed for these sizes.
    void run_stage(Stage stage, const Sizes& sizes, std::size_t rows, std::size_t row, const Arrays& arrays,
                   const Cancel& cancel = {});

    // Keeps other threads from running the session, and so what its stages left, until the lock is gone.
    [[nodiscard]] std::unique_lock<std::recursive_mutex> hold() { return std::unique_lock(turn_); }

    // Bytes of activations and scratch that the session holds.
    std::size_t arena_bytes();

  private:
    // The module's, or that with updates.
    [[nodiscard]] const Graph& graph() const { return adapted_ ? adapted_->graph() : module_->graph(); }
    std::shared_ptr<const Plan> find_plan(const Sizes& sizes, std::size_t rows);
    void use(std::shared_ptr<const Plan> plan);
    void execute(Stage stage, std::size_t row, const Arrays& arrays, const Cancel& cancel,
                 std::vector<double>* seconds = nullptr);

    // Whether the arena holds what the prompt stage makes of these inputs, by a copy of those it was made of.
    [[nodiscard]] bool knows_prompt(const Arrays& arrays) const;
    void keep_prompt(const Arrays& arrays);
    template <class F>
    void for_prompt_inputs(const Arrays& arrays, F&& f) const;

    static constexpr std::size_t kept_plans = 4;

    std::recursive_mutex turn_;
    std::shared_ptr<const Module> module_;
    std::shared_ptr<const AdaptedGraph> adapted_;  // null without updates
    std::unique_ptr<ThreadPool> pool_;
    std::list<std::shared_ptr<const Plan>> plans_;  // the last used first
    std::shared_ptr<const Plan> current_;           // whose results the arena holds
    bool done_[stage_count] = {};
    std::vector<std::byte> prompt_;  // inputs of the prompt stage that run() ran last
    Memory arena_;
};

}  // namespace fastdiff
