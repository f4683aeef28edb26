#include "runtime/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <limits>
#include <new>
#include <numeric>
#include <utility>

namespace fastdiff {
namespace {

std::size_t aligned(std::size_t bytes) {
    return (bytes + arena_alignment - 1) / arena_alignment * arena_alignment;
}

}  // namespace

std::size_t place(std::span<Lifetime> buffers) {
    std::vector<std::size_t> order(buffers.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return buffers[a].bytes > buffers[b].bytes; });
    // Those placed so far, by offset.
    std::vector<const Lifetime*> placed;
    placed.reserve(buffers.size());
    std::size_t total = 0;
    for (std::size_t index : order) {
        Lifetime& buffer = buffers[index];
        const std::size_t bytes = aligned(buffer.bytes);
        std::size_t best = std::numeric_limits<std::size_t>::max(), best_gap = best, end = 0;
        for (const Lifetime* other : placed) {
            if (other->last < buffer.first || buffer.last < other->first) continue;
            if (other->offset > end && other->offset - end >= bytes && other->offset - end < best_gap) {
                best = end;
                best_gap = other->offset - end;
            }
            end = std::max(end, other->offset + aligned(other->bytes));
        }
        buffer.offset = best_gap == std::numeric_limits<std::size_t>::max() ? end : best;
        total = std::max(total, buffer.offset + bytes);
        placed.insert(
            std::upper_bound(placed.begin(), placed.end(), &buffer,
                             [](const Lifetime* a, const Lifetime* b) { return a->offset < b->offset; }),
            &buffer);
    }
    return total;
}

Memory::Memory(std::size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<std::byte*>(mapped);
    madvise(mapped, bytes, MADV_HUGEPAGE);  // advice: no harm when it is refused
}

Memory::~Memory() {
    if (data_ != nullptr) munmap(data_, size_);
}

Memory::Memory(Memory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Memory& Memory::operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

}  // namespace fastdiff
