// A module's graph in memory, as engine_file.cpp reads it and check.cpp has approved it: every id is in
// range, every weight has the size its node needs, nodes are in an order in which they can run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "kernels/activation.h"
#include "kernels/conv2d.h"
#include "kernels/elementwise.h"
#include "runtime/shape.h"

namespace fastdiff {

enum class DType : std::uint8_t { float32, int64, float16, packed };
// In the order in which they run: a node reads values of its own stage, and those of step any.
enum class Stage : std::uint8_t { prompt, schedule, step };
inline constexpr std::size_t stage_count = 3;

struct Symbol {
    std::string name;
    std::int64_t minimum;
    std::int64_t maximum;  // 0: without limit
    std::int64_t multiple_of;
};

// One token of a size's postfix program.
struct Token {
    enum class Kind : std::uint8_t { number, symbol, add, subtract, multiply, divide };
    Kind kind;
    std::int64_t operand;  // the number, or the symbol's index
};
using Dim = std::vector<Token>;

struct Value {
    std::string name;
    DType dtype;  // float32 or int64
    std::vector<Dim> shape;
    // Of the node that computes it. Of an input: schedule if a node of that stage reads it, else prompt if
    // one of that, else step.
    Stage stage = Stage::step;
};

struct Weight {
    std::string name;
    DType dtype;
    Shape shape;
    const std::byte* data;  // into the mapped file, aligned to 64
    std::size_t bytes;
};

// What each op has besides inputs and output.
struct Conv2dNode {
    struct Packing {
        ConvAlgorithm algorithm;
        WeightType type;
        const void* weight;
    };
    struct Tuned {
        ConvAlgorithm algorithm;
        std::vector<std::pair<std::size_t, std::int64_t>> sizes;  // (symbol, size)
    };
    Conv2dShape shape;  // batch, height and width are not set
    Activation activation;
    float scale;
    const float* bias;
    std::vector<Packing> packings;
    std::vector<Tuned> tuned;
};
struct LinearNode {
    std::size_t in, out;
    Activation activation;
    float scale;
    const float* bias;
    WeightType type;
    const void* weight;
};
struct GroupNormNode {
    std::size_t groups;
    std::size_t channels;  // of weight and bias; 0 without them
    double eps;
    bool silu;
    const float* weight;
    const float* bias;
};
struct LayerNormNode {
    std::size_t channels;  // of weight and bias; 0 without them
    double eps;
    const float* weight;
    const float* bias;
};
struct AttentionNode {
    std::size_t heads;
    float scale;
    bool causal;
};
struct GegluNode {};
struct EmbeddingNode {
    std::size_t count, channels;
    WeightType type;
    const void* table;
};
struct SelectTokenNode {
    std::int64_t token;  // the id looked for; -1: the largest
};
struct TimestepEmbeddingNode {
    std::size_t half;
    bool sine_first;
    const float* frequencies;
};
struct ResampleNode {
    std::size_t factor;
    bool pool;
};
// Of every `denominator` tokens `numerator` are merged into others.
struct TokenMatchNode {
    std::size_t numerator, denominator;

    [[nodiscard]] std::size_t merged(std::size_t tokens) const { return tokens * numerator / denominator; }
};
struct TokenMergeNode {};
struct TokenUnmergeNode {};
struct ElementwiseNode {
    Elementwise function;
    float scalar, low, high;
};
struct ConcatNode {
    std::size_t axis;
};
struct SliceNode {
    std::size_t axis, start;
};
struct ReshapeNode {};
struct ExpandNode {};
struct PermuteNode {
    std::vector<std::size_t> axes;
};
struct ConstantNode {
    const void* data;
    Shape shape;
};

// A convolution of pictures shaped `x` with results shaped `y`, both of rank 4. Of an upsampled picture the
// result tells whether its last row and its last column are cropped.
Conv2dShape on_picture(Conv2dShape shape, const Shape& x, const Shape& y);

using NodeKind = std::variant<Conv2dNode, LinearNode, GroupNormNode, LayerNormNode, AttentionNode, GegluNode,
                              EmbeddingNode, SelectTokenNode, TimestepEmbeddingNode, ResampleNode,
                              TokenMatchNode, TokenMergeNode, TokenUnmergeNode, ElementwiseNode, ConcatNode,
                              SliceNode, ReshapeNode, ExpandNode, PermuteNode, ConstantNode>;

struct Node {
    static constexpr int none = -1;  // an optional input that is not there

    std::string op;
    std::string path;  // of the module it comes from, for messages
    Stage stage;
    std::vector<int> inputs;
    int output;
    NodeKind kind;

    // Its output is other strides over its input's memory, or a weight.
    [[nodiscard]] bool is_view() const {
        return std::holds_alternative<SliceNode>(kind) || std::holds_alternative<ReshapeNode>(kind) ||
               std::holds_alternative<ExpandNode>(kind) || std::holds_alternative<PermuteNode>(kind) ||
               std::holds_alternative<ConstantNode>(kind);
    }
};

struct Graph {
    std::vector<Symbol> symbols;
    std::vector<Value> values;
    std::vector<Weight> weights;
    std::vector<Node> nodes;  // by stage, then in the file's order
    std::vector<int> inputs, outputs;
};

// "conv2d at down_blocks.0.resnets.0.conv1", for messages.
std::string describe(const Node& node);

}  // namespace fastdiff
