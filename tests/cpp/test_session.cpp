#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>

#include "check.h"
#include "graph_file.h"
#include "kernels/error.h"
#include "random_graph.h"
#include "runtime/error.h"
#include "runtime/session.h"

namespace fastdiff::tests {
namespace {

// Inputs and outputs of one call, in arrays of exactly their size.
struct Call {
    std::vector<std::vector<std::byte>> inputs, outputs;
    std::vector<const void*> input_data;
    std::vector<void*> output_data;

    Call(const Graph& graph, const Plan& plan) {
        Random random(3);
        for (std::size_t i = 0; i < graph.inputs.size(); ++i) {
            const bool ids = graph.values[static_cast<std::size_t>(graph.inputs[i])].dtype == DType::int64;
            const std::size_t size = plan.input_shapes[i].elements();
            inputs.emplace_back(size * (ids ? 8 : 4));
            for (std::size_t k = 0; k < size; ++k) {
                const float value = random.next();
                const auto id = static_cast<std::int64_t>(k % 11);
                std::memcpy(inputs[i].data() + k * (ids ? 8 : 4),
                            ids ? static_cast<const void*>(&id) : &value, ids ? 8 : 4);
            }
        }
        for (std::size_t i = 0; i < graph.outputs.size(); ++i) {
            const bool ids = graph.values[static_cast<std::size_t>(graph.outputs[i])].dtype == DType::int64;
            outputs.emplace_back(plan.output_shapes[i].elements() * (ids ? 8 : 4));
        }
        for (const auto& input : inputs) input_data.push_back(input.data());
        for (auto& output : outputs) output_data.push_back(output.data());
    }
    [[nodiscard]] Arrays arrays() const { return {input_data, output_data}; }
};

std::shared_ptr<const Module> open(const AlignedBytes& file) {
    return std::make_shared<Module>("test", file.bytes());
}

void test_threads_and_stages(const AlignedBytes& file) {
    const auto module = open(file);
    const Sizes sizes{3, 4, 5};
    Session first(module, 1);
    Call call(module->graph(), *first.plan(sizes));
    first.run(sizes, call.arrays());
    const auto wanted = call.outputs;
    const auto* numbers = reinterpret_cast<const float*>(wanted[0].data());
    for (std::size_t i = 0; i < wanted[0].size() / sizeof(float); ++i) CHECK(std::isfinite(numbers[i]));

    for (std::size_t threads : {2, 3}) {
        first.set_threads(threads);
        CHECK(first.threads() == threads);
        first.run(sizes, call.arrays());
        CHECK(call.outputs == wanted);
    }
    // Each timestep as a row of one schedule: the same as a batch of three with that timestep throughout.
    const std::size_t timesteps = 1;
    auto t = call.inputs[timesteps];
    for (std::size_t row = 0; row < 3; ++row) {
        for (std::size_t i = 0; i < 3; ++i)
            std::memcpy(call.inputs[timesteps].data() + 4 * i, t.data() + 4 * row, 4);
        first.run(sizes, call.arrays());
        const auto whole = call.outputs;
        call.inputs[timesteps] = t;
        call.input_data[timesteps] = call.inputs[timesteps].data();
        first.run_stage(Stage::prompt, sizes, 3, 0, call.arrays());
        first.run_stage(Stage::schedule, sizes, 3, 0, call.arrays());
        first.run_stage(Stage::step, sizes, 3, row, call.arrays());
        CHECK(call.outputs == whole);
    }
}

void test_sessions_side_by_side(const AlignedBytes& file) {
    const auto module = open(file);
    Session shared(module, 2);
    std::atomic<int> wrong{0};
    const auto work = [&](std::int64_t batch) {
        const Sizes sizes{batch, 4, 5};
        Session own(module, 2);
        Call call(module->graph(), *own.plan(sizes));
        own.run(sizes, call.arrays());
        const auto wanted = call.outputs;
        for (int round = 0; round < 20; ++round) {
            (round % 2 == 0 ? own : shared).run(sizes, call.arrays());
            wrong += call.outputs == wanted ? 0 : 1;
        }
    };
    std::vector<std::thread> workers;
    for (std::int64_t batch = 1; batch <= 6; ++batch)
        workers.emplace_back(work, batch);  // more sizes than plans kept
    for (std::thread& worker : workers) worker.join();
    CHECK(wrong == 0);
}

void test_cancellation_and_errors(const AlignedBytes& file) {
    const auto module = open(file);
    Session session(module, 1);
    const Sizes sizes{1, 2, 1};
    Call call(module->graph(), *session.plan(sizes));
    int polls = 0;
    session.run(sizes, call.arrays(), [&] { return ++polls < 0; });
    const auto wanted = call.outputs;
    CHECK(polls > 10);
    bool cancelled = false;
    try {
        session.run(sizes, call.arrays(), [&] { return --polls == 5; });
    } catch (const Cancelled&) {
        cancelled = true;
    }
    CHECK(cancelled);
    session.run(sizes, call.arrays());
    CHECK(call.outputs == wanted);

    CHECK_REFUSES(session.run({1, 3, 1}, call.arrays()), "height is 3");
    CHECK_REFUSES(session.run({1, 2}, call.arrays()), "found 2 sizes, wanted 3");
    CHECK_REFUSES(session.run_stage(Stage::step, sizes, 2, 0, call.arrays()), "has not run");
    Call broken = call;
    broken.input_data[0] = nullptr;
    CHECK_REFUSES(session.run(sizes, broken.arrays()), "v0 is missing");
    broken.input_data[0] = call.output_data[0];
    broken.output_data = call.output_data;
    CHECK_REFUSES(session.run(sizes, broken.arrays()), "overlaps an input");
    const std::int64_t unknown = 11;
    std::memcpy(call.inputs[3].data(), &unknown, sizeof unknown);
    CHECK_REFUSES(session.run(sizes, call.arrays()), "id 11 is out of range, wanted 0 to 10");
}

// The message with which a file is refused; empty when it is not.
std::string refusal(const std::vector<std::byte>& file) {
    const AlignedBytes bytes(file);
    try {
        open(bytes);
        return "";
    } catch (const EngineError& error) {
        return error.what();
    }
}

void check_refused(const std::vector<std::byte>& file, const char* part) {
    const std::string message = refusal(file);
    if (message.find(part) == std::string::npos)
        fail(__FILE__, __LINE__, "refused with '" + message + "', not " + part);
}

template <class Change>
void check_changed(const Change& change, const char* part) {
    GraphFile file = every_op();
    change(file);
    check_refused(file.encode(), part);
}

RawNode& node(GraphFile& file, const char* op) {
    for (RawNode& raw : file.nodes) {
        if (raw.op == op) return raw;
    }
    throw InputError(op);
}

void test_damage() {
    const std::vector<std::byte> good = every_op().encode();
    CHECK(refusal(good).empty());
    auto bytes = good;
    bytes.resize(10);
    check_refused(bytes, "not a native module");
    bytes = good;
    bytes.pop_back();
    check_refused(bytes, "bytes, wanted");
    bytes = good;
    bytes[100] ^= std::byte{1};
    check_refused(bytes, "checksum");
    bytes = good;
    bytes[8] = std::byte{2};
    check_refused(bytes, "test: it has format version 2, wanted 1");
    bytes = good;
    bytes[32] ^= std::byte{1};
    repair(bytes);
    check_refused(bytes, "header is damaged");

    check_changed([](GraphFile& f) { f.nodes[0].op = "softmax"; }, "does not know the op");
    check_changed([](GraphFile& f) { f.nodes[0].inputs[0] = 99; }, "unknown value id");
    check_changed([](GraphFile& f) { f.nodes[0].inputs[0] = f.nodes[1].output; }, "too early");
    check_changed([](GraphFile& f) { f.nodes[1].output = f.nodes[0].output; }, "defined twice");
    check_changed([](GraphFile& f) { f.nodes[0].stage = 2; }, "too early");
    check_changed([](GraphFile& f) { f.nodes[1].inputs[0] = f.nodes[3].output; }, "another stage");
    check_changed([](GraphFile& f) { f.nodes[0].stage = 3; }, "unknown stage");
    check_changed([](GraphFile& f) { f.nodes[0].inputs.push_back(0); }, "2 inputs, wanted 1");
    check_changed([](GraphFile& f) { f.nodes[0].inputs[0] = 3; }, "another dtype");
    check_changed([](GraphFile& f) { f.nodes[0].attributes.clear(); }, "sine_first is missing");
    check_changed([](GraphFile& f) { f.nodes[0].attributes[0].second = 0.5; }, "no integer");
    check_changed([](GraphFile& f) { f.nodes[0].attributes[0].second = std::int64_t{2}; }, "wanted 0 to 1");
    check_changed([](GraphFile& f) { f.nodes[0].attributes.emplace_back("sine", 1.0); },
                  "unknown attribute sine");
    check_changed([](GraphFile& f) { f.nodes[0].weights.emplace_back("bias", 0); }, "unknown weight bias");
    check_changed([](GraphFile& f) { node(f, "linear").packings[0].weight = 0; }, "bytes, wanted");
    check_changed([](GraphFile& f) { node(f, "linear").packings.clear(); }, "one direct packing");
    check_changed([](GraphFile& f) { node(f, "conv2d").packings.clear(); }, "no packed weights");
    check_changed([](GraphFile& f) { node(f, "conv2d").packings[0].algorithm = 4; }, "unknown algorithm");
    check_changed(
        [](GraphFile& f) { node(f, "conv2d").packings.pop_back(), node(f, "conv2d").tuned[0].algorithm = 2; },
        "tuned for a missing packing");
    check_changed([](GraphFile& f) { node(f, "conv2d").tuned[0].sizes[0].first = 3; }, "unknown symbol");
    check_changed(
        [](GraphFile& f) { node(f, "permute").attributes[0].second = std::vector<std::int64_t>{0, 1, 1, 2}; },
        "no permutation");
    check_changed([](GraphFile& f) { f.weights[0].shape = {-3}; }, "impossible shape");
    check_changed([](GraphFile& f) { f.weights[0].shape = {4}; }, "another size than its shape");
    check_changed([](GraphFile& f) { f.symbols[0].minimum = 0; }, "impossible range");
    check_changed([](GraphFile& f) { f.symbols.push_back({"width", 1, 0, 1}); },
                  "width is in no input's shape");
    check_changed([](GraphFile& f) { f.values[0].shape[0][0].operand = 3; }, "unknown symbol");
    check_changed([](GraphFile& f) { f.values[0].shape[0].push_back({Token::Kind::add, 0}); },
                  "lacks an operand");
    check_changed([](GraphFile& f) { f.values[0].shape[0].push_back({Token::Kind::number, 0}); },
                  "leaves 2 numbers");
    check_changed([](GraphFile& f) { f.values[0].name = "a\nb"; }, "not printable");
    check_changed([](GraphFile& f) { f.outputs[0] = 99; }, "unknown value id");
}

// Shapes that contradict the op are found when a plan is made, before a kernel runs.
void test_contradictions() {
    const GraphFile good = every_op();
    for (std::size_t i = 0; i < good.nodes.size(); ++i) {
        const auto output = static_cast<std::size_t>(good.nodes[i].output);
        for (std::size_t axis = 0; axis < good.values[output].shape.size(); ++axis) {
            for (std::int64_t more : {1, 1 << 20}) {
                GraphFile file = good;
                Dim& dim = file.values[output].shape[axis];
                dim.push_back({Token::Kind::number, more});
                dim.push_back({Token::Kind::add, 0});
                const AlignedBytes bytes(file.encode());
                Session session(open(bytes), 1);
                bool refused = false;
                try {
                    session.plan({2, 4, 5});
                } catch (const EngineError&) {
                    refused = true;
                }
                CHECK(refused);
            }
        }
    }
}

// A damaged file is refused, or runs: it never reads or writes what is not its own.
void fuzz() {
    constexpr std::size_t most = 1 << 18;  // bytes, so that a file that asks for much does not take long
    const std::vector<std::byte> good = every_op().encode();
    Dice dice(5);
    int refused = 0, planned = 0, ran = 0;
    for (int round = 0; round < 10000; ++round) {
        std::vector<std::byte> bytes = good;
        if (dice.once_in(10)) {
            bytes.resize(dice.next(bytes.size()));
        }
        std::uint64_t graph = 0;
        if (bytes.size() >= 64) std::memcpy(&graph, bytes.data() + 24, sizeof graph);
        for (std::size_t change = 0; change <= dice.next(3) && !bytes.empty(); ++change) {
            const std::size_t end =
                dice.once_in(8) ? bytes.size() : std::min<std::size_t>(64 + graph, bytes.size());
            const std::size_t at = dice.next(end);
            // A flipped bit, a small number, all bits: sizes, ids and counts just beside and far away from
            // theirs.
            const std::size_t kind = dice.next(3);
            bytes[at] = kind == 0   ? bytes[at] ^ std::byte{1} << dice.next(8)
                        : kind == 1 ? static_cast<std::byte>(dice.next(9))
                                    : std::byte{0xFF};
        }
        if (!dice.once_in(10)) repair(bytes);
        const AlignedBytes file(bytes);
        try {
            Session session(open(file), 1 + dice.next(2));
            const std::size_t symbols = session.module().graph().symbols.size();
            const Sizes sizes[] = {{2, 4, 5}, {1, 2, 1}};
            for (const Sizes& wanted : sizes) {
                if (wanted.size() != symbols) continue;
                const auto plan = session.plan(wanted, dice.next(3));
                ++planned;
                std::size_t total = plan->arena_bytes;
                for (const auto* shapes : {&plan->input_shapes, &plan->output_shapes}) {
                    for (const Shape& shape : *shapes) total += 8 * shape.elements();
                }
                if (total > most) continue;
                const Call call(session.module().graph(), *plan);
                if (plan->rows == 0) {
                    session.run(wanted, call.arrays());
                } else {
                    for (Stage stage : {Stage::prompt, Stage::schedule, Stage::step}) {
                        session.run_stage(stage, wanted, plan->rows, plan->rows - 1, call.arrays());
                    }
                }
                ++ran;
            }
        } catch (const EngineError&) {
            ++refused;
        } catch (const InputError&) {
            ++refused;
        }
    }
    CHECK(refused > 1000 && planned > 1000 && ran > 1000);
}

}  // namespace

void test_session() {
    const AlignedBytes file(every_op().encode());
    test_threads_and_stages(file);
    test_sessions_side_by_side(file);
    test_cancellation_and_errors(file);
    test_damage();
    test_contradictions();
    fuzz();
}

}  // namespace fastdiff::tests
