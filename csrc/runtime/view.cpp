#include "runtime/view.h"

namespace fastdiff {
namespace {

// Axes that lie behind each other in memory as one, axes of size 1 left out.
struct Axis {
    std::size_t size, stride;
};

std::vector<Axis> merged(const View& view, std::size_t axes) {
    std::vector<Axis> result;
    for (std::size_t axis = 0; axis < axes; ++axis) {
        const Axis next{view.shape[axis], view.strides[axis]};
        if (next.size == 1) continue;
        if (!result.empty() && result.back().stride == next.size * next.stride) {
            result.back() = {result.back().size * next.size, next.stride};
        } else {
            result.push_back(next);
        }
    }
    return result;
}

}  // namespace

View contiguous(int buffer, const Shape& shape) {
    View view{buffer, shape, {}, 0, 0};
    std::size_t stride = 1;
    for (std::size_t axis = shape.rank(); axis-- > 0;) {
        view.strides[axis] = stride;
        stride *= shape[axis];
    }
    return view;
}

bool is_contiguous(const View& view) {
    std::size_t stride = 1;
    for (std::size_t axis = view.shape.rank(); axis-- > 0;) {
        if (view.shape[axis] != 1 && view.strides[axis] != stride) return false;
        stride *= view.shape[axis];
    }
    return true;
}

std::optional<View> reshape(const View& view, const Shape& shape) {
    const std::vector<Axis> source = merged(view, view.shape.rank());
    View result = view;
    result.shape = shape;
    result.strides = {};
    // From the back, each merged axis is cut into axes of the new shape; none may reach over its end.
    std::size_t next = source.size();
    std::size_t left = 1, stride = 1;
    for (std::size_t axis = shape.rank(); axis-- > 0;) {
        if (shape[axis] == 1) {
            result.strides[axis] = stride;
            continue;
        }
        if (left == 1) {
            if (next == 0) return std::nullopt;
            --next;
            left = source[next].size;
            stride = source[next].stride;
        }
        if (left % shape[axis] != 0) return std::nullopt;
        result.strides[axis] = stride;
        left /= shape[axis];
        stride *= shape[axis];
    }
    if (left != 1 || next != 0) return std::nullopt;
    return result;
}

View slice(View view, std::size_t axis, std::size_t start, std::size_t size) {
    view.offset += start * view.strides[axis];
    view.shape[axis] = size;
    return view;
}

View permute(const View& view, const std::vector<std::size_t>& axes) {
    View result = view;
    for (std::size_t axis = 0; axis < axes.size(); ++axis) {
        result.shape[axis] = view.shape[axes[axis]];
        result.strides[axis] = view.strides[axes[axis]];
    }
    return result;
}

View expand(const View& view, const Shape& shape) {
    View result = view;
    result.shape = shape;
    result.strides = {};
    const std::size_t added = shape.rank() - view.shape.rank();
    for (std::size_t axis = 0; axis < view.shape.rank(); ++axis) {
        const bool repeats = view.shape[axis] == 1 && shape[axis + added] != 1;
        result.strides[axis + added] = repeats ? 0 : view.strides[axis];
    }
    return result;
}

std::optional<Rows> as_rows(const View& view) {
    const std::size_t rank = view.shape.rank();
    if (rank == 0) return std::nullopt;
    const std::size_t channels = view.shape.back();
    if (channels != 1 && view.strides[rank - 1] != 1) return std::nullopt;
    const std::vector<Axis> outer = merged(view, rank - 1);
    if (outer.empty()) return Rows{1, channels, channels};
    if (outer.size() > 1 || outer[0].stride < channels) return std::nullopt;
    return Rows{outer[0].size, channels, outer[0].stride};
}

std::vector<ElementwiseAxis> elementwise_axes(const View& y, const View& a, const View* b) {
    const View wide_a = expand(a, y.shape);
    const View wide_b = b == nullptr ? View{} : expand(*b, y.shape);
    std::vector<ElementwiseAxis> axes;
    for (std::size_t axis = 0; axis < y.shape.rank(); ++axis) {
        const ElementwiseAxis next{y.shape[axis], y.strides[axis], wide_a.strides[axis],
                                   wide_b.strides[axis]};
        if (next.size == 1) continue;
        const auto continues = [&](std::size_t ElementwiseAxis::* stride) {
            return axes.back().*stride == next.size * next.*stride;
        };
        if (!axes.empty() && continues(&ElementwiseAxis::y) && continues(&ElementwiseAxis::a) &&
            continues(&ElementwiseAxis::b)) {
            axes.back() = {axes.back().size * next.size, next.y, next.a, next.b};
        } else {
            axes.push_back(next);
        }
    }
    return axes;
}

}  // namespace fastdiff
