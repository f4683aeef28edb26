#include "runtime/measure.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "cpu/dispatch.h"
#include "runtime/aligned.h"

namespace fastdiff {
namespace {

// More than a last-level cache holds.
constexpr std::size_t cold_bytes = std::size_t{128} << 20;
constexpr std::size_t most_copies = 64;

// Numbers of ordinary size: some kernels are slower on denormals and zeros compress in no cache.
Aligned<float> numbers(std::size_t count) {
    Aligned<float> values = aligned<float>(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = 0.01f * static_cast<float>(i % 61) - 0.3f;
    return values;
}

// The same, as packed weights of either type: memory that the hundreds of layers of a build share.
class Pool {
  public:
    explicit Pool(WeightType type) : type_(type) {}
    const std::byte* get(std::size_t bytes) {
        if (bytes <= bytes_) return memory_.get();
        bytes_ = 0;
        memory_ = Aligned<std::byte>();  // first, so that the two are never held together
        memory_ = aligned<std::byte>(bytes);
        for (std::size_t i = 0; i < bytes / 4; ++i) {
            const float value = 0.01f * static_cast<float>(i % 61) - 0.3f;
            const std::uint32_t halves = 0x30003000u + static_cast<std::uint32_t>(i % 61) * 0x00010001u;
            std::memcpy(memory_.get() + 4 * i,
                        type_ == WeightType::fp32 ? static_cast<const void*>(&value) : &halves, 4);
        }
        bytes_ = bytes;
        return memory_.get();
    }

  private:
    WeightType type_;
    std::size_t bytes_ = 0;
    Aligned<std::byte> memory_;
};

// A layer's weights in several copies, which take turns.
struct Weights {
    Weights(std::size_t bytes, WeightType type)
        : step(bytes),
          copies(std::clamp(cold_bytes / std::max<std::size_t>(bytes, 1), std::size_t{1}, most_copies)) {
        static thread_local Pool floats(WeightType::fp32), halves(WeightType::fp16);
        memory = (type == WeightType::fp32 ? floats : halves).get(std::max(cold_bytes, copies * bytes));
    }
    const void* next() { return memory + step * (turn++ % copies); }

    std::size_t step, copies, turn = 0;
    const std::byte* memory;
};

template <class Run>
double median_seconds(double budget, const Run& run) {
    using clock = std::chrono::steady_clock;
    const auto begin = clock::now();
    std::vector<double> seconds;
    run();  // pages and caches
    do {
        const auto before = clock::now();
        run();
        seconds.push_back(std::chrono::duration<double>(clock::now() - before).count());
    } while (std::chrono::duration<double>(clock::now() - begin).count() < budget && seconds.size() < 1000);
    const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
    std::nth_element(seconds.begin(), middle, seconds.end());
    return *middle;
}

}  // namespace

double measure_conv2d(const Conv2dShape& shape, ConvAlgorithm algorithm, WeightType type,
                      const Parallel& parallel, Isa isa, double budget) {
    Weights weights(conv2d_packed_bytes(shape, algorithm, type), type);
    const Aligned<float> x = numbers(shape.batch * shape.height * shape.width * shape.in);
    const Aligned<float> y = numbers(shape.batch * shape.out_height() * shape.out_width() * shape.out);
    const Aligned<float> bias = numbers(shape.out);
    Conv2dArgs args{};
    args.shape = shape;
    args.algorithm = algorithm;
    args.type = type;
    args.x = x.get();
    args.x_stride = shape.in;
    args.bias = bias.get();
    args.y = y.get();
    args.y_stride = shape.out;
    args.scale = 1.0f;
    const Aligned<std::byte> scratch = aligned<std::byte>(conv2d_scratch(args, parallel.threads));
    args.scratch = scratch.get();
    return median_seconds(budget, [&] {
        args.weight = weights.next();
        kernels(isa).conv2d(args, parallel);
    });
}

double measure_linear(std::size_t rows, std::size_t in, std::size_t out, Activation activation,
                      WeightType type, const Parallel& parallel, Isa isa, double budget) {
    const std::size_t outputs = activation == Activation::geglu ? 2 * out : out;
    Weights weights(linear_packed_bytes(in, outputs, type), type);
    const Aligned<float> x = numbers(rows * in), y = numbers(rows * out), bias = numbers(outputs);
    LinearArgs args{};
    args.rows = rows;
    args.in = args.x_stride = in;
    args.out = args.y_stride = out;
    args.type = type;
    args.x = x.get();
    args.bias = bias.get();
    args.y = y.get();
    args.activation = activation;
    args.scale = 1.0f;
    const Aligned<std::byte> scratch = aligned<std::byte>(linear_scratch(args, parallel.threads));
    args.scratch = scratch.get();
    return median_seconds(budget, [&] {
        args.weight = weights.next();
        kernels(isa).linear(args, parallel);
    });
}

}  // namespace fastdiff
