// The Python extension fastdiff._C: kernels on NumPy arrays. fastdiff/_C.pyi lists what is here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "include/fastdiff.h"
#include "kernels/error.h"
#include "runtime/error.h"

namespace {

namespace py = pybind11;

// Errors become those of fastdiff.errors, so that the command line prints them as one line.
void translate(std::exception_ptr pointer) {
    const auto raise = [](const char* name, const std::exception& error) {
        py::set_error(py::module_::import("fastdiff.errors").attr(name), error.what());
    };
    try {
        if (pointer) std::rethrow_exception(pointer);
    } catch (const fastdiff::InputError& error) {
        raise("InputError", error);
    } catch (const fastdiff::EngineVersionError& error) {
        raise("EngineVersionError", error);
    } catch (const fastdiff::EngineError& error) {
        raise("EngineDamagedError", error);
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
    fastdiff::bindings::bind_conv2d(module);
    fastdiff::bindings::bind_elementwise(module);
    fastdiff::bindings::bind_embedding(module);
    fastdiff::bindings::bind_group_norm_silu(module);
    fastdiff::bindings::bind_layer_norm(module);
    fastdiff::bindings::bind_linear(module);
    fastdiff::bindings::bind_native(module);
    fastdiff::bindings::bind_randn(module);
    fastdiff::bindings::bind_resample(module);
    fastdiff::bindings::bind_scheduler_step(module);
    fastdiff::bindings::bind_timestep_embedding(module);
    fastdiff::bindings::bind_token_merging(module);
}
