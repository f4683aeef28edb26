#include "runtime/plan.h"

#include <algorithm>
#include <utility>

#include "kernels/error.h"
#include "runtime/analysis.h"
#include "runtime/arena.h"
#include "runtime/error.h"
#include "runtime/launch.h"

namespace fastdiff {
namespace {

std::size_t index(int id) { return static_cast<std::size_t>(id); }

class Planner {
  public:
    Planner(const Graph& graph, const Sizes& sizes, std::size_t rows, std::size_t threads)
        : graph_(graph), facts_(analyse(graph, sizes, rows)), threads_(threads) {
        plan_.sizes = sizes;
        plan_.rows = rows;
    }

    Plan make() {
        for (int id : graph_.inputs) plan_.input_shapes.push_back(facts_.stored[index(id)]);
        for (int id : graph_.outputs) plan_.output_shapes.push_back(facts_.seen[index(id)]);
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
    void add_inputs() {
        views_.resize(graph_.values.size());
        homes_.resize(graph_.values.size());
        norm_input_.resize(graph_.values.size());
        sums_.resize(graph_.values.size());
        for (std::size_t i = 0; i < graph_.inputs.size(); ++i) {
            const int id = graph_.inputs[i];
            const int buffer =
                add_buffer(Place::input, id, facts_.stored[index(id)], graph_.values[index(id)].stage);
            plan_.buffers.back().index = i;
            views_[index(id)] = contiguous(buffer, facts_.stored[index(id)]);
        }
    }

    // Outputs that a step computes are computed in the caller's memory.
    void place_outputs() {
        for (std::size_t i = 0; i < graph_.outputs.size(); ++i) {
            const int id = graph_.outputs[i];
            const int buffer = add_buffer(Place::output, id, facts_.seen[index(id)], Stage::step);
            plan_.buffers.back().index = i;
            output_views_.push_back(contiguous(buffer, facts_.seen[index(id)]));
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
            if (home.buffer < 0)
                home = new_buffer(node.output, facts_.stored[index(node.output)], node.stage);
            extend(home.buffer, facts_.last_use[index(node.output)]);
            std::size_t start = 0;
            for (int id : node.inputs) {
                const std::size_t size = facts_.seen_by(id, node.stage)[concat->axis];
                give_home(id, slice(home, concat->axis, start, size), node.stage);
                start += size;
            }
        }
    }

    // Lets the node that computes `id`, or what it is a reshape of, write to `view`, if it can and has no
    // other home.
    void give_home(int id, View view, Stage stage) {
        while (facts_.producer[index(id)] != nullptr &&
               std::holds_alternative<ReshapeNode>(facts_.producer[index(id)]->kind)) {
            id = facts_.producer[index(id)]->inputs[0];
            if (facts_.broadcasts(id, stage)) return;
            const auto reshaped = reshape(view, facts_.stored[index(id)]);
            if (!reshaped) return;
            view = *reshaped;
        }
        const Node* node = facts_.producer[index(id)];
        if (node == nullptr || node->is_view() || node->stage != stage || homes_[index(id)].buffer >= 0)
            return;
        if (!can_write(*node, view)) return;
        homes_[index(id)] = view;
        extend(view.buffer, facts_.last_use[index(id)]);
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
            if (id != Node::none && facts_.applied[index(id)]) view = norm_input_[index(id)];
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
            extend(output.buffer, facts_.last_use[index(node.output)]);
            norm_input_[index(node.output)] = step.inputs[0];
            step.output = output;
            emit(std::move(step));
            return;
        }
        output = home.buffer >= 0 ? home : overwritten(step);
        if (output.buffer < 0)
            output = new_buffer(node.output, facts_.stored[index(node.output)], node.stage);
        extend(output.buffer, facts_.last_use[index(node.output)]);
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
            step.split = facts_.applied[index(node.output)];
            View& sums = sums_[index(node.inputs[0])];
            // The norm adds the sums up in place: they serve one.
            if (sums.buffer >= 0) step.inputs.push_back(std::exchange(sums, {}));
        }
        if (!std::holds_alternative<Conv2dNode>(node.kind) || !facts_.applied[index(node.inputs[0])]) return;
        step.applied = &std::get<GroupNormNode>(facts_.producer[index(node.inputs[0])]->kind);
        step.inputs.resize(4);
        step.inputs[3] = views_[index(node.inputs[0])];
    }

    // Room for the sums of a convolution's output, if a norm reads it.
    void add_sums(Step& step) {
        const int id = step.node->output;
        const auto& users = facts_.users[index(id)];
        const auto reads = [&](const Node* user) {
            return std::holds_alternative<GroupNormNode>(user->kind) && user->stage == step.stage;
        };
        if (std::none_of(users.begin(), users.end(), reads)) return;
        const Shape size{conv2d_sums_size(step)};
        step.sums = contiguous(add_buffer(Place::arena, id, size, step.stage), size);
        extend(step.sums.buffer, facts_.last_use[index(id)]);
        sums_[index(id)] = step.sums;
    }

    View view_of(const Node& node) {
        const Shape& shape = facts_.stored[index(node.output)];
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

    // A value as a node of stage `reader` sees it.
    View read(int id, Stage reader) {
        const View& stored = views_[index(id)];
        if (!facts_.broadcasts(id, reader) || !facts_.has_batch(id)) return stored;
        if (!facts_.has_batch_first(id)) {
            throw InputError(
                "value " + graph_.values[index(id)].name +
                " of the schedule stage has no batch as its first axis; run all stages together");
        }
        View view = expand(slice(stored, 0, 0, 1), facts_.seen[index(id)]);
        view.row_step = stored.strides[0];
        return view;
    }

    // A contiguous copy of a view of value `id`, made once for all nodes of a stage. Another value with the
    // same view is another copy: its node may have written over this one.
    View materialise(const View& view, int id, Stage stage) {
        const auto known = std::find_if(copies_.begin(), copies_.end(), [&](const auto& entry) {
            return entry.id == id && entry.stage == stage && entry.from == view;
        });
        if (known != copies_.end()) return known->to;
        const View copy = new_buffer(id, view.shape, stage);
        emit_copy(view, copy, stage);
        copies_.push_back({id, view, copy, stage});
        return copy;
    }

    // An input that dies here and whose buffer the output may take over; no buffer when there is none.
    View overwritten(const Step& step) {
        const Shape& shape = facts_.stored[index(step.node->output)];
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
        const Conv2dShape shape = on_picture(conv.shape, step.inputs[0].shape, step.output.shape);
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
        at_ = Analysis::never;
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
        int id;
        View from, to;
        Stage stage;
    };
    const Graph& graph_;
    const Analysis facts_;
    const std::size_t threads_;
    Plan plan_;
    int at_ = 0;  // the node being planned
    // By value.
    std::vector<View> views_, homes_;
    std::vector<View> norm_input_;  // what such a norm reads
    std::vector<View> sums_;        // of a convolution, until a norm takes them
    std::vector<View> output_views_;
    std::vector<int> buffer_last_;  // the last node that may use a buffer
    std::vector<Copy> copies_;
};

}  // namespace

Plan make_plan(const Graph& graph, const Sizes& sizes, std::size_t rows, std::size_t threads) {
    check_sizes(graph, sizes);
    return Planner(graph, sizes, rows, threads).make();
}

}  // namespace fastdiff
