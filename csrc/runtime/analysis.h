// What a plan needs to know of a graph before it places anything: shapes, and who uses what.
#pragma once

#include <vector>

#include "runtime/shapes.h"

namespace fastdiff {

struct Analysis {
    static constexpr int never = 1 << 30;  // a use after all nodes

    const Graph* graph;
    std::size_t rows;
    // All of the following by value. Shapes are `stored` as they are computed, which for the schedule stage
    // is with a batch of rows, and `seen` by nodes of stage step.
    std::vector<Shape> seen, stored;
    std::vector<const Node*> producer;  // null for inputs
    std::vector<std::vector<const Node*>> users;
    // What a value is a view of, and by value that is no view the last node that may read it, through views
    // too.
    std::vector<int> root, last_use;
    // Norms that a convolution applies while it loads.
    std::vector<bool> applied;

    // A value computed for all timesteps, read by a step, which sees one row.
    [[nodiscard]] bool broadcasts(int id, Stage reader) const;
    [[nodiscard]] const Shape& seen_by(int id, Stage reader) const;
    // Whether its shape depends on the batch.
    [[nodiscard]] bool has_batch(int id) const;
    // Whether its first axis is the batch itself, and no other depends on it.
    [[nodiscard]] bool has_batch_first(int id) const;
};

// Checks every node's shapes. Throws EngineError.
Analysis analyse(const Graph& graph, const Sizes& sizes, std::size_t rows);

}  // namespace fastdiff
