#include "runtime/plan.h"

#include <algorithm>
#include <utility>

#include "kernels/error.h"
#include "runtime/arena.h"
#include "runtime/error.h"
#include "runtime/launch.h"

namespace fastdiff {
namespace {

std::size_t index(int id) { return static_cast<std::size_t>(id); }

bool is_batch(const Graph& graph, const Token& token) {
    return token.kind == Token::Kind::symbol &&
           graph.symbols[static_cast<std::size_t>(token.operand)].name == "batch";
}

// Sizes with which the schedule stage runs.
Sizes schedule_sizes(const Graph& graph, Sizes sizes, std::size_t rows) {
    if (rows == 0) return sizes;
    for (std::size_t symbol = 0; symbol < graph.symbols.size(); ++symbol) {
        if (graph.symbols[symbol].name == "batch") sizes[symbol] = static_cast<std::int64_t>(rows);
    }
    return sizes;
}

class Planner {
  public:
    Planner(const Graph& graph, const Sizes& sizes, std::size_t rows, std::size_t threads)
        : graph_(graph), threads_(threads) {
        plan_.sizes = sizes;
        plan_.rows = rows;
    }

    Plan make() {
        find_shapes();
        find_uses();
        find_applied_norms();
        add_inputs();
        place_outputs();
        place_concatenations();
        for (std::size_t i = 0; i < graph_.nodes.size(); ++i) {
            at_ = static_cast<int>(i);
            add_node(graph_.nodes[i]);
        }
        copy_outputs();
        place_buffers();
        return std::move(plan_);
    }

  private:
    // Shapes, as nodes of stage step see them and as they are stored.
    void find_shapes() {
        const Sizes schedule = schedule_sizes(graph_, plan_.sizes, plan_.rows);
        for (const Value& value : graph_.values) {
            seen_.push_back(evaluate(value, plan_.sizes));
            stored_.push_back(value.stage == Stage::schedule ? evaluate(value, schedule) : seen_.back());
        }
        for (const Node& node : graph_.nodes) {
            std::vector<const Shape*> inputs;
            for (int id : node.inputs) {
                inputs.push_back(
                    id == Node::none ? nullptr : &(broadcasts(id, node.stage) ? seen_ : stored_)[index(id)]);
            }
            check_node(node, inputs, stored_[index(node.output)]);
        }
        for (int id : graph_.inputs) plan_.input_shapes.push_back(stored_[index(id)]);
        for (int id : graph_.outputs) plan_.output_shapes.push_back(seen_[index(id)]);
    }

    // A value computed for all timesteps, read by a step, which sees one row.
    [[nodiscard]] bool broadcasts(int id, Stage reader) const {
        return plan_.rows > 0 && reader == Stage::step && graph_.values[index(id)].stage == Stage::schedule;
    }

    // The last node that may read each value, through views too.
    void find_uses() {
        root_.resize(graph_.values.size());
        producer_.assign(graph_.values.size(), nullptr);
        for (std::size_t id = 0; id < root_.size(); ++id) root_[id] = static_cast<int>(id);
        last_use_.assign(graph_.values.size(), -1);
        for (std::size_t i = 0; i < graph_.nodes.size(); ++i) {
            const Node& node = graph_.nodes[i];
            producer_[index(node.output)] = &node;
            if (node.is_view() && !node.inputs.empty())
                root_[index(node.output)] = root_[index(node.inputs[0])];
            for (int id : node.inputs) {
                if (id != Node::none) last_use_[index(root_[index(id)])] = static_cast<int>(i);
            }
        }
        for (int id : graph_.outputs) last_use_[index(root_[index(id)])] = never;
    }

    // Norms that a convolution applies while it loads: the result is read by nothing but one convolution of
    // more than one tap. What the norm reads lives until then.
    void find_applied_norms() {
        users_.assign(graph_.values.size(), {});
        for (const Node& node : graph_.nodes) {
            for (int id : node.inputs) {
                if (id != Node::none) users_[index(id)].push_back(&node);
            }
        }
        applied_.assign(graph_.values.size(), false);
        for (const Node& node : graph_.nodes) {
            const int id = node.output;
            const auto& users = users_[index(id)];
            const bool output =
                std::find(graph_.outputs.begin(), graph_.outputs.end(), id) != graph_.outputs.end();
            if (!std::holds_alternative<GroupNormNode>(node.kind) || output || users.size() != 1) continue;
            const auto* conv = std::get_if<Conv2dNode>(&users[0]->kind);
            if (conv == nullptr || conv->shape.kernel_h * conv->shape.kernel_w < 2) continue;
            if (users[0]->stage != node.stage || users[0]->inputs[0] != id) continue;
            if (stored_[index(id)].rank() != 4) continue;
            applied_[index(id)] = true;
            int& last = last_use_[index(root_[index(node.inputs[0])])];
            last = std::max(last, last_use_[index(id)]);
        }
    }

    void add_inputs() {
        views_.resize(graph_.values.size());
        homes_.resize(graph_.values.size());
        norm_input_.resize(graph_.values.size());
        sums_.resize(graph_.values.size());
        for (std::size_t i = 0; i < graph_.inputs.size(); ++i) {
            const int id = graph_.inputs[i];
            const int buffer =
                add_buffer(Place::input, id, stored_[index(id)], graph_.values[index(id)].stage);
            plan_.buffers.back().index = i;
            views_[index(id)] = contiguous(buffer, stored_[index(id)]);
        }
    }

    // Outputs that a step computes are computed in the caller's memory.
    void place_outputs() {
        for (std::size_t i = 0; i < graph_.outputs.size(); ++i) {
            const int id = graph_.outputs[i];
            const int buffer = add_buffer(Place::output, id, seen_[index(id)], Stage::step);
            plan_.buffers.back().index = i;
            output_views_.push_back(contiguous(buffer, seen_[index(id)]));
            give_home(id, output_views_.back(), Stage::step);
        }
    }

    // Parts of a concatenation are computed where they belong in its result.
    void place_concatenations() {
        for (std::size_t i = graph_.nodes.size(); i-- > 0;) {
            const Node& node = graph_.nodes[i];
            const auto* concat = std::get_if<ConcatNode>(&node.kind);
            if (concat == nullptr) continue;
            View& home = homes_[index(node.output)];
            if (home.buffer < 0) home = new_buffer(node.output, stored_[index(node.output)], node.stage);
            extend(home.buffer, last_use_[index(node.output)]);
            std::size_t start = 0;
            for (int id : node.inputs) {
                const std::size_t size = seen_by(id, node.stage)[concat->axis];
                give_home(id, slice(home, concat->axis, start, size), node.stage);
                start += size;
            }
        }
    }

    // Lets the node that computes `id`, or what it is a reshape of, write to `view`, if it can and has no
    // other home.
    void give_home(int id, View view, Stage stage) {
        while (producer_[index(id)] != nullptr &&
               std::holds_alternative<ReshapeNode>(producer_[index(id)]->kind)) {
            id = producer_[index(id)]->inputs[0];
            if (broadcasts(id, stage)) return;
            const auto reshaped = reshape(view, stored_[index(id)]);
            if (!reshaped) return;
            view = *reshaped;
        }
        const Node* node = producer_[index(id)];
        if (node == nullptr || node->is_view() || node->stage != stage || homes_[index(id)].buffer >= 0)
            return;
        if (!can_write(*node, view)) return;
        homes_[index(id)] = view;
        extend(view.buffer, last_use_[index(id)]);
    }

    void add_node(const Node& node) {
        View& output = views_[index(node.output)];
        if (node.is_view()) {
            output = view_of(node);
            return;
        }
        Step step{};
        step.node = &node;
        step.stage = node.stage;
        for (std::size_t i = 0; i < node.inputs.size(); ++i) {
            const int id = node.inputs[i];
            View view = id == Node::none ? View{} : read(id, node.stage);
            if (id != Node::none && applied_[index(id)]) view = norm_input_[index(id)];
            if (id != Node::none && !can_read(node, i, view)) view = materialise(view, id, node.stage);
            step.inputs.push_back(view);
        }
        take_norm_apart(step);
        const View home = homes_[index(node.output)];
        if (const auto* concat = std::get_if<ConcatNode>(&node.kind)) {
            output = home;
            copy_parts(node, *concat, step.inputs, home);
            return;
        }
        if (step.split) {
            const Shape affine{affine_size(step.inputs[0].shape)};
            output = contiguous(add_buffer(Place::arena, node.output, affine, node.stage), affine);
            extend(output.buffer, last_use_[index(node.output)]);
            norm_input_[index(node.output)] = step.inputs[0];
            step.output = output;
            emit(std::move(step));
            return;
        }
        output = home.buffer >= 0 ? home : overwritten(step);
        if (output.buffer < 0) output = new_buffer(node.output, stored_[index(node.output)], node.stage);
        extend(output.buffer, last_use_[index(node.output)]);
        step.output = output;
        if (const auto* conv = std::get_if<Conv2dNode>(&node.kind)) {
            step.packing = choose(*conv, step);
            add_sums(step);
        }
        emit(std::move(step));
    }

    // Lets a convolution read what its norm read, and the norm's affine; and a norm read the sums of the
    // convolution before it.
    void take_norm_apart(Step& step) {
        const Node& node = *step.node;
        if (std::holds_alternative<GroupNormNode>(node.kind)) {
            step.split = applied_[index(node.output)];
            View& sums = sums_[index(node.inputs[0])];
            // The norm adds the sums up in place: they serve one.
            if (sums.buffer >= 0) step.inputs.push_back(std::exchange(sums, {}));
        }
        if (!std::holds_alternative<Conv2dNode>(node.kind) || !applied_[index(node.inputs[0])]) return;
        step.applied = &std::get<GroupNormNode>(producer_[index(node.inputs[0])]->kind);
        step.inputs.resize(4);
        step.inputs[3] = views_[index(node.inputs[0])];
    }

    // Room for the sums of a convolution's output, if a norm reads it.
    void add_sums(Step& step) {
        const int id = step.node->output;
        const auto& users = users_[index(id)];
        const auto reads = [&](const Node* user) {
            return std::holds_alternative<GroupNormNode>(user->kind) && user->stage == step.stage;
        };
        if (std::none_of(users.begin(), users.end(), reads)) return;
        const Shape size{conv2d_sums_size(step)};
        step.sums = contiguous(add_buffer(Place::arena, id, size, step.stage), size);
        extend(step.sums.buffer, last_use_[index(id)]);
        sums_[index(id)] = step.sums;
    }

    View view_of(const Node& node) {
        const Shape& shape = stored_[index(node.output)];
        if (const auto* constant = std::get_if<ConstantNode>(&node.kind)) {
            const int buffer = add_buffer(Place::constant, node.output, shape, node.stage);
            plan_.buffers.back().data = constant->data;
            return contiguous(buffer, shape);
        }
        const View x = read(node.inputs[0], node.stage);
        if (const auto* part = std::get_if<SliceNode>(&node.kind)) {
            return slice(x, part->axis, part->start, shape[part->axis]);
        }
        if (const auto* order = std::get_if<PermuteNode>(&node.kind)) return permute(x, order->axes);
        if (std::holds_alternative<ExpandNode>(node.kind)) return expand(x, shape);
        if (const auto reshaped = reshape(x, shape)) return *reshaped;
        return *reshape(materialise(x, node.inputs[0], node.stage), shape);
    }

    [[nodiscard]] const Shape& seen_by(int id, Stage reader) const {
        return (broadcasts(id, reader) ? seen_ : stored_)[index(id)];
    }

    // A value as a node of stage `reader` sees it.
    View read(int id, Stage reader) {
        const View& stored = views_[index(id)];
        const Value& value = graph_.values[index(id)];
        const bool alike = std::none_of(value.shape.begin(), value.shape.end(), [&](const Dim& dim) {
            return std::any_of(dim.begin(), dim.end(),
                               [&](const Token& token) { return is_batch(graph_, token); });
        });
        if (!broadcasts(id, reader) || alike) return stored;
        const Shape& seen = seen_[index(id)];
        const auto first = single_symbol(value.shape[0]);
        const View row = slice(stored, 0, 0, 1);
        Shape single = seen;
        single[0] = 1;
        // One row per timestep: the first axis is the batch itself, and no other depends on it.
        if (!first || first->factor != 1 || graph_.symbols[first->symbol].name != "batch" ||
            !(single == row.shape)) {
            throw InputError(
                "value " + graph_.values[index(id)].name +
                " of the schedule stage has no batch as its first axis; run all stages together");
        }
        View view = expand(row, seen);
        view.row_step = stored.strides[0];
        return view;
    }

    // A contiguous copy of a view of value `id`, made once for all nodes of a stage.
    View materialise(const View& view, int id, Stage stage) {
        const auto known = std::find_if(copies_.begin(), copies_.end(), [&](const auto& entry) {
            return entry.stage == stage && entry.from == view;
        });
        if (known != copies_.end()) return known->to;
        const View copy = new_buffer(id, view.shape, stage);
        emit_copy(view, copy, stage);
        copies_.push_back({view, copy, stage});
        return copy;
    }

    // An input that dies here and whose buffer the output may take over; no buffer when there is none.
    View overwritten(const Step& step) {
        const Shape& shape = stored_[index(step.node->output)];
        for (std::size_t i = 0; i < step.inputs.size(); ++i) {
            const View& view = step.inputs[i];
            if (view.buffer < 0 || !may_overwrite(*step.node, i)) continue;
            const Buffer& buffer = plan_.buffers[index(view.buffer)];
            if (buffer.place != Place::arena || buffer.stage != step.stage ||
                buffer_last_[index(view.buffer)] != at_ || buffer.dtype != DType::float32) {
                continue;
            }
            if (!(view.shape == shape) || !is_contiguous(view) || view.offset != 0 || view.row_step != 0)
                continue;
            const bool elementwise = std::holds_alternative<ElementwiseNode>(step.node->kind);
            const bool alone = std::all_of(step.inputs.begin(), step.inputs.end(), [&](const View& other) {
                return &other == &view || other.buffer != view.buffer || (elementwise && other == view);
            });
            if (alone) return view;
        }
        return {};
    }

    void copy_parts(const Node& node, const ConcatNode& concat, const std::vector<View>& parts,
                    const View& home) {
        std::size_t start = 0;
        for (const View& part : parts) {
            const View place = slice(home, concat.axis, start, part.shape[concat.axis]);
            start += part.shape[concat.axis];
            if (!same_memory(part, place)) emit_copy(part, place, node.stage);
        }
    }

    // Whether both views have their elements in the same places.
    static bool same_memory(const View& a, const View& b) {
        if (a.buffer != b.buffer || a.offset != b.offset || a.row_step != b.row_step) return false;
        for (std::size_t axis = 0; axis < a.shape.rank(); ++axis) {
            if (a.shape[axis] != 1 && a.strides[axis] != b.strides[axis]) return false;
        }
        return true;
    }

    const Conv2dNode::Packing* choose(const Conv2dNode& conv, const Step& step) const {
        Conv2dShape shape = conv.shape;
        shape.batch = step.inputs[0].shape[0];
        shape.height = step.inputs[0].shape[1];
        shape.width = step.inputs[0].shape[2];
        unsigned available = 0;
        for (const auto& packing : conv.packings) available |= 1u << static_cast<unsigned>(packing.algorithm);
        const auto tuned = std::find_if(conv.tuned.begin(), conv.tuned.end(), [&](const auto& entry) {
            return std::all_of(entry.sizes.begin(), entry.sizes.end(),
                               [&](const auto& size) { return plan_.sizes[size.first] == size.second; });
        });
        const ConvAlgorithm algorithm =
            tuned != conv.tuned.end() ? tuned->algorithm : conv2d_choose(shape, available, threads_);
        const auto found = std::find_if(conv.packings.begin(), conv.packings.end(),
                                        [&](const auto& packing) { return packing.algorithm == algorithm; });
        return found != conv.packings.end() ? &*found : &conv.packings.front();
    }

    void copy_outputs() {
        at_ = never;
        for (std::size_t i = 0; i < graph_.outputs.size(); ++i) {
            const View from = read(graph_.outputs[i], Stage::step);
            if (!same_memory(from, output_views_[i])) emit_copy(from, output_views_[i], Stage::step);
        }
    }

    void emit_copy(const View& from, const View& to, Stage stage) {
        Step step{};
        step.stage = stage;
        step.inputs.push_back(from);
        step.output = to;
        emit(std::move(step));
    }

    void emit(Step step) {
        const int at = static_cast<int>(plan_.steps.size());
        const auto use = [&](const View& view) {
            if (view.buffer < 0) return;
            Buffer& buffer = plan_.buffers[index(view.buffer)];
            if (buffer.first < 0) buffer.first = at;
            buffer.last = at;
            if (buffer.stage < step.stage) buffer.persistent = true;
        };
        for (const View& view : step.inputs) use(view);
        use(step.output);
        use(step.sums);
        step.scratch_bytes = scratch_bytes(step, threads_);
        plan_.steps.push_back(std::move(step));
    }

    View new_buffer(int id, const Shape& shape, Stage stage) {
        return contiguous(add_buffer(Place::arena, id, shape, stage), shape);
    }

    int add_buffer(Place place, int id, const Shape& shape, Stage stage) {
        const DType dtype = graph_.values[index(id)].dtype;
        Buffer buffer{place, dtype, shape.elements() * (dtype == DType::int64 ? 8 : 4)};
        buffer.stage = stage;
        plan_.buffers.push_back(buffer);
        buffer_last_.push_back(-1);
        return static_cast<int>(plan_.buffers.size()) - 1;
    }

    void extend(int buffer, int last) {
        buffer_last_[index(buffer)] = std::max(buffer_last_[index(buffer)], last);
    }

    // Persistent buffers one behind the other, the rest and the steps' scratch memory as their lifetimes
    // allow.
    void place_buffers() {
        std::vector<Lifetime> lifetimes;
        std::vector<std::size_t*> offsets;
        const auto add = [&](std::size_t bytes, int first, int last, std::size_t* offset) {
            lifetimes.push_back({bytes, first, last});
            offsets.push_back(offset);
        };
        std::size_t persistent = 0;
        for (Buffer& buffer : plan_.buffers) {
            if (buffer.place != Place::arena || buffer.first < 0) continue;
            if (buffer.persistent) {
                buffer.offset = persistent;
                persistent += (buffer.bytes + arena_alignment - 1) / arena_alignment * arena_alignment;
            } else {
                add(buffer.bytes, buffer.first, buffer.last, &buffer.offset);
            }
        }
        for (std::size_t i = 0; i < plan_.steps.size(); ++i) {
            Step& step = plan_.steps[i];
            const int at = static_cast<int>(i);
            if (step.scratch_bytes > 0) add(step.scratch_bytes, at, at, &step.scratch_offset);
        }
        plan_.persistent_bytes = persistent;
        plan_.arena_bytes = persistent + place(lifetimes);
        for (std::size_t i = 0; i < offsets.size(); ++i) *offsets[i] = persistent + lifetimes[i].offset;
    }

    struct Copy {
        View from, to;
        Stage stage;
    };
    static constexpr int never = 1 << 30;  // a use after all nodes

    const Graph& graph_;
    const std::size_t threads_;
    Plan plan_;
    int at_ = 0;  // the node being planned
    // By value.
    std::vector<Shape> seen_, stored_;
    std::vector<int> root_, last_use_;
    std::vector<const Node*> producer_;
    std::vector<View> views_, homes_;
    std::vector<std::vector<const Node*>> users_;
    std::vector<bool> applied_;  // norms whose convolution applies them
    std::vector<View> norm_input_,
        sums_;  // what such a norm reads; a convolution's sums until a norm takes them
    std::vector<View> output_views_;
    std::vector<int> buffer_last_;  // the last node that may use a buffer
    std::vector<Copy> copies_;
};

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

Plan make_plan(const Graph& graph, const Sizes& sizes, std::size_t rows, std::size_t threads) {
    check_sizes(graph, sizes);
    return Planner(graph, sizes, rows, threads).make();
}

std::string describe(const Plan& plan) {
    constexpr const char* stages[] = {"prompt", "schedule", "step"};
    constexpr const char* algorithms[] = {"direct", "winograd2", "winograd4"};
    std::string text =
        joined("arena ", std::to_string(plan.arena_bytes), " bytes, of them kept between stages ",
               std::to_string(plan.persistent_bytes), "\n");
    for (const Step& step : plan.steps) {
        text += joined(stages[static_cast<std::size_t>(step.stage)], " ",
                       step.node == nullptr ? "copy" : describe(*step.node));
        if (step.packing != nullptr) {
            text += joined(" by ", algorithms[static_cast<std::size_t>(step.packing->algorithm)]);
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
