// A node as the file spells it, and its check and translation into what the runtime executes.
#pragma once

#include "runtime/graph.h"

namespace fastdiff {

using Attribute = std::variant<std::int64_t, double, std::string, std::vector<std::int64_t>>;

struct RawNode {
    struct Packing {
        std::uint8_t algorithm, type;
        std::int64_t weight;
    };
    struct Tuned {
        std::uint8_t algorithm;
        std::vector<std::pair<std::int64_t, std::int64_t>> sizes;
    };
    std::string op, path;
    std::uint8_t stage;
    std::vector<std::int64_t> inputs;
    std::int64_t output;
    std::vector<std::pair<std::string, Attribute>> attributes;
    std::vector<std::pair<std::string, std::int64_t>> weights;
    std::vector<Packing> packings;
    std::vector<Tuned> tuned;
};

// Checks all that does not depend on sizes: ids, the number and types of inputs, names and ranges of
// attributes, sizes of weights. `graph` has its symbols, values and weights. Throws EngineError.
Node make_node(const RawNode& raw, const Graph& graph);

}  // namespace fastdiff
