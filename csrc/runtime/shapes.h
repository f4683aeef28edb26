// Shapes of a graph's values for given sizes of its symbols, and the check that every node can work on them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "runtime/graph.h"

namespace fastdiff {

// One size per symbol of a graph, in its order.
using Sizes = std::vector<std::int64_t>;

// A dim that is `factor · symbol`.
struct SingleSymbol {
    std::int64_t factor;
    std::size_t symbol;
};
std::optional<SingleSymbol> single_symbol(const Dim& dim);

// The value's shape. Throws EngineError for a size below 1, overflow, division by zero or with a remainder,
// and for more than 2^40 elements.
Shape evaluate(const Value& value, const Sizes& sizes);

// The sizes for which the graph's inputs have these shapes. Throws InputError when there are none or when one
// is out of its symbol's range.
Sizes find_sizes(const Graph& graph, std::span<const Shape> inputs);
// Throws InputError unless there is one size per symbol, each in its range.
void check_sizes(const Graph& graph, const Sizes& sizes);

// Checks that a node's inputs and output have shapes that fit each other, its attributes and its weights;
// `inputs` has one shape per input, null where one is missing. No kernel sees a node that did not pass.
// Throws EngineError.
void check_node(const Node& node, std::span<const Shape* const> inputs, const Shape& output);

}  // namespace fastdiff
