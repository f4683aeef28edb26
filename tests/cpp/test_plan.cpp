// Plans of random graphs, run on tags in place of numbers: every element that a node computes gets a tag that
// depends on the node and on the tags it read. Memory that is overwritten too early, a view with a wrong
// stride, a copy that is missing: each changes the tags of the outputs.
#include <algorithm>
#include <limits>

#include "check.h"
#include "kernels/error.h"
#include "random_graph.h"
#include "runtime/arena.h"
#include "runtime/launch.h"
#include "runtime/plan.h"

namespace fastdiff::tests {
namespace {

using Tag = std::uint64_t;
using Tags = std::vector<Tag>;

Tag mix(Tag a, Tag b) {
    Tag x = (a ^ (b + 0x9E3779B97F4A7C15u + (a << 6) + (a >> 2))) * 0xBF58476D1CE4E5B9u;
    return x ^ (x >> 29);
}

std::size_t index(int id) { return static_cast<std::size_t>(id); }

// What a node makes of its inputs' tags: each element of the result depends on all of them.
Tags compute(const Node& node, const std::vector<Tags>& inputs, std::size_t elements) {
    Tag all = static_cast<Tag>(node.output);
    for (const Tags& input : inputs) {
        for (Tag tag : input) all = mix(all, tag);
    }
    Tags result(elements);
    for (std::size_t i = 0; i < elements; ++i) result[i] = mix(all, i);
    return result;
}

// Elements of a view in memory, in logical order.
std::vector<std::size_t> places(const View& view, std::size_t row) {
    std::vector<std::size_t> result(view.shape.elements());
    for (std::size_t i = 0; i < result.size(); ++i) {
        std::size_t rest = i, at = view.offset + row * view.row_step;
        for (std::size_t axis = view.shape.rank(); axis-- > 0;) {
            at += rest % view.shape[axis] * view.strides[axis];
            rest /= view.shape[axis];
        }
        result[i] = at;
    }
    return result;
}

// ---- the specification: every value in memory of its own, views by copying

struct Array {
    Shape shape;
    Tags tags;
};

// Element i of the result, in logical order, is element source(coordinates of i) of x.
template <class Source>
Array gather(const Array& x, const Shape& shape, const Source& source) {
    Array result{shape, Tags(shape.elements())};
    std::vector<std::size_t> at(shape.rank()), from;
    for (std::size_t i = 0; i < result.tags.size(); ++i) {
        std::size_t rest = i;
        for (std::size_t axis = shape.rank(); axis-- > 0;) {
            at[axis] = rest % shape[axis];
            rest /= shape[axis];
        }
        from = source(at);
        std::size_t flat = 0;
        for (std::size_t axis = 0; axis < x.shape.rank(); ++axis) flat = flat * x.shape[axis] + from[axis];
        result.tags[i] = x.tags[flat];
    }
    return result;
}

Array specified(const Node& node, const std::vector<Array>& inputs, const Shape& shape) {
    using At = std::vector<std::size_t>;
    if (const auto* part = std::get_if<SliceNode>(&node.kind)) {
        return gather(inputs[0], shape, [&](At at) {
            at[part->axis] += part->start;
            return at;
        });
    }
    if (const auto* order = std::get_if<PermuteNode>(&node.kind)) {
        return gather(inputs[0], shape, [&](const At& at) {
            At from(at.size());
            for (std::size_t axis = 0; axis < at.size(); ++axis) from[order->axes[axis]] = at[axis];
            return from;
        });
    }
    if (std::holds_alternative<ExpandNode>(node.kind)) {
        return gather(inputs[0], shape, [&](At at) {
            at.erase(at.begin(), at.end() - static_cast<std::ptrdiff_t>(inputs[0].shape.rank()));
            for (std::size_t axis = 0; axis < at.size(); ++axis) at[axis] %= inputs[0].shape[axis];
            return at;
        });
    }
    if (std::holds_alternative<ReshapeNode>(node.kind)) return {shape, inputs[0].tags};
    if (const auto* concat = std::get_if<ConcatNode>(&node.kind)) {
        Array result{shape, Tags(shape.elements())};
        std::size_t inner = 1, start = 0;
        for (std::size_t axis = concat->axis + 1; axis < shape.rank(); ++axis) inner *= shape[axis];
        for (const Array& part : inputs) {
            const std::size_t run = part.shape[concat->axis] * inner;
            for (std::size_t i = 0; i < part.tags.size(); ++i) {
                result.tags[i / run * shape[concat->axis] * inner + start + i % run] = part.tags[i];
            }
            start += run;
        }
        return result;
    }
    std::vector<Tags> tags;
    for (const Array& input : inputs) tags.push_back(input.tags);
    return {shape, compute(node, tags, shape.elements())};
}

Tags input_tags(std::size_t input, const Shape& shape) {
    Tags tags(shape.elements());
    for (std::size_t i = 0; i < tags.size(); ++i) tags[i] = mix(1000 + input, i);
    return tags;
}

Sizes at_batch(std::size_t batch) { return {static_cast<std::int64_t>(batch)}; }

// The outputs' tags. With rows, values of the schedule stage are computed for all rows, and a step sees one
// of them at every place of its batch.
std::vector<Tags> specify(const Graph& graph, std::size_t batch, std::size_t rows, std::size_t row) {
    std::vector<Array> values(graph.values.size());
    const auto own_batch = [&](const Value& value) {
        return rows > 0 && value.stage == Stage::schedule ? rows : batch;
    };
    for (std::size_t i = 0; i < graph.inputs.size(); ++i) {
        const Value& value = graph.values[index(graph.inputs[i])];
        const Shape shape = evaluate(value, at_batch(own_batch(value)));
        values[index(graph.inputs[i])] = {shape, input_tags(i, shape)};
    }
    const auto read = [&](int id, Stage reader) -> Array {
        const Value& value = graph.values[index(id)];
        if (rows == 0 || reader != Stage::step || value.stage != Stage::schedule) return values[index(id)];
        // A value that is a multiple of the batch has that many rows for each timestep; the tests make no
        // such.
        return gather(values[index(id)], evaluate(value, at_batch(batch)), [&](std::vector<std::size_t> at) {
            at[0] = row;
            return at;
        });
    };
    for (const Node& node : graph.nodes) {
        std::vector<Array> inputs;
        for (int id : node.inputs) {
            if (id != Node::none) inputs.push_back(read(id, node.stage));
        }
        const Value& value = graph.values[index(node.output)];
        values[index(node.output)] = specified(node, inputs, evaluate(value, at_batch(own_batch(value))));
    }
    std::vector<Tags> outputs;
    for (int id : graph.outputs) outputs.push_back(read(id, Stage::step).tags);
    return outputs;
}

// ---- the plan on tags

struct Memory {
    Tags arena;
    std::vector<Tags> inputs, outputs;
};

constexpr Tag poison = 0xDEAD;

Tags& memory_of(Memory& memory, const Buffer& buffer, std::size_t& base) {
    base = 0;
    if (buffer.place == Place::input) return memory.inputs[buffer.index];
    if (buffer.place == Place::output) return memory.outputs[buffer.index];
    base = buffer.offset / sizeof(float);
    return memory.arena;
}

Tags load(Memory& memory, const Plan& plan, const View& view, std::size_t row) {
    std::size_t base = 0;
    const Tags& tags = memory_of(memory, plan.buffers[index(view.buffer)], base);
    Tags result;
    for (std::size_t at : places(view, row)) result.push_back(tags.at(base + at));
    return result;
}

void store(Memory& memory, const Plan& plan, const View& view, const Tags& values) {
    std::size_t base = 0;
    Tags& tags = memory_of(memory, plan.buffers[index(view.buffer)], base);
    const auto at = places(view, 0);
    for (std::size_t i = 0; i < at.size(); ++i) tags.at(base + at[i]) = values[i];
}

// Kernels write over no input unless their contract allows it, and then at exactly its places.
void check_aliasing(const Plan& plan, const Step& step, std::size_t row) {
    const Buffer& result = plan.buffers[index(step.output.buffer)];
    std::vector<std::size_t> written = places(step.output, 0);
    const auto order = written;
    std::sort(written.begin(), written.end());
    CHECK(std::adjacent_find(written.begin(), written.end()) == written.end());
    for (std::size_t i = 0; i < step.inputs.size(); ++i) {
        const View& view = step.inputs[i];
        if (view.buffer < 0) continue;
        const Buffer& buffer = plan.buffers[index(view.buffer)];
        if (buffer.place != result.place || (buffer.place != Place::arena && buffer.index != result.index))
            continue;
        const auto read = places(view, row);
        const bool same = step.node != nullptr && may_overwrite(*step.node, i) && read == order &&
                          buffer.offset == result.offset;
        const bool apart = std::none_of(read.begin(), read.end(), [&](std::size_t at) {
            const std::size_t relative = at + buffer.offset / sizeof(float) - result.offset / sizeof(float);
            return std::binary_search(written.begin(), written.end(), relative);
        });
        CHECK(same || apart);
    }
}

// What stands for the sums of a convolution's output, and for the affine that a norm makes of what it reads.
Tag digest(const Tags& tags) {
    Tag all = 0;
    for (Tag tag : tags) all = mix(all, tag);
    return all;
}

// A step's result: its output, and for a convolution whose norm wants them, sums. A norm that its convolution
// applies makes an affine, with which the convolution then makes the norm's result of what the norm read.
void run_step(const Graph& graph, const Plan& plan, const Step& step, std::size_t row, Memory& memory) {
    std::vector<Tags> inputs;
    const auto elements = step.output.shape.elements();
    const bool norm = step.node != nullptr && std::holds_alternative<GroupNormNode>(step.node->kind);
    for (std::size_t i = 0; i < step.inputs.size(); ++i) {
        const View& view = step.inputs[i];
        if (view.buffer < 0) continue;
        Tags tags = load(memory, plan, view, row);
        if (norm && i == 1) {  // sums of what it reads; adding them up spoils them
            CHECK(tags == Tags(tags.size(), digest(inputs[0])));
            store(memory, plan, view, Tags(tags.size(), poison));
        } else if (step.applied != nullptr && i == 3) {
            CHECK(tags == Tags(tags.size(), digest(inputs[0])));
            const auto producer = std::find_if(graph.nodes.begin(), graph.nodes.end(), [&](const Node& node) {
                return node.output == step.node->inputs[0];
            });
            inputs[0] = compute(*producer, {inputs[0]}, inputs[0].size());
        } else {
            inputs.push_back(std::move(tags));
        }
    }
    if (step.node == nullptr) return store(memory, plan, step.output, inputs[0]);
    if (step.split) return store(memory, plan, step.output, Tags(elements, digest(inputs[0])));
    const Tags result = compute(*step.node, inputs, elements);
    store(memory, plan, step.output, result);
    if (step.sums.buffer >= 0) {
        store(memory, plan, step.sums, Tags(step.sums.shape.elements(), digest(result)));
    }
}

void run_stage(const Graph& graph, const Plan& plan, Stage stage, std::size_t row, Memory& memory) {
    for (const Step& step : plan.steps) {
        if (step.stage != stage) continue;
        const auto spoil_scratch = [&] {
            for (std::size_t i = 0; i < step.scratch_bytes / sizeof(float); ++i) {
                memory.arena.at(step.scratch_offset / sizeof(float) + i) = poison;
            }
        };
        spoil_scratch();
        check_aliasing(plan, step, row);
        run_step(graph, plan, step, row, memory);
        spoil_scratch();
    }
}

void check_plan(const Graph& graph, const Plan& plan, std::size_t batch, std::size_t rows) {
    Memory memory;
    memory.arena.assign(plan.arena_bytes / sizeof(float), poison);
    for (std::size_t i = 0; i < graph.inputs.size(); ++i) {
        memory.inputs.push_back(input_tags(i, plan.input_shapes[i]));
    }
    for (const Shape& shape : plan.output_shapes) memory.outputs.emplace_back(shape.elements(), poison);
    run_stage(graph, plan, Stage::prompt, 0, memory);
    run_stage(graph, plan, Stage::schedule, 0, memory);
    // The last row comes again at the end: steps leave what they did not compute as it was.
    const std::vector<std::size_t> order =
        rows == 0 ? std::vector<std::size_t>{0, 0} : std::vector<std::size_t>{2, 0, 1, 2};
    for (std::size_t row : order) {
        run_stage(graph, plan, Stage::step, row, memory);
        CHECK(memory.outputs == specify(graph, batch, rows, row));
    }
}

// Buffers and scratch memory that are in use at the same time lie apart, inside the arena, on cache lines.
void check_lifetimes(const Plan& plan) {
    struct Use {
        std::size_t begin, end;
        int first, last;
    };
    std::vector<Use> uses;
    const int end = static_cast<int>(plan.steps.size());
    for (const Buffer& buffer : plan.buffers) {
        if (buffer.place != Place::arena || buffer.first < 0) continue;
        CHECK(!buffer.persistent || buffer.offset + buffer.bytes <= plan.persistent_bytes);
        uses.push_back({buffer.offset, buffer.offset + buffer.bytes, buffer.persistent ? 0 : buffer.first,
                        buffer.persistent ? end : buffer.last});
    }
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
        const Step& step = plan.steps[i];
        const int at = static_cast<int>(i);
        if (step.scratch_bytes > 0) {
            uses.push_back({step.scratch_offset, step.scratch_offset + step.scratch_bytes, at, at});
        }
    }
    for (const Use& a : uses) {
        CHECK(a.begin % arena_alignment == 0 && a.end <= plan.arena_bytes);
        for (const Use& b : uses) {
            const bool apart = a.end <= b.begin || b.end <= a.begin || a.last < b.first || b.last < a.first;
            CHECK(&a == &b || apart);
        }
    }
}

void test_place() {
    // By size: 320 at 0, 192 behind it, 128 in the gap that 320 leaves when it dies.
    Lifetime buffers[] = {{100, 4, 5}, {192, 1, 5}, {300, 0, 2}};
    CHECK(place(buffers) == 512);
    CHECK(buffers[2].offset == 0 && buffers[1].offset == 320 && buffers[0].offset == 0);
    CHECK(place({}) == 0);
    Dice dice(1);
    for (int round = 0; round < 200; ++round) {
        std::vector<Lifetime> many;
        for (std::size_t i = 0; i < 40; ++i) {
            const int first = static_cast<int>(dice.next(50));
            many.push_back({1 + dice.next(1000), first, first + static_cast<int>(dice.next(10))});
        }
        const std::size_t total = place(many);
        for (const Lifetime& a : many) {
            CHECK(a.offset % arena_alignment == 0 && a.offset + a.bytes <= total);
            for (const Lifetime& b : many) {
                CHECK(&a == &b || a.last < b.first || b.last < a.first || a.offset + a.bytes <= b.offset ||
                      b.offset + b.bytes <= a.offset);
            }
        }
    }
}

}  // namespace

void test_plan() {
    test_place();
    std::size_t copies = 0, calls = 0, shared = 0, staged = 0;
    for (std::uint64_t seed = 0; seed < 1500; ++seed) {
        const Graph graph = random_graph(seed);
        for (std::size_t batch : {1, 3}) {
            for (std::size_t rows : {0, 3}) {
                const Plan plan = make_plan(graph, at_batch(batch), rows, 2);
                check_lifetimes(plan);
                check_plan(graph, plan, batch, rows);
                for (const Step& step : plan.steps) {
                    ++(step.node == nullptr ? copies : calls);
                    for (const View& view : step.inputs) shared += view.buffer == step.output.buffer ? 1 : 0;
                }
                staged += plan.persistent_bytes > 0 ? 1 : 0;
            }
        }
    }
    // The graphs are worth it: there are copies, results in place of their inputs, and results kept between
    // stages.
    CHECK(copies > 0 && copies < calls && shared > 1000 && staged > 1000);
}

}  // namespace fastdiff::tests
