#include "runtime/nodes.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>

#include "kernels/linear.h"
#include "kernels/names.h"
#include "runtime/node_parts.h"

namespace fastdiff {
namespace {

// Products of a node's integer attributes stay far from overflow.
constexpr std::int64_t max_channels = 1 << 24;
constexpr std::int64_t max_kernel = 64;
constexpr std::int64_t max_factor = 64;
constexpr std::int64_t max_token = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t max_weight = std::size_t{1} << 36;

Conv2dNode conv2d(const RawNode& raw, const Graph& graph, NodeParts& parts) {
    Conv2dNode node{};
    node.shape.in = parts.size("in", 1, max_channels);
    node.shape.out = parts.size("out", 1, max_channels);
    node.shape.kernel_h = parts.size("kernel_h", 1, max_kernel);
    node.shape.kernel_w = parts.size("kernel_w", 1, max_kernel);
    node.shape.stride = parts.size("stride", 1, max_kernel);
    node.shape.pad_top = parts.size("pad_top", 0, max_kernel);
    node.shape.pad_bottom = parts.size("pad_bottom", 0, max_kernel);
    node.shape.pad_left = parts.size("pad_left", 0, max_kernel);
    node.shape.pad_right = parts.size("pad_right", 0, max_kernel);
    node.shape.upsample = parts.size("upsample", 1, 2);
    node.activation = parts.activation(false);
    node.scale = parts.real32("scale");
    const Conv2dShape& shape = node.shape;
    std::size_t outputs = shape.out;
    node.bias = parts.vector("bias", outputs);
    if (shape.in * shape.out * shape.kernel_h * shape.kernel_w > max_weight)
        parts.fail("its weight is too large");
    unsigned available = 0;
    for (const RawNode::Packing& packing : raw.packings) {
        const ConvAlgorithm algorithm = parts.algorithm(packing.algorithm);
        if (!conv2d_supports(shape, algorithm)) parts.fail("an algorithm that cannot compute it");
        const WeightType type = parts.type(packing);
        const Weight& weight = parts.packed(packing, conv2d_packed_bytes(shape, algorithm, type));
        node.packings.push_back({algorithm, type, weight.data});
        available |= 1u << static_cast<unsigned>(algorithm);
    }
    if (available == 0) parts.fail("it has no packed weights");
    for (const RawNode::Tuned& tuned : raw.tuned) {
        const ConvAlgorithm algorithm = parts.algorithm(tuned.algorithm);
        if ((available >> static_cast<unsigned>(algorithm) & 1u) == 0)
            parts.fail("tuned for a missing packing");
        Conv2dNode::Tuned entry{algorithm, {}};
        for (const auto& [symbol, size] : tuned.sizes) {
            if (symbol < 0 || symbol >= static_cast<std::int64_t>(graph.symbols.size())) {
                parts.fail("tuned for an unknown symbol");
            }
            entry.sizes.emplace_back(static_cast<std::size_t>(symbol), size);
        }
        node.tuned.push_back(std::move(entry));
    }
    return node;
}

LinearNode linear(const RawNode& raw, NodeParts& parts) {
    LinearNode node{};
    node.in = parts.size("in", 1, max_channels);
    node.out = parts.size("out", 1, max_channels);
    node.activation = parts.activation(true);
    node.scale = parts.real32("scale");
    const std::size_t outputs = node.activation == Activation::geglu ? 2 * node.out : node.out;
    if (node.in * outputs > max_weight) parts.fail("its weight is too large");
    std::size_t length = outputs;
    node.bias = parts.vector("bias", length);
    if (raw.packings.size() != 1 || parts.algorithm(raw.packings[0].algorithm) != ConvAlgorithm::direct) {
        parts.fail("wanted one direct packing of its weight");
    }
    node.type = parts.type(raw.packings[0]);
    node.weight = parts.packed(raw.packings[0], linear_packed_bytes(node.in, outputs, node.type)).data;
    return node;
}

EmbeddingNode embedding(NodeParts& parts) {
    const Weight& table = parts.require_weight("table");
    const bool half = table.dtype == DType::float16;
    if ((table.dtype != DType::float32 && !half) || table.shape.rank() != 2) {
        parts.fail("weight " + table.name + " is no table of float32 or float16");
    }
    return {table.shape[0], table.shape[1], half ? WeightType::fp16 : WeightType::fp32, table.data};
}

PermuteNode permute(NodeParts& parts) {
    PermuteNode node;
    const std::vector<std::int64_t>& axes = parts.integers("axes");
    std::vector<bool> seen(axes.size());
    for (std::int64_t axis : axes) {
        if (axis < 0 || axis >= static_cast<std::int64_t>(axes.size()) ||
            seen[static_cast<std::size_t>(axis)]) {
            parts.fail("axes is no permutation");
        }
        seen[static_cast<std::size_t>(axis)] = true;
        node.axes.push_back(static_cast<std::size_t>(axis));
    }
    return node;
}

std::optional<ElementwiseNode> elementwise(std::string_view op, NodeParts& parts) {
    for (const auto& [name, function] : elementwise_names) {
        if (name != op) continue;
        ElementwiseNode node{function, 0.0f, 0.0f, 0.0f};
        if (function == Elementwise::clamp) {
            node.low = parts.bound("low");
            node.high = parts.bound("high");
        }
        if (function == Elementwise::add_scalar || function == Elementwise::mul_scalar) {
            node.scalar = parts.real32("scalar");
        }
        return node;
    }
    return std::nullopt;
}

NodeKind make_kind(const RawNode& raw, const Graph& graph, NodeParts& parts) {
    const std::string& op = raw.op;
    constexpr std::int64_t last_axis = static_cast<std::int64_t>(max_rank) - 1;
    if (op == "conv2d") return conv2d(raw, graph, parts);
    if (op == "linear") return linear(raw, parts);
    if (!raw.packings.empty() || !raw.tuned.empty()) parts.fail("only conv2d and linear have packed weights");
    if (op == "group_norm_silu") {
        GroupNormNode node{
            parts.size("groups", 1, max_channels), 0, parts.real("eps"), parts.flag("silu"), {}, {}};
        node.weight = parts.vector("weight", node.channels);
        node.bias = parts.vector("bias", node.channels);
        return node;
    }
    if (op == "layer_norm") {
        LayerNormNode node{0, parts.real("eps"), {}, {}};
        node.weight = parts.vector("weight", node.channels);
        node.bias = parts.vector("bias", node.channels);
        return node;
    }
    if (op == "attention") {
        return AttentionNode{parts.size("heads", 1, max_channels), parts.real32("scale"),
                             parts.flag("causal")};
    }
    if (op == "geglu") return GegluNode{};
    if (op == "embedding") return embedding(parts);
    if (op == "select_token") return SelectTokenNode{parts.integer("token", -1, max_token)};
    if (op == "token_match") {
        const TokenMatchNode node{parts.size("numerator", 0, max_channels),
                                  parts.size("denominator", 1, max_channels)};
        if (node.numerator > node.denominator) parts.fail("it merges more tokens than there are");
        return node;
    }
    if (op == "token_merge") return TokenMergeNode{};
    if (op == "token_unmerge") return TokenUnmergeNode{};
    if (op == "timestep_embedding") {
        TimestepEmbeddingNode node{0, parts.flag("sine_first"), {}};
        node.frequencies = parts.vector("frequencies", node.half);
        if (node.frequencies == nullptr) parts.fail("weight frequencies is missing");
        return node;
    }
    if (op == "upsample_nearest2d") return ResampleNode{parts.size("factor", 1, max_factor), false};
    if (op == "avg_pool2d") return ResampleNode{parts.size("factor", 1, max_factor), true};
    if (op == "concat") return ConcatNode{parts.size("axis", 0, last_axis)};
    if (op == "slice") {
        return SliceNode{parts.size("axis", 0, last_axis),
                         parts.size("start", 0, std::numeric_limits<std::int32_t>::max())};
    }
    if (op == "reshape") return ReshapeNode{};
    if (op == "expand") return ExpandNode{};
    if (op == "permute") return permute(parts);
    if (op == "constant") {
        const Weight& value = parts.require_weight("value");
        return ConstantNode{value.data, value.shape};
    }
    if (const auto node = elementwise(op, parts)) return *node;
    parts.fail("this version of fastdiff does not know the op");
}

struct Arity {
    std::size_t required, most;
};

struct ArityOf {
    Arity operator()(const Conv2dNode&) const { return {1, 3}; }
    Arity operator()(const LinearNode&) const { return {1, 2}; }
    Arity operator()(const AttentionNode&) const { return {3, 3}; }
    Arity operator()(const SelectTokenNode&) const { return {2, 2}; }
    Arity operator()(const TokenMergeNode&) const { return {2, 2}; }
    Arity operator()(const TokenUnmergeNode&) const { return {2, 2}; }
    Arity operator()(const ElementwiseNode& node) const {
        const std::size_t count = node.function >= Elementwise::add ? 2 : 1;
        return {count, count};
    }
    Arity operator()(const ConcatNode&) const { return {1, 4096}; }
    Arity operator()(const ConstantNode&) const { return {0, 0}; }
    template <class Other>
    Arity operator()(const Other&) const {
        return {1, 1};
    }
};

// The first inputs must be there; of a concatenation all.
void check_inputs(const Node& node, const Graph& graph, const NodeParts& parts) {
    Arity wanted = std::visit(ArityOf{}, node.kind);
    const std::size_t found = node.inputs.size();
    if (std::holds_alternative<ConcatNode>(node.kind)) wanted.required = std::max<std::size_t>(1, found);
    if (found < wanted.required || found > wanted.most) {
        parts.fail("it has " + std::to_string(found) + " inputs, wanted " + std::to_string(wanted.required) +
                   (wanted.most > wanted.required ? " or more" : ""));
    }
    const DType result = graph.values[static_cast<std::size_t>(node.output)].dtype;
    const bool embeds = std::holds_alternative<EmbeddingNode>(node.kind);
    const bool selects = std::holds_alternative<SelectTokenNode>(node.kind) ||
                         std::holds_alternative<TokenMergeNode>(node.kind) ||
                         std::holds_alternative<TokenUnmergeNode>(node.kind);
    for (std::size_t i = 0; i < found; ++i) {
        if (node.inputs[i] == Node::none) {
            if (i < wanted.required) parts.fail("input " + std::to_string(i) + " is missing");
            continue;
        }
        const DType dtype = graph.values[static_cast<std::size_t>(node.inputs[i])].dtype;
        const bool ids = embeds || (selects && i == 1);
        const DType expected = ids ? DType::int64 : node.is_view() ? result : DType::float32;
        if (dtype != expected)
            parts.fail("input " + std::to_string(i) + " has another dtype than the op takes");
    }
    const bool matches = std::holds_alternative<TokenMatchNode>(node.kind);
    if (!node.is_view() && result != (matches ? DType::int64 : DType::float32)) {
        parts.fail(matches ? "its result is not int64" : "its result is not float32");
    }
}

}  // namespace

Node make_node(const RawNode& raw, const Graph& graph) {
    NodeParts parts(raw, graph);
    Node node{raw.op, raw.path, Stage::step, {}, 0, ReshapeNode{}};
    if (raw.stage >= stage_count) parts.fail("unknown stage");
    node.stage = static_cast<Stage>(raw.stage);
    const auto values = static_cast<std::int64_t>(graph.values.size());
    for (std::int64_t id : raw.inputs) {
        if (id < Node::none || id >= values) parts.fail("unknown value id");
        node.inputs.push_back(static_cast<int>(id));
    }
    if (raw.output < 0 || raw.output >= values) parts.fail("unknown value id");
    node.output = static_cast<int>(raw.output);
    node.kind = make_kind(raw, graph, parts);
    // Constants are there before anything runs, for nodes of any stage.
    if (std::holds_alternative<ConstantNode>(node.kind)) node.stage = Stage::prompt;
    parts.finish();
    check_inputs(node, graph, parts);
    if (std::holds_alternative<ConstantNode>(node.kind) &&
        parts.require_weight("value").dtype != graph.values[static_cast<std::size_t>(node.output)].dtype) {
        parts.fail("its weight has another dtype than its value");
    }
    return node;
}

std::string describe(const Node& node) { return node.path.empty() ? node.op : node.op + " at " + node.path; }

}  // namespace fastdiff
