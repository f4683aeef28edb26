#include "runtime/engine_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>

#include "runtime/check_graph.h"
#include "runtime/error.h"
#include "runtime/nodes.h"

static_assert(std::endian::native == std::endian::little, "the file's numbers are used as they lie");

namespace fastdiff {
namespace {

constexpr std::uint32_t format_version = 1;
constexpr std::size_t header_size = 64;
constexpr std::size_t weight_alignment = 64;
constexpr char magic[] =
    "\x89"
    "FDN\r\n\x1a\n";
constexpr std::int64_t max_size = std::int64_t{1} << 40;

[[noreturn]] void fail(const std::string& what) { throw EngineError(what); }

// Reads a section from front to back and never past its end.
class Reader {
  public:
    explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}

    template <class T>
    T read() {
        T value;
        std::memcpy(&value, take(sizeof value).data(), sizeof value);
        return value;
    }
    std::uint8_t u8() { return read<std::uint8_t>(); }
    std::int64_t i64() { return read<std::int64_t>(); }
    // A count of things that take at least `bytes` each, so that it cannot ask for more memory than the file
    // is worth.
    std::size_t count(std::size_t bytes) {
        const std::size_t found = read<std::uint32_t>();
        if (found > rest_.size() / bytes) fail("the graph section counts more than it holds");
        return found;
    }
    // Printable ASCII, since names end up in messages of one line.
    std::string string() {
        const auto bytes = take(count(1));
        std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        if (std::any_of(text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; })) {
            fail("a name in the graph section is not printable");
        }
        return text;
    }
    void finish() const {
        if (!rest_.empty()) fail("the graph section goes on after its end");
    }

  private:
    std::span<const std::byte> take(std::size_t size) {
        if (size > rest_.size()) fail("the graph section ends too early");
        const auto taken = rest_.first(size);
        rest_ = rest_.subspan(size);
        return taken;
    }

    std::span<const std::byte> rest_;
};

struct Sections {
    std::span<const std::byte> graph, data;
};

Sections read_header(std::span<const std::byte> file) {
    if (file.size() < header_size || std::memcmp(file.data(), magic, 8) != 0) {
        fail("it is not a native module file of fastdiff");
    }
    Reader reader(file.subspan(8, header_size - 8));
    const auto version = reader.read<std::uint32_t>();
    if (version != format_version) {
        throw EngineVersionError("it has format version " + std::to_string(version) + ", wanted " +
                                 std::to_string(format_version) + "; build the engine again");
    }
    reader.read<std::uint32_t>();
    const auto size = reader.read<std::uint64_t>();
    if (size != file.size()) {
        fail("it has " + std::to_string(file.size()) + " bytes, wanted " + std::to_string(size) +
             "; copy or build the engine again");
    }
    const auto graph = reader.read<std::uint64_t>();
    const auto data = reader.read<std::uint64_t>();
    if (graph > size - header_size || data > size || data < header_size + graph ||
        data % weight_alignment != 0) {
        fail("its header is damaged");
    }
    std::uint32_t checksum;
    std::memcpy(&checksum, file.data() + header_size - sizeof checksum, sizeof checksum);
    const auto section = file.subspan(header_size, graph);
    if (crc32(section, crc32(file.first(header_size - sizeof checksum))) != checksum) {
        fail("its checksum differs; copy or build the engine again");
    }
    return {section, file.subspan(data)};
}

Symbol read_symbol(Reader& reader) {
    Symbol symbol{reader.string(), 0, 0, 0};
    symbol.minimum = reader.i64();
    symbol.maximum = reader.i64();
    symbol.multiple_of = reader.i64();
    if (symbol.minimum < 1 || symbol.maximum < 0 || symbol.multiple_of < 1) {
        fail("symbol " + symbol.name + " has an impossible range");
    }
    return symbol;
}

DType read_dtype(Reader& reader, DType last) {
    const std::uint8_t code = reader.u8();
    if (code > static_cast<std::uint8_t>(last)) fail("unknown dtype");
    return static_cast<DType>(code);
}

// A program that leaves exactly one number.
Dim read_dim(Reader& reader, std::size_t symbols) {
    Dim program;
    std::size_t depth = 0;
    for (std::size_t left = reader.count(9); left > 0; --left) {
        const std::uint8_t code = reader.u8();
        const std::int64_t operand = reader.i64();
        if (code > static_cast<std::uint8_t>(Token::Kind::divide)) fail("unknown token in a size");
        const auto kind = static_cast<Token::Kind>(code);
        if (kind == Token::Kind::symbol && (operand < 0 || operand >= static_cast<std::int64_t>(symbols))) {
            fail("unknown symbol in a size");
        }
        if (kind >= Token::Kind::add) {
            if (depth < 2) fail("a size's program lacks an operand");
            --depth;
        } else {
            ++depth;
        }
        program.push_back({kind, operand});
    }
    if (depth != 1) fail("a size's program leaves " + std::to_string(depth) + " numbers, wanted one");
    return program;
}

Value read_value(Reader& reader, std::size_t symbols) {
    Value value{reader.string(), read_dtype(reader, DType::int64), {}, Stage::step};
    const std::size_t rank = reader.count(4);
    if (rank > max_rank) fail("value " + value.name + " has more than " + std::to_string(max_rank) + " axes");
    for (std::size_t axis = 0; axis < rank; ++axis) value.shape.push_back(read_dim(reader, symbols));
    return value;
}

Weight read_weight(Reader& reader, std::span<const std::byte> data) {
    Weight weight{reader.string(), read_dtype(reader, DType::packed), {}, nullptr, 0};
    const std::size_t rank = reader.count(8);
    if (rank > max_rank) fail("weight " + weight.name + " has too many axes");
    std::size_t elements = 1;
    for (std::size_t axis = 0; axis < rank; ++axis) {
        const std::int64_t size = reader.i64();
        if (size < 1 || size > max_size || __builtin_mul_overflow(elements, size, &elements) ||
            elements > static_cast<std::size_t>(max_size)) {
            fail("weight " + weight.name + " has an impossible shape");
        }
        weight.shape.push_back(static_cast<std::size_t>(size));
    }
    const auto offset = reader.read<std::uint64_t>();
    weight.bytes = reader.read<std::uint64_t>();
    constexpr std::size_t widths[] = {4, 8, 2, 1};
    if (weight.bytes != elements * widths[static_cast<std::size_t>(weight.dtype)]) {
        fail("weight " + weight.name + " has another size than its shape");
    }
    if (offset > data.size() || weight.bytes > data.size() - offset || offset % weight_alignment != 0) {
        fail("weight " + weight.name + " lies outside of the file");
    }
    weight.data = data.data() + offset;
    return weight;
}

Attribute read_attribute(Reader& reader) {
    switch (reader.u8()) {
        case 0:
            return reader.i64();
        case 1:
            return reader.read<double>();
        case 2:
            return reader.string();
        case 3: {
            std::vector<std::int64_t> values(reader.count(8));
            for (std::int64_t& value : values) value = reader.i64();
            return values;
        }
        default:
            fail("unknown kind of attribute");
    }
}

RawNode read_node(Reader& reader) {
    RawNode node{};
    node.op = reader.string();
    node.path = reader.string();
    node.stage = reader.u8();
    node.inputs.resize(reader.count(8));
    for (std::int64_t& input : node.inputs) input = reader.i64();
    node.output = reader.i64();
    for (std::size_t left = reader.count(6); left > 0; --left) {
        std::string name = reader.string();
        node.attributes.emplace_back(std::move(name), read_attribute(reader));
    }
    for (std::size_t left = reader.count(12); left > 0; --left) {
        std::string role = reader.string();
        node.weights.emplace_back(std::move(role), reader.i64());
    }
    for (std::size_t left = reader.count(10); left > 0; --left) {
        RawNode::Packing packing{};
        packing.algorithm = reader.u8();
        packing.type = reader.u8();
        packing.weight = reader.i64();
        node.packings.push_back(packing);
    }
    for (std::size_t left = reader.count(5); left > 0; --left) {
        RawNode::Tuned tuned{reader.u8(), {}};
        tuned.sizes.resize(reader.count(16));
        for (auto& [symbol, size] : tuned.sizes) {
            symbol = reader.i64();
            size = reader.i64();
        }
        node.tuned.push_back(std::move(tuned));
    }
    return node;
}

std::vector<int> read_ids(Reader& reader, std::size_t values) {
    std::vector<int> ids(reader.count(8));
    for (int& id : ids) {
        const std::int64_t found = reader.i64();
        if (found < 0 || found >= static_cast<std::int64_t>(values)) fail("unknown value id");
        id = static_cast<int>(found);
    }
    return ids;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
    const auto refuse = [&](const char* what) {
        fail(path + " cannot be " + what + ": " + std::strerror(errno));
    };
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) refuse("opened");
    struct stat status{};
    if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size == 0) {
        close(file);
        fail(path + ": it is not a native module file of fastdiff");
    }
    size_ = static_cast<std::size_t>(status.st_size);
    void* mapped = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) refuse("mapped");
    data_ = static_cast<const std::byte*>(mapped);
}

MappedFile::~MappedFile() { munmap(const_cast<std::byte*>(data_), size_); }

Graph read_graph(std::span<const std::byte> file) {
    const auto [section, data] = read_header(file);
    Reader reader(section);
    Graph graph;
    for (std::size_t left = reader.count(28); left > 0; --left) graph.symbols.push_back(read_symbol(reader));
    for (std::size_t left = reader.count(9); left > 0; --left) {
        graph.values.push_back(read_value(reader, graph.symbols.size()));
    }
    for (std::size_t left = reader.count(25); left > 0; --left) {
        graph.weights.push_back(read_weight(reader, data));
    }
    for (std::size_t left = reader.count(37); left > 0; --left) {
        graph.nodes.push_back(make_node(read_node(reader), graph));
    }
    graph.inputs = read_ids(reader, graph.values.size());
    graph.outputs = read_ids(reader, graph.values.size());
    reader.finish();
    std::stable_sort(graph.nodes.begin(), graph.nodes.end(),
                     [](const Node& a, const Node& b) { return a.stage < b.stage; });
    check_graph(graph);
    return graph;
}

std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t start) {
    static constexpr auto table = [] {
        std::array<std::uint32_t, 256> entries{};
        for (std::uint32_t i = 0; i < 256; ++i) {
            std::uint32_t value = i;
            for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1u ? 0xEDB88320u : 0u);
            entries[i] = value;
        }
        return entries;
    }();
    std::uint32_t crc = ~start;
    for (std::byte byte : bytes) {
        crc = table[(crc ^ std::to_integer<std::uint32_t>(byte)) & 0xFFu] ^ (crc >> 8);
    }
    return ~crc;
}

}  // namespace fastdiff
