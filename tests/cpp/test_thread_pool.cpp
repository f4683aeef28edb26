#include <atomic>
#include <chrono>
#include <thread>

#include "check.h"
#include "runtime/thread_pool.h"

namespace fastdiff::tests {
namespace {

struct Count {
    std::vector<std::atomic<int>> done;
    std::size_t threads;
    std::atomic<bool> bad_thread{false};
};

void count(void* context, std::size_t item, std::size_t thread) {
    auto& c = *static_cast<Count*>(context);
    c.done[item].fetch_add(1);
    if (thread >= c.threads) c.bad_thread = true;
}

void check_runs(const Parallel& parallel, std::size_t items) {
    Count c{std::vector<std::atomic<int>>(items), parallel.threads};
    parallel.run(parallel, items, count, &c);
    for (const auto& done : c.done) CHECK(done.load() == 1);
    CHECK(!c.bad_thread);
}

}  // namespace

void test_thread_pool() {
    check_runs(serial, 5);
    for (std::size_t threads : {1, 2, 3, 5}) {
        ThreadPool pool(threads);
        CHECK(pool.threads() == threads);
        // Fewer items than threads, none, many; over and over, so that runs follow each other closely.
        for (int round = 0; round < 200; ++round) {
            for (std::size_t items : {0, 1, 2, 3, 17}) check_runs(pool.parallel(), items);
        }
        // Workers that went to sleep wake up.
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        check_runs(pool.parallel(), 100);
        // Two callers at once take turns.
        std::thread other([&] {
            for (int round = 0; round < 100; ++round) check_runs(pool.parallel(), 7);
        });
        for (int round = 0; round < 100; ++round) check_runs(pool.parallel(), 11);
        other.join();
    }
    CHECK(ThreadPool::available() >= 1);
}

}  // namespace fastdiff::tests
