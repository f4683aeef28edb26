// Strided views of a plan's buffers, and what can be done to a tensor without moving it.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <vector>

#include "runtime/shape.h"

namespace fastdiff {

// Offset, strides and row_step count elements.
struct View {
    int buffer = -1;  // -1: no tensor
    Shape shape;
    std::array<std::size_t, max_rank> strides{};  // 0 repeats
    std::size_t offset = 0;
    // Where the same tensor lies for the next timestep, in values computed for all timesteps at once.
    std::size_t row_step = 0;

    bool operator==(const View& other) const = default;
};

View contiguous(int buffer, const Shape& shape);
bool is_contiguous(const View& view);

// Nothing when the elements are not where `shape` could reach them by strides.
std::optional<View> reshape(const View& view, const Shape& shape);
View slice(View view, std::size_t axis, std::size_t start, std::size_t size);
View permute(const View& view, const std::vector<std::size_t>& axes);
// `shape` is one that the view's shape broadcasts to.
View expand(const View& view, const Shape& shape);

// A view as rows of neighbouring channels, `stride` floats from one row to the next.
struct Rows {
    std::size_t rows, channels, stride;
};
std::optional<Rows> as_rows(const View& view);

// One loop of an elementwise computation: its length, and the strides of the result and the operands.
struct ElementwiseAxis {
    std::size_t size, y, a, b;
};
// The loops over y, outermost first, merged where all three tensors allow it. a and b broadcast to y; b may
// be null.
std::vector<ElementwiseAxis> elementwise_axes(const View& y, const View& a, const View* b);

}  // namespace fastdiff
