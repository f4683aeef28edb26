#include "runtime/shapes.h"

#include "kernels/error.h"
#include "runtime/error.h"

namespace fastdiff {
namespace {

constexpr std::int64_t max_elements = std::int64_t{1} << 40;

// Applies an operator; nothing when the result is no number.
std::optional<std::int64_t> apply(Token::Kind kind, std::int64_t a, std::int64_t b) {
    std::int64_t result = 0;
    bool wrong = false;
    switch (kind) {
        case Token::Kind::add:
            wrong = __builtin_add_overflow(a, b, &result);
            break;
        case Token::Kind::subtract:
            wrong = __builtin_sub_overflow(a, b, &result);
            break;
        case Token::Kind::multiply:
            wrong = __builtin_mul_overflow(a, b, &result);
            break;
        default:
            // Floor and truncation agree where sizes are positive; the smallest number over -1 overflows.
            wrong = b <= 0;
            if (!wrong) result = a / b - (a % b < 0 ? 1 : 0);
            break;
    }
    if (wrong) return std::nullopt;
    return result;
}

// The program's number; read_graph has checked that its operands are there.
std::optional<std::int64_t> evaluate(const Dim& dim, const Sizes& sizes) {
    std::vector<std::int64_t> stack;
    stack.reserve(dim.size());
    for (const Token& token : dim) {
        if (token.kind == Token::Kind::number) {
            stack.push_back(token.operand);
        } else if (token.kind == Token::Kind::symbol) {
            stack.push_back(sizes[static_cast<std::size_t>(token.operand)]);
        } else {
            const std::int64_t b = stack.back();
            stack.pop_back();
            const auto result = apply(token.kind, stack.back(), b);
            if (!result) return std::nullopt;
            stack.back() = *result;
        }
    }
    return stack.back();
}

}  // namespace

std::string to_string(const Shape& shape) {
    std::string text = "[";
    for (std::size_t axis = 0; axis < shape.rank(); ++axis) {
        if (axis > 0) text += ", ";
        text += std::to_string(shape[axis]);
    }
    return text + "]";
}

std::optional<SingleSymbol> single_symbol(const Dim& dim) {
    using Kind = Token::Kind;
    if (dim.size() == 1 && dim[0].kind == Kind::symbol) {
        return SingleSymbol{1, static_cast<std::size_t>(dim[0].operand)};
    }
    if (dim.size() != 3 || dim[2].kind != Kind::multiply) return std::nullopt;
    const bool first = dim[0].kind == Kind::symbol && dim[1].kind == Kind::number;
    const bool second = dim[1].kind == Kind::symbol && dim[0].kind == Kind::number;
    if (!first && !second) return std::nullopt;
    const Token& symbol = dim[first ? 0 : 1];
    const std::int64_t factor = dim[first ? 1 : 0].operand;
    if (factor < 1) return std::nullopt;
    return SingleSymbol{factor, static_cast<std::size_t>(symbol.operand)};
}

Shape evaluate(const Value& value, const Sizes& sizes) {
    Shape shape;
    std::int64_t elements = 1;
    for (const Dim& dim : value.shape) {
        const auto size = evaluate(dim, sizes);
        if (!size || *size < 1 || __builtin_mul_overflow(elements, *size, &elements) ||
            elements > max_elements) {
            throw EngineError("value " + value.name + " has an impossible shape for these sizes");
        }
        shape.push_back(static_cast<std::size_t>(*size));
    }
    return shape;
}

Conv2dShape on_picture(Conv2dShape shape, const Shape& x, const Shape& y) {
    shape.batch = x[0];
    shape.height = x[1];
    shape.width = x[2];
    if (shape.upsample > 1 && shape.stride == 1) {
        const auto cropped = [&](std::size_t whole, std::size_t padding, std::size_t kernel,
                                 std::size_t out) { return std::size_t{whole + padding == out + kernel}; };
        shape.crop_bottom =
            cropped(shape.seen_height(), shape.pad_top + shape.pad_bottom, shape.kernel_h, y[1]);
        shape.crop_right =
            cropped(shape.seen_width(), shape.pad_left + shape.pad_right, shape.kernel_w, y[2]);
    }
    return shape;
}

Sizes find_sizes(const Graph& graph, std::span<const Shape> inputs) {
    if (inputs.size() != graph.inputs.size()) {
        throw InputError("found " + std::to_string(inputs.size()) + " inputs, wanted " +
                         std::to_string(graph.inputs.size()));
    }
    constexpr std::int64_t unknown = -1;
    Sizes sizes(graph.symbols.size(), unknown);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        const Value& value = graph.values[static_cast<std::size_t>(graph.inputs[i])];
        if (inputs[i].rank() != value.shape.size()) {
            throw InputError(value.name + ": found shape " + to_string(inputs[i]) + ", wanted " +
                             std::to_string(value.shape.size()) + " axes");
        }
        for (std::size_t axis = 0; axis < value.shape.size(); ++axis) {
            const auto single = single_symbol(value.shape[axis]);
            if (!single || sizes[single->symbol] != unknown) continue;
            // A remainder is found below, where the shape is compared with what the sizes give.
            sizes[single->symbol] = static_cast<std::int64_t>(inputs[i][axis]) / single->factor;
        }
    }
    check_sizes(graph, sizes);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        const Value& value = graph.values[static_cast<std::size_t>(graph.inputs[i])];
        const Shape wanted = evaluate(value, sizes);
        if (!(inputs[i] == wanted)) {
            throw InputError(value.name + ": found shape " + to_string(inputs[i]) + ", wanted " +
                             to_string(wanted));
        }
    }
    return sizes;
}

void check_sizes(const Graph& graph, const Sizes& sizes) {
    if (sizes.size() != graph.symbols.size()) {
        throw InputError("found " + std::to_string(sizes.size()) + " sizes, wanted " +
                         std::to_string(graph.symbols.size()));
    }
    for (std::size_t i = 0; i < sizes.size(); ++i) {
        const Symbol& symbol = graph.symbols[i];
        if (sizes[i] >= symbol.minimum && (symbol.maximum == 0 || sizes[i] <= symbol.maximum) &&
            sizes[i] % symbol.multiple_of == 0) {
            continue;
        }
        throw InputError(
            symbol.name + " is " + std::to_string(sizes[i]) + ", wanted " + std::to_string(symbol.minimum) +
            (symbol.maximum == 0 ? " or more" : " to " + std::to_string(symbol.maximum)) +
            (symbol.multiple_of == 1 ? "" : " in multiples of " + std::to_string(symbol.multiple_of)));
    }
}

}  // namespace fastdiff
