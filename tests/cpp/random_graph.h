// Random graphs for the tests of plans: every op, stage and kind of view, shapes small and awkward.
#pragma once

#include <cstdint>

#include "runtime/graph.h"

namespace fastdiff::tests {

// A repeatable integer in [0, end) at each call.
class Dice {
  public:
    explicit Dice(std::uint64_t seed) : state_(seed * 2654435761u + 1) { next(2); }
    std::size_t next(std::size_t end) {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<std::size_t>(state_ >> 33) % end;
    }
    bool once_in(std::size_t n) { return next(n) == 0; }

  private:
    std::uint64_t state_;
};

// With the symbol "batch", which is the first size of every value of the prompt and schedule stages. Weights
// have no data: the graph is for planning.
Graph random_graph(std::uint64_t seed);

}  // namespace fastdiff::tests
