// The exception that csrc/ throws for an argument or setting that cannot be used. The message is one line and
// holds the value found, the value wanted and the way out. Python sees fastdiff.errors.InputError.
#pragma once

#include <stdexcept>

namespace fastdiff {

struct InputError : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

}  // namespace fastdiff
