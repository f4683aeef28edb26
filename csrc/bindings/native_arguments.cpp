#include "bindings/native_arguments.h"

#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "kernels/error.h"

namespace fastdiff::bindings {
namespace {

// 4, "height", "8*height", or for anything else the postfix program.
py::object describe(const Dim& dim, const Graph& graph) {
    if (dim.size() == 1 && dim[0].kind == Token::Kind::number) return py::int_(dim[0].operand);
    if (const auto single = single_symbol(dim)) {
        const std::string& name = graph.symbols[single->symbol].name;
        return py::str(single->factor == 1 ? name : std::to_string(single->factor) + "*" + name);
    }
    std::string text;
    constexpr const char* operators[] = {"+", "-", "*", "//"};
    for (const Token& token : dim) {
        if (!text.empty()) text += " ";
        if (token.kind == Token::Kind::number) {
            text += std::to_string(token.operand);
        } else if (token.kind == Token::Kind::symbol) {
            text += graph.symbols[static_cast<std::size_t>(token.operand)].name;
        } else {
            text +=
                operators[static_cast<std::size_t>(token.kind) - static_cast<std::size_t>(Token::Kind::add)];
        }
    }
    return py::str(text);
}

Linear parse_linear(const py::object& linear) {
    return {linear.attr("sample").cast<double>(), linear.attr("output").cast<double>()};
}

}  // namespace

const char* dtype_name(DType dtype) { return dtype == DType::int64 ? "int64" : "float32"; }

py::list describe(const std::vector<int>& ids, const Graph& graph) {
    py::list result;
    for (int id : ids) {
        const Value& value = graph.values[static_cast<std::size_t>(id)];
        py::list shape;
        for (const Dim& dim : value.shape) shape.append(describe(dim, graph));
        result.append(py::make_tuple(value.name, dtype_name(value.dtype), py::tuple(shape)));
    }
    return result;
}

py::dict describe_symbols(const Graph& graph) {
    py::dict result;
    for (const Symbol& symbol : graph.symbols) {
        py::object maximum = symbol.maximum == 0 ? py::object(py::none()) : py::int_(symbol.maximum);
        result[py::str(symbol.name)] = py::make_tuple(symbol.minimum, maximum, symbol.multiple_of);
    }
    return result;
}

Sizes parse_sizes(const Graph& graph, const std::map<std::string, std::int64_t>& named) {
    Sizes sizes;
    for (const Symbol& symbol : graph.symbols) {
        const auto found = named.find(symbol.name);
        if (found == named.end()) throw InputError("sizes: " + symbol.name + " is missing");
        sizes.push_back(found->second);
    }
    if (named.size() != sizes.size()) {
        throw InputError("sizes: found " + std::to_string(named.size()) + ", wanted " +
                         std::to_string(sizes.size()));
    }
    return sizes;
}

Stage parse_stage(const std::string& name) {
    if (name == "prompt") return Stage::prompt;
    if (name == "schedule") return Stage::schedule;
    if (name == "step") return Stage::step;
    throw InputError("stage: found '" + name + "', wanted 'prompt', 'schedule' or 'step'");
}

const void* read_array(const py::object& object, const Value& value, fastdiff::Shape& shape) {
    if (!py::isinstance<py::array>(object)) {
        throw InputError(value.name + ": found " + py::type::of(object).attr("__name__").cast<std::string>() +
                         ", wanted a " + dtype_name(value.dtype) + " NumPy array");
    }
    const auto array = py::reinterpret_borrow<py::array>(object);
    const bool wanted = value.dtype == DType::int64 ? py::isinstance<py::array_t<std::int64_t>>(array)
                                                    : py::isinstance<py::array_t<float>>(array);
    if (!wanted) {
        throw InputError(value.name + ": found dtype " + py::str(array.dtype()).cast<std::string>() +
                         ", wanted " + dtype_name(value.dtype));
    }
    if (!(array.flags() & py::array::c_style)) {
        throw InputError(value.name + ": found an array of shape " + to_string(shape_of(array)) +
                         " that is not C-contiguous; pass numpy.ascontiguousarray(...)");
    }
    if (array.ndim() > static_cast<py::ssize_t>(max_rank)) {
        throw InputError(value.name + ": found " + std::to_string(array.ndim()) + " axes, wanted " +
                         std::to_string(value.shape.size()));
    }
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
        shape.push_back(static_cast<std::size_t>(array.shape(axis)));
    }
    return array.data();
}

SamplerTable parse_table(const py::object& table) {
    if (!table.attr("linear").cast<bool>()) {
        throw InputError("sampler " + py::repr(table.attr("sampler")).cast<std::string>() +
                         " has steps that are not linear, which the native loop does not run; "
                         "use fastdiff.samplers.sample");
    }
    SamplerTable result;
    result.slots = table.attr("slots").cast<std::size_t>();
    result.start_noise = table.attr("start_noise").cast<std::optional<double>>();
    for (const py::handle step : table.attr("steps")) {
        SamplerStep row;
        row.timestep = step.attr("timestep").cast<double>();
        row.update = parse_linear(step.attr("update"));
        row.input_scale = step.attr("input_scale").cast<double>();
        for (const py::handle term : step.attr("history")) {
            const auto [slot, coef] = term.cast<std::pair<std::size_t, double>>();
            row.history.push_back({slot, coef});
        }
        row.noise_coef = step.attr("noise_coef").cast<std::optional<double>>();
        row.save_sample = step.attr("save_sample").cast<std::optional<std::size_t>>();
        row.save_output = step.attr("save_output").cast<std::optional<std::size_t>>();
        row.guidance = step.attr("guidance").cast<std::optional<double>>();
        if (const py::object estimate = step.attr("estimate"); !estimate.is_none()) {
            row.estimate = SamplerStep::Estimate{parse_linear(estimate.attr("value")),
                                                 estimate.attr("weight").cast<double>(),
                                                 estimate.attr("limit").cast<double>()};
        }
        result.steps.push_back(std::move(row));
    }
    return result;
}

LowRank parse_low_rank(const AdapterPart& part) {
    const auto& [first, down, up, scale] = part;
    const float* const down_data = input(down, "down");
    const float* const up_data = input(up, "up");
    const Shape down_shape = shape_of(down), up_shape = shape_of(up);
    if (down_shape.size() < 2 || up_shape.size() != 2 || up_shape[1] != down_shape[0] || down_shape[0] < 1) {
        throw InputError("down has shape " + to_string(down_shape) + " and up " + to_string(up_shape) +
                         ", wanted [rank, in, ...] and [out, rank]");
    }
    const auto rank = static_cast<std::size_t>(down_shape[0]);
    return {
        first, static_cast<std::size_t>(up_shape[0]), rank, size_of(down_shape) / rank, down_data, up_data,
        scale};
}

}  // namespace fastdiff::bindings
