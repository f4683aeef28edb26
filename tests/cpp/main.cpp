#include <cstdio>

#include "check.h"

namespace {
int failures = 0;
}

void fastdiff::tests::fail(const char* file, int line, const std::string& message) {
    std::fprintf(stderr, "%s:%d: %s\n", file, line, message.c_str());
    ++failures;
}

int main() {
    fastdiff::tests::test_isa();
    fastdiff::tests::test_attention();
    fastdiff::tests::test_cuda_attention();
    fastdiff::tests::test_cuda_group_norm_silu();
    fastdiff::tests::test_cuda_scheduler_step();
    fastdiff::tests::test_gemm();
    fastdiff::tests::test_group_norm_silu();
    fastdiff::tests::test_plan();
    fastdiff::tests::test_scheduler_step();
    fastdiff::tests::test_session();
    fastdiff::tests::test_shapes();
    fastdiff::tests::test_thread_pool();
    if (failures == 0) std::puts("all passed");
    return failures == 0 ? 0 : 1;
}
