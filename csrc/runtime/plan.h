// What a session does for one set of sizes: kernel calls in order, and where each of their tensors lies.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/shapes.h"
#include "runtime/view.h"

namespace fastdiff {

enum class Place : std::uint8_t { arena, input, output, constant };

// Memory that tensors are views of.
struct Buffer {
    Place place;
    DType dtype;
    std::size_t bytes;
    std::size_t index = 0;       // of the input or output
    const void* data = nullptr;  // of the constant
    Stage stage = Stage::step;   // of the steps that write it
    // Read by a later stage, so that it keeps its place until that stage has run as often as the caller
    // likes.
    bool persistent = false;
    int first = -1, last = -1;  // steps that use it
    std::size_t offset = 0;     // in the arena
};

// One kernel call; without a node, a copy of inputs[0] to output.
struct Step {
    const Node* node;
    Stage stage;
    std::vector<View> inputs;
    View output;
    const Conv2dNode::Packing* packing = nullptr;  // conv2d: the chosen one
    // Group normalisation taken apart. A convolution has inputs[3], the affine of the norm that it applies
    // while it loads; it writes `sums` for the norm that reads its output, which has them as inputs[1]. A
    // norm whose convolution applies it is `split`: its output is the affine.
    const GroupNormNode* applied = nullptr;
    View sums;
    bool split = false;
    std::size_t scratch_bytes = 0, scratch_offset = 0;
};

struct Plan {
    Sizes sizes;
    // Timesteps that the schedule stage computes at once; 0: one batch for all stages.
    std::size_t rows;
    std::vector<Shape> input_shapes, output_shapes;  // in the order of the graph's inputs and outputs
    std::vector<Buffer> buffers;
    std::vector<Step> steps;  // by stage
    std::size_t arena_bytes = 0;
    std::size_t persistent_bytes = 0;  // of these at the arena's start, what later stages read
};

// Plans `graph`, which must outlive the plan, for sizes that check_sizes accepts. With `rows`, values of the
// schedule stage have the batch `rows`, and the other stages see one of its rows, repeated over their batch.
// Throws EngineError when the graph's shapes contradict each other, and InputError when its schedule stage
// has no batch.
Plan make_plan(const Graph& graph, const Sizes& sizes, std::size_t rows, std::size_t threads);

// One line per step: op, path, shapes, and where the result lies.
std::string describe(const Plan& plan);

}  // namespace fastdiff
