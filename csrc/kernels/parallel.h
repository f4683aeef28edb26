// How a kernel spreads its work over threads. Kernels know nothing of the pool behind it.
//
//   parallel.run(parallel, items, task, context)
//
// calls task(context, item, thread) once for every item < items, each on one of `threads` threads, and
// returns when all are done. Items start in order; which thread takes which is open, so a kernel's result
// must not depend on it: partial sums belong to items, never to threads. `thread` < threads picks a thread's
// part of the scratch memory. Tasks must not throw and must not call run themselves.
#pragma once

#include <cstddef>

namespace fastdiff {

struct Parallel {
    using Task = void (*)(void* context, std::size_t item, std::size_t thread);
    void (*run)(const Parallel& self, std::size_t items, Task task, void* context);
    std::size_t threads;
    void* pool;
};

// All items on the calling thread.
inline constexpr Parallel serial{[](const Parallel&, std::size_t items, Parallel::Task task, void* context) {
                                     for (std::size_t item = 0; item < items; ++item) task(context, item, 0);
                                 },
                                 1, nullptr};

}  // namespace fastdiff
