// The functions of fastdiff.h. No exception leaves this file.
#include <cstdint>
#include <exception>
#include <string>

#include "cpu/isa.h"
#include "include/fastdiff.h"

namespace {

std::string& last_error() {
    thread_local std::string message;
    return message;
}

}  // namespace

uint32_t fastdiff_abi_version(void) { return FASTDIFF_ABI_VERSION; }

const char* fastdiff_version(void) { return FASTDIFF_VERSION; }

const char* fastdiff_isa(void) {
    try {
        return fastdiff::isa_name(fastdiff::active_isa()).data();  // of a literal, hence terminated
    } catch (const std::exception& error) {
        last_error() = error.what();
        return nullptr;
    }
}

int fastdiff_isa_available(const char* name) {
    if (name == nullptr) return 0;
    try {
        return fastdiff::isa_available(fastdiff::parse_isa(name)) ? 1 : 0;
    } catch (const std::exception& error) {
        last_error() = error.what();
        return 0;
    }
}

const char* fastdiff_last_error(void) { return last_error().c_str(); }
