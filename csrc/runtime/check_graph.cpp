#include "runtime/check_graph.h"

#include <algorithm>
#include <cstdint>

#include "runtime/error.h"
#include "runtime/shapes.h"

namespace fastdiff {
namespace {

[[noreturn]] void fail(const std::string& what) { throw EngineError(what); }

std::string name_of(const Graph& graph, int value) {
    return graph.values[static_cast<std::size_t>(value)].name;
}

// Every value is defined once and before it is read, and by a node whose stage comes no later than the
// reader's.
void check_order(Graph& graph) {
    for (const Node& node : graph.nodes) {
        for (int id : node.inputs) {
            const auto is_input =
                std::find(graph.inputs.begin(), graph.inputs.end(), id) != graph.inputs.end();
            if (id == Node::none || !is_input || node.stage == Stage::step) continue;
            Value& value = graph.values[static_cast<std::size_t>(id)];
            if (value.stage == Stage::step || node.stage == Stage::schedule) value.stage = node.stage;
        }
    }
    enum class State : std::uint8_t { undefined, constant, defined };
    std::vector<State> states(graph.values.size(), State::undefined);
    const auto define = [&](int id, State state) {
        State& known = states[static_cast<std::size_t>(id)];
        if (known != State::undefined) fail("value " + name_of(graph, id) + " is defined twice");
        known = state;
    };
    for (int id : graph.inputs) define(id, State::defined);
    for (const Node& node : graph.nodes) {
        for (int id : node.inputs) {
            if (id == Node::none) continue;
            const State state = states[static_cast<std::size_t>(id)];
            if (state == State::undefined)
                fail(describe(node) + " reads " + name_of(graph, id) + " too early");
            const Stage stage = graph.values[static_cast<std::size_t>(id)].stage;
            if (state != State::constant && node.stage != Stage::step && stage != node.stage) {
                fail(describe(node) + " reads " + name_of(graph, id) + " of another stage");
            }
        }
        define(node.output,
               std::holds_alternative<ConstantNode>(node.kind) ? State::constant : State::defined);
        graph.values[static_cast<std::size_t>(node.output)].stage = node.stage;
    }
    for (int id : graph.outputs) {
        if (states[static_cast<std::size_t>(id)] == State::undefined) {
            fail("output " + name_of(graph, id) + " is computed by no node");
        }
    }
}

// Sizes are found by the inputs' shapes, so each symbol must stand alone, or times a number, in one of them.
void check_symbols(const Graph& graph) {
    for (std::size_t symbol = 0; symbol < graph.symbols.size(); ++symbol) {
        const bool found = std::any_of(graph.inputs.begin(), graph.inputs.end(), [&](int id) {
            const auto& shape = graph.values[static_cast<std::size_t>(id)].shape;
            return std::any_of(shape.begin(), shape.end(), [&](const Dim& dim) {
                const auto single = single_symbol(dim);
                return single && single->symbol == symbol;
            });
        });
        if (!found) fail("symbol " + graph.symbols[symbol].name + " is in no input's shape");
    }
}

}  // namespace

void check_graph(Graph& graph) {
    check_order(graph);
    check_symbols(graph);
}

}  // namespace fastdiff
