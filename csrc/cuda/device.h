// What only a GPU has: shared memory, clusters of blocks, asynchronous copies. The tests run the kernels on a
// CPU with tests/cpp/cuda_emulation.h in place of this file.
#pragma once

#ifdef FASTDIFF_CUDA_EMULATION
#include "cuda_emulation.h"
#else

#include "host_device.h"

// The block's dynamic shared memory.
#define FASTDIFF_SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]

namespace fastdiff::cuda {

// ---- clusters: sm_90 and newer; elsewhere every block is a cluster of its own -------------------

__device__ inline int cluster_rank() {
#if __CUDA_ARCH__ >= 900
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return static_cast<int>(rank);
#else
    return 0;
#endif
}

__device__ inline int cluster_size() {
#if __CUDA_ARCH__ >= 900
    uint32_t size;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return static_cast<int>(size);
#else
    return 1;
#endif
}

// Waits for all threads of all blocks of the cluster; what they wrote to shared memory is visible afterwards.
__device__ inline void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
#endif
}

// The float that lies in the shared memory of block `rank` of the cluster where `local` lies in this block's.
__device__ inline float read_remote(const float* local, int rank) {
#if __CUDA_ARCH__ >= 900
    uint32_t address;
    float value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(address)
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(local))), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
#else
    return *local;
#endif
}

// ---- copies from device memory to shared memory that do not occupy the thread -------------------

// 16 bytes, both addresses aligned to them.
__device__ inline void copy_async(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
                 "l"(global)
                 : "memory");
}

// Waits for the thread's own copies; others see them after a barrier.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace fastdiff::cuda

#endif
