// Places of buffers in one block of memory, such that buffers that live at the same time never overlap.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace fastdiff {

inline constexpr std::size_t arena_alignment = 64;

// A buffer of `bytes` that is used by the steps first … last, both included.
struct Lifetime {
    std::size_t bytes;
    int first, last;
    std::size_t offset = 0;  // set by place
};

// Sets the offsets, multiples of arena_alignment, and returns the size of the block. Large buffers are placed
// first, each into the tightest gap that its lifetime leaves (greedy by size; Pisarchyk and Lee 2020).
std::size_t place(std::span<Lifetime> buffers);

// Memory for an arena: aligned to pages, of huge pages where the system has them; contents undefined.
class Memory {
  public:
    Memory() = default;
    explicit Memory(std::size_t bytes);
    ~Memory();
    Memory(Memory&& other) noexcept;
    Memory& operator=(Memory&& other) noexcept;

    [[nodiscard]] std::byte* data() const { return data_; }
    [[nodiscard]] std::size_t size() const { return size_; }

  private:
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace fastdiff
