#include "kernels/randn.h"

#include <pybind11/stl.h>

#include "bindings/arrays.h"
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
}

}  // namespace fastdiff::bindings
