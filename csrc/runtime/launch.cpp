#include "runtime/launch.h"

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "runtime/elementwise_loops.h"

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
                       void* sums, void* scratch) {
    const auto has = [&](std::size_t input) {
        return input < step.inputs.size() && step.inputs[input].buffer >= 0;
    };
    Conv2dArgs args{};
    args.shape = on_picture(node.shape, step.inputs[0].shape, step.output.shape);
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
    // Not null also where only sizes matter: the scratch memory is larger then.
    static const float some_affine = 0.0f;
    if (step.applied != nullptr) {
        args.affine = inputs[3] != nullptr ? floats(inputs[3]) : &some_affine;
        args.affine_silu = step.applied->silu;
    }
    args.sums = static_cast<double*>(sums);
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
    args.y_stride = step.split ? 0 : rows_of(step.output).stride;
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

TokenMatchArgs token_match_args(const Step& step, const TokenMatchNode& node, const void* const* inputs,
                                void* output, void* scratch) {
    const Shape& x = step.inputs[0].shape;
    TokenMatchArgs args{};
    args.batch = x[0];
    args.height = x[1];
    args.width = x[2];
    args.channels = x[3];
    args.merged = node.merged(x[1] * x[2]);
    args.x = floats(inputs[0]);
    args.x_stride = rows_of(step.inputs[0]).stride;
    args.x_batch = x[1] * x[2] * args.x_stride;
    args.plan = static_cast<std::int64_t*>(output);
    args.scratch = scratch;
    return args;
}

TokenMergeArgs token_merge_args(const Step& step, const void* const* inputs, void* output, void* scratch) {
    const Shape& x = step.inputs[0].shape;
    TokenMergeArgs args{};
    args.batch = x[0];
    args.tokens = x[1];
    args.rows = step.output.shape[1];
    args.channels = x[2];
    args.x = floats(inputs[0]);
    args.x_stride = rows_of(step.inputs[0]).stride;
    args.x_batch = args.tokens * args.x_stride;
    args.plan = static_cast<const std::int64_t*>(inputs[1]);
    args.y = static_cast<float*>(output);
    args.y_stride = rows_of(step.output).stride;
    args.y_batch = args.rows * args.y_stride;
    args.scratch = scratch;
    return args;
}

// A plan may come from a file or a caller as well as from token_match.
void check_plan(const std::int64_t* plan, std::size_t count, std::size_t rows) {
    const std::size_t invalid = token_plan_invalid(plan, count, rows);
    if (invalid == count) return;
    throw InputError("a plan of merged tokens has row " + std::to_string(plan[invalid]) + ", wanted 0 to " +
                     std::to_string(static_cast<std::int64_t>(rows) - 1));
}

ElementwiseArgs elementwise_args(Elementwise function, const void* a, const void* b, float* y) {
    ElementwiseArgs args{};
    args.function = function;
    args.a = floats(a);
    args.b = floats(b);
    args.y = y;
    return args;
}

struct Launch {
    const Step& step;
    const void* const* inputs;
    float* output;
    void* sums;
    void* scratch;
    const Kernels& kernels;
    const Parallel& parallel;

    void operator()(const Conv2dNode& node) const {
        kernels.conv2d(conv2d_args(step, node, inputs, output, sums, scratch), parallel);
    }
    void operator()(const LinearNode& node) const {
        kernels.linear(linear_args(step, node, inputs, output, scratch), parallel);
    }
    void operator()(const GroupNormNode& node) const {
        const GroupNormSiluArgs args = group_norm_args(step, node, inputs, output, scratch);
        const bool has_sums = step.inputs.size() > 1;
        if (!step.split && !has_sums) return kernels.group_norm_silu(args, parallel);
        const std::size_t padded = group_norm_padded(args.channels);
        auto* const own = static_cast<double*>(scratch);
        // A convolution's sums are read by this step alone, which may therefore add them up in place.
        double* const given = has_sums ? static_cast<double*>(const_cast<void*>(inputs[1])) : own;
        std::size_t parts = group_norm_parts(args);
        if (has_sums) {
            parts = step.inputs[1].shape.elements() / (args.batch * 2 * padded * 2);
        } else {
            kernels.group_norm_sums(args, given, parallel);
        }
        auto* const affine = step.split ? output : static_cast<float*>(scratch);
        kernels.group_norm_affine(args, given, parts, affine, parallel);
        if (!step.split) kernels.group_norm_apply(args, affine, parallel);
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
        run_elementwise(elementwise_axes(step.output, gate, nullptr),
                        elementwise_args(Elementwise::gelu, gate_data, nullptr, output), kernels, parallel);
        run_elementwise(elementwise_axes(step.output, step.output, &a),
                        elementwise_args(Elementwise::multiply, output, inputs[0], output), kernels,
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
    // A row per prompt: too little to divide among threads.
    void operator()(const SelectTokenNode& node) const {
        const View& x = step.inputs[0];
        const std::size_t tokens = x.shape[1], channels = x.shape[2], stride = rows_of(step.output).stride;
        const auto* ids = static_cast<const std::int64_t*>(inputs[1]);
        for (std::size_t i = 0; i < x.shape[0]; ++i, ids += tokens) {
            const std::int64_t* found = node.token < 0 ? std::max_element(ids, ids + tokens)
                                                       : std::find(ids, ids + tokens, node.token);
            // The first where there is none, as PyTorch's argmax gives it.
            const auto at = found == ids + tokens ? 0 : static_cast<std::size_t>(found - ids);
            std::copy_n(floats(inputs[0]) + i * x.strides[0] + at * x.strides[1], channels,
                        output + i * stride);
        }
    }
    void operator()(const TokenMatchNode& node) const {
        kernels.token_match(token_match_args(step, node, inputs, output, scratch), parallel);
    }
    void operator()(const TokenMergeNode&) const {
        const TokenMergeArgs args = token_merge_args(step, inputs, output, scratch);
        check_plan(args.plan, args.batch * args.tokens, args.rows);
        kernels.token_merge(args, parallel);
    }
    void operator()(const TokenUnmergeNode&) const {
        const Rows x = rows_of(step.inputs[0]), y = rows_of(step.output);
        const Shape &from = step.inputs[0].shape, &to = step.output.shape;
        const TokenUnmergeArgs args{to[0],
                                    to[1],
                                    from[1],
                                    to[2],
                                    floats(inputs[0]),
                                    x.stride,
                                    from[1] * x.stride,
                                    static_cast<const std::int64_t*>(inputs[1]),
                                    output,
                                    y.stride,
                                    to[1] * y.stride};
        check_plan(args.plan, args.batch * args.tokens, args.rows);
        kernels.token_unmerge(args, parallel);
    }
    void operator()(const TimestepEmbeddingNode& node) const {
        kernels.timestep_embedding({step.inputs[0].shape[0], node.half, floats(inputs[0]), node.frequencies,
                                    output, rows_of(step.output).stride, node.sine_first},
                                   parallel);
    }
    void operator()(const ResampleNode& node) const {
        const Shape &x = step.inputs[0].shape, &y = step.output.shape;
        ResampleArgs args{x[0],
                          x[1],
                          x[2],
                          x[3],
                          node.factor,
                          node.pool,
                          floats(inputs[0]),
                          rows_of(step.inputs[0]).stride,
                          output,
                          rows_of(step.output).stride};
        if (!node.pool) {
            args.crop_bottom = x[1] * node.factor - y[1];
            args.crop_right = x[2] * node.factor - y[2];
        }
        kernels.resample(args, parallel);
    }
    void operator()(const ElementwiseNode& node) const {
        const bool binary = step.inputs.size() > 1;
        ElementwiseArgs args =
            elementwise_args(node.function, inputs[0], binary ? inputs[1] : nullptr, output);
        args.scalar = node.scalar;
        args.low = node.low;
        args.high = node.high;
        run_elementwise(elementwise_axes(step.output, step.inputs[0], binary ? &step.inputs[1] : nullptr),
                        args, kernels, parallel);
    }
    // Views and concatenations become copies or nothing.
    template <class Other>
    void operator()(const Other&) const {}
};

// A copy of floats, or of int64 as pairs of them.
void copy(const Step& step, DType dtype, const void* input, void* output, const Kernels& kernels,
          const Parallel& parallel) {
    std::vector<ElementwiseAxis> axes = elementwise_axes(step.output, step.inputs[0], nullptr);
    if (dtype == DType::int64) {
        for (ElementwiseAxis& axis : axes) axis = {axis.size, 2 * axis.y, 2 * axis.a, 0};
        axes.push_back({2, 1, 1, 0});
    }
    run_elementwise(axes, elementwise_args(Elementwise::copy, input, nullptr, static_cast<float*>(output)),
                    kernels, parallel);
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
    bool operator()(const SelectTokenNode&) const {
        return input == 1 ? is_contiguous(view) : has_channels(view);
    }
    bool operator()(const TokenMergeNode&) const {
        return input == 1 ? is_contiguous(view) : as_rows(view).has_value();
    }
    bool operator()(const TokenUnmergeNode&) const {
        return input == 1 ? is_contiguous(view) : as_rows(view).has_value();
    }
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
    bool operator()(const TokenMatchNode&) const { return is_contiguous(view); }
    bool operator()(const ElementwiseNode&) const { return true; }
    bool operator()(const GegluNode&) const { return true; }
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

std::size_t conv2d_sums_size(const Step& step) {
    const void* const none[4] = {};
    const Conv2dArgs args =
        conv2d_args(step, std::get<Conv2dNode>(step.node->kind), none, nullptr, nullptr, nullptr);
    return 2 * args.shape.batch * conv2d_sum_parts(args) * 2 * group_norm_padded(args.shape.out);
}

std::size_t affine_size(const Shape& x) { return x[0] * 3 * group_norm_padded(x.back()); }

std::size_t scratch_bytes(const Step& step, std::size_t threads) {
    if (step.node == nullptr) return 0;
    const void* const none[4] = {};
    const NodeKind& kind = step.node->kind;
    if (const auto* conv = std::get_if<Conv2dNode>(&kind)) {
        return conv2d_scratch(conv2d_args(step, *conv, none, nullptr, nullptr, nullptr), threads);
    }
    if (const auto* linear = std::get_if<LinearNode>(&kind)) {
        return linear_scratch(linear_args(step, *linear, none, nullptr, nullptr), threads);
    }
    if (const auto* norm = std::get_if<GroupNormNode>(&kind)) {
        return group_norm_silu_scratch(group_norm_args(step, *norm, none, nullptr, nullptr));
    }
    if (const auto* match = std::get_if<TokenMatchNode>(&kind)) {
        return token_match_scratch(token_match_args(step, *match, none, nullptr, nullptr));
    }
    if (std::holds_alternative<TokenMergeNode>(kind)) {
        return token_merge_scratch(token_merge_args(step, none, nullptr, nullptr));
    }
    if (const auto* attention = std::get_if<AttentionNode>(&kind)) {
        return attention_scratch(attention_args(step, *attention, none, nullptr, nullptr), threads);
    }
    return 0;
}

void launch(const Step& step, DType dtype, const void* const* inputs, void* output, void* sums, void* scratch,
            const Kernels& kernels, const Parallel& parallel) {
    if (step.node == nullptr) return copy(step, dtype, inputs[0], output, kernels, parallel);
    std::visit(Launch{step, inputs, static_cast<float*>(output), sums, scratch, kernels, parallel},
               step.node->kind);
}

}  // namespace fastdiff
