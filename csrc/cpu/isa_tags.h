// Tags for templates that are compiled once per instruction set; see vec.h.
#pragma once

namespace fastdiff::isa {
struct Portable;
struct Avx2;
struct Avx512;
}  // namespace fastdiff::isa
