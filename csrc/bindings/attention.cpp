#include "kernels/attention.h"

#include <pybind11/stl.h>

#include "bindings/strided.h"
#include "cpu/dispatch.h"
#include "kernels/error.h"

namespace fastdiff::bindings {
namespace {

Strided take(const py::object& array, const std::string& name) {
    Strided result = strided(array, name, 3);
    if (result.shape.size() != 3) {
        throw InputError(name + ": found shape " + to_string(result.shape) +
                         ", wanted three axes: batch, positions, heads times size");
    }
    require_contiguous_rows(result);
    return result;
}

void check_shapes(const Strided& query, const Strided& key, const Strided& value, py::ssize_t heads) {
    const std::string shapes =
        to_string(query.shape) + ", " + to_string(key.shape) + ", " + to_string(value.shape);
    const bool fit = query.shape[0] == key.shape[0] && key.shape[0] == value.shape[0] &&
                     query.shape[2] == key.shape[2] && key.shape[1] == value.shape[1];
    if (!fit) {
        throw InputError("query, key, value: found shapes " + shapes +
                         ", wanted one batch, query and key of one width, key and value of one length");
    }
    if (heads < 1 || query.shape[2] % heads != 0 || value.shape[2] % heads != 0) {
        throw InputError("num_heads: found " + std::to_string(heads) + " for widths " +
                         std::to_string(query.shape[2]) + " and " + std::to_string(value.shape[2]) +
                         ", wanted a divisor of both");
    }
}

void run(const py::object& query, const py::object& key, const py::object& value, py::ssize_t num_heads,
         double scale, bool causal, const py::object& out, py::ssize_t threads,
         const std::optional<std::string>& isa) {
    const Strided q = take(query, "query"), k = take(key, "key"), v = take(value, "value");
    check_shapes(q, k, v, num_heads);
    const Strided y = strided_output(out, "out", {q.shape[0], q.shape[1], v.shape[2]});
    require_contiguous_rows(y);
    refuse_shared_memory(out, "out", query, "query");
    refuse_shared_memory(out, "out", key, "key");
    refuse_shared_memory(out, "out", value, "value");
    const Kernels& table = kernels(choose_isa(isa));
    ThreadPool pool = make_pool(threads);
    if (y.empty()) return;

    const auto heads = static_cast<std::size_t>(num_heads);
    AttentionArgs args{};
    args.batch = q.length(0);
    args.queries = q.length(1);
    args.keys = k.length(1);
    args.heads = heads;
    args.size = q.length(2) / heads;
    args.value_size = v.length(2) / heads;
    args.query = q.data;
    args.query_stride = q.strides[1];
    args.query_batch = q.strides[0];
    args.key = k.data;
    args.key_stride = k.strides[1];
    args.key_batch = k.strides[0];
    args.value = v.data;
    args.value_stride = v.strides[1];
    args.value_batch = v.strides[0];
    args.y = y.data;
    args.y_stride = y.strides[1];
    args.y_batch = y.strides[0];
    args.scale = static_cast<float>(scale);
    args.causal = causal;
    const py::gil_scoped_release release;
    const Scratch scratch = aligned<std::byte>(attention_scratch(args, pool.threads()));
    args.scratch = scratch.get();
    table.attention(args, pool.parallel());
}

}  // namespace

void bind_attention(py::module_& module) {
    module.def("attention", &run, py::arg("query"), py::arg("key"), py::arg("value"), py::arg("num_heads"),
               py::arg("scale"), py::arg("causal"), py::arg("out"), py::arg("threads") = 1,
               py::arg("isa") = py::none(), "See fastdiff.kernels.attention.");
}

}  // namespace fastdiff::bindings
