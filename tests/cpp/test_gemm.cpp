// linear and conv2d without Python, on arrays that end where their last element does: under AddressSanitizer
// this shows every load and store beyond.
#include <cmath>

#include "check.h"
#include "cpu/dispatch.h"
#include "kernels/conv2d.h"
#include "kernels/group_norm_silu.h"
#include "kernels/linear.h"
#include "runtime/aligned.h"
#include "runtime/thread_pool.h"

namespace fastdiff::tests {
namespace {

void expect_near(const float* found, const std::vector<double>& wanted, double tolerance,
                 const std::string& what) {
    double worst = 0.0, largest = 1.0;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        worst = std::fmax(worst, std::fabs(found[i] - wanted[i]));
        largest = std::fmax(largest, std::fabs(wanted[i]));
    }
    if (!(worst <= tolerance * largest)) {
        fail(__FILE__, __LINE__, what + ": largest difference " + std::to_string(worst));
    }
}

double gelu(double x) { return 0.5 * x * (1.0 + std::erf(x * std::sqrt(0.5))); }

void check_linear(Isa isa, std::size_t rows, std::size_t in, std::size_t out, bool geglu, WeightType type,
                  const Parallel& parallel) {
    Random random(rows * 100 + in);
    const std::size_t outputs = geglu ? 2 * out : out;
    const std::vector<float> x = random.array(rows * in), bias = random.array(outputs),
                             residual = random.array(rows * out);
    std::vector<float> weight = random.array(outputs * in), y(rows * out);
    for (float& w : weight) w = std::round(w * 64.0f) / 64.0f;  // exact in half precision
    std::vector<double> wanted(rows * out);
    const auto sum = [&](std::size_t r, std::size_t o) {
        double s = bias[o];
        for (std::size_t i = 0; i < in; ++i) s += static_cast<double>(x[r * in + i]) * weight[o * in + i];
        return s;
    };
    for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t o = 0; o < out; ++o) {
            const double value = geglu ? sum(r, o) * gelu(sum(r, o + out)) : sum(r, o);
            wanted[r * out + o] = 0.5 * (value + residual[r * out + o]);
        }
    }
    const std::size_t bytes = linear_packed_bytes(in, outputs, type);
    const Aligned<std::byte> packed = aligned<std::byte>(bytes);
    linear_pack(weight.data(), in, outputs, type, packed.get());
    LinearArgs args{};
    args.rows = rows;
    args.in = args.x_stride = in;
    args.out = args.y_stride = args.residual_stride = out;
    args.x = x.data();
    args.weight = packed.get();
    args.type = type;
    args.bias = bias.data();
    args.residual = residual.data();
    args.y = y.data();
    args.activation = geglu ? Activation::geglu : Activation::none;
    args.scale = 0.5f;
    const Aligned<std::byte> scratch = aligned<std::byte>(linear_scratch(args, parallel.threads));
    args.scratch = scratch.get();
    kernels(isa).linear(args, parallel);
    expect_near(y.data(), wanted, 5e-6,
                "linear on " + std::string(isa_name(isa)) + ", " + std::to_string(rows) + " rows of " +
                    std::to_string(in));
}

void check_conv2d(Isa isa, const Conv2dShape& s, ConvAlgorithm algorithm, bool normalised,
                  const Parallel& parallel) {
    Random random(s.in * 100 + s.width);
    const std::vector<float> x = random.array(s.batch * s.height * s.width * s.in),
                             weight = random.array(s.out * s.in * s.kernel_h * s.kernel_w),
                             bias = random.array(s.out), vector = random.array(s.batch * s.out);
    const std::size_t height = s.out_height(), width = s.out_width(), padded = group_norm_padded(s.in);
    std::vector<float> y(s.batch * height * width * s.out), affine(s.batch * 3 * padded);
    for (std::size_t i = 0; i < affine.size(); ++i) {
        affine[i] = !normalised         ? (i / padded % 3 == 1 ? 1.0f : 0.0f)
                    : i % padded < s.in ? random.next()
                                        : 0.0f;
    }
    std::vector<double> wanted;
    for (std::size_t n = 0; n < s.batch; ++n) {
        const auto at = [&](std::size_t row, std::size_t column, std::size_t c) {
            if (row < s.pad_top || column < s.pad_left) return 0.0;
            row -= s.pad_top;
            column -= s.pad_left;
            if (row >= s.seen_height() || column >= s.seen_width()) return 0.0;
            row /= s.upsample;
            column /= s.upsample;
            const float* a = affine.data() + n * 3 * padded + c;
            return (static_cast<double>(x[((n * s.height + row) * s.width + column) * s.in + c]) - a[0]) *
                       a[padded] +
                   a[2 * padded];
        };
        for (std::size_t p = 0; p < height * width; ++p) {
            for (std::size_t o = 0; o < s.out; ++o) {
                double sum = bias[o] + vector[n * s.out + o];
                for (std::size_t c = 0; c < s.in; ++c) {
                    for (std::size_t k = 0; k < s.kernel_h * s.kernel_w; ++k) {
                        sum += weight[(o * s.in + c) * s.kernel_h * s.kernel_w + k] *
                               at(p / width * s.stride + k / s.kernel_w,
                                  p % width * s.stride + k % s.kernel_w, c);
                    }
                }
                wanted.push_back(sum);
            }
        }
    }
    const Aligned<std::byte> packed = aligned<std::byte>(conv2d_packed_bytes(s, algorithm, WeightType::fp32));
    conv2d_pack(weight.data(), s, algorithm, WeightType::fp32, packed.get());
    Conv2dArgs args{};
    args.shape = s;
    args.algorithm = algorithm;
    args.x = x.data();
    args.x_stride = s.in;
    args.weight = packed.get();
    args.bias = bias.data();
    args.vector = vector.data();
    args.vector_stride = args.y_stride = s.out;
    args.y = y.data();
    args.scale = 1.0f;
    args.affine = normalised ? affine.data() : nullptr;
    std::vector<double> sums(s.batch * conv2d_sum_parts(args) * 2 * group_norm_padded(s.out));
    args.sums = sums.data();
    const Aligned<std::byte> scratch = aligned<std::byte>(conv2d_scratch(args, parallel.threads));
    args.scratch = scratch.get();
    kernels(isa).conv2d(args, parallel);
    expect_near(y.data(), wanted, 1e-5,
                "conv2d on " + std::string(isa_name(isa)) + ", algorithm " +
                    std::to_string(static_cast<int>(algorithm)) + ", " + std::to_string(s.in) + " channels");
}

}  // namespace

void test_gemm() {
    for (const std::size_t threads : {1, 3}) {
        ThreadPool pool(threads);
        const Parallel parallel = pool.parallel();
        for (Isa isa : available_isas()) {
            for (WeightType type : {WeightType::fp32, WeightType::fp16}) {
                for (bool geglu : {false, true}) {
                    check_linear(isa, 1, 1, 1, geglu, type, parallel);
                    check_linear(isa, 5, 33, 47, geglu, type, parallel);
                    check_linear(isa, 29, 515, 32, geglu, type, parallel);
                }
            }
            for (auto algorithm :
                 {ConvAlgorithm::direct, ConvAlgorithm::winograd2, ConvAlgorithm::winograd4}) {
                for (bool normalised : {false, true}) {
                    check_conv2d(isa, {1, 1, 1, 1, 1, 3, 3, 1, 1, 1, 1, 1, 1}, algorithm, normalised,
                                 parallel);
                    check_conv2d(isa, {2, 5, 7, 19, 33, 3, 3, 1, 1, 1, 1, 1, 1}, algorithm, normalised,
                                 parallel);
                    check_conv2d(isa, {2, 3, 4, 5, 17, 3, 3, 1, 0, 2, 1, 3, 2}, algorithm, normalised,
                                 parallel);
                    check_conv2d(isa, {2, 3, 4, 5, 17, 3, 3, 1, 1, 1, 1, 1, 2, 1, 1}, algorithm, normalised,
                                 parallel);
                }
            }
            check_conv2d(isa, {1, 6, 5, 4, 20, 3, 3, 2, 0, 1, 0, 1, 1}, ConvAlgorithm::direct, false,
                         parallel);
            check_conv2d(isa, {2, 4, 5, 18, 3, 1, 1, 2, 0, 0, 0, 0, 1}, ConvAlgorithm::direct, false,
                         parallel);
        }
    }
}

}  // namespace fastdiff::tests
