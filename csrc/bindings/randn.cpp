#include "kernels/randn.h"

#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "cuda/philox.h"
#include "kernels/error.h"

namespace fastdiff::bindings {
namespace {

BoxMuller parse_box_muller(const std::optional<std::string>& name) {
    if (!name) return native_box_muller();
    if (*name == "cephes") return BoxMuller::cephes;
    if (*name == "libm") return BoxMuller::libm;
    throw InputError("box_muller: found '" + *name + "', wanted 'cephes' or 'libm'");
}

}  // namespace

void bind_randn(py::module_& module) {
    py::class_<Randn>(module, "Randn", "State of PyTorch's CPU generator; see fastdiff.samplers.random.")
        .def(py::init([](std::uint64_t seed, const std::optional<std::string>& box_muller) {
                 return Randn(seed, parse_box_muller(box_muller));
             }),
             py::arg("seed"), py::arg("box_muller") = py::none())
        .def(
            "fill",
            [](Randn& self, py::array out) {
                float* data = output(out, "out", shape_of(out));
                self.fill(data, static_cast<std::size_t>(out.size()));
            },
            py::arg("out"));
    module.def(
        "philox_normal",
        [](std::uint64_t seed, std::uint64_t offset, std::uint32_t threads, py::array out) {
            float* data = output(out, "out", shape_of(out));
            const auto size = static_cast<std::uint64_t>(out.size());
            if (threads == 0) throw InputError("threads: found 0, wanted at least 1");
            const py::gil_scoped_release released;
            for (std::uint64_t i = 0; i < size; ++i) {
                data[i] = cuda::philox_normal(seed, offset, i, threads);
            }
        },
        py::arg("seed"), py::arg("offset"), py::arg("threads"), py::arg("out"),
        "One draw of PyTorch's CUDA generator; see fastdiff.samplers.random.");
}

}  // namespace fastdiff::bindings
