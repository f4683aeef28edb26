#include <limits>

#include "check.h"
#include "kernels/error.h"
#include "runtime/error.h"
#include "runtime/shapes.h"
#include "runtime/view.h"

namespace fastdiff::tests {
namespace {

using Kind = Token::Kind;

const Token batch{Kind::symbol, 0}, height{Kind::symbol, 1};
const Token plus{Kind::add, 0}, minus{Kind::subtract, 0}, times{Kind::multiply, 0}, over{Kind::divide, 0};

Token number(std::int64_t value) { return {Kind::number, value}; }

Value value(std::vector<Dim> shape) { return {"v", DType::float32, std::move(shape), Stage::step}; }

template <class Body>
bool refuses(const Body& body) {
    try {
        body();
    } catch (const EngineError&) {
        return true;
    }
    return false;
}

void test_programs() {
    const Sizes sizes{3, 10};
    CHECK(evaluate(value({{batch}, {number(4)}}), sizes) == (Shape{3, 4}));
    // 2·(height + 5) // 4 - batch = 4
    CHECK(evaluate(value({{height, number(5), plus, number(2), times, number(4), over, batch, minus}}),
                   sizes) == Shape{4});
    CHECK(evaluate(value({}), sizes).rank() == 0);
    const std::int64_t most = std::numeric_limits<std::int64_t>::max();
    const std::vector<Dim> impossible[] = {
        {{number(0)}},
        {{number(-4)}},
        {{batch, height, minus}},                      // negative
        {{height, number(0), over}},                   // division by zero
        {{height, number(-1), over}},                  // by a negative number
        {{number(most), number(2), times}},            // overflow
        {{number(most), number(1), plus}},             // overflow
        {{number(-most - 1), number(1), minus}},       // overflow
        {{number(std::int64_t{1} << 41)}},             // too many elements
        {{number(1 << 21)}, {number(1 << 20)}},        // too many in all
        {{number(most)}, {number(most)}, {number(4)}}  // the product overflows
    };
    for (const auto& shape : impossible) CHECK(refuses([&] { evaluate(value(shape), sizes); }));
}

Graph small_graph() {
    Graph graph;
    graph.symbols = {{"batch", 1, 8, 1}, {"height", 4, 0, 2}};
    graph.values = {value({{batch}, {height, number(8), times}, {number(3)}}), value({{batch}})};
    graph.inputs = {0, 1};
    return graph;
}

void test_sizes() {
    const Graph graph = small_graph();
    const std::vector<Shape> shapes{{2, 48, 3}, {2}};
    CHECK((find_sizes(graph, shapes) == Sizes{2, 6}));
    const auto refused = [&](std::vector<Shape> inputs, const char* part) {
        CHECK_REFUSES(find_sizes(graph, inputs), part);
    };
    refused({{2, 48, 3}}, "found 1 inputs, wanted 2");
    refused({{2, 48}, {2}}, "v: found shape [2, 48], wanted 3 axes");
    refused({{2, 49, 3}, {2}}, "found shape [2, 49, 3], wanted [2, 48, 3]");  // no multiple of 8
    refused({{2, 40, 3}, {2}}, "height is 5, wanted 4 or more in multiples of 2");
    refused({{9, 48, 3}, {9}}, "batch is 9, wanted 1 to 8");
    refused({{2, 48, 3}, {3}}, "found shape [3], wanted [2]");
    refused({{0, 48, 3}, {0}}, "batch is 0");
}

// Where each element of a view lies, in logical order.
std::vector<std::size_t> places(const View& view) {
    std::vector<std::size_t> result(view.shape.elements());
    for (std::size_t i = 0; i < result.size(); ++i) {
        std::size_t rest = i;
        result[i] = view.offset;
        for (std::size_t axis = view.shape.rank(); axis-- > 0;) {
            result[i] += rest % view.shape[axis] * view.strides[axis];
            rest /= view.shape[axis];
        }
    }
    return result;
}

void test_views() {
    const View whole = contiguous(0, {2, 3, 4, 5});
    CHECK(is_contiguous(whole));
    const View part = slice(whole, 3, 1, 2);
    CHECK(!is_contiguous(part));
    // Rows stay rows when axes before the channels merge or split; channels that have left their row do not.
    const auto merged = reshape(part, {6, 4, 2});
    CHECK(merged && places(*merged) == places(part));
    const auto rows = as_rows(part);
    CHECK(rows && rows->rows == 24 && rows->channels == 2 && rows->stride == 5);
    CHECK(!reshape(part, {2, 3, 8}));
    CHECK(!reshape(permute(whole, {0, 2, 1, 3}), {2, 12, 5}));
    const auto split = reshape(part, {2, 3, 2, 2, 1, 2});
    CHECK(split && places(*split) == places(part));
    CHECK(places(permute(whole, {0, 1, 3, 2}))[1] == 5);
    CHECK(!as_rows(permute(whole, {0, 2, 3, 1})));
    const View wide = expand(contiguous(0, {3, 1}), {2, 3, 4});
    CHECK((places(wide) == std::vector<std::size_t>{0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2,  //
                                                    0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2}));
    // Repeated rows are not rows with a stride of 0, over which kernels would write.
    CHECK(!as_rows(expand(contiguous(0, {1, 4}), {3, 4})));
    // Five axes merge into three, two of which the row broadcasts over.
    const View y = contiguous(0, {2, 3, 4, 5, 6}), row = contiguous(1, {4, 1, 1});
    const auto axes = elementwise_axes(y, y, &row);
    CHECK(axes.size() == 3 && axes[0].size == 6 && axes[1].size == 4 && axes[2].size == 30);
    CHECK(axes[0].b == 0 && axes[1].b == 1 && axes[2].b == 0 && axes[1].y == 30);
}

}  // namespace

void test_shapes() {
    test_programs();
    test_sizes();
    test_views();
}

}  // namespace fastdiff::tests
