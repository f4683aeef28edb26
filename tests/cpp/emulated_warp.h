// csrc/cuda/mma.h's warp on a CPU: 32 lanes in lockstep, the warps of a block as threads, so that
// ThreadSanitizer sees two warps that use shared memory without a barrier between them. Fragments are laid
// out as the PTX ISA has them
// ("Matrix Fragments for mma.m16n8k16 …", "ldmatrix"), not by way of the kernel's own index functions.
#pragma once

#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <limits>
#include <thread>
#include <vector>

namespace fastdiff::tests {

// 16-bit floating types by their definition: 5 or 8 bits of exponent, rounded to nearest, ties to even.
template <bool Bfloat>
inline float decode(std::uint16_t bits) {
    constexpr int mantissa_bits = Bfloat ? 7 : 10, bias = Bfloat ? 127 : 15;
    const int exponent = (bits & 0x7fff) >> mantissa_bits, mantissa = bits & ((1 << mantissa_bits) - 1);
    double value;
    if (exponent == 2 * bias + 1) {
        value = mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                              : std::numeric_limits<double>::infinity();
    } else {
        const int whole = exponent != 0 ? mantissa + (1 << mantissa_bits) : mantissa;
        value = std::ldexp(whole, (exponent != 0 ? exponent : 1) - bias - mantissa_bits);
    }
    return static_cast<float>(bits & 0x8000 ? -value : value);
}

template <bool Bfloat>
inline std::uint16_t encode(float x) {
    constexpr int mantissa_bits = Bfloat ? 7 : 10, bias = Bfloat ? 127 : 15;
    constexpr int infinity = (2 * bias + 1) << mantissa_bits;
    const int sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return 0x7fff;
    if (std::isinf(x)) return static_cast<std::uint16_t>(sign | infinity);
    if (x == 0.0f) return static_cast<std::uint16_t>(sign);
    int exponent = std::ilogb(x);
    if (exponent < 1 - bias) exponent = 1 - bias;
    // A mantissa that is rounded up to the next power of two carries into the exponent by itself.
    const int whole = static_cast<int>(
        std::nearbyint(std::ldexp(std::fabs(static_cast<double>(x)), mantissa_bits - exponent)));
    const int bits = whole + ((exponent + bias - 1) << mantissa_bits);
    return static_cast<std::uint16_t>(sign | (bits < infinity ? bits : infinity));
}

// What the warps of a block share.
struct EmulatedBlock {
    // Copies arrive as early as they can, or as late: the first shows memory that was still in use, the
    // second what was used without waiting.
    enum class Copies { at_once, when_waited_for };

    EmulatedBlock(int warps, int bytes, Copies when)
        : shared(static_cast<std::size_t>(bytes), 0xff), barrier(warps), copies(when) {}

    std::vector<unsigned char> shared;  // NaN until written
    std::barrier<> barrier;
    Copies copies;
    std::atomic<int> faults{0};  // addresses that are not aligned or out of bounds, and bank conflicts
};

template <bool Bfloat>
class EmulatedWarp {
  public:
    struct Operands {
        float* sum;
        const uint32_t *left, *right;
    };

    template <class T>
    struct PerLane {
        T value[32];
        T& operator[](int lane) { return value[lane]; }
    };

    EmulatedWarp(EmulatedBlock& block, int index) : block_(block), index_(index) {}

    int index() const { return index_; }

    template <class F>
    void each(F&& f) {
        for (int lane = 0; lane < 32; ++lane) f(lane);
    }

    static uint32_t load_pair(const uint16_t* from) { return from[0] | static_cast<uint32_t>(from[1]) << 16; }
    static void store_pair(uint16_t* to, uint32_t pair) {
        to[0] = static_cast<uint16_t>(pair);
        to[1] = static_cast<uint16_t>(pair >> 16);
    }

    void copy(int, int to, const uint16_t* from) {
        if (!inside(to) || reinterpret_cast<std::uintptr_t>(from) % 16 != 0) return;
        if (block_.copies == EmulatedBlock::Copies::at_once) {
            std::memcpy(&block_.shared[static_cast<std::size_t>(to)], from, 16);
        } else {
            uncommitted_.push_back({to, from});
        }
    }
    void commit() {
        committed_.push_back(std::move(uncommitted_));
        uncommitted_.clear();
    }
    template <int Pending>
    void wait() {
        for (; committed_.size() > Pending; committed_.pop_front()) {
            for (const Copy& copy : committed_.front()) {
                std::memcpy(&block_.shared[static_cast<std::size_t>(copy.to)], copy.from, 16);
            }
        }
    }
    void sync() { block_.barrier.arrive_and_wait(); }

    template <bool Transpose, class Address, class To>
    void load(Address&& address, To&& to) {
        for (int matrix = 0; matrix < 4; ++matrix) {
            uint16_t rows[8][8] = {};
            unsigned banks = 0;
            for (int row = 0; row < 8; ++row) {
                const int from = address(8 * matrix + row);
                if (!inside(from)) continue;
                std::memcpy(rows[row], &block_.shared[static_cast<std::size_t>(from)], 16);
                banks |= 1u << from / 16 % 8;
            }
            if (banks != 0xff) ++block_.faults;
            for (int lane = 0; lane < 32; ++lane) {
                const int i = lane / 4, j = lane % 4 * 2;
                const uint32_t low = Transpose ? rows[j][i] : rows[i][j];
                const uint32_t high = Transpose ? rows[j + 1][i] : rows[i][j + 1];
                to(lane)[matrix] = low | high << 16;
            }
        }
    }

    template <int K, class F>
    void multiply(F&& operands) {
        float left[16][K], right[K][8];
        for (int lane = 0; lane < 32; ++lane) {
            const Operands o = operands(lane);
            const int group = lane / 4, in_group = lane % 4;
            for (int i = 0; i < K / 2; ++i) {  // elements a0 … a7, or a0 … a3
                const int row = i % 4 < 2 ? group : group + 8;
                const int column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
                left[row][column] = half(o.left[i / 2], i % 2);
            }
            for (int i = 0; i < K / 4; ++i) {  // b0 … b3, or b0, b1
                right[in_group * 2 + (i & 1) + (i < 2 ? 0 : 8)][group] = half(o.right[i / 2], i % 2);
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            const Operands o = operands(lane);
            for (int i = 0; i < 4; ++i) {  // c0 … c3
                const int row = i < 2 ? lane / 4 : lane / 4 + 8, column = lane % 4 * 2 + (i & 1);
                double sum = o.sum[i];
                for (int k = 0; k < K; ++k) sum += static_cast<double>(left[row][k]) * right[k][column];
                o.sum[i] = static_cast<float>(sum);
            }
        }
    }

    static uint32_t pack(float low, float high) {
        return encode<Bfloat>(low) | static_cast<uint32_t>(encode<Bfloat>(high)) << 16;
    }
    static float exp2(float x) { return std::exp2(x); }
    static float reciprocal(float x) { return 1.0f / x; }
    static int anew(int x) { return x; }
    static float fma(float a, float b, float c) { return std::fma(a, b, c); }
    static float max(float a, float b) { return std::fmax(a, b); }
    static float minus_infinity() { return -std::numeric_limits<float>::infinity(); }

    template <class F>
    bool any(F&& condition) {
        bool found = false;
        for (int lane = 0; lane < 32; ++lane) found = condition(lane) || found;
        return found;
    }
    template <class F>
    void quad_max(F&& value) {
        for (int lane = 0; lane < 32; lane += 4) {
            float result = value(lane);
            for (int i = 1; i < 4; ++i) result = max(result, value(lane + i));
            for (int i = 0; i < 4; ++i) value(lane + i) = result;
        }
    }
    template <class F>
    void quad_sum(F&& value) {
        for (int lane = 0; lane < 32; lane += 4) {
            float result = value(lane);
            for (int i = 1; i < 4; ++i) result += value(lane + i);
            for (int i = 0; i < 4; ++i) value(lane + i) = result;
        }
    }

  private:
    struct Copy {
        int to;
        const uint16_t* from;
    };

    bool inside(int byte) {
        const bool good = byte >= 0 && byte % 16 == 0 && byte + 16 <= static_cast<int>(block_.shared.size());
        if (!good) ++block_.faults;
        return good;
    }
    static float half(uint32_t pair, int which) {
        return decode<Bfloat>(static_cast<uint16_t>(which != 0 ? pair >> 16 : pair));
    }

    EmulatedBlock& block_;
    int index_;
    std::vector<Copy> uncommitted_;
    std::deque<std::vector<Copy>> committed_;
};

// Runs body(warp) for all warps of a block; returns the number of faults.
template <bool Bfloat, class F>
int emulate_block(int warps, int bytes, EmulatedBlock::Copies copies, F&& body) {
    EmulatedBlock block(warps, bytes, copies);
    std::vector<std::thread> threads;
    for (int index = 0; index < warps; ++index) {
        threads.emplace_back([&block, &body, index] {
            EmulatedWarp<Bfloat> warp(block, index);
            body(warp);
        });
    }
    for (std::thread& thread : threads) thread.join();
    return block.faults;
}

}  // namespace fastdiff::tests
