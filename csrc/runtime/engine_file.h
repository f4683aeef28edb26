// The file of a native module, mapped read-only. fastdiff/targets/native/file.py writes it and describes its
// layout.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "runtime/graph.h"

namespace fastdiff {

// A file's bytes, mapped; the mapping lives as long as the object.
class MappedFile {
  public:
    // Throws EngineError when the file cannot be opened or mapped.
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }

  private:
    const std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

// The graph of a file's bytes, which are aligned to 64 and outlive it: weights point into them. Checks
// everything but the weights' contents: the checksum of the graph section, every count, id, enum, offset and
// size. Throws EngineVersionError for another format version, EngineError for the rest.
Graph read_graph(std::span<const std::byte> file);

// CRC-32 as in zlib, of `bytes` following what gave `start`.
std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t start = 0);

}  // namespace fastdiff
