// Writes the graph of every op to the file named by its argument, for tests that open module files.
#include <cstdio>

#include "graph_file.h"

int main(int count, char** arguments) {
    std::FILE* file = count == 2 ? std::fopen(arguments[1], "wb") : nullptr;
    if (file == nullptr) return 1;
    const auto bytes = fastdiff::tests::every_op().encode();
    const bool written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
    return std::fclose(file) == 0 && written ? 0 : 1;
}
