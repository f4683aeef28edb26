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
    const std::uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
    Job& job = jobs_[generation % job_count];
    job.task.store(task, std::memory_order_relaxed);
    job.context.store(context, std::memory_order_relaxed);
    job.items.store(items, std::memory_order_relaxed);
    left_.store(static_cast<std::uint32_t>(items), std::memory_order_relaxed);
    ticket_.store(std::uint64_t{generation} << 32, std::memory_order_release);
    generation_.store(generation, std::memory_order_release);
    generation_.notify_all();
    take_items(generation, 0);
    for (std::uint32_t left; (left = left_.load(std::memory_order_acquire)) != 0;) wait_change(left_, left);
}

void ThreadPool::take_items(std::uint32_t generation, std::size_t thread) {
    const Job& job = jobs_[generation % job_count];
    std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
        const auto task = job.task.load(std::memory_order_relaxed);
        void* const context = job.context.load(std::memory_order_relaxed);
        const std::size_t items = job.items.load(std::memory_order_relaxed);
        // Taking a ticket of this generation proves that the job was still this run's.
        if (ticket >> 32 != generation || (ticket & 0xffffffffu) >= items) return;
        if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acquire)) continue;
        task(context, ticket & 0xffffffffu, thread);
        if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_all();
        ticket = ticket_.load(std::memory_order_acquire);
    }
}

void ThreadPool::work(std::size_t thread) {
    for (std::uint32_t seen = 0;;) {
        wait_change(generation_, seen);
        seen = generation_.load(std::memory_order_acquire);
        if (stopping_.load(std::memory_order_relaxed)) return;
        take_items(seen, thread);
    }
}

}  // namespace fastdiff
