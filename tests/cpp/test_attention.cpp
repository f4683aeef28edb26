#include <cmath>
#include <new>

#include "check.h"
#include "cpu/dispatch.h"
#include "kernels/attention.h"
#include "runtime/thread_pool.h"

namespace fastdiff::tests {
namespace {

// The formula of the contract for one query and head, in double.
std::vector<double> reference(const AttentionArgs& a, std::size_t batch, std::size_t head,
                              std::size_t query) {
    const std::size_t seen = a.causal && query + 1 < a.keys ? query + 1 : a.keys;
    std::vector<double> p(seen), y(a.value_size);
    double largest = -1e300, total = 0.0;
    for (std::size_t j = 0; j < seen; ++j) {
        for (std::size_t c = 0; c < a.size; ++c) {
            p[j] += static_cast<double>(
                        a.query[batch * a.query_batch + query * a.query_stride + head * a.size + c]) *
                    a.key[batch * a.key_batch + j * a.key_stride + head * a.size + c];
        }
        p[j] *= a.scale;
        largest = std::fmax(largest, p[j]);
    }
    for (double& x : p) total += x = std::exp(x - largest);
    for (std::size_t j = 0; j < seen; ++j) {
        for (std::size_t c = 0; c < a.value_size; ++c) {
            y[c] +=
                p[j] / total * a.value[batch * a.value_batch + j * a.value_stride + head * a.value_size + c];
        }
    }
    return y;
}

struct Aligned {
    explicit Aligned(std::size_t bytes) : data(::operator new(bytes, std::align_val_t{64})) {}
    ~Aligned() { ::operator delete(data, std::align_val_t{64}); }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
    void* data;
};

// Arrays and scratch of exactly the size that the contract asks for: a sanitizer sees what goes beyond.
void check(Isa isa, std::size_t queries, std::size_t keys, std::size_t size, std::size_t value_size,
           bool causal, std::size_t threads) {
    constexpr std::size_t batch = 2, heads = 2;
    Random random(queries * 1000 + keys);
    AttentionArgs args{};
    args.batch = batch;
    args.queries = queries;
    args.keys = keys;
    args.heads = heads;
    args.size = size;
    args.value_size = value_size;
    const std::vector<float> query = random.array(batch * queries * heads * size),
                             key = random.array(batch * keys * heads * size),
                             value = random.array(keys * heads * value_size);  // one for both batches
    std::vector<float> y(batch * queries * heads * value_size, 7.0f);
    args.query = query.data();
    args.key = key.data();
    args.value = value.data();
    args.y = y.data();
    args.query_stride = args.key_stride = heads * size;
    args.value_stride = args.y_stride = heads * value_size;
    args.query_batch = queries * args.query_stride;
    args.key_batch = keys * args.key_stride;
    args.y_batch = queries * args.y_stride;
    args.scale = 1.0f / std::sqrt(static_cast<float>(size));
    args.causal = causal;
    ThreadPool pool(threads);
    const Aligned scratch(attention_scratch(args, threads));
    args.scratch = scratch.data;
    kernels(isa).attention(args, pool.parallel());
    double worst = 0.0;
    for (std::size_t row = 0; row < batch * heads * queries; ++row) {
        const std::size_t n = row % queries, head = row / queries % heads, b = row / queries / heads;
        const std::vector<double> wanted = reference(args, b, head, n);
        for (std::size_t c = 0; c < value_size; ++c) {
            worst = std::fmax(
                worst,
                std::fabs(wanted[c] - y[b * args.y_batch + n * args.y_stride + head * value_size + c]));
        }
    }
    if (!(worst < 5e-6)) {
        fail(__FILE__, __LINE__,
             "attention on " + std::string(isa_name(isa)) + ", queries " + std::to_string(queries) +
                 ", keys " + std::to_string(keys) + ": largest difference " + std::to_string(worst));
    }
}

}  // namespace

void test_attention() {
    for (Isa isa : available_isas()) {
        // Every number of registers of queries up to a block's, around the micro-kernel's rows of keys.
        for (std::size_t queries = 1; queries <= 67; queries += 3) {
            for (std::size_t keys : {std::size_t{1}, std::size_t{9}, std::size_t{77}}) {
                check(isa, queries, keys, queries % 19 + 1, queries % 23 + 1, queries % 2 == 0, 1);
            }
        }
        check(isa, 250, 200, 40, 40, false, 3);  // two blocks of queries, three of keys
        check(isa, 250, 200, 8, 16, true, 2);
        check(isa, 100, 97, 300, 300, false, 2);  // the smaller blocks of wide heads
    }
}

}  // namespace fastdiff::tests
