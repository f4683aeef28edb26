#include "runtime/loop.h"

#include <algorithm>
#include <cmath>
#include <tuple>
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
        if (step.history.size() > SchedulerStepArgs::max_history) {
            throw InputError("a step has " + std::to_string(step.history.size()) +
                             " history terms, wanted at most " +
                             std::to_string(SchedulerStepArgs::max_history));
        }
    }
}

// The guidance of each step. Throws InputError for one that is not finite.
std::vector<float> guidance_scales(const SamplerTable& table, double guidance) {
    std::vector<float> scales;
    for (const SamplerStep& step : table.steps) {
        const double scale = step.guidance.value_or(guidance);
        if (!std::isfinite(scale)) throw InputError("guidance is not finite; 1 turns guidance off");
        scales.push_back(static_cast<float>(scale));
    }
    return scales;
}

// The U-Net with guidance as one batch: [without the prompt, with it].
class Denoiser {
  public:
    Denoiser(Session& session, const SamplerTable& table, const SampleArguments& arguments, bool guided,
             const Cancel& cancel)
        : session_(session), graph_(session.module().graph()), cancel_(cancel), inputs_(arguments.inputs) {
        sample_ = input_index(graph_, "sample");
        timestep_ = input_index(graph_, "timestep");
        if (graph_.outputs.empty() || value_of(graph_, graph_.outputs[0]).dtype != DType::float32) {
            throw InputError("the module's first output is no tensor of float32, wanted a U-Net");
        }
        if (inputs_.size() != graph_.inputs.size() || arguments.shapes.size() != inputs_.size()) {
            throw InputError("found " + std::to_string(inputs_.size()) + " inputs, wanted " +
                             std::to_string(graph_.inputs.size()));
        }
        size_ = arguments.shape.elements();
        copies_ = guided ? 2 : 1;
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
        outputs_ = {output_.data()};
        for (std::size_t i = 1; i < graph_.outputs.size(); ++i) {
            const std::size_t width = value_of(graph_, graph_.outputs[i]).dtype == DType::int64 ? 2 : 1;
            others_.emplace_back(width * plan->output_shapes[i].elements());
            outputs_.push_back(others_.back().data());
        }
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

    // Whether the step's input is the sample itself, which need not be written into inputs().
    [[nodiscard]] bool takes_sample(const SamplerStep& step) const {
        return copies_ == 1 && step.input_scale == 1.0;
    }
    // Where the model's next input goes, once or, with guidance, twice.
    [[nodiscard]] std::pair<float*, float*> inputs() {
        return {model_input_.data(), copies_ == 2 ? model_input_.data() + size_ : nullptr};
    }
    // Evaluates the model on what is in inputs(), or on `x` where it takes the sample; cond() and uncond()
    // are valid until the next call.
    void operator()(const float* x, const SamplerStep& step, std::size_t row) {
        inputs_[sample_] = takes_sample(step) ? x : model_input_.data();
        if (!scheduled_) std::fill(timesteps_.begin(), timesteps_.end(), static_cast<float>(step.timestep));
        run(Stage::step, row);
    }
    [[nodiscard]] const float* cond() const { return output_.data() + (copies_ - 1) * size_; }
    [[nodiscard]] const float* uncond() const { return copies_ == 2 ? output_.data() : nullptr; }

  private:
    void run(Stage stage, std::size_t row) {
        session_.run_stage(stage, sizes_, rows_, row, Arrays{inputs_, outputs_}, cancel_);
    }

    Session& session_;
    const Graph& graph_;
    const Cancel& cancel_;
    std::vector<const void*> inputs_;
    std::size_t sample_, timestep_, size_, copies_, rows_;
    Sizes sizes_;
    bool scheduled_;
    std::vector<float> timesteps_, model_input_, output_;
    // Outputs beside the sample's, such as the features that DeepCache keeps, which nobody reads here.
    std::vector<std::vector<float>> others_;
    std::vector<void*> outputs_;
};

// The sample, the slots and the noise of one run. What a step saves is written where it stays: kernels read
// an element of all slots before they write it, and the sample exchanges its buffer with its slot's.
class Run {
  public:
    Run(const SamplerTable& table, const SampleArguments& arguments)
        : size_(arguments.shape.elements()),
          generator_(arguments.noise),
          x_(arguments.latents, arguments.latents + size_),
          noise_(draws_noise(table) ? size_ : 0),
          slots_(table.slots, std::vector<float>(size_)) {
        if (!table.start_noise) return;
        SchedulerStepArgs args = arguments_of(x_.data(), nullptr, table.start_noise);  // m has no coefficient
        args.sample_coef = 1.0f;
        if (args.noise != nullptr) apply(args, x_);
    }

    [[nodiscard]] const std::vector<float>& x() const { return x_; }

    // One step, which also writes the input of the model in the step after it, scaled, where it goes.
    void advance(const SamplerStep& step, const float* cond, const float* uncond, float guidance,
                 const SamplerStep* following, std::pair<float*, float*> inputs) {
        SchedulerStepArgs args = arguments_of(cond, guidance == 1.0f ? nullptr : uncond, step.noise_coef);
        args.guidance = guidance;
        args.sample_coef = static_cast<float>(step.update.sample);
        args.output_coef = static_cast<float>(step.update.output);
        for (const auto& [slot, coef] : step.history) {
            args.history[args.history_count] = slots_[slot].data();
            args.history_coefs[args.history_count++] = static_cast<float>(coef);
        }
        if (step.estimate) {
            args.estimate_sample = static_cast<float>(step.estimate->value.sample);
            args.estimate_output = static_cast<float>(step.estimate->value.output);
            args.estimate_limit = static_cast<float>(step.estimate->limit);
            args.estimate_coef = static_cast<float>(step.estimate->weight);
        }
        // In one slot the sample stays.
        if (step.save_output && step.save_output != step.save_sample) {
            args.estimate = slots_[*step.save_output].data();
        }
        if (following != nullptr) {
            args.next_scale = static_cast<float>(following->input_scale);
            std::tie(args.next, args.next_again) = inputs;
        }
        apply(args, step.save_sample ? slots_[*step.save_sample] : x_);
        if (step.save_sample) std::swap(slots_[*step.save_sample], x_);
    }

  private:
    // Draws the step's noise, if it draws any.
    SchedulerStepArgs arguments_of(const float* cond, const float* uncond,
                                   const std::optional<double>& noise_coef) {
        SchedulerStepArgs args;
        args.size = size_;
        args.sample = x_.data();
        args.cond = cond;
        args.uncond = uncond;
        if (noise_coef) {
            generator_->fill(noise_.data(), size_);
            if (*noise_coef != 0.0) args.noise = noise_.data();
            args.noise_coef = static_cast<float>(*noise_coef);
        }
        return args;
    }
    static void apply(SchedulerStepArgs& args, std::vector<float>& out) {
        args.out = out.data();
        kernels(active_isa()).scheduler_step(args);
    }

    std::size_t size_;
    Randn* generator_;
    std::vector<float> x_, noise_;
    std::vector<std::vector<float>> slots_;
};

}  // namespace

bool draws_noise(const SamplerTable& table) {
    return table.start_noise ||
           std::any_of(table.steps.begin(), table.steps.end(),
                       [](const SamplerStep& step) { return step.noise_coef.has_value(); });
}

void sample(Session& session, const SamplerTable& table, const SampleArguments& arguments,
            const StepCallback& callback, const Cancel& cancel) {
    if (!std::isfinite(arguments.guidance)) throw InputError("guidance is not finite; 1 turns guidance off");
    if (draws_noise(table) && arguments.noise == nullptr) {
        throw InputError("the sampler draws noise, found no generator; pass one");
    }
    check_table(table);
    if (table.steps.empty()) return;
    const std::vector<float> scales = guidance_scales(table, arguments.guidance);
    const bool guided = std::any_of(scales.begin(), scales.end(), [](float scale) { return scale != 1.0f; });
    const auto turn = session.hold();
    Denoiser denoise(session, table, arguments, guided, cancel);
    Run run(table, arguments);
    const auto scale = static_cast<float>(table.steps[0].input_scale);
    const auto [first, again] = denoise.inputs();
    for (std::size_t i = 0; i < run.x().size(); ++i) {
        first[i] = run.x()[i] * scale;
        if (again != nullptr) again[i] = first[i];
    }
    for (std::size_t i = 0; i < table.steps.size(); ++i) {
        const SamplerStep* following = i + 1 < table.steps.size() ? &table.steps[i + 1] : nullptr;
        if (following != nullptr && denoise.takes_sample(*following)) following = nullptr;
        denoise(run.x().data(), table.steps[i], i);
        run.advance(table.steps[i], denoise.cond(), denoise.uncond(), scales[i], following, denoise.inputs());
        if (callback) callback(i + 1, table.steps.size(), run.x());
    }
    std::copy(run.x().begin(), run.x().end(), arguments.latents);
}

}  // namespace fastdiff
