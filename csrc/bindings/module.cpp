// The Python extension fastdiff._C: kernels on NumPy arrays. fastdiff/_C.pyi lists what is here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "include/fastdiff.h"
#include "kernels/error.h"

namespace {

namespace py = pybind11;

// fastdiff::InputError becomes fastdiff.errors.InputError, so that the command line prints it as one line.
void translate(std::exception_ptr pointer) {
    try {
        if (pointer) std::rethrow_exception(pointer);
    } catch (const fastdiff::InputError& error) {
        py::set_error(py::module_::import("fastdiff.errors").attr("InputError"), error.what());
    }
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (fastdiff::Isa isa : fastdiff::available_isas()) names.emplace_back(fastdiff::isa_name(isa));
    return names;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "The compiled kernels of fastdiff.";
    py::register_local_exception_translator(&translate);
    module.attr("version") = fastdiff_version();
    module.def(
        "isa", [] { return std::string(fastdiff::isa_name(fastdiff::active_isa())); },
        "The instruction set in use; InputError when FASTDIFF_ISA names one that cannot run here.");
    module.def("available_isas", &available_isas, "The instruction sets that run here, fastest first.");
    fastdiff::bindings::bind_attention(module);
    fastdiff::bindings::bind_elementwise(module);
    fastdiff::bindings::bind_embedding(module);
    fastdiff::bindings::bind_group_norm_silu(module);
    fastdiff::bindings::bind_layer_norm(module);
    fastdiff::bindings::bind_randn(module);
    fastdiff::bindings::bind_resample(module);
    fastdiff::bindings::bind_scheduler_step(module);
    fastdiff::bindings::bind_timestep_embedding(module);
}
