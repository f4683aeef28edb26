// The kernels of csrc/cuda/scheduler_step.cu on the CPU, against the formulas in double, and their noise.
#define FASTDIFF_CUDA_EMULATION
#include <cmath>
#include <utility>

#include "check.h"
#include "cuda/scheduler_step.cu"

namespace fastdiff::tests {
namespace {

using cuda::bf16;
using cuda::f16;

void check_philox() {
    // Known answers of Random123 (Salmon et al. 2011), philox4x32 with 10 rounds: counter, key, result.
    const std::uint32_t vectors[][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d, 0x41c83b0e,
         0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb,
         0x5001e420, 0x24126ea1},
    };
    for (const auto& v : vectors) {
        const cuda::Words4 words = cuda::philox({v[0], v[1], v[2], v[3]}, v[4], v[5]);
        CHECK(words.x == v[6] && words.y == v[7] && words.z == v[8] && words.w == v[9]);
    }
}

void check_box_muller() {
    const std::uint32_t words[] = {0,          1,          255,        0x7fffff,  0x40000000,
                                   0x7fffffff, 0x80000000, 0xfffffeff, 0xffffffff};
    for (std::uint32_t x : words) {
        for (std::uint32_t y : words) {
            const cuda::Pair pair = cuda::box_muller(x, y);
            // u of the largest words rounds to 1: a radius of 0, never NaN.
            const double u = std::fmin(1.0, static_cast<float>((x + 0.5) * 0x1p-32));
            const double angle = 2.0 * 3.14159265358979323846 * (y + 0.5) * 0x1p-32,
                         radius = std::sqrt(-2.0 * std::log(u));
            CHECK(std::fabs(pair.sine - radius * std::sin(angle)) < 4e-6);
            CHECK(std::fabs(pair.cosine - radius * std::cos(angle)) < 4e-6);
        }
    }
}

// PyTorch's kernel as it is written, thread by thread: what it writes where.
std::vector<float> draw_by_threads(std::uint64_t seed, std::uint64_t offset, std::uint64_t n,
                                   std::uint32_t threads) {
    std::vector<float> out(n);
    for (std::uint64_t thread = 0; thread < threads; ++thread) {
        std::uint64_t block = offset / 4;
        for (std::uint64_t start = thread; start < n; start += 4ull * threads, ++block) {
            const auto low = static_cast<std::uint32_t>(block),
                       high = static_cast<std::uint32_t>(block >> 32);
            const cuda::Words4 words =
                cuda::philox({low, high, static_cast<std::uint32_t>(thread), 0},
                             static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
            const cuda::Pair first = cuda::box_muller(words.x, words.y),
                             second = cuda::box_muller(words.z, words.w);
            const float four[] = {first.sine, first.cosine, second.sine, second.cosine};
            for (std::uint64_t k = 0; k < 4; ++k) {
                if (start + k * threads < n) out[start + k * threads] = four[k] + 0.0f;
            }
        }
    }
    return out;
}

void check_draws() {
    const std::uint64_t seed = 0x9e3779b97f4a7c15ull;
    // A draw of one block of threads, one that is cut, several rounds, on a GPU of 3 · 512 threads.
    for (std::uint64_t n : {1ull, 255ull, 257ull, 1536ull, 1537ull, 6144ull, 6145ull, 20000ull}) {
        const std::uint32_t threads = cuda::philox_threads(n, 3, 512 + 255);
        CHECK(threads == std::min<std::uint64_t>(1536, (n + 255) / 256 * 256));
        std::uint64_t offset = 4ull << 31;  // the second counter word counts
        for (int draw = 0; draw < 2; ++draw) {
            const std::vector<float> wanted = draw_by_threads(seed, offset, n, threads);
            std::size_t wrong = 0;
            for (std::uint64_t i = 0; i < n; ++i) {
                wrong += cuda::philox_normal(seed, offset, i, threads) != wanted[i];
            }
            CHECK(wrong == 0);
            offset += cuda::philox_increment(n, threads);
        }
        // Each thread draws once for every four elements that it has.
        CHECK(offset - (4ull << 31) == 2 * 4 * ((n + 4ull * threads - 1) / (4ull * threads)));
    }
}

template <typename T>
std::vector<T> rounded(const std::vector<float>& values) {
    std::vector<T> result(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) cuda::from_float(values[i], result[i]);
    return result;
}

enum class Noise { none, array, generator };

struct Table {
    bool guided, rescale, threshold, clip, in_place;
    Noise noise;
    int slots, keeps_sample, keeps_output;
};

template <typename T, typename Kernel>
void check_table(const Table& t, Kernel kernel, double tolerance) {
    constexpr int images = 2, image_size = 173, steps = 3,
                  step = 2;  // no multiple of the 256 threads of a block
    constexpr std::size_t size = images * image_size;
    const auto slot_count = static_cast<std::size_t>(t.slots), columns = cuda::row_columns + slot_count;
    Random random(7);
    const std::vector<float> sample = random.array(size), slots = random.array(slot_count * size);
    const std::vector<T> output = rounded<T>(random.array(t.guided ? 2 * size : size));
    std::vector<float> rows = random.array(steps * columns);
    float* row = rows.data() + step * columns;
    row[6] = 1.0f;
    if (!t.clip) row[7] = 0.0f;
    const std::vector<std::int32_t> saves = {5, 5, 5, 5, t.keeps_sample, t.keeps_output};
    const std::int32_t counter = step;
    const std::vector<float> noise = random.array(steps * size);
    const std::vector<float> rescale = {0.5f, 0.75f}, threshold = {1.25f, 1.5f};
    const std::uint64_t generator[] = {42, 8};

    std::vector<float> x = sample, x_slots = slots;
    std::vector<float> out(size), out_slots(slots.size());
    std::vector<T> model_input(output.size());
    float* result = t.in_place ? x.data() : out.data();
    float* result_slots = t.in_place ? x_slots.data() : out_slots.data();
    emulation::launch({(size + 255) / 256, 1}, 256, 1, 0, kernel, x.data(), output.data(), x_slots.data(),
                      rows.data(), saves.data(), &counter, t.noise == Noise::array ? noise.data() : nullptr,
                      t.noise == Noise::generator ? generator : nullptr, 256,
                      t.rescale ? rescale.data() : nullptr, t.threshold ? threshold.data() : nullptr, result,
                      result_slots, model_input.data(), t.guided ? 1 : 0, t.slots, static_cast<int>(size),
                      image_size);

    double worst = 0.0;
    const auto note = [&](double found, double wanted) {
        worst = std::fmax(worst, std::fabs(found - wanted) / (1.0 + std::fabs(wanted)));
    };
    for (std::size_t i = 0; i < size; ++i) {
        const std::size_t image = i / image_size;
        double m = cuda::to_float(output[i]);
        if (t.guided) m += row[0] * (cuda::to_float(output[size + i]) - m);
        if (t.rescale) m *= rescale[image];
        double next = row[1] * static_cast<double>(sample[i]) + row[2] * m;
        for (std::size_t k = 0; k < slot_count; ++k)
            next += row[9 + k] * static_cast<double>(slots[k * size + i]);
        if (t.noise == Noise::array) next += row[3] * static_cast<double>(noise[step * size + i]);
        if (t.noise == Noise::generator) {
            // The third draw of 346 numbers by 256 threads, two for each: four words a draw.
            next += row[3] * static_cast<double>(cuda::philox_normal(42, 8 + 2 * 4, i, 256));
        }
        const double limit = t.threshold ? static_cast<double>(threshold[image]) : 1.0;
        const double d =
            std::fmin(std::fmax(row[4] * static_cast<double>(sample[i]) + row[5] * m, -limit), limit) / limit;
        if (t.clip) next += row[7] * d;
        note(result[i], next);
        for (std::size_t k = 0; k < slot_count; ++k) {
            double kept = slots[k * size + i];
            if (static_cast<int>(k) == t.keeps_sample) kept = sample[i];
            if (static_cast<int>(k) == t.keeps_output) kept = d;
            note(result_slots[k * size + i], kept);
        }
        T scaled;
        cuda::from_float(row[8] * result[i], scaled);
        note(cuda::to_float(model_input[i]), cuda::to_float(scaled));
        if (t.guided) note(cuda::to_float(model_input[size + i]), cuda::to_float(scaled));
    }
    if (!(worst < tolerance)) {
        fail(__FILE__, __LINE__,
             "table_step with " + std::to_string(t.slots) + " slots is off by " + std::to_string(worst));
    }
}

template <typename T, typename Kernel>
void check_step(Kernel kernel, bool guided, int history_size, Noise kind, double tolerance) {
    constexpr std::size_t size = 301;
    Random random(11);
    std::vector<T> arrays[12];
    for (auto& array : arrays) array = rounded<T>(random.array(size));
    const std::vector<float> coefs = random.array(8);
    const std::uint64_t generator[] = {1, 0};
    std::vector<T> sample = arrays[8];  // the result takes its place
    std::vector<T> kept(size);
    const T* h[8];
    for (int k = 0; k < 8; ++k) h[k] = k < history_size ? arrays[k].data() : nullptr;
    emulation::launch({2, 1}, 256, 1, 0, kernel, sample.data(), arrays[9].data(),
                      guided ? arrays[10].data() : nullptr, 3.5f, 0.75f, -0.5f, h[0], h[1], h[2], h[3], h[4],
                      h[5], h[6], h[7], coefs[0], coefs[1], coefs[2], coefs[3], coefs[4], coefs[5], coefs[6],
                      coefs[7], history_size, kind == Noise::array ? arrays[11].data() : nullptr,
                      kind == Noise::generator ? generator : nullptr, 512, 0.25f, sample.data(), kept.data(),
                      static_cast<int>(size));
    double worst = 0.0;
    for (std::size_t i = 0; i < size; ++i) {
        double m = cuda::to_float(arrays[9][i]);
        if (guided) m = cuda::to_float(arrays[10][i]) + 3.5 * (m - cuda::to_float(arrays[10][i]));
        double next = 0.75 * cuda::to_float(arrays[8][i]) - 0.5 * m;
        for (int k = 0; k < history_size; ++k) {
            next += static_cast<double>(coefs[static_cast<std::size_t>(k)]) * cuda::to_float(arrays[k][i]);
        }
        if (kind == Noise::array) next += 0.25 * cuda::to_float(arrays[11][i]);
        if (kind == Noise::generator) next += 0.25 * cuda::philox_normal(1, 0, i, 512);
        for (auto [found, wanted] :
             {std::pair{cuda::to_float(sample[i]), next}, {cuda::to_float(kept[i]), m}}) {
            worst = std::fmax(worst, std::fabs(found - wanted) / (1.0 + std::fabs(wanted)));
        }
    }
    if (!(worst < tolerance)) fail(__FILE__, __LINE__, "scheduler_step is off by " + std::to_string(worst));
}

void check_normal() {
    const std::uint64_t generator[] = {5, 12};
    std::vector<float> out(777);  // by 256 threads: the fourth share is not full
    emulation::launch({4, 1}, 256, 1, 0, normal, generator, 3, 256, out.data(), 777);
    CHECK(out == draw_by_threads(5, 12 + 3 * 4, 777, 256));
}

}  // namespace

void test_cuda_scheduler_step() {
    check_philox();
    check_box_muller();
    check_draws();
    check_normal();
    //                     guided rescale threshold clip in_place noise     slots keeps x, d
    const Table tables[] = {{true, false, false, false, true, Noise::none, 2, -1, 1},
                            {false, true, false, true, false, Noise::array, 3, 0, 2},
                            {true, true, true, true, true, Noise::generator, 1, 0, -1},
                            {true, false, true, true, false, Noise::none, 2, 1, 1},  // both into one: d stays
                            {false, false, false, false, true, Noise::generator, 0, -1, -1}};
    for (const Table& table : tables) {
        check_table<float>(table, table_step_f32, 2e-6);
        check_table<f16>(table, table_step_f16, 2e-6);  // the state is float whatever the model's type
        check_table<bf16>(table, table_step_bf16, 2e-6);
    }
    check_step<float>(scheduler_step_f32, true, 8, Noise::array, 2e-6);
    check_step<f16>(scheduler_step_f16, false, 3, Noise::generator, 5.1e-4);
    check_step<bf16>(scheduler_step_bf16, true, 0, Noise::none, 4.1e-3);
}

}  // namespace fastdiff::tests
