// Runs a .cu of csrc/cuda/ on the CPU: every GPU thread is a thread, the blocks of a cluster run at once and
// the clusters one after another. Barriers and shuffles wait as on the GPU, so that ThreadSanitizer sees a
// missing one, and AddressSanitizer an index outside of an array. Takes the place of csrc/cuda/device.h.
#pragma once

#include <barrier>
#include <cstddef>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define FASTDIFF_SHARED_MEMORY(name) static const fastdiff::emulation::SharedMemory name

namespace fastdiff::emulation {

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

struct Warp {
    std::barrier<> barrier;
    std::vector<float> values = std::vector<float>(32);
    explicit Warp(std::ptrdiff_t threads) : barrier(threads) {}
};

struct Block {
    std::barrier<> barrier;
    // Of exactly the size that the launch asks for.
    std::unique_ptr<unsigned char[]> memory;
    std::vector<std::unique_ptr<Warp>> warps;
    Block(int threads, std::size_t shared) : barrier(threads), memory(new unsigned char[shared]) {
        for (int first = 0; first < threads; first += 32) {
            warps.push_back(std::make_unique<Warp>(threads - first < 32 ? threads - first : 32));
        }
    }
};

struct Cluster {
    std::barrier<> barrier;
    std::vector<std::unique_ptr<Block>> blocks;
    Cluster(int size, int threads, std::size_t shared)
        : barrier(static_cast<std::ptrdiff_t>(size) * threads) {
        for (int i = 0; i < size; ++i) blocks.push_back(std::make_unique<Block>(threads, shared));
    }
};

inline thread_local Dim3 thread_index, block_index, block_size, grid_size;
inline thread_local Cluster* cluster = nullptr;
inline thread_local int rank = 0;

inline Block& block() { return *cluster->blocks[static_cast<std::size_t>(rank)]; }

struct SharedMemory {
    operator unsigned char*() const { return block().memory.get(); }
};

// Runs kernel(args...) on grid × threads; the grid's x counts blocks and is a multiple of `cluster_size`.
template <typename Kernel, typename... Args>
void launch(Dim3 grid, unsigned threads, unsigned cluster_size, std::size_t shared, Kernel kernel,
            Args... args) {
    for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned first = 0; first < grid.x; first += cluster_size) {
            Cluster state(static_cast<int>(cluster_size), static_cast<int>(threads), shared);
            std::vector<std::jthread> running;
            for (unsigned number = 0; number < cluster_size * threads; ++number) {
                running.emplace_back([&, number] {
                    cluster = &state;
                    rank = static_cast<int>(number / threads);
                    thread_index = Dim3{number % threads, 0, 0};
                    block_index = Dim3{first + number / threads, y, 0};
                    block_size = Dim3{threads, 1, 1};
                    grid_size = grid;
                    kernel(args...);
                });
            }
        }
    }
}

}  // namespace fastdiff::emulation

#define threadIdx (fastdiff::emulation::thread_index)
#define blockIdx (fastdiff::emulation::block_index)
#define blockDim (fastdiff::emulation::block_size)
#define gridDim (fastdiff::emulation::grid_size)

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

inline int cluster_rank() { return emulation::rank; }
inline int cluster_size() { return static_cast<int>(emulation::cluster->blocks.size()); }
inline void cluster_barrier() { emulation::cluster->barrier.arrive_and_wait(); }

inline float read_remote(const float* local, int other) {
    const auto* own = reinterpret_cast<const unsigned char*>(local);
    const std::ptrdiff_t offset = own - emulation::block().memory.get();
    float value;
    std::memcpy(&value, emulation::cluster->blocks[static_cast<std::size_t>(other)]->memory.get() + offset,
                sizeof value);
    return value;
}

// At once, which is one of the orders that the GPU may take.
inline void copy_async(void* shared, const void* global) { std::memcpy(shared, global, 16); }
inline void wait_for_copies() {}

}  // namespace fastdiff::cuda
