// What the functions of fastdiff.h share: no exception leaves them, and each says why it failed.
#pragma once

#include <string>

#include "include/fastdiff.h"

namespace fastdiff {

// Of the calling thread.
std::string& last_error();

// The status of the exception that is being handled; sets last_error.
fastdiff_status status_of_exception() noexcept;

template <class Body>
fastdiff_status guarded(const Body& body) noexcept {
    try {
        body();
        return FASTDIFF_OK;
    } catch (...) {
        return status_of_exception();
    }
}

}  // namespace fastdiff
