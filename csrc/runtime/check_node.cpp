#include "kernels/token_match.h"
#include "runtime/error.h"
#include "runtime/shapes.h"

namespace fastdiff {
namespace {

// The checks of one node, one overload per kind. Ids, arity and attributes' ranges are checked already.
class Check {
  public:
    Check(const Node& node, std::span<const Shape* const> inputs, const Shape& output)
        : node_(node), inputs_(inputs), x_(inputs.empty() ? nullptr : inputs[0]), y_(output) {}

    void operator()(const Conv2dNode& node) const {
        rank(*x_, 4);
        rank(y_, 4);
        require((*x_)[3] == node.shape.in, *x_);
        const Conv2dShape shape = on_picture(node.shape, *x_, y_);
        require(shape.seen_height() + shape.pad_top + shape.pad_bottom >= shape.kernel_h, *x_);
        require(shape.seen_width() + shape.pad_left + shape.pad_right >= shape.kernel_w, *x_);
        result({(*x_)[0], shape.out_height(), shape.out_width(), shape.out});
        if (const Shape* vector = input(1)) require(*vector == Shape{(*x_)[0], shape.out}, *vector);
        if (const Shape* residual = input(2)) require(*residual == y_, *residual);
    }
    void operator()(const LinearNode& node) const {
        at_least(*x_, 1);
        require(x_->back() == node.in, *x_);
        result(with_last(*x_, node.out));
        if (const Shape* residual = input(1)) require(*residual == y_, *residual);
    }
    void operator()(const GroupNormNode& node) const {
        at_least(*x_, 2);
        require(x_->back() % node.groups == 0, *x_);
        require(node.channels == 0 || x_->back() == node.channels, *x_);
        result(*x_);
    }
    void operator()(const LayerNormNode& node) const {
        at_least(*x_, 1);
        require(node.channels == 0 || x_->back() == node.channels, *x_);
        result(*x_);
    }
    void operator()(const AttentionNode& node) const {
        const Shape &query = *x_, &key = *inputs_[1], &value = *inputs_[2];
        for (const Shape* shape : {&query, &key, &value}) {
            rank(*shape, 3);
            require((*shape)[0] == query[0] && (*shape)[2] % node.heads == 0, *shape);
        }
        require(key[2] == query[2], key);
        require(value[1] == key[1], value);
        result({query[0], query[1], value[2]});
    }
    void operator()(const GegluNode&) const {
        at_least(*x_, 1);
        require(x_->back() % 2 == 0, *x_);
        result(with_last(*x_, x_->back() / 2));
    }
    void operator()(const EmbeddingNode& node) const {
        at_most(*x_, max_rank - 1);
        Shape wanted = *x_;
        wanted.push_back(node.channels);
        result(wanted);
    }
    void operator()(const SelectTokenNode&) const {
        const Shape &x = *x_, &ids = *inputs_[1];
        rank(x, 3);
        require(ids == Shape{x[0], x[1]}, ids);
        result({x[0], x[2]});
    }
    void operator()(const TokenMatchNode& node) const {
        rank(*x_, 4);
        const Shape& x = *x_;
        require(x[1] >= 2 && x[2] >= 2, x);
        const std::size_t tokens = x[1] * x[2], destinations = token_destinations(x[1], x[2]);
        require(destinations < (std::size_t{1} << 24) && node.merged(tokens) <= tokens - destinations, x);
        result({x[0], tokens});
    }
    void operator()(const TokenMergeNode&) const {
        const Shape &x = *x_, &plan = *inputs_[1];
        rank(x, 3);
        require(plan == Shape{x[0], x[1]}, plan);
        rank(y_, 3);
        require(y_[0] == x[0] && y_[1] <= x[1] && y_[2] == x[2], y_);
    }
    void operator()(const TokenUnmergeNode&) const {
        const Shape &x = *x_, &plan = *inputs_[1];
        rank(x, 3);
        rank(plan, 2);
        require(plan[0] == x[0], plan);
        result({x[0], plan[1], x[2]});
    }
    void operator()(const TimestepEmbeddingNode& node) const {
        rank(*x_, 1);
        result({(*x_)[0], 2 * node.half});
    }
    void operator()(const ResampleNode& node) const {
        rank(*x_, 4);
        const Shape& x = *x_;
        if (node.pool) {
            require(x[1] >= node.factor && x[2] >= node.factor, x);
            result({x[0], x[1] / node.factor, x[2] / node.factor, x[3]});
        } else {
            rank(y_, 4);
            const std::size_t height = x[1] * node.factor, width = x[2] * node.factor;
            require(y_[1] <= height && height - y_[1] < node.factor, y_);
            require(y_[2] <= width && width - y_[2] < node.factor, y_);
            result({x[0], y_[1], y_[2], x[3]});
        }
    }
    void operator()(const ElementwiseNode&) const {
        for (const Shape* shape : inputs_) broadcasts(*shape);
        // Each size of the result comes from an input.
        for (std::size_t back = 1; back <= y_.rank(); ++back) {
            bool found = y_[y_.rank() - back] == 1;
            for (const Shape* shape : inputs_) {
                found = found ||
                        (back <= shape->rank() && (*shape)[shape->rank() - back] == y_[y_.rank() - back]);
            }
            require(found, y_);
        }
    }
    void operator()(const ConcatNode& node) const {
        std::size_t length = 0;
        for (const Shape* shape : inputs_) {
            require(shape->rank() == y_.rank() && node.axis < shape->rank(), *shape);
            for (std::size_t axis = 0; axis < y_.rank(); ++axis) {
                require(axis == node.axis || (*shape)[axis] == y_[axis], *shape);
            }
            length += (*shape)[node.axis];
        }
        require(y_[node.axis] == length, y_);
    }
    void operator()(const SliceNode& node) const {
        require(x_->rank() == y_.rank() && node.axis < y_.rank(), *x_);
        for (std::size_t axis = 0; axis < y_.rank(); ++axis) {
            require(axis == node.axis || (*x_)[axis] == y_[axis], *x_);
        }
        require(node.start <= (*x_)[node.axis] && y_[node.axis] <= (*x_)[node.axis] - node.start, *x_);
    }
    void operator()(const ReshapeNode&) const { require(x_->elements() == y_.elements(), *x_); }
    void operator()(const ExpandNode&) const { broadcasts(*x_); }
    void operator()(const PermuteNode& node) const {
        rank(*x_, node.axes.size());
        rank(y_, node.axes.size());
        for (std::size_t axis = 0; axis < y_.rank(); ++axis) require(y_[axis] == (*x_)[node.axes[axis]], *x_);
    }
    void operator()(const ConstantNode& node) const { result(node.shape); }

  private:
    static Shape with_last(Shape shape, std::size_t size) {
        shape[shape.rank() - 1] = size;
        return shape;
    }
    [[nodiscard]] const Shape* input(std::size_t index) const {
        return index < inputs_.size() ? inputs_[index] : nullptr;
    }
    void require(bool condition, const Shape& shape) const {
        if (condition) return;
        throw EngineError("node " + describe(node_) + ": shape " + to_string(shape) +
                          " does not fit its other shapes, attributes or weights");
    }
    void rank(const Shape& shape, std::size_t wanted) const { require(shape.rank() == wanted, shape); }
    void at_least(const Shape& shape, std::size_t wanted) const { require(shape.rank() >= wanted, shape); }
    void at_most(const Shape& shape, std::size_t wanted) const { require(shape.rank() <= wanted, shape); }
    void result(const Shape& wanted) const { require(y_ == wanted, y_); }
    void broadcasts(const Shape& shape) const {
        at_most(shape, y_.rank());
        for (std::size_t back = 1; back <= shape.rank(); ++back) {
            const std::size_t size = shape[shape.rank() - back];
            require(size == 1 || size == y_[y_.rank() - back], shape);
        }
    }

    const Node& node_;
    std::span<const Shape* const> inputs_;
    const Shape* x_;
    const Shape& y_;
};

}  // namespace

void check_node(const Node& node, std::span<const Shape* const> inputs, const Shape& output) {
    std::visit(Check(node, inputs, output), node.kind);
}

}  // namespace fastdiff
