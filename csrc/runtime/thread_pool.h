// A pool of threads for kernels: the caller works too, so a pool of one has no thread of its own.
//
// Items are taken one by one, and a run ends when all are done, whether or not every worker has noticed it:
// on a machine where other processes want the processors too, nobody waits for a thread that is not running.
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
    // A run's arguments. Atomic, since a thread that comes late may read them while a later run writes them;
    // its ticket is void then.
    struct Job {
        std::atomic<Parallel::Task> task{nullptr};
        std::atomic<void*> context{nullptr};
        std::atomic<std::size_t> items{0};
    };

    void run(std::size_t items, Parallel::Task task, void* context);
    void work(std::size_t thread);
    void take_items(std::uint32_t generation, std::size_t thread);
    void stop();

    // Far more than the runs that can begin while a thread is between reading a job and taking a ticket.
    static constexpr std::size_t job_count = 64;

    std::vector<std::thread> workers_;
    std::mutex turn_;
    Job jobs_[job_count];                               // of generation g at g % job_count
    alignas(64) std::atomic<std::uint64_t> ticket_{0};  // the run's generation << 32 | its next item
    alignas(64) std::atomic<std::uint32_t> generation_{0};
    alignas(64) std::atomic<std::uint32_t> left_{0};  // items of the run that are not done
    std::atomic<bool> stopping_{false};
};

}  // namespace fastdiff
