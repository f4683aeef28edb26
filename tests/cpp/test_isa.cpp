#include <cstdlib>

#include "check.h"
#include "cpu/isa.h"
#include "kernels/error.h"

namespace fastdiff::tests {

void test_isa() {
    // Names and values are each other's inverse; every other name is refused.
    for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) CHECK(parse_isa(isa_name(isa)) == isa);
    for (const char* name : {"", "AVX2", "avx", "avx2 ", "sse"}) {
        CHECK_REFUSES(parse_isa(name), "wanted one of avx512, avx2, portable");
    }

    // Fastest first, portable always there.
    const std::vector<Isa> available = available_isas();
    CHECK(!available.empty() && available.back() == Isa::portable);
    for (std::size_t i = 1; i < available.size(); ++i) CHECK(available[i - 1] > available[i]);

    // What is not available is refused by name, and the message lists what is.
    for (Isa isa : {Isa::avx2, Isa::avx512}) {
        if (!isa_available(isa))
            CHECK_REFUSES(require_isa(isa_name(isa), "here"), "here: this machine cannot run");
    }

    // A bad value of the variable is an error each time, and does not stick.
    setenv("FASTDIFF_ISA", "mmx", 1);
    CHECK_REFUSES(active_isa(), "environment variable FASTDIFF_ISA: unknown instruction set 'mmx'");
    CHECK_REFUSES(active_isa(), "FASTDIFF_ISA");
    setenv("FASTDIFF_ISA", "portable", 1);
    CHECK(active_isa() == Isa::portable);
    // The first answer stays: half a process on other kernels would be worse than an ignored change.
    setenv("FASTDIFF_ISA", "mmx", 1);
    CHECK(active_isa() == Isa::portable);
    unsetenv("FASTDIFF_ISA");
}

}  // namespace fastdiff::tests
