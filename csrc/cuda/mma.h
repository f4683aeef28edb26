// The instructions of a warp that kernels on tensor cores are made of (PTX ISA: mma, ldmatrix, cp.async), for
// one of the two 16-bit types. Every method is called by all lanes together; what depends on the lane is a
// function of its number, so that the same program also runs with 32 emulated lanes
// (tests/cpp/emulated_warp.h).
#pragma once

#include "host_device.h"

namespace fastdiff::cuda {

template <bool Bfloat>
class DeviceWarp {
  public:
    struct Operands {
        float* sum;
        const uint32_t *left, *right;
    };

    template <class T>
    struct PerLane {
        T value;
        __device__ __forceinline__ T& operator[](int) { return value; }
    };

    __device__ __forceinline__ explicit DeviceWarp(const void* shared)
        : shared_(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), index_(threadIdx.x / 32) {}

    __device__ __forceinline__ int index() const { return index_; }

    template <class F>
    __device__ __forceinline__ void each(F&& f) const {
        f(static_cast<int>(threadIdx.x % 32));
    }

    // ---- memory ----
    static __device__ __forceinline__ uint32_t load_pair(const uint16_t* from) {
        return __ldg(reinterpret_cast<const uint32_t*>(from));
    }
    static __device__ __forceinline__ void store_pair(uint16_t* to, uint32_t pair) {
        *reinterpret_cast<uint32_t*>(to) = pair;
    }
    __device__ __forceinline__ void copy(int, int to, const uint16_t* from) const {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_ + to), "l"(from) : "memory");
    }
    __device__ __forceinline__ void commit() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
    template <int Pending>
    __device__ __forceinline__ void wait() const {
        asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
    }
    __device__ __forceinline__ void sync() const { __syncthreads(); }

    // Four 8 × 8 matrices of 16-bit elements, the rows of matrix m at the addresses of lanes 8m … 8m + 7.
    template <bool Transpose, class Address, class To>
    __device__ __forceinline__ void load(Address&& address, To&& to) const {
        const int lane = threadIdx.x % 32;
        uint32_t* r = to(lane);
        const uint32_t from = shared_ + address(lane);
        if constexpr (Transpose) {
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                         : "r"(from)
                         : "memory");
        } else {
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                         : "r"(from)
                         : "memory");
        }
    }

    // ---- arithmetic ----
    // sum (16 × 8) += left (16 × K) · right (K × 8)
    template <int K, class F>
    __device__ __forceinline__ void multiply(F&& operands) const {
        const Operands o = operands(static_cast<int>(threadIdx.x % 32));
        float* d = o.sum;
        const uint32_t *a = o.left, *b = o.right;
        if constexpr (K == 16 && Bfloat) {
            asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                "{%8, %9}, {%0, %1, %2, %3};"
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
        } else if constexpr (K == 16) {
            asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                "{%8, %9}, {%0, %1, %2, %3};"
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
        } else if constexpr (Bfloat) {
            asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                "{%0, %1, %2, %3};"
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                : "r"(a[0]), "r"(a[1]), "r"(b[0]));
        } else {
            asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                "{%0, %1, %2, %3};"
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                : "r"(a[0]), "r"(a[1]), "r"(b[0]));
        }
    }

    // Two numbers rounded to nearest, `low` in the lower half.
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        uint32_t pair;
        if constexpr (Bfloat) {
            asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
        } else {
            asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
        }
        return pair;
    }
    static __device__ __forceinline__ float exp2(float x) {
        float y;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }
    static __device__ __forceinline__ float reciprocal(float x) {
        float y;
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }
    // x, of which the compiler knows nothing: what was computed from it before is not kept for later.
    static __device__ __forceinline__ int anew(int x) {
        asm volatile("" : "+r"(x));
        return x;
    }
    static __device__ __forceinline__ float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
    static __device__ __forceinline__ float max(float a, float b) { return fmaxf(a, b); }
    static __device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }

    // ---- across lanes ----
    template <class F>
    __device__ __forceinline__ bool any(F&& condition) const {
        return __any_sync(0xffffffffu, condition(static_cast<int>(threadIdx.x % 32)));
    }
    // Over the four lanes 4i … 4i + 3, which hold one row of an accumulator.
    template <class F>
    __device__ __forceinline__ void quad_max(F&& value) const {
        float& x = value(static_cast<int>(threadIdx.x % 32));
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
    }
    template <class F>
    __device__ __forceinline__ void quad_sum(F&& value) const {
        float& x = value(static_cast<int>(threadIdx.x % 32));
        x += __shfl_xor_sync(0xffffffffu, x, 1);
        x += __shfl_xor_sync(0xffffffffu, x, 2);
    }

  private:
    uint32_t shared_;
    int index_;
};

}  // namespace fastdiff::cuda
