// The few lines of a test framework that the C++ tests need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fastdiff::tests {

// Counts and prints a failure; the program's exit status says whether there was one.
void fail(const char* file, int line, const std::string& message);

#define CHECK(condition)                                                                        \
    do {                                                                                        \
        if (!(condition)) ::fastdiff::tests::fail(__FILE__, __LINE__, "not true: " #condition); \
    } while (false)

// Runs `body` and checks that it throws InputError with `part` in its message.
#define CHECK_REFUSES(body, part)                                                         \
    do {                                                                                  \
        try {                                                                             \
            body;                                                                         \
            ::fastdiff::tests::fail(__FILE__, __LINE__, "did not throw: " #body);         \
        } catch (const ::fastdiff::InputError& error) {                                   \
            if (std::string(error.what()).find(part) == std::string::npos) {              \
                ::fastdiff::tests::fail(__FILE__, __LINE__,                               \
                                        std::string("another message: ") + error.what()); \
            }                                                                             \
        }                                                                                 \
    } while (false)

// Repeatable numbers in [-2, 2): a 64-bit linear congruential generator (Knuth's constants).
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    float next() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<float>(state_ >> 40) / static_cast<float>(1 << 22) - 2.0f;
    }
    // Of exactly this size, so that AddressSanitizer and valgrind see a read or write one past the end.
    std::vector<float> array(std::size_t size) {
        std::vector<float> values(size);
        for (float& value : values) value = next();
        return values;
    }

  private:
    std::uint64_t state_;
};

void test_isa();
void test_attention();
void test_cuda_attention();
void test_cuda_group_norm_silu();
void test_cuda_scheduler_step();
void test_gemm();
void test_group_norm_silu();
void test_plan();
void test_scheduler_step();
void test_session();
void test_shapes();
void test_thread_pool();

}  // namespace fastdiff::tests
