// A pool of threads for kernels: the caller works too, so a pool of one has no thread of its own.
//
// Workers wait spinning for some tens of microseconds, the time between two kernels, and sleep after that, so
// that an idle session costs nothing. One run at a time: concurrent callers take turns.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/parallel.h"

namespace fastdiff {

class ThreadPool {
  public:
    // `threads` of at least 1, the caller included. Throws std::system_error when the system has no more.
    explicit ThreadPool(std::size_t threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    // Valid as long as the pool.
    [[nodiscard]] Parallel parallel();
    [[nodiscard]] std::size_t threads() const { return workers_.size() + 1; }

    // The number of processors that this process may use.
    static std::size_t available();

  private:
    void run(std::size_t items, Parallel::Task task, void* context);
    void work(std::size_t thread);
    void take_items(std::size_t thread);
    void stop();

    std::vector<std::thread> workers_;
    std::mutex turn_;
    // The current run. Written before generation_ is raised, read after.
    Parallel::Task task_ = nullptr;
    void* context_ = nullptr;
    std::size_t items_ = 0;
    alignas(64) std::atomic<std::size_t> next_{0};
    alignas(64) std::atomic<std::uint32_t> generation_{0};
    alignas(64) std::atomic<std::uint32_t> busy_{0};
    std::atomic<bool> stopping_{false};
};

}  // namespace fastdiff
