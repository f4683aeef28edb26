// The functions of fastdiff.h about the library itself.
#include <cstdint>
#include <exception>
#include <new>
#include <string>

#include "cpu/isa.h"
#include "kernels/error.h"
#include "runtime/c_status.h"
#include "runtime/error.h"

namespace fastdiff {
namespace {

fastdiff_status fail(fastdiff_status status, const char* message) noexcept {
    try {
        last_error() = message;
    } catch (...) {
        last_error().clear();  // not even memory for the message
    }
    return status;
}

}  // namespace

std::string& last_error() {
    thread_local std::string message;
    return message;
}

fastdiff_status status_of_exception() noexcept {
    try {
        throw;
    } catch (const InputError& error) {
        return fail(FASTDIFF_INVALID_ARGUMENT, error.what());
    } catch (const EngineVersionError& error) {
        return fail(FASTDIFF_ENGINE_VERSION, error.what());
    } catch (const EngineError& error) {
        return fail(FASTDIFF_ENGINE_DAMAGED, error.what());
    } catch (const Cancelled& error) {
        return fail(FASTDIFF_STOPPED, error.what());
    } catch (const std::bad_alloc&) {
        return fail(FASTDIFF_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception& error) {
        return fail(FASTDIFF_INTERNAL, error.what());
    } catch (...) {
        return fail(FASTDIFF_INTERNAL, "unknown error");
    }
}

}  // namespace fastdiff

uint32_t fastdiff_abi_version(void) { return FASTDIFF_ABI_VERSION; }

const char* fastdiff_version(void) { return FASTDIFF_VERSION; }

const char* fastdiff_isa(void) {
    const char* name = nullptr;
    fastdiff::guarded(
        [&] { name = fastdiff::isa_name(fastdiff::active_isa()).data(); });  // of a literal: terminated
    return name;
}

int fastdiff_isa_available(const char* name) {
    if (name == nullptr) return 0;
    bool available = false;
    fastdiff::guarded([&] { available = fastdiff::isa_available(fastdiff::parse_isa(name)); });
    return available ? 1 : 0;
}

const char* fastdiff_last_error(void) { return fastdiff::last_error().c_str(); }
