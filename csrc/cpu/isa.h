// Instruction sets: which exist, which this machine runs, which one is in use.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fastdiff {

// From slowest to fastest. `portable` is plain C++ with vector extensions: SSE2 on x86-64, NEON on Arm.
enum class Isa { portable, avx2, avx512 };

std::string_view isa_name(Isa isa);

// Throws InputError for a name that does not exist.
Isa parse_isa(std::string_view name);

// Kernels for it are compiled in, and the CPU and the operating system (which must save the wide registers)
// run it.
bool isa_available(Isa isa);

// Those available, fastest first; never empty.
std::vector<Isa> available_isas();

// Parses `name` and throws InputError when this machine cannot run it. `origin` begins the message:
// "FASTDIFF_ISA".
Isa require_isa(std::string_view name, std::string_view origin);

// The one in use: FASTDIFF_ISA when that is set and not empty, else the fastest available. Decided at the
// first call that succeeds. Throws InputError for a value of FASTDIFF_ISA that is unknown or cannot run here.
Isa active_isa();

}  // namespace fastdiff
