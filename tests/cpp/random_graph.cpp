#include "random_graph.h"

#include <algorithm>

namespace fastdiff::tests {
namespace {

constexpr std::size_t batch = 2;  // the size for which shapes are made to fit

class Generator {
  public:
    explicit Generator(std::uint64_t seed) : dice_(seed) { graph_.symbols = {{"batch", 1, 0, 1}}; }

    Graph make() {
        for (Stage stage : {Stage::prompt, Stage::schedule, Stage::step}) {
            stage_ = stage;
            for (std::size_t i = 0; i <= dice_.next(2); ++i) add_input();
            const std::size_t nodes = 2 + dice_.next(stage == Stage::step ? 30 : 8);
            for (std::size_t i = 0; i < nodes; ++i) add_node();
        }
        // Mostly late values, but also inputs and the same one twice.
        for (std::size_t i = 0; i <= dice_.next(4); ++i) {
            const bool late = !dice_.once_in(4);
            graph_.outputs.push_back(late ? static_cast<int>(shapes_.size() - 1 - dice_.next(3)) : pick());
        }
        return std::move(graph_);
    }

  private:
    // Sizes at batch 2; the first is the symbol where `leads`, the rest are numbers.
    int add_value(const Shape& shape, bool leads) {
        Value value{"v" + std::to_string(shapes_.size()), DType::float32, {}, stage_};
        for (std::size_t axis = 0; axis < shape.rank(); ++axis) {
            const auto size = static_cast<std::int64_t>(shape[axis]);
            if (axis > 0 || !leads) {
                value.shape.push_back({{Token::Kind::number, size}});
            } else {
                value.shape.push_back({{Token::Kind::symbol, 0},
                                       {Token::Kind::number, size / static_cast<std::int64_t>(batch)},
                                       {Token::Kind::multiply, 0}});
            }
        }
        graph_.values.push_back(std::move(value));
        shapes_.push_back(shape);
        leads_.push_back(leads);
        return static_cast<int>(shapes_.size()) - 1;
    }

    void add_input() {
        Shape shape{batch};
        for (std::size_t rank = 1 + dice_.next(3); rank > 0; --rank) shape.push_back(1 + dice_.next(6));
        if (stage_ != Stage::step && shape.rank() == 2 && dice_.once_in(2)) shape = {batch};
        graph_.inputs.push_back(add_value(shape, true));
    }

    // A value that a node of this stage may read.
    int pick() {
        for (;;) {
            // Often the last, so that chains grow long.
            const std::size_t last = shapes_.size() - 1;
            const std::size_t id = dice_.once_in(3) ? last : last - std::min(last, dice_.next(12));
            if (stage_ == Stage::step || graph_.values[id].stage == stage_) return static_cast<int>(id);
        }
    }
    // One with exactly these sizes, or none.
    int like(const Shape& shape) {
        for (int tries = 0; tries < 20; ++tries) {
            const int id = pick();
            if (shapes_[static_cast<std::size_t>(id)] == shape) return id;
        }
        return Node::none;
    }
    const Shape& shape_of(int id) const { return shapes_[static_cast<std::size_t>(id)]; }

    void add(const char* op, std::vector<int> inputs, const Shape& shape, bool leads, NodeKind kind) {
        if (shape.elements() > 4000) return;
        // Values of the schedule stage keep their batch in front.
        if (stage_ != Stage::step && !leads) return;
        const int output = add_value(shape, leads);
        graph_.nodes.push_back(
            {op, "n" + std::to_string(output), stage_, std::move(inputs), output, std::move(kind)});
    }

    void add_node() {
        const int x = pick();
        const Shape shape = shape_of(x);
        const bool leads = leads_[static_cast<std::size_t>(x)];
        const std::size_t rank = shape.rank();
        // A norm between two convolutions is taken apart.
        const bool conv =
            !graph_.nodes.empty() && std::holds_alternative<Conv2dNode>(graph_.nodes.back().kind);
        const bool norm =
            !graph_.nodes.empty() && std::holds_alternative<GroupNormNode>(graph_.nodes.back().kind);
        const std::size_t op = dice_.once_in(2) && (conv || norm) ? (conv ? 4 : 3) : dice_.next(15);
        switch (op) {
            case 0:
                return add("silu", {x}, shape, leads, ElementwiseNode{Elementwise::silu, 0, 0, 0});
            case 1: {
                const int other = like(shape);
                return add("add", {x, other == Node::none ? x : other}, shape, leads,
                           ElementwiseNode{Elementwise::add, 0, 0, 0});
            }
            case 2: {
                Shape y = shape;
                const std::size_t out = 1 + dice_.next(6);
                y[rank - 1] = out;
                if (rank < 2) return;
                LinearNode node{shape.back(), out, Activation::none, 1, nullptr, WeightType::fp32, nullptr};
                return add("linear", {x, dice_.once_in(2) ? like(y) : Node::none}, y, leads, node);
            }
            case 3: {
                if (rank != 4 || !leads) return;
                const std::size_t out = 1 + dice_.next(6), kernel = dice_.once_in(2) ? 3 : 1;
                Conv2dNode node{};
                node.shape.in = shape[3];
                node.shape.out = out;
                node.shape.kernel_h = node.shape.kernel_w = kernel;
                node.shape.pad_top = node.shape.pad_bottom = node.shape.pad_left = node.shape.pad_right =
                    kernel / 2;
                node.shape.stride = node.shape.upsample = 1;
                node.scale = 1;
                node.packings = {{ConvAlgorithm::direct, WeightType::fp32, nullptr}};
                const Shape y{shape[0], shape[1], shape[2], out};
                const int vector = dice_.once_in(2) ? like({shape[0], out}) : Node::none;
                return add("conv2d", {x, vector, dice_.once_in(2) ? like(y) : Node::none}, y, leads, node);
            }
            case 4:
                if (rank < 2) return;
                return add("group_norm_silu", {x}, shape, leads,
                           GroupNormNode{1, 0, 1e-5, true, nullptr, nullptr});
            case 5:
                return add("layer_norm", {x}, shape, leads, LayerNormNode{0, 1e-5, nullptr, nullptr});
            case 6: {
                if (rank != 3) return;
                const int key = like(shape), value = like(shape);
                if (key == Node::none || value == Node::none) return;
                return add("attention", {x, key, value}, shape, leads, AttentionNode{1, 1, false});
            }
            case 7: {
                if (shape.back() % 2 != 0 || rank < 2) return;
                Shape y = shape;
                y[rank - 1] /= 2;
                return add("geglu", {x}, y, leads, GegluNode{});
            }
            case 8:
                if (rank != 4) return;
                return add("upsample_nearest2d", {x},
                           {shape[0], 2 * shape[1] - dice_.next(2), 2 * shape[2] - dice_.next(2), shape[3]},
                           leads, ResampleNode{2, false});
            case 9:
            case 10:
                return add_concat(x);
            case 11: {
                const std::size_t axis = dice_.next(rank), start = dice_.next(shape[axis]);
                if (axis == 0 && leads) return;
                Shape y = shape;
                y[axis] = 1 + dice_.next(shape[axis] - start);
                return add("slice", {x}, y, leads, SliceNode{axis, start});
            }
            case 12: {
                // Two axes become one, or a new axis of size 1 appears.
                Shape y;
                const std::size_t at = dice_.next(rank);
                const bool merge = at + 1 < rank && dice_.once_in(2);
                if (!merge && rank > 4) return;
                if (merge && at == 0 && stage_ != Stage::step) return;
                for (std::size_t axis = 0; axis < rank; ++axis) {
                    if (merge && axis == at + 1) {
                        y[at] *= shape[axis];
                    } else {
                        y.push_back(shape[axis]);
                    }
                    if (!merge && axis == at) y.push_back(1);
                }
                return add("reshape", {x}, y, leads, ReshapeNode{});
            }
            case 13: {
                PermuteNode node;
                for (std::size_t axis = 0; axis < rank; ++axis) node.axes.push_back(axis);
                const std::size_t first = leads ? 1 : 0;
                for (std::size_t axis = rank; axis-- > first + 1;) {
                    std::swap(node.axes[axis], node.axes[first + dice_.next(axis - first + 1)]);
                }
                Shape y = shape;
                for (std::size_t axis = 0; axis < rank; ++axis) y[axis] = shape[node.axes[axis]];
                return add("permute", {x}, y, leads, std::move(node));
            }
            default: {
                Shape y = shape;
                for (std::size_t axis = 1; axis < rank; ++axis) {
                    if (y[axis] == 1 && dice_.once_in(2)) y[axis] = 1 + dice_.next(3);
                }
                return add("expand", {x}, y, leads, ExpandNode{});
            }
        }
    }

    void add_concat(int x) {
        const Shape shape = shape_of(x);
        const bool leads = leads_[static_cast<std::size_t>(x)];
        if (shape.rank() < 2) return;
        const std::size_t axis = dice_.once_in(3) ? 1 + dice_.next(shape.rank() - 1) : shape.rank() - 1;
        std::vector<int> inputs{x};
        Shape y = shape;
        for (int tries = 0; tries < 20 && inputs.size() < 3; ++tries) {
            const int id = pick();
            const Shape& other = shape_of(id);
            bool fits = other.rank() == shape.rank() && leads_[static_cast<std::size_t>(id)] == leads;
            for (std::size_t a = 0; fits && a < shape.rank(); ++a) fits = a == axis || other[a] == shape[a];
            if (!fits) continue;
            inputs.push_back(id);
            y[axis] += other[axis];
        }
        add("concat", std::move(inputs), y, leads, ConcatNode{axis});
    }

    Dice dice_;
    Graph graph_;
    Stage stage_ = Stage::prompt;
    std::vector<Shape> shapes_;
    std::vector<bool> leads_;
};

}  // namespace

Graph random_graph(std::uint64_t seed) { return Generator(seed).make(); }

}  // namespace fastdiff::tests
