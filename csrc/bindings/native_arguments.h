// Arguments of native modules and sessions on their way from Python, and descriptions on their way back.
#pragma once

#include <pybind11/numpy.h>

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "runtime/loop.h"

namespace fastdiff::bindings {

namespace py = pybind11;

const char* dtype_name(DType dtype);

// (name, dtype, shape) of each value; a size is a number, "height", "8*height" or a postfix program.
py::list describe(const std::vector<int>& ids, const Graph& graph);
// name -> (minimum, maximum or None, multiple_of)
py::dict describe_symbols(const Graph& graph);

// All throw InputError.
Sizes parse_sizes(const Graph& graph, const std::map<std::string, std::int64_t>& named);
Stage parse_stage(const std::string& name);
// A fastdiff.samplers.table.StepTable.
SamplerTable parse_table(const py::object& table);
// The array's data, after checking type and contiguity; its sizes are appended to `shape`.
const void* read_array(const py::object& object, const Value& value, fastdiff::Shape& shape);

// (first row, down, up, scale) of a low-rank update; up has two axes, down the layer's.
using AdapterPart = std::tuple<std::size_t, py::object, py::object, float>;
// It refers to the arrays' data.
LowRank parse_low_rank(const AdapterPart& part);

}  // namespace fastdiff::bindings
