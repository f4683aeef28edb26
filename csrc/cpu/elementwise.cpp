// Compiled once per instruction set; the contract is in kernels/elementwise.h.
#include "kernels/elementwise.h"

#include "cpu/dispatch.h"
#include "cpu/elementwise_functions.h"
#include "cpu/vec.h"

namespace fastdiff {
namespace {

constexpr std::size_t axes = 4;
constexpr std::size_t elements_per_item = 16384;

struct Axis {
    std::size_t size, a, b, y;
};

// One call with as few axes as its strides allow, in the order of the loops; missing ones have size 1.
struct Loops {
    Axis axis[axes];
    const float *a, *b;
    float* y;
    float scalar, low, high;
    std::size_t rows;           // of the last axis
    std::size_t rows_per_item;  // either several rows to an item
    std::size_t items_per_row;  // or several items to a row, of elements_per_item but for the last
};

// Strides of the innermost loop that have code of their own.
enum class Access { contiguous, repeated, any };

Access access(std::size_t stride) {
    return stride == 1 ? Access::contiguous : (stride == 0 ? Access::repeated : Access::any);
}

bool is_fast(const Axis& axis) {
    return axis.y == 1 && access(axis.a) != Access::any && access(axis.b) != Access::any;
}

Loops make_loops(const ElementwiseArgs& args) {
    Loops loops{};
    loops.a = args.a;
    loops.b = args.function >= Elementwise::add ? args.b : args.a;
    loops.y = args.y;
    loops.scalar = args.scalar;
    loops.low = args.low;
    loops.high = args.high;
    Axis found[axes];
    std::size_t count = 0;
    for (std::size_t i = axes; i-- > 0;) {  // innermost first
        const Axis axis{args.sizes[i], args.a_strides[i],
                        args.function >= Elementwise::add ? args.b_strides[i] : args.a_strides[i],
                        args.y_strides[i]};
        if (axis.size == 1) continue;
        Axis* inner = count > 0 ? &found[count - 1] : nullptr;
        if (inner != nullptr && axis.a == inner->a * inner->size && axis.b == inner->b * inner->size &&
            axis.y == inner->y * inner->size) {
            inner->size *= axis.size;
        } else {
            found[count++] = axis;
        }
    }
    // The innermost loop: a fast axis of some length, else the longest one.
    std::size_t chosen = 0;
    for (std::size_t i = 1; i < count; ++i) {
        const bool better = is_fast(found[i]) == is_fast(found[chosen]) ? found[i].size > found[chosen].size
                                                                        : is_fast(found[i]);
        if (!(is_fast(found[chosen]) && found[chosen].size >= 8) && found[i].size >= 8 && better) chosen = i;
    }
    for (std::size_t i = 0; i < axes; ++i) loops.axis[i] = {1, 0, 0, 0};
    loops.axis[axes - 1] = {1, 1, 1, 1};
    if (count > 0) loops.axis[axes - 1] = found[chosen];
    std::size_t place = axes - 1;
    for (std::size_t i = 0; i < count; ++i) {
        if (i != chosen) loops.axis[--place] = found[i];
    }
    loops.rows = loops.axis[0].size * loops.axis[1].size * loops.axis[2].size;
    const std::size_t size = loops.axis[3].size;
    loops.rows_per_item = size >= elements_per_item ? 1 : elements_per_item / (size + 1) + 1;
    loops.items_per_row = size > elements_per_item ? (size + elements_per_item - 1) / elements_per_item : 1;
    return loops;
}

template <class I, Access A>
FASTDIFF_INLINE Vec<float, I> load(const float* p, std::size_t stride, std::size_t count) {
    using V = Vec<float, I>;
    if constexpr (A == Access::repeated) return V::broadcast(*p);
    if constexpr (A == Access::contiguous) return count < V::width ? V::load(p, count) : V::load(p);
    float lanes[V::width] = {};
    for (std::size_t i = 0; i < count; ++i) lanes[i] = p[i * stride];
    return V::load(lanes);
}

template <class I, Access Y>
FASTDIFF_INLINE void store(Vec<float, I> v, float* p, std::size_t stride, std::size_t count) {
    using V = Vec<float, I>;
    if constexpr (Y == Access::contiguous) {
        if (count < V::width) {
            v.store(p, count);
        } else {
            v.store(p);
        }
    } else {
        float lanes[V::width];
        v.store(lanes);
        for (std::size_t i = 0; i < count; ++i) p[i * stride] = lanes[i];
    }
}

// Elements [first, last) of the innermost axis.
template <class I, class F, Access A, Access B, Access Y>
FASTDIFF_INLINE void row(const Loops& loops, const float* a, const float* b, float* y, std::size_t size) {
    using V = Vec<float, I>;
    const elementwise_functions::Parameters<I> parameters{V::broadcast(loops.scalar), V::broadcast(loops.low),
                                                          V::broadcast(loops.high)};
    const Axis& axis = loops.axis[axes - 1];
    const auto step = [&](std::size_t i, std::size_t count) {
        const V left = load<I, A>(a + i * axis.a, axis.a, count),
                right = load<I, B>(b + i * axis.b, axis.b, count);
        store<I, Y>(F::call(parameters, left, right), y + i * axis.y, axis.y, count);
    };
    std::size_t i = 0;
    for (; i + V::width <= size; i += V::width) step(i, V::width);
    if (i < size) step(i, size - i);
}

template <class I, class F, Access A, Access B, Access Y>
void run(void* context, std::size_t item, std::size_t) {
    const Loops& loops = *static_cast<const Loops*>(context);
    const Axis& inner = loops.axis[axes - 1];
    const std::size_t from = item % loops.items_per_row * elements_per_item;
    const std::size_t left = inner.size - from;
    const std::size_t size = loops.items_per_row > 1 && left > elements_per_item ? elements_per_item : left;
    const std::size_t first = item / loops.items_per_row * loops.rows_per_item;
    const std::size_t last =
        loops.rows - first < loops.rows_per_item ? loops.rows : first + loops.rows_per_item;
    const Axis *outer = loops.axis, *middle = outer + 1, *near = outer + 2;
    std::size_t i2 = first % near->size, i1 = first / near->size % middle->size,
                i0 = first / near->size / middle->size;
    for (std::size_t r = first; r < last; ++r) {
        row<I, F, A, B, Y>(loops, loops.a + i0 * outer->a + i1 * middle->a + i2 * near->a + from * inner.a,
                           loops.b + i0 * outer->b + i1 * middle->b + i2 * near->b + from * inner.b,
                           loops.y + i0 * outer->y + i1 * middle->y + i2 * near->y + from * inner.y, size);
        if (++i2 == near->size) {
            i2 = 0;
            if (++i1 == middle->size) {
                i1 = 0;
                ++i0;
            }
        }
    }
}

template <class I, class F>
Parallel::Task unary(const Axis& inner) {
    constexpr Access c = Access::contiguous, any = Access::any;
    return inner.a == 1 && inner.y == 1 ? run<I, F, c, Access::repeated, c>
                                        : run<I, F, any, Access::repeated, any>;
}

template <class I, class F>
Parallel::Task binary(const Axis& inner) {
    constexpr Access c = Access::contiguous, r = Access::repeated, any = Access::any;
    const Access a = access(inner.a), b = access(inner.b);
    if (inner.y == 1 && a == c && b == c) return run<I, F, c, c, c>;
    if (inner.y == 1 && a == c && b == r) return run<I, F, c, r, c>;
    if (inner.y == 1 && a == r && b == c) return run<I, F, r, c, c>;
    return run<I, F, any, any, any>;
}

template <class I>
Parallel::Task choose(Elementwise function, const Axis& inner) {
    using namespace elementwise_functions;
    switch (function) {
        case Elementwise::copy:
            return unary<I, Copy<I>>(inner);
        case Elementwise::silu:
            return unary<I, Silu<I>>(inner);
        case Elementwise::gelu:
            return unary<I, Gelu<I>>(inner);
        case Elementwise::quick_gelu:
            return unary<I, QuickGelu<I>>(inner);
        case Elementwise::gelu_tanh:
            return unary<I, GeluTanh<I>>(inner);
        case Elementwise::relu:
            return unary<I, Relu<I>>(inner);
        case Elementwise::sigmoid:
            return unary<I, Sigmoid<I>>(inner);
        case Elementwise::tanh:
            return unary<I, Tanh<I>>(inner);
        case Elementwise::exp:
            return unary<I, Exp<I>>(inner);
        case Elementwise::sin:
            return unary<I, Sin<I>>(inner);
        case Elementwise::cos:
            return unary<I, Cos<I>>(inner);
        case Elementwise::sqrt:
            return unary<I, Sqrt<I>>(inner);
        case Elementwise::negate:
            return unary<I, Negate<I>>(inner);
        case Elementwise::clamp:
            return unary<I, Clamp<I>>(inner);
        case Elementwise::add_scalar:
            return unary<I, AddScalar<I>>(inner);
        case Elementwise::mul_scalar:
            return unary<I, MulScalar<I>>(inner);
        case Elementwise::add:
            return binary<I, Add<I>>(inner);
        case Elementwise::subtract:
            return binary<I, Subtract<I>>(inner);
        case Elementwise::multiply:
            return binary<I, Multiply<I>>(inner);
        case Elementwise::divide:
            break;
    }
    return binary<I, Divide<I>>(inner);
}

}  // namespace

template <class I>
void elementwise(const ElementwiseArgs& args, const Parallel& parallel) {
    for (std::size_t size : args.sizes) {
        if (size == 0) return;
    }
    Loops loops = make_loops(args);
    const std::size_t items = (loops.rows + loops.rows_per_item - 1) / loops.rows_per_item;
    parallel.run(parallel, items * loops.items_per_row, choose<I>(args.function, loops.axis[axes - 1]),
                 &loops);
}

template void elementwise<isa::FASTDIFF_ISA>(const ElementwiseArgs& args, const Parallel& parallel);

}  // namespace fastdiff
