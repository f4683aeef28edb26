// What every .cu and every header of csrc/cuda/ starts from. Three compilers read these files: nvcc, NVRTC,
// which has no standard headers, and the host's C++ compiler for tests.
#pragma once

#ifdef __CUDACC__
#define FASTDIFF_HD __host__ __device__ __forceinline__
#define FASTDIFF_UNROLL _Pragma("unroll")
#else
#define FASTDIFF_HD inline
#define FASTDIFF_UNROLL
#endif

#ifdef __CUDACC_RTC__
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#else
#include <math.h>
#include <stdint.h>
#endif
