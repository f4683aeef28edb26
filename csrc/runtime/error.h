// What the runtime throws besides InputError. Messages are one line.
#pragma once

#include <stdexcept>

namespace fastdiff {

// An engine file that cannot be used. Python sees fastdiff.errors.EngineDamagedError.
struct EngineError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// One that is written in another version of the format. Python sees fastdiff.errors.EngineVersionError.
struct EngineVersionError : EngineError {
    using EngineError::EngineError;
};

// The caller's cancellation callback said so.
struct Cancelled : std::runtime_error {
    Cancelled() : runtime_error("cancelled") {}
};

}  // namespace fastdiff
