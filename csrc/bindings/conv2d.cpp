#include "kernels/conv2d.h"

#include <pybind11/stl.h>

#include <array>

#include "bindings/gemm_arguments.h"
#include "cpu/dispatch.h"
#include "kernels/error.h"
#include "kernels/group_norm_silu.h"
#include "kernels/names.h"
#include "runtime/measure.h"

namespace fastdiff::bindings {
namespace {

using Padding = std::array<std::size_t, 4>;
using Crop = std::array<std::size_t, 2>;

ConvAlgorithm parse_algorithm(const std::string& name) {
    if (const ConvAlgorithm* found = find_named(algorithm_names, name)) return *found;
    throw InputError("algorithm: found '" + name +
                     "', wanted direct, winograd2, winograd4 or winograd2_plain");
}

Conv2dShape make_shape(const std::array<std::size_t, 4>& x, const std::array<std::size_t, 4>& weight,
                       std::size_t stride, const Padding& padding, std::size_t upsample, const Crop& crop) {
    Conv2dShape s{x[0],       x[1],       x[2],       x[3],       weight[0], weight[2], weight[3], stride,
                  padding[0], padding[1], padding[2], padding[3], upsample,  crop[0],   crop[1]};
    if (weight[1] != s.in) {
        throw InputError("weight: found " + std::to_string(weight[1]) + " input channels, wanted " +
                         std::to_string(s.in));
    }
    if (stride < 1) throw InputError("stride: found 0, wanted 1 or more");
    if (upsample != 1 && upsample != 2) {
        throw InputError("upsample: found " + std::to_string(upsample) + ", wanted 1 or 2");
    }
    if (crop[0] >= upsample || crop[1] >= upsample || crop[0] > s.height || crop[1] > s.width) {
        throw InputError("crop: found " + std::to_string(crop[0]) + " and " + std::to_string(crop[1]) +
                         ", wanted fewer than upsample, " + std::to_string(upsample));
    }
    const std::size_t height = s.seen_height() + s.pad_top + s.pad_bottom;
    const std::size_t width = s.seen_width() + s.pad_left + s.pad_right;
    if (s.kernel_h < 1 || s.kernel_w < 1 || height < s.kernel_h || width < s.kernel_w) {
        throw InputError("weight: found a " + std::to_string(s.kernel_h) + "×" + std::to_string(s.kernel_w) +
                         " kernel, wanted one that fits into the padded " + std::to_string(height) + "×" +
                         std::to_string(width) + " picture");
    }
    return s;
}

void check_support(const Conv2dShape& shape, ConvAlgorithm algorithm) {
    if (conv2d_supports(shape, algorithm)) return;
    throw InputError("algorithm: found " + std::string(name_of(algorithm_names, algorithm)) + " for a " +
                     std::to_string(shape.kernel_h) + "×" + std::to_string(shape.kernel_w) +
                     " kernel with stride " + std::to_string(shape.stride) +
                     ", wanted direct; Winograd takes 3×3 with stride 1, direct at most 49 taps");
}

py::array_t<std::uint8_t> pack(const py::object& weight, const std::string& algorithm,
                               const std::string& precision) {
    const float* data = input(weight, "weight");
    const Shape sizes = shape_of(weight);
    if (sizes.size() != 4) {
        throw InputError("weight: found shape " + to_string(sizes) +
                         ", wanted (out, in, kernel_h, kernel_w)");
    }
    Conv2dShape s{};
    s.out = static_cast<std::size_t>(sizes[0]);
    s.in = static_cast<std::size_t>(sizes[1]);
    s.kernel_h = static_cast<std::size_t>(sizes[2]);
    s.kernel_w = static_cast<std::size_t>(sizes[3]);
    s.stride = 1;
    const ConvAlgorithm chosen = parse_algorithm(algorithm);
    check_support(s, chosen);
    const WeightType type = parse_weight_type(precision);
    py::array_t<std::uint8_t> packed = packed_array(conv2d_packed_bytes(s, chosen, type));
    std::uint8_t* to = packed.mutable_data();
    const py::gil_scoped_release release;
    conv2d_pack(data, s, chosen, type, to);
    return packed;
}

std::size_t packed_bytes(const std::array<std::size_t, 4>& weight, const std::string& algorithm,
                         const std::string& precision) {
    Conv2dShape s{};
    s.out = weight[0];
    s.in = weight[1];
    s.kernel_h = weight[2];
    s.kernel_w = weight[3];
    return conv2d_packed_bytes(s, parse_algorithm(algorithm), parse_weight_type(precision));
}

std::array<std::size_t, 4> four(const Shape& shape, const std::string& name) {
    if (shape.size() != 4) {
        throw InputError(name + ": found shape " + to_string(shape) +
                         ", wanted (batch, height, width, channels)");
    }
    std::array<std::size_t, 4> sizes{};
    for (std::size_t i = 0; i < 4; ++i) sizes[i] = static_cast<std::size_t>(shape[i]);
    return sizes;
}

py::object run(const py::object& x, const py::object& packed, const std::array<std::size_t, 4>& weight_shape,
               const py::object& bias, const py::object& vector, const py::object& residual,
               std::size_t stride, const Padding& padding, std::size_t upsample, const Crop& crop,
               const std::string& activation, double scale, const std::string& algorithm,
               const std::string& precision, const py::object& out, py::ssize_t threads,
               const std::optional<std::string>& isa, const py::object& affine, bool affine_silu,
               bool with_sums) {
    const Strided source = strided(x, "x", 4);
    Conv2dArgs args{};
    args.shape = make_shape(four(source.shape, "x"), weight_shape, stride, padding, upsample, crop);
    const Conv2dShape& s = args.shape;
    args.algorithm = parse_algorithm(algorithm);
    check_support(s, args.algorithm);
    const Shape wanted{static_cast<py::ssize_t>(s.batch), static_cast<py::ssize_t>(s.out_height()),
                       static_cast<py::ssize_t>(s.out_width()), static_cast<py::ssize_t>(s.out)};
    const Rows from = rows_of(source), to = rows_of(strided_output(out, "out", wanted));
    args.type = parse_weight_type(precision);
    args.weight = packed_weights(packed, conv2d_packed_bytes(s, args.algorithm, args.type));
    args.activation = parse_activation(activation);
    if (args.activation == Activation::geglu) {
        throw InputError("activation: found 'geglu', wanted none, silu, gelu or quick_gelu");
    }
    args.x = from.data;
    args.x_stride = from.stride;
    const Shape per_channel{static_cast<py::ssize_t>(s.out)};
    if (!bias.is_none()) args.bias = input(bias, "bias", &per_channel);
    const auto rows = [&](const py::object& object, const std::string& name, const Shape& shape) {
        const Strided array = strided(object, name, 1);
        if (array.shape != shape) {
            throw InputError(name + ": found shape " + to_string(array.shape) + ", wanted " +
                             to_string(shape));
        }
        return rows_of(array);
    };
    if (!vector.is_none()) {
        const Rows r = rows(vector, "vector", {wanted[0], wanted[3]});
        args.vector = r.data;
        args.vector_stride = r.stride;
    }
    if (!residual.is_none()) {
        const Rows r = rows(residual, "residual", wanted);
        refuse_partly_shared_memory(out, "out", residual, "residual");
        args.residual = r.data;
        args.residual_stride = r.stride;
    }
    refuse_shared_memory(out, "out", x, "x");
    args.y = to.data;
    args.y_stride = to.stride;
    args.scale = static_cast<float>(scale);
    if (!affine.is_none()) {
        const auto padded = static_cast<py::ssize_t>(group_norm_padded(s.in));
        const Shape shape{wanted[0], 3, padded};
        args.affine = input(affine, "affine", &shape);
        args.affine_silu = affine_silu;
    }
    py::object sums = py::none();
    if (with_sums) {
        py::array_t<double> array({wanted[0], static_cast<py::ssize_t>(conv2d_sum_parts(args)),
                                   py::ssize_t{2}, static_cast<py::ssize_t>(group_norm_padded(s.out))});
        args.sums = array.mutable_data();
        sums = array;
    }
    const Kernels& table = kernels(choose_isa(isa));
    ThreadPool pool = make_pool(threads);
    const Scratch scratch = aligned<std::byte>(conv2d_scratch(args, pool.threads()));
    args.scratch = scratch.get();
    {
        const py::gil_scoped_release release;
        table.conv2d(args, pool.parallel());
    }
    return sums;
}

double measure(const std::array<std::size_t, 4>& x, const std::array<std::size_t, 4>& weight,
               std::size_t stride, const Padding& padding, std::size_t upsample, const std::string& algorithm,
               const std::string& precision, py::ssize_t threads, double budget,
               const std::optional<std::string>& isa) {
    const Conv2dShape shape = make_shape(x, weight, stride, padding, upsample, {});
    const ConvAlgorithm chosen = parse_algorithm(algorithm);
    check_support(shape, chosen);
    const WeightType type = parse_weight_type(precision);
    const Isa set = choose_isa(isa);
    const py::gil_scoped_release release;
    ThreadPool pool = make_pool(threads);
    return measure_conv2d(shape, chosen, type, pool.parallel(), set, budget);
}

}  // namespace

void bind_conv2d(py::module_& module) {
    module.def("conv2d_pack", &pack, py::arg("weight"), py::arg("algorithm"), py::arg("precision") = "fp32",
               "Weights (out, in, kernel_h, kernel_w) in the order in which an algorithm reads them.");
    module.def("conv2d_packed_bytes", &packed_bytes, py::arg("weight_shape"), py::arg("algorithm"),
               py::arg("precision") = "fp32", "Size of what conv2d_pack returns.");
    module.def("conv2d", &run, py::arg("x"), py::arg("packed"), py::arg("weight_shape"), py::arg("bias"),
               py::arg("vector"), py::arg("residual"), py::arg("stride"), py::arg("padding"),
               py::arg("upsample"), py::arg("crop"), py::arg("activation"), py::arg("scale"),
               py::arg("algorithm"), py::arg("precision"), py::arg("out"), py::arg("threads") = 1,
               py::arg("isa") = py::none(), py::arg("affine") = py::none(), py::arg("affine_silu") = false,
               py::arg("sums") = false,
               "See fastdiff.kernels.conv2d; affine and the returned sums as in csrc/kernels/conv2d.h.");
    module.def("measure_conv2d", &measure, py::arg("x_shape"), py::arg("weight_shape"), py::arg("stride"),
               py::arg("padding"), py::arg("upsample"), py::arg("algorithm"), py::arg("precision"),
               py::arg("threads"), py::arg("budget"), py::arg("isa") = py::none(),
               "Median seconds with weights that are not in the caches.");
}

}  // namespace fastdiff::bindings
