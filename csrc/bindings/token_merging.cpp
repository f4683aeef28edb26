// token_match, token_merge and token_unmerge on contiguous arrays.
#include <pybind11/stl.h>

#include "bindings/strided.h"
#include "cpu/dispatch.h"
#include "kernels/error.h"

namespace fastdiff::bindings {
namespace {

// A float32 array of so many axes whose elements lie side by side.
Strided contiguous(const py::object& object, const std::string& name, std::size_t axes,
                   const std::string& wanted) {
    Strided array = strided(object, name, axes);
    if (array.shape.size() != axes) {
        throw InputError(name + ": found shape " + to_string(array.shape) + ", wanted " + wanted);
    }
    require_contiguous_rows(array);
    if (!(py::reinterpret_borrow<py::array>(object).flags() & py::array::c_style)) {
        throw InputError(name + ": found an array of shape " + to_string(array.shape) +
                         " that is not C-contiguous, wanted a contiguous one; pass "
                         "numpy.ascontiguousarray(...)");
    }
    return array;
}

// An int64 array of this shape whose elements lie side by side.
std::int64_t* plan_of(const py::object& object, const Shape& shape, bool writeable) {
    if (!py::isinstance<py::array_t<std::int64_t>>(object) || shape_of(object) != shape ||
        !(py::reinterpret_borrow<py::array>(object).flags() & py::array::c_style) ||
        (writeable && !py::reinterpret_borrow<py::array>(object).writeable())) {
        const std::string found = py::isinstance<py::array>(object)
                                      ? "shape " + to_string(shape_of(object))
                                      : py::type::of(object).attr("__name__").cast<std::string>();
        throw InputError("plan: found " + found + ", wanted a contiguous array of int64 of shape " +
                         to_string(shape));
    }
    return static_cast<std::int64_t*>(const_cast<void*>(py::reinterpret_borrow<py::array>(object).data()));
}

void match(const py::object& x, py::ssize_t merged, const py::object& plan, py::ssize_t threads,
           const std::optional<std::string>& isa) {
    const Strided from = contiguous(x, "x", 4, "four axes: batch, height, width, channels");
    TokenMatchArgs args{};
    args.batch = from.length(0);
    args.height = from.length(1);
    args.width = from.length(2);
    args.channels = from.length(3);
    if (args.height < 2 || args.width < 2) {
        throw InputError("x: found shape " + to_string(from.shape) +
                         ", wanted a height and width of 2 or more");
    }
    const std::size_t tokens = args.height * args.width;
    const std::size_t most = tokens - token_destinations(args.height, args.width);
    if (merged < 0 || static_cast<std::size_t>(merged) > most) {
        throw InputError("merged: found " + std::to_string(merged) + ", wanted 0 to " + std::to_string(most));
    }
    args.merged = static_cast<std::size_t>(merged);
    args.x = from.data;
    args.x_stride = args.channels;
    args.x_batch = tokens * args.channels;
    args.plan = plan_of(plan, {from.shape[0], static_cast<py::ssize_t>(tokens)}, true);
    refuse_shared_memory(plan, "plan", x, "x");
    const Scratch scratch = aligned<std::byte>(token_match_scratch(args));
    args.scratch = scratch.get();
    const Kernels& table = kernels(choose_isa(isa));
    ThreadPool pool = make_pool(threads);
    if (args.batch == 0) return;
    const py::gil_scoped_release release;
    table.token_match(args, pool.parallel());
}

void check_plan(const std::int64_t* plan, std::size_t count, std::size_t rows) {
    const std::size_t invalid = token_plan_invalid(plan, count, rows);
    if (invalid < count) {
        throw InputError("plan: found " + std::to_string(plan[invalid]) + " at element " +
                         std::to_string(invalid) + ", wanted 0 to " +
                         std::to_string(static_cast<std::int64_t>(rows) - 1));
    }
}

void merge(const py::object& x, const py::object& plan, const py::object& out, py::ssize_t threads,
           const std::optional<std::string>& isa) {
    const Strided from = contiguous(x, "x", 3, "three axes: batch, tokens, channels");
    const Strided to = contiguous(out, "out", 3, "three axes: batch, rows, channels");
    if (to.shape[0] != from.shape[0] || to.shape[2] != from.shape[2]) {
        throw InputError("out: found shape " + to_string(to.shape) + ", wanted batch and channels of x, " +
                         to_string(from.shape));
    }
    TokenMergeArgs args{};
    args.batch = from.length(0);
    args.tokens = from.length(1);
    args.rows = to.length(1);
    args.channels = from.length(2);
    args.x = from.data;
    args.x_stride = args.channels;
    args.x_batch = args.tokens * args.channels;
    args.plan = plan_of(plan, {from.shape[0], from.shape[1]}, false);
    args.y = strided_output(out, "out", to.shape).data;
    args.y_stride = args.channels;
    args.y_batch = args.rows * args.channels;
    refuse_shared_memory(out, "out", x, "x");
    check_plan(args.plan, args.batch * args.tokens, args.rows);
    const Scratch scratch = aligned<std::byte>(token_merge_scratch(args));
    args.scratch = scratch.get();
    const Kernels& table = kernels(choose_isa(isa));
    ThreadPool pool = make_pool(threads);
    if (to.empty()) return;
    const py::gil_scoped_release release;
    table.token_merge(args, pool.parallel());
}

void unmerge(const py::object& x, const py::object& plan, const py::object& out, py::ssize_t threads,
             const std::optional<std::string>& isa) {
    const Strided from = contiguous(x, "x", 3, "three axes: batch, rows, channels");
    const Strided to = contiguous(out, "out", 3, "three axes: batch, tokens, channels");
    if (to.shape[0] != from.shape[0] || to.shape[2] != from.shape[2]) {
        throw InputError("out: found shape " + to_string(to.shape) + ", wanted batch and channels of x, " +
                         to_string(from.shape));
    }
    TokenUnmergeArgs args{};
    args.batch = from.length(0);
    args.tokens = to.length(1);
    args.rows = from.length(1);
    args.channels = from.length(2);
    args.x = from.data;
    args.x_stride = args.channels;
    args.x_batch = args.rows * args.channels;
    args.plan = plan_of(plan, {to.shape[0], to.shape[1]}, false);
    args.y = strided_output(out, "out", to.shape).data;
    args.y_stride = args.channels;
    args.y_batch = args.tokens * args.channels;
    refuse_shared_memory(out, "out", x, "x");
    check_plan(args.plan, args.batch * args.tokens, args.rows);
    const Kernels& table = kernels(choose_isa(isa));
    ThreadPool pool = make_pool(threads);
    if (to.empty()) return;
    const py::gil_scoped_release release;
    table.token_unmerge(args, pool.parallel());
}

}  // namespace

void bind_token_merging(py::module_& module) {
    module.def("token_match", &match, py::arg("x"), py::arg("merged"), py::arg("plan"),
               py::arg("threads") = 1, py::arg("isa") = py::none(), "See fastdiff.kernels.token_match.");
    module.def("token_merge", &merge, py::arg("x"), py::arg("plan"), py::arg("out"), py::arg("threads") = 1,
               py::arg("isa") = py::none(), "See fastdiff.kernels.token_merge.");
    module.def("token_unmerge", &unmerge, py::arg("x"), py::arg("plan"), py::arg("out"),
               py::arg("threads") = 1, py::arg("isa") = py::none(), "See fastdiff.kernels.token_unmerge.");
}

}  // namespace fastdiff::bindings
