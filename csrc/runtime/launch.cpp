#include "runtime/launch.h"

#include "kernels/error.h"
#include "runtime/error.h"

namespace fastdiff {
namespace {

const float* floats(const void* pointer) { return static_cast<const float*>(pointer); }

// Rows of a view that can_read or can_write has accepted.
Rows rows_of(const View& view) { return *as_rows(view); }

// Whether channels are neighbours.
bool has_channels(const View& view) {
    const std::size_t last = view.shape.rank() - 1;
    return view.shape[last] == 1 || view.strides[last] == 1;
}

Conv2dArgs conv2d_args(const Step& step, const Conv2dNode& node, const void* const* inputs, void* output,
                       void* scratch) {
    const auto has = [&](std::size_t input) {
        return input < step.inputs.size() && step.inputs[input].buffer >= 0;
    };
    Conv2dArgs args{};
    const Shape& x = step.inputs[0].shape;
    args.shape = node.shape;
    args.shape.batch = x[0];
    args.shape.height = x[1];
    args.shape.width = x[2];
    args.algorithm = step.packing->algorithm;
    args.type = step.packing->type;
    args.x = floats(inputs[0]);
    args.x_stride = rows_of(step.inputs[0]).stride;
    args.weight = step.packing->weight;
    args.bias = node.bias;
    if (has(1)) {
        args.vector = floats(inputs[1]);
        args.vector_stride = step.inputs[1].shape[0] == 1 ? 0 : step.inputs[1].strides[0];
    }
    if (has(2)) {
        args.residual = floats(inputs[2]);
        args.residual_stride = rows_of(step.inputs[2]).stride;
    }
    args.y = static_cast<float*>(output);
    args.y_stride = rows_of(step.output).stride;
    args.activation = node.activation;
    args.scale = node.scale;
    args.scratch = scratch;
    return args;
}

LinearArgs linear_args(const Step& step, const LinearNode& node, const void* const* inputs, void* output,
                       void* scratch) {
    const Rows x = rows_of(step.inputs[0]);
    LinearArgs args{};
    args.rows = x.rows;
    args.in = node.in;
    args.out = node.out;
    args.x = floats(inputs[0]);
    args.x_stride = x.stride;
    args.weight = node.weight;
    args.type = node.type;
    args.bias = node.bias;
    if (step.inputs.size() > 1 && step.inputs[1].buffer >= 0) {
        args.residual = floats(inputs[1]);
        args.residual_stride = rows_of(step.inputs[1]).stride;
    }
    args.y = static_cast<float*>(output);
    args.y_stride = rows_of(step.output).stride;
    args.activation = node.activation;
    args.scale = node.scale;
    args.scratch = scratch;
    return args;
}

GroupNormSiluArgs group_norm_args(const Step& step, const GroupNormNode& node, const void* const* inputs,
                                  void* output, void* scratch) {
    const Rows x = rows_of(step.inputs[0]);
    GroupNormSiluArgs args{};
    args.layout = Layout::nhwc;
    args.batch = step.inputs[0].shape[0];
    args.spatial = x.rows / args.batch;
    args.channels = x.channels;
    args.groups = node.groups;
    args.x = floats(inputs[0]);
    args.x_stride = x.stride;
    args.weight = node.weight;
    args.bias = node.bias;
    args.y = static_cast<float*>(output);
    args.y_stride = rows_of(step.output).stride;
    args.eps = node.eps;
    args.silu = node.silu;
    args.scratch = scratch;
    return args;
}

AttentionArgs attention_args(const Step& step, const AttentionNode& node, const void* const* inputs,
                             void* output, void* scratch) {
    const View &query = step.inputs[0], &key = step.inputs[1], &value = step.inputs[2], &y = step.output;
    AttentionArgs args{};
    args.batch = query.shape[0];
    args.queries = query.shape[1];
    args.keys = key.shape[1];
    args.heads = node.heads;
    args.size = query.shape[2] / node.heads;
    args.value_size = value.shape[2] / node.heads;
    args.query = floats(inputs[0]);
    args.query_stride = query.strides[1];
    args.query_batch = query.strides[0];
    args.key = floats(inputs[1]);
    args.key_stride = key.strides[1];
    args.key_batch = key.strides[0];
    args.value = floats(inputs[2]);
    args.value_stride = value.strides[1];
    args.value_batch = value.strides[0];
    args.y = static_cast<float*>(output);
    args.y_stride = y.strides[1];
    args.y_batch = y.strides[0];
    args.scale = node.scale;
    args.causal = node.causal;
    args.scratch = scratch;
    return args;
}

ElementwiseArgs elementwise_args(const View& y, float* output, Elementwise function, const View& a,
                                 const void* a_data, const View* b = nullptr, const void* b_data = nullptr) {
    auto args = as_elementwise(y, a, b);
    // The planner asks before it makes a step.
    if (!args) throw EngineError("an elementwise step has more than four axes");
    args->function = function;
    args->a = floats(a_data);
    args->b = floats(b_data);
    args->y = output;
    return *args;
}

struct Launch {
    const Step& step;
    const void* const* inputs;
    float* output;
    void* scratch;
    const Kernels& kernels;
    const Parallel& parallel;

    void operator()(const Conv2dNode& node) const {
        kernels.conv2d(conv2d_args(step, node, inputs, output, scratch), parallel);
    }
    void operator()(const LinearNode& node) const {
        kernels.linear(linear_args(step, node, inputs, output, scratch), parallel);
    }
    void operator()(const GroupNormNode& node) const {
        kernels.group_norm_silu(group_norm_args(step, node, inputs, output, scratch), parallel);
    }
    void operator()(const LayerNormNode& node) const {
        const Rows x = rows_of(step.inputs[0]);
        kernels.layer_norm({x.rows, x.channels, floats(inputs[0]), x.stride, node.weight, node.bias, output,
                            rows_of(step.output).stride, node.eps},
                           parallel);
    }
    void operator()(const AttentionNode& node) const {
        kernels.attention(attention_args(step, node, inputs, output, scratch), parallel);
    }
    void operator()(const GegluNode&) const {
        const std::size_t last = step.output.shape.rank() - 1, half = step.output.shape.back();
        const View &x = step.inputs[0], a = slice(x, last, 0, half), gate = slice(x, last, half, half);
        const float* gate_data = floats(inputs[0]) + half * x.strides[last];
        kernels.elementwise(elementwise_args(step.output, output, Elementwise::gelu, gate, gate_data),
                            parallel);
        kernels.elementwise(
            elementwise_args(step.output, output, Elementwise::multiply, step.output, output, &a, inputs[0]),
            parallel);
    }
    void operator()(const EmbeddingNode& node) const {
        const EmbeddingArgs args{step.inputs[0].shape.elements(),
                                 node.channels,
                                 node.count,
                                 static_cast<const std::int64_t*>(inputs[0]),
                                 node.table,
                                 node.type,
                                 output,
                                 rows_of(step.output).stride};
        const std::size_t invalid = embedding_invalid(args);
        if (invalid != args.rows) {
            throw InputError("id " + std::to_string(args.ids[invalid]) + " is out of range, wanted 0 to " +
                             std::to_string(node.count - 1));
        }
        kernels.embedding(args, parallel);
    }
    void operator()(const TimestepEmbeddingNode& node) const {
        kernels.timestep_embedding({step.inputs[0].shape[0], node.half, floats(inputs[0]), node.frequencies,
                                    output, rows_of(step.output).stride, node.sine_first},
                                   parallel);
    }
    void operator()(const ResampleNode& node) const {
        const Shape& x = step.inputs[0].shape;
        kernels.resample({x[0], x[1], x[2], x[3], node.factor, node.pool, floats(inputs[0]),
                          rows_of(step.inputs[0]).stride, output, rows_of(step.output).stride},
                         parallel);
    }
    void operator()(const ElementwiseNode& node) const {
        const bool binary = step.inputs.size() > 1;
        ElementwiseArgs args =
            elementwise_args(step.output, output, node.function, step.inputs[0], inputs[0],
                             binary ? &step.inputs[1] : nullptr, binary ? inputs[1] : nullptr);
        args.scalar = node.scalar;
        args.low = node.low;
        args.high = node.high;
        kernels.elementwise(args, parallel);
    }
    // Views and concatenations become copies or nothing.
    template <class Other>
    void operator()(const Other&) const {}
};

// A copy of any 4-byte type; int64 as pairs of them.
void copy(const Step& step, DType dtype, const void* input, void* output, const Kernels& kernels,
          const Parallel& parallel) {
    const auto split = [&](View view) {
        if (dtype != DType::int64) return view;
        for (std::size_t& stride : view.strides) stride *= 2;
        if (view.shape.rank() == max_rank) throw EngineError("a copy of int64 has too many axes");
        view.strides[view.shape.rank()] = 1;
        view.shape.push_back(2);
        return view;
    };
    kernels.elementwise(elementwise_args(split(step.output), static_cast<float*>(output), Elementwise::copy,
                                         split(step.inputs[0]), input),
                        parallel);
}

// Attention takes rows of channels, and any stride between batches.
bool attends(const View& view) {
    return has_channels(view) && (view.shape[1] == 1 || view.strides[1] >= view.shape[2]);
}

struct CanRead {
    std::size_t input;
    const View& view;

    bool operator()(const Conv2dNode&) const {
        return input == 1 ? has_channels(view) : as_rows(view).has_value();
    }
    bool operator()(const AttentionNode&) const { return attends(view); }
    bool operator()(const EmbeddingNode&) const { return is_contiguous(view); }
    bool operator()(const TimestepEmbeddingNode&) const { return is_contiguous(view); }
    bool operator()(const ElementwiseNode&) const { return true; }
    bool operator()(const GegluNode&) const { return true; }
    bool operator()(const ConcatNode&) const { return true; }
    template <class Other>
    bool operator()(const Other&) const {
        return as_rows(view).has_value();
    }
};

struct CanWrite {
    const View& view;

    bool operator()(const AttentionNode&) const { return attends(view); }
    bool operator()(const ElementwiseNode&) const { return as_elementwise(view, view, nullptr).has_value(); }
    bool operator()(const GegluNode&) const { return as_elementwise(view, view, nullptr).has_value(); }
    bool operator()(const ConcatNode&) const { return true; }
    template <class Other>
    bool operator()(const Other&) const {
        return as_rows(view).has_value();
    }
};

}  // namespace

bool can_read(const Node& node, std::size_t input, const View& view) {
    return std::visit(CanRead{input, view}, node.kind);
}

bool can_write(const Node& node, const View& view) { return std::visit(CanWrite{view}, node.kind); }

bool may_overwrite(const Node& node, std::size_t input) {
    if (std::holds_alternative<Conv2dNode>(node.kind)) return input == 2;
    if (std::holds_alternative<LinearNode>(node.kind)) return input == 1;
    return std::holds_alternative<GroupNormNode>(node.kind) ||
           std::holds_alternative<LayerNormNode>(node.kind) ||
           std::holds_alternative<ElementwiseNode>(node.kind);
}

std::size_t scratch_bytes(const Step& step, std::size_t threads) {
    if (step.node == nullptr) return 0;
    const void* const none[3] = {};
    const NodeKind& kind = step.node->kind;
    if (const auto* conv = std::get_if<Conv2dNode>(&kind)) {
        return conv2d_scratch(conv2d_args(step, *conv, none, nullptr, nullptr), threads);
    }
    if (const auto* linear = std::get_if<LinearNode>(&kind)) {
        return linear_scratch(linear_args(step, *linear, none, nullptr, nullptr), threads);
    }
    if (const auto* norm = std::get_if<GroupNormNode>(&kind)) {
        return group_norm_silu_scratch(group_norm_args(step, *norm, none, nullptr, nullptr));
    }
    if (const auto* attention = std::get_if<AttentionNode>(&kind)) {
        return attention_scratch(attention_args(step, *attention, none, nullptr, nullptr), threads);
    }
    return 0;
}

void launch(const Step& step, DType dtype, const void* const* inputs, void* output, void* scratch,
            const Kernels& kernels, const Parallel& parallel) {
    if (step.node == nullptr) return copy(step, dtype, inputs[0], output, kernels, parallel);
    std::visit(Launch{step, inputs, static_cast<float*>(output), scratch, kernels, parallel},
               step.node->kind);
}

}  // namespace fastdiff
