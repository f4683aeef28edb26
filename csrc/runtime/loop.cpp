#include "runtime/loop.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "cpu/dispatch.h"
#include "kernels/error.h"

namespace fastdiff {
namespace {

std::size_t input_index(const Graph& graph, const char* name) {
    for (std::size_t i = 0; i < graph.inputs.size(); ++i) {
        if (graph.values[static_cast<std::size_t>(graph.inputs[i])].name == name) return i;
    }
    throw InputError(std::string("the module has no input ") + name + ", wanted a U-Net");
}

const Value& value_of(const Graph& graph, int id) { return graph.values[static_cast<std::size_t>(id)]; }

void check_table(const SamplerTable& table) {
    const auto check = [&](std::size_t slot) {
        if (slot >= table.slots) {
            throw InputError("a step uses slot " + std::to_string(slot) + ", wanted one below " +
                             std::to_string(table.slots));
        }
    };
    for (const SamplerStep& step : table.steps) {
        for (const auto& [slot, coef] : step.history) check(slot);
        if (step.save_sample) check(*step.save_sample);
        if (step.save_output) check(*step.save_output);
        if (step.history.size() + (step.clip ? 1 : 0) > SchedulerStepArgs::max_history) {
            throw InputError("a step has " + std::to_string(step.history.size()) +
                             " history terms, wanted at most " +
                             std::to_string(SchedulerStepArgs::max_history - (step.clip ? 1 : 0)));
        }
    }
}

// The U-Net with guidance as one batch: [without the prompt, with it].
class Denoiser {
  public:
    Denoiser(Session& session, const SamplerTable& table, const SampleArguments& arguments,
             const Cancel& cancel)
        : session_(session), graph_(session.module().graph()), cancel_(cancel), inputs_(arguments.inputs) {
        sample_ = input_index(graph_, "sample");
        timestep_ = input_index(graph_, "timestep");
        if (graph_.outputs.size() != 1 || value_of(graph_, graph_.outputs[0]).dtype != DType::float32) {
            throw InputError("the module has " + std::to_string(graph_.outputs.size()) +
                             " outputs, wanted a U-Net with one");
        }
        if (inputs_.size() != graph_.inputs.size() || arguments.shapes.size() != inputs_.size()) {
            throw InputError("found " + std::to_string(inputs_.size()) + " inputs, wanted " +
                             std::to_string(graph_.inputs.size()));
        }
        size_ = arguments.shape.elements();
        copies_ = arguments.guidance != 1.0 ? 2 : 1;
        if (arguments.shape.rank() == 0) throw InputError("the latents have no axes, wanted a batch");
        Shape batched = arguments.shape;
        batched[0] *= copies_;
        std::vector<Shape> shapes = arguments.shapes;
        shapes[sample_] = batched;
        shapes[timestep_] = {batched[0]};
        sizes_ = find_sizes(graph_, shapes);
        rows_ = table.steps.size();
        const auto plan = session_.plan(sizes_, rows_);
        if (!(plan->output_shapes[0] == batched)) {
            throw InputError("the module's output has shape " + to_string(plan->output_shapes[0]) +
                             ", wanted that of its sample, " + to_string(batched));
        }
        model_input_.resize(size_ * copies_);
        output_.resize(size_ * copies_);
        scheduled_ = value_of(graph_, graph_.inputs[timestep_]).stage == Stage::schedule;
        if (scheduled_) {
            for (const SamplerStep& step : table.steps)
                timesteps_.push_back(static_cast<float>(step.timestep));
        } else {
            timesteps_.resize(batched[0]);
        }
        inputs_[sample_] = model_input_.data();
        inputs_[timestep_] = timesteps_.data();
        run(Stage::prompt, 0);
        run(Stage::schedule, 0);
    }

    // Evaluates the model on `x`; cond() and uncond() are valid until the next call.
    void operator()(const float* x, const SamplerStep& step, std::size_t row) {
        const auto scale = static_cast<float>(step.input_scale);
        for (std::size_t i = 0; i < size_; ++i) model_input_[i] = x[i] * scale;
        if (copies_ == 2) std::copy_n(model_input_.data(), size_, model_input_.data() + size_);
        if (!scheduled_) std::fill(timesteps_.begin(), timesteps_.end(), static_cast<float>(step.timestep));
        run(Stage::step, row);
    }
    [[nodiscard]] const float* cond() const { return output_.data() + (copies_ - 1) * size_; }
    [[nodiscard]] const float* uncond() const { return copies_ == 2 ? output_.data() : nullptr; }

  private:
    void run(Stage stage, std::size_t row) {
        void* const output = output_.data();
        session_.run_stage(stage, sizes_, rows_, row, Arrays{inputs_, {&output, 1}}, cancel_);
    }

    Session& session_;
    const Graph& graph_;
    const Cancel& cancel_;
    std::vector<const void*> inputs_;
    std::size_t sample_, timestep_, size_, copies_, rows_;
    Sizes sizes_;
    bool scheduled_;
    std::vector<float> timesteps_, model_input_, output_;
};

// The buffers of one run. Saving into a slot exchanges buffers instead of copying.
class Run {
  public:
    Run(const SamplerTable& table, const SampleArguments& arguments)
        : size_(arguments.shape.elements()),
          guidance_(static_cast<float>(arguments.guidance)),
          generator_(table.stochastic ? arguments.noise : nullptr),
          x_(arguments.latents, arguments.latents + size_),
          output_(size_),
          spare_(size_),
          clipped_(size_),
          noise_(generator_ != nullptr ? size_ : 0),
          slots_(table.slots, std::vector<float>(size_)) {}

    [[nodiscard]] const std::vector<float>& x() const { return x_; }

    void advance(const SamplerStep& step, const float* cond, const float* uncond) {
        SchedulerStepArgs args{};
        args.size = size_;
        args.sample = x_.data();
        args.cond = cond;
        args.uncond = uncond;
        args.guidance = guidance_;
        args.guided = output_.data();
        const auto add_history = [&](const std::vector<float>& array, double coef) {
            args.history[args.history_count] = array.data();
            args.history_coefs[args.history_count++] = static_cast<float>(coef);
        };
        if (step.clip) {
            // x0 first, then the linear part with the clipped x0 as one more history term.
            apply(args, step.clip->x0, clipped_);
            const auto limit = static_cast<float>(step.clip->limit);
            for (float& value : clipped_) {
                if (value < -limit) value = -limit;
                if (value > limit) value = limit;
            }
            args.cond = output_.data();
            args.uncond = nullptr;
        }
        for (const auto& [slot, coef] : step.history) add_history(slots_[slot], coef);
        if (step.clip) add_history(clipped_, step.clip->weight);
        if (generator_ != nullptr) {
            generator_->fill(noise_.data(), size_);
            args.noise = noise_.data();
            args.noise_coef = static_cast<float>(step.noise_coef);
        }
        apply(args, step.update, step.save_sample ? spare_ : x_);
        if (step.save_output) std::swap(slots_[*step.save_output], output_);
        if (step.save_sample) {
            // x becomes the slot's, the slot's old buffer the spare one, and the result x.
            std::swap(slots_[*step.save_sample], x_);
            std::swap(x_, spare_);
        }
    }

  private:
    static void apply(SchedulerStepArgs& args, const Linear& update, std::vector<float>& out) {
        args.sample_coef = static_cast<float>(update.sample);
        args.output_coef = static_cast<float>(update.output);
        args.out = out.data();
        kernels(active_isa()).scheduler_step(args);
    }

    std::size_t size_;
    float guidance_;
    Randn* generator_;
    std::vector<float> x_, output_, spare_, clipped_, noise_;
    std::vector<std::vector<float>> slots_;
};

}  // namespace

void sample(Session& session, const SamplerTable& table, const SampleArguments& arguments,
            const StepCallback& callback, const Cancel& cancel) {
    if (!std::isfinite(arguments.guidance)) throw InputError("guidance is not finite; 1 turns guidance off");
    if (table.stochastic && arguments.noise == nullptr) {
        throw InputError("the sampler draws noise at every step, found no generator; pass one");
    }
    check_table(table);
    if (table.steps.empty()) return;
    const auto turn = session.hold();
    Denoiser denoise(session, table, arguments, cancel);
    Run run(table, arguments);
    for (std::size_t i = 0; i < table.steps.size(); ++i) {
        denoise(run.x().data(), table.steps[i], i);
        run.advance(table.steps[i], denoise.cond(), denoise.uncond());
        if (callback) callback(i + 1, table.steps.size(), run.x());
    }
    std::copy(run.x().begin(), run.x().end(), arguments.latents);
}

}  // namespace fastdiff
