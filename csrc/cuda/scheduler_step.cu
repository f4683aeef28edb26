// One step of a sampler, all of it in one launch and one pass: guidance, the linear update, clipping, what
// the multistep solvers keep and what the model sees next. Every coefficient of table_step is in device
// memory, so that a captured launch serves all steps. One thread per element: latents are small, and the
// fewest instructions in a row are the shortest time.
//
//   scheduler_step_<t>  reference.py scheduler_step; every array is of type t
//   table_step_<t>      reference.py table_step; t is the model's type, the rest float
//   normal              out[i] = element i of the draw that PyTorch's CUDA generator makes next
//
// Noise comes from an array, or, where `generator` is given, from PyTorch's CUDA generator at
// (seed, offset) = generator[0, 1] (philox.h): step i of a table takes draw i from there.
#include "device.h"
#include "half.h"
#include "philox.h"
#include "scheduler_step.h"

using namespace fastdiff::cuda;

namespace {

constexpr int block_threads = 256;

__device__ int element() { return static_cast<int>(blockIdx.x * block_threads + threadIdx.x); }

__device__ float draw(const uint64_t* generator, uint64_t number, int i, int size, int philox_threads) {
    const auto threads = static_cast<uint32_t>(philox_threads);
    return philox_normal(generator[0], generator[1] + number * philox_increment(size, threads), i, threads);
}

struct History {
    const void* arrays[8];
    float coefs[8];
};

template <typename T>
__device__ void step(const T* sample, const T* cond, const T* uncond, float guidance, float sample_coef,
                     float output_coef, const History& history, int history_size, const T* noise,
                     const uint64_t* generator, int philox_threads, float noise_coef, T* out, T* guided,
                     int size) {
    const int i = element();
    if (i >= size) return;
    float m = to_float(cond[i]);
    if (uncond != nullptr) m = guide(m, to_float(uncond[i]), guidance);
    float result = sample_coef * to_float(sample[i]) + output_coef * m;
    FASTDIFF_UNROLL
    for (int k = 0; k < 8; ++k) {
        if (k < history_size)
            result += history.coefs[k] * to_float(static_cast<const T*>(history.arrays[k])[i]);
    }
    if (noise != nullptr) result += noise_coef * to_float(noise[i]);
    if (generator != nullptr) result += noise_coef * draw(generator, 0, i, size, philox_threads);
    from_float(result, out[i]);
    from_float(m, guided[i]);
}

template <typename T>
__device__ void table(const float* sample, const T* output, const float* slots, const float* rows,
                      const int32_t* saves, const int32_t* counter, const float* noise,
                      const uint64_t* generator, int philox_threads, const float* rescale,
                      const float* threshold, float* out, float* out_slots, T* model_input, int guided,
                      int slot_count, int size, int image_size) {
    const int i = element();
    if (i >= size) return;
    const int number = *counter;
    const float* row_start = rows + static_cast<int64_t>(number) * (row_columns + slot_count);
    const Row row = read_row(row_start);
    const int image = i / image_size;
    const float x = sample[i];
    float m = to_float(output[i]);
    if (guided != 0) m = guide(to_float(output[size + i]), m, row.guidance);
    if (rescale != nullptr) m *= rescale[image];
    float z = 0.0f;
    if (noise != nullptr) z = noise[static_cast<int64_t>(number) * size + i];
    if (generator != nullptr && row.noise != 0.0f) z = draw(generator, number, i, size, philox_threads);

    const float d = estimate(row, x, m, threshold == nullptr ? nullptr : threshold + image);
    const float next = advance(row, x, m, d, slots + i, size, row_start + row_columns, slot_count, z);
    out[i] = next;
    // Reading all slots comes before writing one: out_slots may be slots. In order: d after x, as the
    // reference.
    const int keeps_sample = saves[2 * number], keeps_output = saves[2 * number + 1];
    if (out_slots != slots) {
        for (int k = 0; k < slot_count; ++k) {
            out_slots[static_cast<int64_t>(k) * size + i] = slots[static_cast<int64_t>(k) * size + i];
        }
    }
    if (keeps_sample >= 0) out_slots[static_cast<int64_t>(keeps_sample) * size + i] = x;
    if (keeps_output >= 0) out_slots[static_cast<int64_t>(keeps_output) * size + i] = d;
    T scaled;
    from_float(row.next_scale * next, scaled);
    model_input[i] = scaled;
    if (guided != 0) model_input[size + i] = scaled;
}

}  // namespace

#define STEP(suffix, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(block_threads, 1) scheduler_step##suffix(                 \
        const T* sample, const T* cond, const T* uncond, float guidance, float sample_coef,                \
        float output_coef, const T* h0, const T* h1, const T* h2, const T* h3, const T* h4, const T* h5,   \
        const T* h6, const T* h7, float c0, float c1, float c2, float c3, float c4, float c5, float c6,    \
        float c7, int history_size, const T* noise, const uint64_t* generator, int philox_threads,         \
        float noise_coef, T* out, T* guided, int size) {                                                   \
        step<T>(sample, cond, uncond, guidance, sample_coef, output_coef,                                  \
                History{{h0, h1, h2, h3, h4, h5, h6, h7}, {c0, c1, c2, c3, c4, c5, c6, c7}}, history_size, \
                noise, generator, philox_threads, noise_coef, out, guided, size);                          \
    }

#define TABLE(suffix, T)                                                                                   \
    extern "C" __global__ void __launch_bounds__(block_threads, 1) table_step##suffix(                     \
        const float* sample, const T* output, const float* slots, const float* rows, const int32_t* saves, \
        const int32_t* counter, const float* noise, const uint64_t* generator, int philox_threads,         \
        const float* rescale, const float* threshold, float* out, float* out_slots, T* model_input,        \
        int guided, int slot_count, int size, int image_size) {                                            \
        table<T>(sample, output, slots, rows, saves, counter, noise, generator, philox_threads, rescale,   \
                 threshold, out, out_slots, model_input, guided, slot_count, size, image_size);            \
    }

STEP(_f32, float)
STEP(_f16, f16)
STEP(_bf16, bf16)
TABLE(_f32, float)
TABLE(_f16, f16)
TABLE(_bf16, bf16)

extern "C" __global__ void __launch_bounds__(block_threads, 1)
    normal(const uint64_t* generator, int number, int philox_threads, float* out, int size) {
    const int i = element();
    if (i < size) out[i] = draw(generator, number, i, size, philox_threads);
}
