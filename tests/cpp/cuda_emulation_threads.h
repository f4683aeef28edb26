// The threads of cuda_emulation.h: std::thread under ThreadSanitizer, else contexts of one thread, which are
// a hundred times faster: each runs until it waits at a barrier.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#ifdef __SANITIZE_THREAD__
#include <barrier>
#include <thread>
#else
#include <ucontext.h>
#endif

namespace fastdiff::emulation {

#ifdef __SANITIZE_THREAD__

inline thread_local void* current = nullptr;
inline void* current_thread() { return current; }

class Barrier {
  public:
    explicit Barrier(std::ptrdiff_t threads) : barrier_(threads) {}
    void arrive_and_wait() { barrier_.arrive_and_wait(); }

  private:
    std::barrier<> barrier_;
};

// Runs `body` once for every identity, which current_thread() is then; all at once.
inline void run_threads(const std::vector<void*>& identities, const std::function<void()>& body) {
    std::vector<std::jthread> running;
    for (void* identity : identities) {
        running.emplace_back([&body, identity] {
            current = identity;
            body();
        });
    }
}

#else

struct Context {
    ucontext_t state;
    void* identity = nullptr;
    bool done = false;
};

struct Scheduler {
    ucontext_t main;
    std::vector<std::unique_ptr<Context>> contexts;
    Context* running = nullptr;
    const std::function<void()>* body = nullptr;
    bool progress = false;
};

inline Scheduler* scheduler = nullptr;
inline void* current_thread() { return scheduler->running->identity; }

class Barrier {
  public:
    explicit Barrier(std::ptrdiff_t threads) : threads_(threads) {}
    void arrive_and_wait() {
        const std::size_t generation = generation_;
        scheduler->progress = true;
        if (++waiting_ == threads_) {
            waiting_ = 0;
            ++generation_;
        }
        while (generation == generation_) swapcontext(&scheduler->running->state, &scheduler->main);
    }

  private:
    std::ptrdiff_t threads_, waiting_ = 0;
    std::size_t generation_ = 0;
};

inline void run_context() {
    (*scheduler->body)();
    scheduler->running->done = scheduler->progress = true;
}

inline void run_threads(const std::vector<void*>& identities, const std::function<void()>& body) {
    constexpr std::size_t stack_size = 64 * 1024;
    static std::vector<std::unique_ptr<char[]>> stacks;
    while (stacks.size() < identities.size()) stacks.emplace_back(new char[stack_size]);
    Scheduler own;
    scheduler = &own;
    own.body = &body;
    for (std::size_t i = 0; i < identities.size(); ++i) {
        own.contexts.push_back(std::make_unique<Context>());
        Context& context = *own.contexts.back();
        context.identity = identities[i];
        getcontext(&context.state);
        context.state.uc_stack.ss_sp = stacks[i].get();
        context.state.uc_stack.ss_size = stack_size;
        context.state.uc_link = &own.main;
        makecontext(&context.state, &run_context, 0);
    }
    for (bool left = true; left;) {
        left = own.progress = false;
        for (auto& context : own.contexts) {
            if (context->done) continue;
            own.running = context.get();
            swapcontext(&own.main, &context->state);
            left = left || !context->done;
        }
        if (left && !own.progress) {
            std::fputs("cuda_emulation: threads wait at a barrier that others never reach\n", stderr);
            std::abort();
        }
    }
}

#endif

}  // namespace fastdiff::emulation
