#include "runtime/adapters.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/error.h"
#include "kernels/linear.h"

namespace fastdiff {
namespace {

constexpr std::size_t max_rank_of_updates = std::size_t{1} << 20;

// What a layer multiplies its input by.
struct Product {
    std::size_t inputs;   // of one output: channels times taps
    std::size_t outputs;  // rows of the weight
    const Conv2dNode* conv;
};

Product product_of(const Node& node) {
    if (const auto* conv = std::get_if<Conv2dNode>(&node.kind)) {
        const Conv2dShape& shape = conv->shape;
        return {shape.in * shape.kernel_h * shape.kernel_w, shape.out, conv};
    }
    const auto& linear = std::get<LinearNode>(node.kind);
    return {linear.in, linear.activation == Activation::geglu ? 2 * linear.out : linear.out, nullptr};
}

// An update of one node: where its packed weights lie, and what they are packed from.
struct Placed {
    const LayerUpdate* update;
    Product product;
    std::size_t rank;  // of all parts
    std::size_t down, up;
};

Conv2dShape down_shape(const Placed& placed) {
    Conv2dShape shape = placed.product.conv->shape;
    shape.out = placed.rank;
    return shape;
}

std::size_t down_bytes(const Placed& placed) {
    return placed.product.conv != nullptr
               ? conv2d_packed_bytes(down_shape(placed), ConvAlgorithm::direct, WeightType::fp32)
               : linear_packed_bytes(placed.product.inputs, placed.rank, WeightType::fp32);
}

std::size_t up_bytes(const Placed& placed) {
    return linear_packed_bytes(placed.rank, placed.product.outputs, WeightType::fp32);
}

// Floats that `pack` needs: both matrices with all parts.
std::size_t scratch_size(const Placed& placed) {
    return placed.rank * (placed.product.inputs + placed.product.outputs);
}

// Parts one below the other in `down`, and beside each other in `up`, which has zeros where a part has no
// rows.
void pack(const Placed& placed, float* scratch, std::byte* packed) {
    const auto& [inputs, outputs, conv] = placed.product;
    float* const down = scratch;
    float* const up = scratch + placed.rank * inputs;
    std::memset(up, 0, placed.rank * outputs * sizeof(float));
    std::size_t start = 0;
    for (const LowRank& part : placed.update->parts) {
        std::copy_n(part.down, part.rank * inputs, down + start * inputs);
        for (std::size_t row = 0; row < part.count; ++row) {
            float* to = up + (part.first + row) * placed.rank + start;
            for (std::size_t i = 0; i < part.rank; ++i) to[i] = part.scale * part.up[row * part.rank + i];
        }
        start += part.rank;
    }
    if (conv != nullptr) {
        conv2d_pack(down, down_shape(placed), ConvAlgorithm::direct, WeightType::fp32, packed + placed.down);
    } else {
        linear_pack(down, inputs, placed.rank, WeightType::fp32, packed + placed.down);
    }
    linear_pack(up, placed.rank, outputs, WeightType::fp32, packed + placed.up);
}

[[noreturn]] void fail(const Node& node, const std::string& what) {
    throw InputError("an update of " + describe(node) + " " + what);
}

std::size_t checked_rank(const Node& node, const Product& product, const LayerUpdate& update) {
    std::size_t rank = 0;
    for (const LowRank& part : update.parts) {
        if (part.rank < 1 || part.rank > max_rank_of_updates) {
            fail(node, "has rank " + std::to_string(part.rank) + ", wanted 1 to " +
                           std::to_string(max_rank_of_updates));
        }
        if (part.count < 1 || part.first > product.outputs || part.count > product.outputs - part.first) {
            fail(node, "has the rows " + std::to_string(part.first) + " to " +
                           std::to_string(part.first + part.count) + ", wanted some of " +
                           std::to_string(product.outputs));
        }
        if (part.inputs != product.inputs) {
            fail(node,
                 "has " + std::to_string(part.inputs) + " inputs, wanted " + std::to_string(product.inputs));
        }
        if (!std::isfinite(part.scale)) fail(node, "has a scale that is not finite");
        rank += part.rank;
    }
    if (rank < 1 || rank > max_rank_of_updates) {
        fail(node, "has rank " + std::to_string(rank) + " in all, wanted 1 to " +
                       std::to_string(max_rank_of_updates));
    }
    return rank;
}

// Puts the nodes of updates in front of and behind their layers.
class Writer {
  public:
    Writer(Graph& graph, std::size_t nodes) : graph_(graph) { nodes_.reserve(nodes); }

    void keep(Node node) { nodes_.push_back(std::move(node)); }

    void update(Node layer, const Placed& placed, const std::byte* packed) {
        const auto& [inputs, outputs, conv] = placed.product;
        const std::size_t residual = conv != nullptr ? 2 : 1;
        layer.inputs.resize(residual + 1, Node::none);
        const int y = layer.output, before = layer.inputs[residual];
        const bool apart = activation(layer) != Activation::none;

        const int t = value(layer, y, ".lora_down", placed.rank);
        if (conv != nullptr) {
            Conv2dNode down{};
            down.shape = conv->shape;
            down.shape.out = placed.rank;
            down.scale = 1.0f;
            down.packings.push_back({ConvAlgorithm::direct, WeightType::fp32, packed + placed.down});
            add(layer, "conv2d", {layer.inputs[0]}, t, std::move(down));
        } else {
            add(layer, "linear", {layer.inputs[0]}, t, product(inputs, placed.rank, packed + placed.down));
        }
        const int u = value(layer, y, ".lora_up", outputs);
        add(layer, "linear", {t, apart ? Node::none : before}, u,
            product(placed.rank, outputs, packed + placed.up));
        layer.inputs[residual] = u;
        if (!apart) return keep(std::move(layer));
        split(std::move(layer), before, outputs);
    }

    void finish() { graph_.nodes = std::move(nodes_); }

  private:
    // The layer's sum as a value of its own, then activation, residual and scale.
    void split(Node layer, int residual, std::size_t outputs) {
        const int y = layer.output;
        const Activation function = activation(layer);
        float scale = 1.0f;
        const int sum = value(layer, y, ".lora_sum", outputs);
        if (auto* conv = std::get_if<Conv2dNode>(&layer.kind)) {
            conv->activation = Activation::none;
            scale = std::exchange(conv->scale, 1.0f);
        } else {
            auto& linear = std::get<LinearNode>(layer.kind);
            linear.activation = Activation::none;
            linear.out = outputs;
            scale = std::exchange(linear.scale, 1.0f);
        }
        layer.output = sum;
        const Node origin = layer;
        keep(std::move(layer));

        const std::size_t channels = function == Activation::geglu ? outputs / 2 : outputs;
        const bool adds = residual != Node::none, scales = scale != 1.0f;
        const int active = adds || scales ? value(origin, y, ".lora_active", channels) : y;
        add(origin, activation_op(function), {sum}, active, activation_kind(function));
        const int added = adds && scales ? value(origin, y, ".lora_added", channels) : y;
        if (adds) add(origin, "add", {active, residual}, added, elementwise(Elementwise::add, 0.0f));
        if (scales) {
            add(origin, "mul_scalar", {adds ? added : active}, y,
                elementwise(Elementwise::mul_scalar, scale));
        }
    }

    static Activation activation(const Node& layer) {
        const auto* conv = std::get_if<Conv2dNode>(&layer.kind);
        return conv != nullptr ? conv->activation : std::get<LinearNode>(layer.kind).activation;
    }
    static const char* activation_op(Activation function) {
        switch (function) {
            case Activation::silu:
                return "silu";
            case Activation::gelu:
                return "gelu";
            case Activation::quick_gelu:
                return "quick_gelu";
            default:
                return "geglu";
        }
    }
    static NodeKind activation_kind(Activation function) {
        switch (function) {
            case Activation::silu:
                return elementwise(Elementwise::silu, 0.0f);
            case Activation::gelu:
                return elementwise(Elementwise::gelu, 0.0f);
            case Activation::quick_gelu:
                return elementwise(Elementwise::quick_gelu, 0.0f);
            default:
                return GegluNode{};
        }
    }
    static NodeKind elementwise(Elementwise function, float scalar) {
        return ElementwiseNode{function, scalar, 0.0f, 0.0f};
    }
    static NodeKind product(std::size_t inputs, std::size_t outputs, const std::byte* packed) {
        return LinearNode{inputs, outputs, Activation::none, 1.0f, nullptr, WeightType::fp32, packed};
    }

    // A new value like `like`, with another number of channels.
    int value(const Node& layer, int like, const char* suffix, std::size_t channels) {
        Value made = graph_.values[static_cast<std::size_t>(like)];
        made.name += suffix;
        made.shape.back() = {{Token::Kind::number, static_cast<std::int64_t>(channels)}};
        made.stage = layer.stage;
        graph_.values.push_back(std::move(made));
        return static_cast<int>(graph_.values.size()) - 1;
    }

    void add(const Node& layer, const char* op, std::vector<int> inputs, int output, NodeKind kind) {
        nodes_.push_back({op, layer.path, layer.stage, std::move(inputs), output, std::move(kind)});
    }

    Graph& graph_;
    std::vector<Node> nodes_;
};

// The updates by node.
std::vector<std::pair<std::size_t, Placed>> find(const Graph& graph, std::span<const LayerUpdate> updates) {
    std::vector<std::size_t> producers(graph.values.size(), graph.nodes.size());
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
        producers[static_cast<std::size_t>(graph.nodes[i].output)] = i;
    }
    std::vector<std::pair<std::size_t, Placed>> found;
    for (const LayerUpdate& update : updates) {
        const auto value = static_cast<std::size_t>(update.value);
        const std::size_t at =
            update.value < 0 || value >= producers.size() ? graph.nodes.size() : producers[value];
        if (at == graph.nodes.size() || !(std::holds_alternative<LinearNode>(graph.nodes[at].kind) ||
                                          std::holds_alternative<Conv2dNode>(graph.nodes[at].kind))) {
            throw InputError("found an update of value " + std::to_string(update.value) +
                             ", wanted one that a conv2d or linear layer computes");
        }
        const Node& node = graph.nodes[at];
        const Product product = product_of(node);
        found.emplace_back(at, Placed{&update, product, checked_rank(node, product, update), 0, 0});
    }
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    const auto twice = std::adjacent_find(found.begin(), found.end(),
                                          [](const auto& a, const auto& b) { return a.first == b.first; });
    if (twice != found.end()) fail(graph.nodes[twice->first], "is given twice, wanted its parts together");
    return found;
}

}  // namespace

AdaptedGraph::AdaptedGraph(const Graph& graph, std::span<const LayerUpdate> updates, const Parallel& parallel)
    : graph_(graph) {
    auto found = find(graph, updates);
    std::size_t scratch = 0;
    for (auto& [at, placed] : found) {
        placed.down = bytes_;
        placed.up = placed.down + down_bytes(placed);
        bytes_ = placed.up + up_bytes(placed);
        scratch = std::max(scratch, scratch_size(placed));
    }
    packed_ = aligned<std::byte>(bytes_);
    const auto room = aligned<float>(scratch * parallel.threads);
    struct Context {
        const std::vector<std::pair<std::size_t, Placed>>& found;
        std::byte* packed;
        float* room;
        std::size_t scratch;
    } context{found, packed_.get(), room.get(), scratch};
    const auto task = [](void* data, std::size_t item, std::size_t thread) {
        const auto& c = *static_cast<const Context*>(data);
        pack(c.found[item].second, c.room + thread * c.scratch, c.packed);
    };
    parallel.run(parallel, found.size(), task, &context);

    Writer writer(graph_, graph.nodes.size() + 5 * found.size());
    auto next = found.begin();
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
        if (next != found.end() && next->first == i) {
            writer.update(graph.nodes[i], next->second, packed_.get());
            ++next;
        } else {
            writer.keep(graph.nodes[i]);
        }
    }
    writer.finish();
}

}  // namespace fastdiff
