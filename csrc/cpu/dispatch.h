// The kernels of one instruction set, as a table of function pointers: chosen once, outside of all loops.
#pragma once

#include "cpu/isa.h"
#include "cpu/isa_tags.h"
#include "kernels/attention.h"
#include "kernels/conv2d.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/group_norm_silu.h"
#include "kernels/layer_norm.h"
#include "kernels/linear.h"
#include "kernels/resample.h"
#include "kernels/scheduler_step.h"
#include "kernels/timestep_embedding.h"
#include "kernels/token_match.h"
#include "kernels/token_merge.h"
#include "kernels/token_unmerge.h"

namespace fastdiff {

// Defined in cpu/<op>.cpp, instantiated there for the tag of the instruction set the file is compiled for.
template <class I>
void attention(const AttentionArgs& args, const Parallel& parallel);
template <class I>
void conv2d(const Conv2dArgs& args, const Parallel& parallel);
template <class I>
void elementwise(const ElementwiseArgs& args, const Parallel& parallel);
template <class I>
void embedding(const EmbeddingArgs& args, const Parallel& parallel);
template <class I>
void group_norm_affine(const GroupNormSiluArgs& args, double* sums, std::size_t parts, float* affine,
                       const Parallel& parallel);
template <class I>
void group_norm_apply(const GroupNormSiluArgs& args, const float* affine, const Parallel& parallel);
template <class I>
void group_norm_silu(const GroupNormSiluArgs& args, const Parallel& parallel);
template <class I>
void group_norm_sums(const GroupNormSiluArgs& args, double* sums, const Parallel& parallel);
template <class I>
void layer_norm(const LayerNormArgs& args, const Parallel& parallel);
template <class I>
void linear(const LinearArgs& args, const Parallel& parallel);
template <class I>
void resample(const ResampleArgs& args, const Parallel& parallel);
template <class I>
void scheduler_step(const SchedulerStepArgs& args);
template <class I>
void timestep_embedding(const TimestepEmbeddingArgs& args, const Parallel& parallel);
template <class I>
void token_match(const TokenMatchArgs& args, const Parallel& parallel);
template <class I>
void token_merge(const TokenMergeArgs& args, const Parallel& parallel);
template <class I>
void token_unmerge(const TokenUnmergeArgs& args, const Parallel& parallel);

struct Kernels {
    void (*attention)(const AttentionArgs& args, const Parallel& parallel);
    void (*conv2d)(const Conv2dArgs& args, const Parallel& parallel);
    void (*elementwise)(const ElementwiseArgs& args, const Parallel& parallel);
    void (*embedding)(const EmbeddingArgs& args, const Parallel& parallel);
    void (*group_norm_affine)(const GroupNormSiluArgs& args, double* sums, std::size_t parts, float* affine,
                              const Parallel& parallel);
    void (*group_norm_apply)(const GroupNormSiluArgs& args, const float* affine, const Parallel& parallel);
    void (*group_norm_silu)(const GroupNormSiluArgs& args, const Parallel& parallel);
    void (*group_norm_sums)(const GroupNormSiluArgs& args, double* sums, const Parallel& parallel);
    void (*layer_norm)(const LayerNormArgs& args, const Parallel& parallel);
    void (*linear)(const LinearArgs& args, const Parallel& parallel);
    void (*resample)(const ResampleArgs& args, const Parallel& parallel);
    void (*scheduler_step)(const SchedulerStepArgs& args);
    void (*timestep_embedding)(const TimestepEmbeddingArgs& args, const Parallel& parallel);
    void (*token_match)(const TokenMatchArgs& args, const Parallel& parallel);
    void (*token_merge)(const TokenMergeArgs& args, const Parallel& parallel);
    void (*token_unmerge)(const TokenUnmergeArgs& args, const Parallel& parallel);
};

// The table of an instruction set for which isa_available is true.
const Kernels& kernels(Isa isa);

}  // namespace fastdiff
