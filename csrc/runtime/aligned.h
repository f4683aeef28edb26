// Memory for kernels: aligned to a cache line.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace fastdiff {

struct Free {
    void operator()(void* p) const { std::free(p); }
};
template <class T>
using Aligned = std::unique_ptr<T[], Free>;

// `count` elements, not initialised. Throws std::bad_alloc.
template <class T>
Aligned<T> aligned(std::size_t count) {
    constexpr std::size_t line = 64;
    if (count > (static_cast<std::size_t>(-1) - line) / sizeof(T)) throw std::bad_alloc();
    const std::size_t bytes = (count * sizeof(T) + line - 1) / line * line;
    void* p = std::aligned_alloc(line, bytes == 0 ? line : bytes);
    if (p == nullptr) throw std::bad_alloc();
    return Aligned<T>(static_cast<T*>(p));
}

}  // namespace fastdiff
