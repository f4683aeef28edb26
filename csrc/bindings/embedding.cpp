#include "kernels/embedding.h"

#include <pybind11/stl.h>

#include "bindings/strided.h"
#include "cpu/dispatch.h"
#include "kernels/error.h"

namespace fastdiff::bindings {
namespace {

py::array contiguous(const py::object& object, const std::string& name, const std::string& wanted) {
    if (!py::isinstance<py::array>(object)) {
        throw InputError(name + ": found " + py::type::of(object).attr("__name__").cast<std::string>() +
                         ", wanted a NumPy array of " + wanted);
    }
    auto array = py::reinterpret_borrow<py::array>(object);
    if (!(array.flags() & py::array::c_style)) {
        throw InputError(name + ": found an array of shape " + to_string(shape_of(object)) +
                         " that is not C-contiguous, wanted a contiguous one; pass "
                         "numpy.ascontiguousarray(...)");
    }
    return array;
}

InputError wrong_dtype(const std::string& name, const py::array& array, const std::string& wanted) {
    return InputError(name + ": found dtype " + py::str(array.dtype()).cast<std::string>() + ", wanted " +
                      wanted);
}

void run(const py::object& ids, const py::object& table, const py::object& out, py::ssize_t threads,
         const std::optional<std::string>& isa) {
    const py::array id_array = contiguous(ids, "ids", "int64");
    if (!py::isinstance<py::array_t<std::int64_t>>(ids)) throw wrong_dtype("ids", id_array, "int64");
    const py::array rows = contiguous(table, "table", "float32 or float16");
    EmbeddingArgs args{};
    if (py::isinstance<py::array_t<float>>(table)) {
        args.type = WeightType::fp32;
    } else if (rows.dtype().equal(py::dtype("float16"))) {
        args.type = WeightType::fp16;
    } else {
        throw wrong_dtype("table", rows, "float32 or float16");
    }
    if (rows.ndim() != 2) {
        throw InputError("table: found shape " + to_string(shape_of(table)) +
                         ", wanted two axes: rows, channels");
    }
    Shape shape = shape_of(ids);
    shape.push_back(rows.shape(1));
    const Strided y = strided_output(out, "out", shape);
    require_contiguous_rows(y);
    refuse_shared_memory(out, "out", ids, "ids");
    refuse_shared_memory(out, "out", table, "table");
    args.rows = static_cast<std::size_t>(id_array.size());
    args.channels = static_cast<std::size_t>(rows.shape(1));
    args.count = static_cast<std::size_t>(rows.shape(0));
    args.ids = static_cast<const std::int64_t*>(id_array.data());
    args.table = rows.data();
    args.y = y.data;
    args.y_stride = common_stride(y, 0, shape.size() - 1);
    const std::size_t invalid = embedding_invalid(args);
    if (invalid < args.rows) {
        throw InputError("ids: found " + std::to_string(args.ids[invalid]) + " at element " +
                         std::to_string(invalid) + ", wanted 0 to " + std::to_string(rows.shape(0) - 1));
    }
    const Kernels& kernel_table = kernels(choose_isa(isa));
    ThreadPool pool = make_pool(threads);
    const py::gil_scoped_release release;
    kernel_table.embedding(args, pool.parallel());
}

}  // namespace

void bind_embedding(py::module_& module) {
    module.def("embedding", &run, py::arg("ids"), py::arg("table"), py::arg("out"), py::arg("threads") = 1,
               py::arg("isa") = py::none(), "See fastdiff.kernels.embedding.");
}

}  // namespace fastdiff::bindings
