#include "runtime/analysis.h"

#include <algorithm>

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

void find_shapes(Analysis& facts, const Sizes& sizes) {
    const Graph& graph = *facts.graph;
    const Sizes schedule = schedule_sizes(graph, sizes, facts.rows);
    for (const Value& value : graph.values) {
        facts.seen.push_back(evaluate(value, sizes));
        facts.stored.push_back(value.stage == Stage::schedule ? evaluate(value, schedule)
                                                              : facts.seen.back());
    }
    for (const Node& node : graph.nodes) {
        std::vector<const Shape*> inputs;
        for (int id : node.inputs)
            inputs.push_back(id == Node::none ? nullptr : &facts.seen_by(id, node.stage));
        check_node(node, inputs, facts.stored[index(node.output)]);
    }
}

void find_uses(Analysis& facts) {
    const Graph& graph = *facts.graph;
    const std::size_t count = graph.values.size();
    facts.producer.assign(count, nullptr);
    facts.users.assign(count, {});
    facts.last_use.assign(count, -1);
    for (std::size_t id = 0; id < count; ++id) facts.root.push_back(static_cast<int>(id));
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
        const Node& node = graph.nodes[i];
        facts.producer[index(node.output)] = &node;
        if (node.is_view() && !node.inputs.empty()) {
            facts.root[index(node.output)] = facts.root[index(node.inputs[0])];
        }
        for (int id : node.inputs) {
            if (id == Node::none) continue;
            facts.users[index(id)].push_back(&node);
            facts.last_use[index(facts.root[index(id)])] = static_cast<int>(i);
        }
    }
    for (int id : graph.outputs) facts.last_use[index(facts.root[index(id)])] = Analysis::never;
}

// A norm whose result is read by nothing but one convolution of more than one tap is applied by it. What the
// norm reads lives until then.
void find_applied_norms(Analysis& facts) {
    const Graph& graph = *facts.graph;
    facts.applied.assign(graph.values.size(), false);
    for (const Node& node : graph.nodes) {
        const int id = node.output;
        const auto& users = facts.users[index(id)];
        const bool output = std::find(graph.outputs.begin(), graph.outputs.end(), id) != graph.outputs.end();
        if (!std::holds_alternative<GroupNormNode>(node.kind) || output || users.size() != 1) continue;
        const auto* conv = std::get_if<Conv2dNode>(&users[0]->kind);
        if (conv == nullptr || conv->shape.kernel_h * conv->shape.kernel_w < 2) continue;
        if (users[0]->stage != node.stage || users[0]->inputs[0] != id) continue;
        if (facts.stored[index(id)].rank() != 4) continue;
        facts.applied[index(id)] = true;
        int& last = facts.last_use[index(facts.root[index(node.inputs[0])])];
        last = std::max(last, facts.last_use[index(id)]);
    }
}

}  // namespace

bool Analysis::broadcasts(int id, Stage reader) const {
    return rows > 0 && reader == Stage::step && graph->values[index(id)].stage == Stage::schedule;
}

const Shape& Analysis::seen_by(int id, Stage reader) const {
    return (broadcasts(id, reader) ? seen : stored)[index(id)];
}

bool Analysis::has_batch(int id) const {
    const auto& shape = graph->values[index(id)].shape;
    return std::any_of(shape.begin(), shape.end(), [&](const Dim& dim) {
        return std::any_of(dim.begin(), dim.end(),
                           [&](const Token& token) { return is_batch(*graph, token); });
    });
}

bool Analysis::has_batch_first(int id) const {
    const auto& shape = graph->values[index(id)].shape;
    const auto first = shape.empty() ? std::nullopt : single_symbol(shape[0]);
    return first && first->factor == 1 && graph->symbols[first->symbol].name == "batch" &&
           std::equal(seen[index(id)].begin() + 1, seen[index(id)].end(), stored[index(id)].begin() + 1);
}

Analysis analyse(const Graph& graph, const Sizes& sizes, std::size_t rows) {
    Analysis facts{&graph, rows, {}, {}, {}, {}, {}, {}, {}};
    find_shapes(facts, sizes);
    find_uses(facts);
    find_applied_norms(facts);
    return facts;
}

}  // namespace fastdiff
