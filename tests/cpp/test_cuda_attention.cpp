// csrc/cuda/attention.h as the GPU runs it, lane by lane, against the formula in double precision.
#include "check.h"
#include "cuda/attention.h"
#include "emulated_warp.h"

namespace fastdiff::tests {
namespace {

using namespace fastdiff::cuda;

struct Case {
    int batch, heads, queries, keys;
    float scale, spread;  // spread: how much larger keys are at the end than at the start
    const char* why;
};

// Queries, keys and values side by side as one projection makes them, with a gap after each row and, after
// the last row, rows of numbers that are none; the result in the middle of a wider array.
template <bool Bfloat>
struct Problem {
    static constexpr int gap = 8, rest = 3;
    Case c;
    int size, width, query_row, key_row, y_row;
    std::vector<uint16_t> query, key, y;  // of key: keys, then values

    Problem(const Case& given, int head_size)
        : c(given),
          size(head_size),
          width(given.heads * head_size),
          query_row(width + gap),
          key_row(2 * width + gap),
          y_row(width + gap) {
        Random random(static_cast<std::uint64_t>(c.queries * 1000 + c.keys));
        const uint16_t nan = encode<Bfloat>(std::numeric_limits<float>::quiet_NaN());
        query.assign(static_cast<std::size_t>(c.batch * (c.queries + rest) * query_row), nan);
        key.assign(static_cast<std::size_t>(c.batch * (c.keys + rest) * key_row), nan);
        y.assign(static_cast<std::size_t>(c.batch * (c.queries + rest) * y_row), untouched);
        for (int b = 0; b < c.batch; ++b) {
            for (int n = 0; n < c.queries; ++n) {
                for (int i = 0; i < width; ++i)
                    *at(query, query_row, c.queries, b, n, i) = encode<Bfloat>(random.next());
            }
            for (int m = 0; m < c.keys; ++m) {
                const float larger = 1.0f + c.spread * static_cast<float>(m) / static_cast<float>(c.keys);
                for (int i = 0; i < width; ++i) {
                    *at(key, key_row, c.keys, b, m, i) = encode<Bfloat>(random.next() * larger);
                    *at(key, key_row, c.keys, b, m, width + i) = encode<Bfloat>(random.next());
                }
            }
        }
    }

    static constexpr uint16_t untouched = 0x1234;

    static uint16_t* at(std::vector<uint16_t>& array, int row_stride, int rows, int b, int row, int i) {
        return &array[static_cast<std::size_t>((b * (rows + rest) + row) * row_stride + i)];
    }

    AttentionArgs args() {
        AttentionArgs a{};
        a.query = query.data();
        a.key = key.data();
        a.value = key.data() + width;
        a.y = y.data();
        a.queries = c.queries;
        a.keys = c.keys;
        a.query_row = query_row;
        a.key_row = a.value_row = key_row;
        a.y_row = y_row;
        a.query_batch = static_cast<int64_t>(c.queries + rest) * query_row;
        a.key_batch = a.value_batch = static_cast<int64_t>(c.keys + rest) * key_row;
        a.y_batch = static_cast<int64_t>(c.queries + rest) * y_row;
        a.scale = c.scale * 1.44269504f;
        return a;
    }

    std::vector<double> wanted(int b, int head, int n) {
        std::vector<double> p(static_cast<std::size_t>(c.keys)), result(static_cast<std::size_t>(size));
        const int first = head * size;
        double largest = -1e300, total = 0.0;
        for (int m = 0; m < c.keys; ++m) {
            double& score = p[static_cast<std::size_t>(m)];
            for (int i = first; i < first + size; ++i) {
                score += static_cast<double>(decode<Bfloat>(*at(query, query_row, c.queries, b, n, i))) *
                         decode<Bfloat>(*at(key, key_row, c.keys, b, m, i));
            }
            score *= c.scale;
            largest = std::fmax(largest, score);
        }
        for (double& x : p) total += x = std::exp(x - largest);
        for (int m = 0; m < c.keys; ++m) {
            for (int i = 0; i < size; ++i) {
                result[static_cast<std::size_t>(i)] +=
                    p[static_cast<std::size_t>(m)] / total *
                    decode<Bfloat>(*at(key, key_row, c.keys, b, m, width + first + i));
            }
        }
        return result;
    }
};

template <class Shape, bool Bfloat>
void run(const AttentionArgs& args, const Case& c, EmulatedBlock::Copies copies) {
    for (int batch = 0; batch < c.batch; ++batch) {
        for (int head = 0; head < c.heads; ++head) {
            for (int block = 0; block * Shape::block_rows < c.queries; ++block) {
                const int faults = emulate_block<Bfloat>(
                    Shape::warps, Shape::shared_bytes, copies, [&](EmulatedWarp<Bfloat>& warp) {
                        Attention<Shape, EmulatedWarp<Bfloat>>(args, warp, block, head, batch).run();
                    });
                CHECK(faults == 0);
            }
        }
    }
}

// P is rounded to the 16-bit type and so is the result: a few times 2^-12, or 2^-9, of the norm.
template <class Shape, bool Bfloat>
void check(const Case& c, EmulatedBlock::Copies copies) {
    Problem<Bfloat> problem(c, Shape::size);
    run<Shape, Bfloat>(problem.args(), c, copies);
    double error = 0.0, norm = 0.0;
    for (int b = 0; b < c.batch; ++b) {
        for (int head = 0; head < c.heads; ++head) {
            for (int n = 0; n < c.queries; ++n) {
                const std::vector<double> wanted = problem.wanted(b, head, n);
                for (int i = 0; i < Shape::size; ++i) {
                    uint16_t* place =
                        problem.at(problem.y, problem.y_row, c.queries, b, n, head * Shape::size + i);
                    const double difference = decode<Bfloat>(*place) - wanted[static_cast<std::size_t>(i)];
                    error += difference * difference;
                    norm += wanted[static_cast<std::size_t>(i)] * wanted[static_cast<std::size_t>(i)];
                    *place = problem.untouched;
                }
            }
        }
    }
    const double relative = std::sqrt(error / norm), bound = Bfloat ? 4e-3 : 5e-4;
    if (!(relative < bound)) {
        fail(__FILE__, __LINE__,
             std::string("CUDA attention, ") + c.why + ", head size " + std::to_string(Shape::size) +
                 (Bfloat ? ", bf16" : ", fp16") + ", queries " + std::to_string(c.queries) + ", keys " +
                 std::to_string(c.keys) + ": relative error " + std::to_string(relative));
    }
    for (const uint16_t x : problem.y) CHECK(x == problem.untouched);
}

template <class Shape>
void check_shape() {
    const float usual = 1.0f / std::sqrt(static_cast<float>(Shape::size));
    const Case cases[] = {
        {1, 1, 1, 1, usual, 0.0f, "one of everything"},
        {2, 3, 1, 77, usual, 0.0f, "one query, a prompt's keys"},
        {1, 2, 77, 32, usual, 0.0f, "exactly one group of keys"},
        {2, 2, 130, 77, usual, 0.0f, "two queries in the last block"},
        {1, 1, 33, 65, usual, 0.0f, "one key in the last tile"},
        {1, 2, 17, 193, usual, 0.0f, "four tiles"},
        {1, 1, 40, 200, 3.0f * usual, 8.0f, "maxima that grow by more than the headroom"},
        {1, 1, 20, 70, 1e-30f, 0.0f, "all keys alike"},
    };
    for (const Case& c : cases) {
        check<Shape, false>(c, EmulatedBlock::Copies::at_once);
        check<Shape, false>(c, EmulatedBlock::Copies::when_waited_for);
        check<Shape, true>(c, EmulatedBlock::Copies::when_waited_for);
    }
}

// Every byte of a tile is the place of one chunk's byte.
template <class Shape>
void check_places() {
    std::vector<int> seen(Shape::tile_bytes / 16);
    for (int row = 0; row < Shape::tile_keys; ++row) {
        for (int chunk = 0; chunk < Shape::chunks; ++chunk) {
            const int at = shared_offset<Shape>(row, chunk);
            CHECK(at % 16 == 0 && at >= 0 && at < Shape::tile_bytes);
            ++seen[static_cast<std::size_t>(at / 16)];
        }
    }
    for (const int count : seen) CHECK(count == 1);
}

// A query that is not a number reaches its own result and no other's.
template <class Shape>
void check_nan() {
    const Case c{1, 1, 40, 100, 0.3f, 4.0f, "not a number"};
    Problem<false> problem(c, Shape::size);
    *problem.at(problem.query, problem.query_row, c.queries, 0, 3, 1) = 0x7e00;
    run<Shape, false>(problem.args(), c, EmulatedBlock::Copies::at_once);
    for (int n = 0; n < c.queries; ++n) {
        for (int i = 0; i < Shape::size; ++i) {
            const float x = decode<false>(*problem.at(problem.y, problem.y_row, c.queries, 0, n, i));
            CHECK(std::isnan(x) == (n == 3));
        }
    }
}

void check_types() {
    for (unsigned bits = 0; bits < 0x10000; ++bits) {
        const auto half = static_cast<uint16_t>(bits);
        const float f = decode<false>(half), b = decode<true>(half);
        if (!std::isnan(f)) CHECK(encode<false>(f) == half);
        if (!std::isnan(b)) CHECK(encode<true>(b) == half);
    }
    CHECK(encode<false>(65519.0f) == 0x7bff && encode<false>(65520.0f) == 0x7c00);
    CHECK(encode<false>(1.0f + 0x1p-11f) == 0x3c00 && encode<false>(1.0f + 0x1.8p-10f) == 0x3c02);
}

}  // namespace

void test_cuda_attention() {
    check_types();
#define FASTDIFF_CHECK(size, rows, row_tiles, groups, warps, blocks)                   \
    static_assert(AttentionShape<size, row_tiles, groups, warps>::block_rows == rows); \
    check_places<AttentionShape<size, row_tiles, groups, warps>>();                    \
    check_shape<AttentionShape<size, row_tiles, groups, warps>>();                     \
    check_nan<AttentionShape<size, row_tiles, groups, warps>>();
    FASTDIFF_ATTENTION_SHAPES(FASTDIFF_CHECK)
}

}  // namespace fastdiff::tests
