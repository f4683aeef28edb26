#include "kernels/names.h"
#include "runtime/plan.h"

namespace fastdiff {
namespace {

std::size_t index(int id) { return static_cast<std::size_t>(id); }

// GCC 12 warns about overlapping copies where a literal is joined with a temporary string (GCC bug 105651).
template <class... Parts>
std::string joined(const Parts&... parts) {
    std::string text;
    (text.append(parts), ...);
    return text;
}

std::string describe_view(const Plan& plan, const View& view) {
    if (view.buffer < 0) return "-";
    const Buffer& buffer = plan.buffers[index(view.buffer)];
    constexpr const char* places[] = {" @", " input ", " output ", " constant"};
    std::string text = joined(to_string(view.shape), places[static_cast<std::size_t>(buffer.place)]);
    if (buffer.place == Place::arena) text += std::to_string(buffer.offset);
    if (buffer.place == Place::input || buffer.place == Place::output) text += std::to_string(buffer.index);
    if (view.offset > 0) text += joined("+", std::to_string(view.offset));
    return text;
}

}  // namespace

std::string describe(const Plan& plan) {
    constexpr const char* stages[] = {"prompt", "schedule", "step"};
    std::string text =
        joined("arena ", std::to_string(plan.arena_bytes), " bytes, of them kept between stages ",
               std::to_string(plan.persistent_bytes), "\n");
    for (const Step& step : plan.steps) {
        text += joined(stages[static_cast<std::size_t>(step.stage)], " ",
                       step.node == nullptr ? "copy" : describe(*step.node));
        if (step.packing != nullptr) {
            text += joined(" by ", name_of(algorithm_names, step.packing->algorithm));
        }
        text += ":";
        for (const View& view : step.inputs) text += joined(" ", describe_view(plan, view));
        text += joined(" -> ", describe_view(plan, step.output));
        if (step.split) text += ", applied by the convolution";
        if (step.sums.buffer >= 0) text += ", with sums";
        if (step.scratch_bytes > 0) text += joined(", scratch ", std::to_string(step.scratch_bytes));
        text += "\n";
    }
    return text;
}

}  // namespace fastdiff
