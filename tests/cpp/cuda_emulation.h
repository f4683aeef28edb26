// Runs a .cu of csrc/cuda/ on the CPU: the blocks of a cluster run at once, the clusters one after another,
// and barriers and shuffles wait as on the GPU. With ThreadSanitizer every GPU thread is a thread, so that a
// missing barrier is a race; else it is a context that hands over at barriers (cuda_emulation_threads.h).
// AddressSanitizer sees an index outside of an array. Takes the place of csrc/cuda/device.h.
#pragma once

#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "cuda_emulation_threads.h"

#define __global__
#define __device__
#define __launch_bounds__(...)
#define FASTDIFF_SHARED_MEMORY(name) static const fastdiff::emulation::SharedMemory name

namespace fastdiff::emulation {

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t guard = 0;
#else
constexpr std::size_t guard = 256;
#endif

struct Warp {
    Barrier barrier;
    std::vector<float> values = std::vector<float>(32);
    explicit Warp(std::ptrdiff_t threads) : barrier(threads) {}
};

struct Block {
    Barrier barrier;
    // Of exactly the size that the launch asks for, for AddressSanitizer; else with a guard behind it.
    std::unique_ptr<unsigned char[]> memory;
    std::size_t size;
    std::vector<std::unique_ptr<Warp>> warps;
    Block(int threads, std::size_t shared)
        : barrier(threads), memory(new unsigned char[shared + guard]), size(shared) {
        std::memset(memory.get() + size, 0x5a, guard);
        for (int first = 0; first < threads; first += 32) {
            warps.push_back(std::make_unique<Warp>(threads - first < 32 ? threads - first : 32));
        }
    }
    ~Block() {
        for (std::size_t i = 0; i < guard; ++i) {
            if (memory[size + i] == 0x5a) continue;
            std::fprintf(stderr, "cuda_emulation: a kernel wrote past its %zu bytes of shared memory\n",
                         size);
            std::abort();
        }
    }
};

struct Cluster {
    Barrier barrier;
    std::vector<std::unique_ptr<Block>> blocks;
    Cluster(int size, int threads, std::size_t shared)
        : barrier(static_cast<std::ptrdiff_t>(size) * threads) {
        for (int i = 0; i < size; ++i) blocks.push_back(std::make_unique<Block>(threads, shared));
    }
};

// What a GPU thread knows of itself.
struct Identity {
    Dim3 thread_index, block_index, block_size, grid_size;
    Cluster* cluster = nullptr;
    int rank = 0;
};

inline Identity& self() { return *static_cast<Identity*>(current_thread()); }
inline Block& block() { return *self().cluster->blocks[static_cast<std::size_t>(self().rank)]; }

struct SharedMemory {
    operator unsigned char*() const { return block().memory.get(); }
};

// Runs kernel(args...) on grid × threads; the grid's x counts blocks and is a multiple of `cluster_size`.
template <typename Kernel, typename... Args>
void launch(Dim3 grid, unsigned threads, unsigned cluster_size, std::size_t shared, Kernel kernel,
            Args... args) {
    for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned first = 0; first < grid.x; first += cluster_size) {
            Cluster cluster(static_cast<int>(cluster_size), static_cast<int>(threads), shared);
            std::vector<Identity> identities(cluster_size * threads);
            std::vector<void*> pointers;
            for (unsigned number = 0; number < cluster_size * threads; ++number) {
                const unsigned rank = number / threads;
                identities[number] =
                    Identity{{number % threads, 0, 0}, {first + rank, y, 0}, {threads, 1, 1}, grid, &cluster,
                             static_cast<int>(rank)};
                pointers.push_back(&identities[number]);
            }
            run_threads(pointers, [&] { kernel(args...); });
        }
    }
}

}  // namespace fastdiff::emulation

#define threadIdx (fastdiff::emulation::self().thread_index)
#define blockIdx (fastdiff::emulation::self().block_index)
#define blockDim (fastdiff::emulation::self().block_size)
#define gridDim (fastdiff::emulation::self().grid_size)

inline void __syncthreads() { fastdiff::emulation::block().barrier.arrive_and_wait(); }

// Of all lanes of the warp.
inline float __shfl_xor_sync(unsigned, float value, int distance) {
    auto& warp = *fastdiff::emulation::block().warps[threadIdx.x / 32];
    warp.values[threadIdx.x % 32] = value;
    warp.barrier.arrive_and_wait();
    const float other = warp.values.at(threadIdx.x % 32 ^ static_cast<unsigned>(distance));
    warp.barrier.arrive_and_wait();
    return other;
}

namespace fastdiff::cuda {

inline int cluster_rank() { return emulation::self().rank; }
inline int cluster_size() { return static_cast<int>(emulation::self().cluster->blocks.size()); }
inline void cluster_barrier() { emulation::self().cluster->barrier.arrive_and_wait(); }

inline float read_remote(const float* local, int other) {
    const auto* own = reinterpret_cast<const unsigned char*>(local);
    const std::ptrdiff_t offset = own - emulation::block().memory.get();
    float value;
    std::memcpy(&value,
                emulation::self().cluster->blocks[static_cast<std::size_t>(other)]->memory.get() + offset,
                sizeof value);
    return value;
}

// At once, which is one of the orders that the GPU may take.
inline void copy_async(void* shared, const void* global) { std::memcpy(shared, global, 16); }
inline void wait_for_copies() {}

}  // namespace fastdiff::cuda
