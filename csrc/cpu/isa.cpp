#include "cpu/isa.h"

#include <cstdlib>

#include "kernels/error.h"

namespace fastdiff {
namespace {

constexpr Isa all_isas[] = {Isa::avx512, Isa::avx2, Isa::portable};

std::string join(const std::vector<Isa>& isas) {
    std::string text;
    for (Isa isa : isas) {
        if (!text.empty()) text += ", ";
        text += isa_name(isa);
    }
    return text;
}

// __builtin_cpu_supports reads CPUID and, for AVX and wider, XCR0 through xgetbv: it answers no where the
// operating system does not save the registers.
bool cpu_runs_avx2() {
#if FASTDIFF_HAVE_AVX2
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
    return false;
#endif
}

bool cpu_runs_avx512() {
#if FASTDIFF_HAVE_AVX512
    return cpu_runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

}  // namespace

std::string_view isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512:
            return "avx512";
        case Isa::avx2:
            return "avx2";
        case Isa::portable:
            break;
    }
    return "portable";
}

Isa parse_isa(std::string_view name) {
    for (Isa isa : all_isas) {
        if (name == isa_name(isa)) return isa;
    }
    throw InputError("unknown instruction set '" + std::string(name) + "'; wanted one of " +
                     join({std::begin(all_isas), std::end(all_isas)}));
}

bool isa_available(Isa isa) {
    switch (isa) {
        case Isa::avx512:
            return cpu_runs_avx512();
        case Isa::avx2:
            return cpu_runs_avx2();
        case Isa::portable:
            break;
    }
    return true;
}

std::vector<Isa> available_isas() {
    std::vector<Isa> found;
    for (Isa isa : all_isas) {
        if (isa_available(isa)) found.push_back(isa);
    }
    return found;
}

Isa require_isa(std::string_view name, std::string_view origin) {
    const std::string prefix = std::string(origin) + ": ";
    Isa isa;
    try {
        isa = parse_isa(name);
    } catch (const InputError& error) {
        throw InputError(prefix + error.what());
    }
    if (!isa_available(isa)) {
        throw InputError(prefix + "this machine cannot run '" + std::string(name) + "'; it runs " +
                         join(available_isas()));
    }
    return isa;
}

Isa active_isa() {
    // When the initialiser throws, the next call runs it again.
    static const Isa active = [] {
        const char* forced = std::getenv("FASTDIFF_ISA");
        if (forced == nullptr || *forced == '\0') return available_isas().front();
        return require_isa(forced, "environment variable FASTDIFF_ISA");
    }();
    return active;
}

}  // namespace fastdiff
