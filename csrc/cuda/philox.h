// The numbers of PyTorch's CUDA generator: torch.randn(n, device="cuda", generator=g) in float32.
//
//   engine    Philox4x32-10 (Salmon et al. 2011), key = the seed
//   counter   words 0 and 1: the generator's offset / 4 + how many blocks this thread has drawn before;
//             words 2 and 3: the number of the thread, cuRAND's "subsequence"
//   normals   each block of four words becomes two pairs by Box and Muller's transform, the sine first
//   threads   256 · min(multiprocessors · (threads per multiprocessor / 256), ceil(n / 256))
//   elements  a thread's first block gives elements thread, thread + threads, + 2·threads, + 3·threads; its
//   next
//             one continues behind the 4·threads elements that all first blocks give
//   offset    grows by 4 for every block that a thread draws
//
// The constants are those of cuRAND, which PyTorch 2.11 to 2.13 uses. On the GPU the sine and cosine are the
// hardware's approximations, as cuRAND's are, so that the normals are PyTorch's bit for bit; the host
// computes them to the last place, which differs by at most 2^-20.5 (PTX ISA, sin.approx) times the
// radius, 6.7 at most.
#pragma once

#include "host_device.h"

namespace fastdiff::cuda {

struct Words4 {
    uint32_t x, y, z, w;
};

FASTDIFF_HD uint32_t multiply_high(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}

// One block of the engine for a counter and a key.
FASTDIFF_HD Words4 philox(Words4 counter, uint32_t key0, uint32_t key1) {
    FASTDIFF_UNROLL
    for (int round = 0; round < 10; ++round) {
        const uint32_t high0 = multiply_high(0xd2511f53u, counter.x), low0 = 0xd2511f53u * counter.x;
        const uint32_t high1 = multiply_high(0xcd9e8d57u, counter.z), low1 = 0xcd9e8d57u * counter.z;
        counter = Words4{high1 ^ counter.y ^ key0, low1, high0 ^ counter.w ^ key1, low0};
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    return counter;
}

struct Pair {
    float sine, cosine;
};

// Two normals of two words: u in (0, 1] for the radius, v in (0, 2π] for the angle.
FASTDIFF_HD Pair box_muller(uint32_t x, uint32_t y) {
    constexpr float scale = 2.3283064e-10f, angle = 2.3283064e-10f * 6.2831855f;
    const float u = fmaf(static_cast<float>(x), scale, scale / 2);
    const float v = fmaf(static_cast<float>(y), angle, angle / 2);
    const float radius = sqrtf(-2.0f * logf(u));
#ifdef __CUDA_ARCH__
    float sine, cosine;
    __sincosf(v, &sine, &cosine);
#else
    const float sine = sinf(v), cosine = cosf(v);
#endif
    return Pair{radius * sine, radius * cosine};
}

// How many threads a draw of n > 0 elements has on a GPU.
FASTDIFF_HD uint32_t philox_threads(uint64_t n, uint32_t multiprocessors,
                                    uint32_t threads_per_multiprocessor) {
    const uint64_t blocks = (n + 255) / 256, resident = multiprocessors * (threads_per_multiprocessor / 256);
    return static_cast<uint32_t>(256 * (blocks < resident ? blocks : resident));
}

// By how much a draw of n > 0 elements moves the generator's offset.
FASTDIFF_HD uint64_t philox_increment(uint64_t n, uint32_t threads) {
    return ((n - 1) / (4 * static_cast<uint64_t>(threads)) + 1) * 4;
}

// Element i of a draw. `offset` is a multiple of 4, the generator's before the draw.
FASTDIFF_HD float philox_normal(uint64_t seed, uint64_t offset, uint64_t i, uint32_t threads) {
    const uint64_t share = i / threads, thread = i % threads, block = offset / 4 + share / 4;
    const Words4 words = philox(Words4{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                                       static_cast<uint32_t>(thread), static_cast<uint32_t>(thread >> 32)},
                                static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    const bool second = share % 4 >= 2;
    const Pair pair = box_muller(second ? words.z : words.x, second ? words.w : words.y);
    // PyTorch computes normal · std + mean, which turns −0 into +0.
    return (share % 2 == 0 ? pair.sine : pair.cosine) + 0.0f;
}

}  // namespace fastdiff::cuda
