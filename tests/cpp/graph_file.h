// A native module file in memory, written from scratch: the reader's tests do not depend on the Python
// writer.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "runtime/aligned.h"
#include "runtime/nodes.h"

namespace fastdiff::tests {

struct FileWeight {
    std::string name;
    DType dtype;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> data;
};

struct GraphFile {
    std::vector<Symbol> symbols;
    std::vector<Value> values;
    std::vector<FileWeight> weights;
    std::vector<RawNode> nodes;
    std::vector<std::int64_t> inputs, outputs;

    [[nodiscard]] std::vector<std::byte> encode() const;
};

// Makes file size and checksum those of the bytes, as far as the header is there.
void repair(std::vector<std::byte>& file);

// A copy aligned to 64 that ends with the line its last byte is in, so that AddressSanitizer sees a read past
// it.
class AlignedBytes {
  public:
    explicit AlignedBytes(std::span<const std::byte> bytes);
    [[nodiscard]] std::span<const std::byte> bytes() const { return {memory_.get(), size_}; }

  private:
    Aligned<std::byte> memory_;
    std::size_t size_;
};

// A graph of every op, on inputs x [batch, height, 4, 4], t [batch], prompt [batch, tokens, 6] and ids
// [batch, tokens].
GraphFile every_op();

}  // namespace fastdiff::tests
