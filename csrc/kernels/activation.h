// What linear and conv2d may apply to a sum before they store it; elementwise applies the same functions.
#pragma once

#include <cstdint>

namespace fastdiff {

// silu x·σ(x); gelu x·Φ(x) with the exact normal distribution; quick_gelu x·σ(1.702x); geglu a·gelu(b) of the
// halves (a, b) of the channels (linear only).
enum class Activation : std::uint8_t { none, silu, gelu, quick_gelu, geglu };

// How packed weights are stored. Arithmetic is fp32 either way.
enum class WeightType : std::uint8_t { fp32, fp16 };

}  // namespace fastdiff
