// Low-rank updates of layers' weights (LoRA; Hu et al. 2021): W + Σ scale · up · down. The update is computed
// beside W · x when the graph runs, so that W, which is mapped and shared, stays as it is:
//
//   x ──────────────────────────── layer(x, residual = u) ── y
//   └─ down (as the layer) ── t ── up (1×1) ── u
//
// An update is the residual of its layer, and what was the residual before is that of `up`. Of a layer with
// an activation the sum must come first: it loses its epilogue, which nodes of its own compute from the sum.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/parallel.h"
#include "runtime/aligned.h"
#include "runtime/graph.h"

namespace fastdiff {

// An update of the rows first … first + count - 1 of a layer's weight. All numbers are contiguous.
struct LowRank {
    std::size_t first, count, rank;
    std::size_t inputs;  // of one row of down, and of the layer: in · kernel_h · kernel_w
    const float* down;   // (rank, in, kernel_h, kernel_w), or (rank, in) of a linear layer
    const float* up;     // (count, rank)
    float scale;
};

// All updates of the layer that computes `value`, a conv2d or linear node's output.
struct LayerUpdate {
    int value;
    std::vector<LowRank> parts;
};

// A graph with updates. It shares the weights of the graph that it was made from, which must outlive it, and
// has packed copies of the updates, whose arrays need not.
class AdaptedGraph {
  public:
    // Throws InputError for an update that does not fit its layer.
    AdaptedGraph(const Graph& graph, std::span<const LayerUpdate> updates, const Parallel& parallel);

    [[nodiscard]] const Graph& graph() const { return graph_; }
    // Bytes of the packed updates.
    [[nodiscard]] std::size_t bytes() const { return bytes_; }

  private:
    Graph graph_;
    std::size_t bytes_ = 0;
    Aligned<std::byte> packed_;
};

}  // namespace fastdiff
