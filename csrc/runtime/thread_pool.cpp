#include "runtime/thread_pool.h"

#include <sched.h>

#include <chrono>

namespace fastdiff {
namespace {

constexpr auto spin_time = std::chrono::microseconds(50);

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

// Waits until `value` is no longer `old`: spinning first, asleep after that.
void wait_change(std::atomic<std::uint32_t>& value, std::uint32_t old) {
    const auto until = std::chrono::steady_clock::now() + spin_time;
    while (value.load(std::memory_order_acquire) == old) {
        for (int i = 0; i < 64; ++i) {
            if (value.load(std::memory_order_acquire) != old) return;
            pause();
        }
        if (std::chrono::steady_clock::now() >= until) value.wait(old, std::memory_order_acquire);
    }
}

}  // namespace

ThreadPool::ThreadPool(std::size_t threads) {
    try {
        for (std::size_t i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (...) {
        stop();
        throw;
    }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
    stopping_.store(true, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

std::size_t ThreadPool::available() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) {
        return static_cast<std::size_t>(CPU_COUNT(&set));
    }
    const unsigned count = std::thread::hardware_concurrency();
    return count == 0 ? 1 : count;
}

Parallel ThreadPool::parallel() {
    return {[](const Parallel& self, std::size_t items, Parallel::Task task, void* context) {
                static_cast<ThreadPool*>(self.pool)->run(items, task, context);
            },
            threads(), this};
}

void ThreadPool::run(std::size_t items, Parallel::Task task, void* context) {
    const std::lock_guard lock(turn_);
    if (workers_.empty() || items < 2) {
        for (std::size_t item = 0; item < items; ++item) task(context, item, 0);
        return;
    }
    task_ = task;
    context_ = context;
    items_ = items;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<std::uint32_t>(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    take_items(0);
    // Every worker has left the run before the next one may change it.
    for (std::uint32_t busy; (busy = busy_.load(std::memory_order_acquire)) != 0;) wait_change(busy_, busy);
}

void ThreadPool::take_items(std::size_t thread) {
    for (std::size_t item; (item = next_.fetch_add(1, std::memory_order_relaxed)) < items_;) {
        task_(context_, item, thread);
    }
}

void ThreadPool::work(std::size_t thread) {
    for (std::uint32_t seen = 0;;) {
        wait_change(generation_, seen);
        seen = generation_.load(std::memory_order_acquire);
        if (stopping_.load(std::memory_order_relaxed)) return;
        take_items(thread);
        if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_all();
    }
}

}  // namespace fastdiff
