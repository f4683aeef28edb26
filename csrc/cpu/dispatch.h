// The kernels of one instruction set, as a table of function pointers: chosen once, outside of all loops.
#pragma once

#include "cpu/isa.h"
#include "cpu/isa_tags.h"
#include "kernels/conv2d.h"
#include "kernels/group_norm_silu.h"
#include "kernels/linear.h"
#include "kernels/scheduler_step.h"

namespace fastdiff {

// Defined in cpu/<op>.cpp, instantiated there for the tag of the instruction set the file is compiled for.
template <class I>
void conv2d(const Conv2dArgs& args, const Parallel& parallel);
template <class I>
void group_norm_silu(const GroupNormSiluArgs& args);
template <class I>
void linear(const LinearArgs& args, const Parallel& parallel);
template <class I>
void scheduler_step(const SchedulerStepArgs& args);

struct Kernels {
    void (*conv2d)(const Conv2dArgs& args, const Parallel& parallel);
    void (*group_norm_silu)(const GroupNormSiluArgs& args);
    void (*linear)(const LinearArgs& args, const Parallel& parallel);
    void (*scheduler_step)(const SchedulerStepArgs& args);
};

// The table of an instruction set for which isa_available is true.
const Kernels& kernels(Isa isa);

}  // namespace fastdiff
