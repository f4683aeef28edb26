// The checks of a graph as a whole, before any size is known.
#pragma once

#include "runtime/graph.h"

namespace fastdiff {

// Checks that nodes are in an order in which they can run, that each value is defined once, that stages read
// only what they may, and that the inputs' shapes tell every symbol. Sets the stages of values. Throws
// EngineError.
void check_graph(Graph& graph);

}  // namespace fastdiff
