#include "graph_file.h"

#include <cstring>

#include "check.h"
#include "kernels/linear.h"
#include "runtime/engine_file.h"

namespace fastdiff::tests {
namespace {

constexpr std::size_t header_size = 64;

class Bytes {
  public:
    template <class T>
    void put(T value) {
        const auto* data = reinterpret_cast<const std::byte*>(&value);
        bytes.insert(bytes.end(), data, data + sizeof value);
    }
    void count(std::size_t value) { put(static_cast<std::uint32_t>(value)); }
    void string(const std::string& text) {
        count(text.size());
        for (char c : text) put(c);
    }
    void pad(std::size_t to) { bytes.resize((bytes.size() + to - 1) / to * to); }

    std::vector<std::byte> bytes;
};

void put(Bytes& out, const Attribute& attribute) {
    out.put(static_cast<std::uint8_t>(attribute.index()));
    if (const auto* integer = std::get_if<std::int64_t>(&attribute)) out.put(*integer);
    if (const auto* real = std::get_if<double>(&attribute)) out.put(*real);
    if (const auto* text = std::get_if<std::string>(&attribute)) out.string(*text);
    if (const auto* integers = std::get_if<std::vector<std::int64_t>>(&attribute)) {
        out.count(integers->size());
        for (std::int64_t value : *integers) out.put(value);
    }
}

void put(Bytes& out, const RawNode& node) {
    out.string(node.op);
    out.string(node.path);
    out.put(node.stage);
    out.count(node.inputs.size());
    for (std::int64_t input : node.inputs) out.put(input);
    out.put(node.output);
    out.count(node.attributes.size());
    for (const auto& [name, attribute] : node.attributes) {
        out.string(name);
        put(out, attribute);
    }
    out.count(node.weights.size());
    for (const auto& [role, weight] : node.weights) {
        out.string(role);
        out.put(weight);
    }
    out.count(node.packings.size());
    for (const auto& packing : node.packings) {
        out.put(packing.algorithm);
        out.put(packing.type);
        out.put(packing.weight);
    }
    out.count(node.tuned.size());
    for (const auto& tuned : node.tuned) {
        out.put(tuned.algorithm);
        out.count(tuned.sizes.size());
        for (const auto& [symbol, size] : tuned.sizes) {
            out.put(symbol);
            out.put(size);
        }
    }
}

template <class T>
void overwrite(std::vector<std::byte>& bytes, std::size_t at, T value) {
    std::memcpy(bytes.data() + at, &value, sizeof value);
}

// Collects a graph as the Python tests do.
class Builder {
  public:
    GraphFile file;

    Dim symbol(std::int64_t id) { return {{Token::Kind::symbol, id}}; }
    Dim number(std::int64_t size) { return {{Token::Kind::number, size}}; }

    std::int64_t value(std::vector<Dim> shape, DType dtype = DType::float32) {
        file.values.push_back(
            {"v" + std::to_string(file.values.size()), dtype, std::move(shape), Stage::step});
        return static_cast<std::int64_t>(file.values.size()) - 1;
    }
    std::int64_t input(std::vector<Dim> shape, DType dtype = DType::float32) {
        file.inputs.push_back(value(std::move(shape), dtype));
        return file.inputs.back();
    }
    std::int64_t weight(DType dtype, std::vector<std::int64_t> shape, const void* data, std::size_t bytes) {
        const auto* first = static_cast<const std::byte*>(data);
        file.weights.push_back({"w", dtype, std::move(shape), {first, first + bytes}});
        return static_cast<std::int64_t>(file.weights.size()) - 1;
    }
    std::int64_t floats(std::vector<std::int64_t> shape) {
        std::size_t size = 1;
        for (std::int64_t length : shape) size *= static_cast<std::size_t>(length);
        const std::vector<float> data = random.array(size);
        return weight(DType::float32, std::move(shape), data.data(), size * sizeof(float));
    }
    std::int64_t packed(const Aligned<std::byte>& blob, std::size_t bytes) {
        return weight(DType::packed, {static_cast<std::int64_t>(bytes)}, blob.get(), bytes);
    }

    RawNode& node(const char* op, std::vector<std::int64_t> inputs, std::vector<Dim> shape,
                  std::vector<std::pair<std::string, Attribute>> attributes = {}, Stage stage = Stage::step,
                  DType dtype = DType::float32) {
        RawNode raw{};
        raw.op = op;
        raw.path = "block." + std::to_string(file.nodes.size());
        raw.stage = static_cast<std::uint8_t>(stage);
        raw.inputs = std::move(inputs);
        raw.output = value(std::move(shape), dtype);
        raw.attributes = std::move(attributes);
        file.nodes.push_back(std::move(raw));
        return file.nodes.back();
    }
    RawNode& linear(std::vector<std::int64_t> inputs, std::vector<Dim> shape, std::int64_t in,
                    std::int64_t out, const std::string& activation = "none", Stage stage = Stage::step) {
        RawNode& raw = node("linear", std::move(inputs), std::move(shape),
                            {{"in", in}, {"out", out}, {"activation", activation}, {"scale", 1.0}}, stage);
        const auto rows = static_cast<std::size_t>(activation == "geglu" ? 2 * out : out);
        const auto columns = static_cast<std::size_t>(in);
        const std::size_t bytes = linear_packed_bytes(columns, rows, WeightType::fp32);
        const auto blob = aligned<std::byte>(bytes);
        linear_pack(random.array(columns * rows).data(), columns, rows, WeightType::fp32, blob.get());
        raw.packings.push_back({0, 0, packed(blob, bytes)});
        return raw;
    }
    RawNode& conv2d(std::vector<std::int64_t> inputs, std::vector<Dim> shape, std::int64_t in,
                    std::int64_t out, std::int64_t upsample) {
        const std::int64_t one = 1, three = 3;
        RawNode& raw = node("conv2d", std::move(inputs), std::move(shape),
                            {{"in", in},
                             {"out", out},
                             {"kernel_h", three},
                             {"kernel_w", three},
                             {"stride", one},
                             {"pad_top", one},
                             {"pad_bottom", one},
                             {"pad_left", one},
                             {"pad_right", one},
                             {"upsample", upsample},
                             {"activation", std::string("silu")},
                             {"scale", 0.5}});
        Conv2dShape s{};
        s.in = static_cast<std::size_t>(in);
        s.out = static_cast<std::size_t>(out);
        s.kernel_h = s.kernel_w = 3;
        s.stride = s.pad_top = s.pad_bottom = s.pad_left = s.pad_right = 1;
        s.upsample = static_cast<std::size_t>(upsample);
        const std::vector<float> plain = random.array(s.in * s.out * 9);
        for (ConvAlgorithm algorithm :
             {ConvAlgorithm::direct, ConvAlgorithm::winograd2, ConvAlgorithm::winograd4}) {
            if (!conv2d_supports(s, algorithm)) continue;
            const std::size_t bytes = conv2d_packed_bytes(s, algorithm, WeightType::fp32);
            const auto blob = aligned<std::byte>(bytes);
            conv2d_pack(plain.data(), s, algorithm, WeightType::fp32, blob.get());
            raw.packings.push_back({static_cast<std::uint8_t>(algorithm), 0, packed(blob, bytes)});
        }
        return raw;
    }

  private:
    Random random{7};
};

}  // namespace

std::vector<std::byte> GraphFile::encode() const {
    Bytes graph;
    graph.count(symbols.size());
    for (const Symbol& symbol : symbols) {
        graph.string(symbol.name);
        for (std::int64_t limit : {symbol.minimum, symbol.maximum, symbol.multiple_of}) graph.put(limit);
    }
    graph.count(values.size());
    for (const Value& value : values) {
        graph.string(value.name);
        graph.put(value.dtype);
        graph.count(value.shape.size());
        for (const Dim& dim : value.shape) {
            graph.count(dim.size());
            for (const Token& token : dim) {
                graph.put(token.kind);
                graph.put(token.operand);
            }
        }
    }
    Bytes data;
    graph.count(weights.size());
    for (const FileWeight& weight : weights) {
        graph.string(weight.name);
        graph.put(weight.dtype);
        graph.count(weight.shape.size());
        for (std::int64_t size : weight.shape) graph.put(size);
        graph.put(data.bytes.size());
        graph.put(weight.data.size());
        data.bytes.insert(data.bytes.end(), weight.data.begin(), weight.data.end());
        data.pad(64);
    }
    graph.count(nodes.size());
    for (const RawNode& node : nodes) put(graph, node);
    for (const auto* ids : {&inputs, &outputs}) {
        graph.count(ids->size());
        for (std::int64_t id : *ids) graph.put(id);
    }
    Bytes file;
    for (char c : {'\x89', 'F', 'D', 'N', '\r', '\n', '\x1a', '\n'}) file.put(c);
    file.put(std::uint32_t{1});
    file.put(std::uint32_t{0});
    file.put(std::uint64_t{0});
    file.put(graph.bytes.size());
    const std::size_t begin = (header_size + graph.bytes.size() + 4095) / 4096 * 4096;
    file.put(begin);
    file.pad(header_size);
    file.bytes.insert(file.bytes.end(), graph.bytes.begin(), graph.bytes.end());
    file.pad(4096);
    file.bytes.insert(file.bytes.end(), data.bytes.begin(), data.bytes.end());
    repair(file.bytes);
    return std::move(file.bytes);
}

void repair(std::vector<std::byte>& file) {
    if (file.size() < header_size) return;
    overwrite(file, 16, static_cast<std::uint64_t>(file.size()));
    std::uint64_t graph;
    std::memcpy(&graph, file.data() + 24, sizeof graph);
    if (graph > file.size() - header_size) return;
    const std::span<const std::byte> bytes(file);
    overwrite(file, 60, crc32(bytes.subspan(header_size, graph), crc32(bytes.first(60))));
}

AlignedBytes::AlignedBytes(std::span<const std::byte> bytes)
    : memory_(aligned<std::byte>(bytes.size())), size_(bytes.size()) {
    std::memcpy(memory_.get(), bytes.data(), size_);
}

GraphFile every_op() {
    Builder b;
    b.file.symbols = {{"batch", 1, 16, 1}, {"height", 2, 0, 2}, {"tokens", 1, 77, 1}};
    const Dim batch = b.symbol(0), height = b.symbol(1), tokens = b.symbol(2);
    const auto n = [&](std::int64_t size) { return b.number(size); };
    const auto none = std::int64_t{-1};
    const auto x = b.input({batch, height, n(4), n(4)}), t = b.input({batch}),
               prompt = b.input({batch, tokens, n(6)});
    const auto ids = b.input({batch, tokens}, DType::int64);

    RawNode& wave =
        b.node("timestep_embedding", {t}, {batch, n(6)}, {{"sine_first", std::int64_t{1}}}, Stage::schedule);
    wave.weights.emplace_back("frequencies", b.floats({3}));
    RawNode& time = b.linear({wave.output}, {batch, n(8)}, 6, 8, "silu", Stage::schedule);
    time.weights.emplace_back("bias", b.floats({8}));
    const auto vector = b.node("slice", {time.output}, {batch, n(4)},
                               {{"axis", std::int64_t{1}}, {"start", std::int64_t{4}}}, Stage::schedule)
                            .output;
    const auto keys = b.linear({prompt}, {batch, tokens, n(4)}, 6, 4, "none", Stage::prompt).output;

    RawNode& table = b.node("embedding", {ids}, {batch, tokens, n(4)});
    table.weights.emplace_back("table", b.floats({11, 4}));
    const auto embedded = table.output;  // the next node may move this one
    RawNode& positions = b.node("constant", {}, {n(1), n(77), n(4)});
    positions.weights.emplace_back("value", b.floats({1, 77, 4}));
    const auto cut = b.node("slice", {positions.output}, {n(1), tokens, n(4)},
                            {{"axis", std::int64_t{1}}, {"start", std::int64_t{0}}})
                         .output;
    const auto wide = b.node("expand", {cut}, {batch, tokens, n(4)}).output;
    const auto token =
        b.node("select_token", {wide, ids}, {batch, n(4)}, {{"token", std::int64_t{3}}}).output;
    const auto repeated = b.node("reshape", {token}, {batch, n(1), n(4)}).output;
    const auto summed = b.node("add", {embedded, repeated}, {batch, tokens, n(4)}).output;
    const auto values = b.node("add", {summed, wide}, {batch, tokens, n(4)}).output;

    const std::vector<Dim> map{batch, height, n(4), n(4)};
    RawNode& norm = b.node("group_norm_silu", {x}, map,
                           {{"groups", std::int64_t{2}}, {"eps", 1e-5}, {"silu", std::int64_t{1}}});
    norm.weights.emplace_back("weight", b.floats({4}));
    norm.weights.emplace_back("bias", b.floats({4}));
    RawNode& conv = b.conv2d({norm.output, vector, x}, map, 4, 4, 1);
    conv.weights.emplace_back("bias", b.floats({4}));
    conv.tuned.push_back({0, {{0, 2}, {1, 4}}});
    const auto h = conv.output;
    const Dim pixels{{Token::Kind::symbol, 1}, {Token::Kind::number, 4}, {Token::Kind::multiply, 0}};
    const auto rows = b.node("reshape", {h}, {batch, pixels, n(4)}).output;
    RawNode& normed = b.node("layer_norm", {rows}, {batch, pixels, n(4)}, {{"eps", 1e-5}});
    normed.weights.emplace_back("weight", b.floats({4}));
    const auto attended = b.node("attention", {normed.output, keys, values}, {batch, pixels, n(4)},
                                 {{"heads", std::int64_t{2}}, {"scale", 0.5}, {"causal", std::int64_t{0}}})
                              .output;
    const auto gated = b.linear({attended, rows}, {batch, pixels, n(4)}, 4, 4, "geglu").output;
    const auto folded = b.node("reshape", {gated}, map).output;
    const auto both =
        b.node("concat", {folded, h}, {batch, height, n(4), n(8)}, {{"axis", std::int64_t{3}}}).output;
    const auto half = b.node("geglu", {both}, map).output;
    const Dim up{{Token::Kind::symbol, 1}, {Token::Kind::number, 2}, {Token::Kind::multiply, 0}};
    const auto large =
        b.node("upsample_nearest2d", {half}, {batch, up, n(8), n(4)}, {{"factor", std::int64_t{2}}}).output;
    const Dim back{{Token::Kind::symbol, 1},
                   {Token::Kind::number, 2},
                   {Token::Kind::multiply, 0},
                   {Token::Kind::number, 2},
                   {Token::Kind::divide, 0}};
    const auto pooled =
        b.node("avg_pool2d", {large}, {batch, back, n(4), n(4)}, {{"factor", std::int64_t{2}}}).output;
    const auto wider = b.conv2d({pooled, none, none}, {batch, up, n(8), n(3)}, 4, 3, 2).output;
    const auto clamped =
        b.node("clamp", {wider}, {batch, up, n(8), n(3)}, {{"low", -1.0}, {"high", 1.0}}).output;
    const auto turned = b.node("permute", {clamped}, {batch, n(3), up, n(8)},
                               {{"axes", std::vector<std::int64_t>{0, 3, 1, 2}}})
                            .output;
    b.file.outputs = {turned, half};
    return std::move(b.file);
}

}  // namespace fastdiff::tests
