// Group normalisation of an NHWC tensor as blocks of threads share it: which elements a thread reads, and how
// means and squared deviations of parts become those of a group.
//
// A block has a range of columns (channels) and a range of rows (pixels). Its columns are cut into packs of
// `pack` channels; thread t has pack t % packs and every (threads / packs)-th row, for ever the same
// channels. It keeps mean and sum of squared deviations per channel, which Chan, Golub and LeVeque (1979)
// show how to combine without ever subtracting large squares.
#pragma once

#include "host_device.h"

namespace fastdiff::cuda {

// To within two units in the last place.
FASTDIFF_HD float divide(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fdividef(a, b);
#else
    return a / b;
#endif
}

// Of a set of numbers: how many, their mean, Σ(x − mean)².
struct Moments {
    float count, mean, squares;
};

// Those of the union of two sets.
FASTDIFF_HD Moments combine(Moments a, Moments b) {
    const float count = a.count + b.count;
    if (count == 0.0f) return a;
    const float share = divide(b.count, count), distance = b.mean - a.mean;
    return Moments{count, a.mean + distance * share,
                   a.squares + b.squares + distance * distance * (a.count * share)};
}

// Adds `Count` numbers to a set of `count`; share is Count / (count + Count), which many channels have in
// common.
template <int Count>
FASTDIFF_HD void accumulate(const float (&x)[Count], float count, float share, float& mean, float& squares) {
    float sum = x[0];
    FASTDIFF_UNROLL
    for (int i = 1; i < Count; ++i) sum += x[i];
    const float own = sum * (1.0f / Count);
    float deviations = 0.0f;
    FASTDIFF_UNROLL
    for (int i = 0; i < Count; ++i) deviations += (x[i] - own) * (x[i] - own);
    const float distance = own - mean;
    mean += distance * share;
    squares += deviations + distance * distance * (count * share);
}

// A block's columns: channels [first, first + width) of groups of group_channels; first and width are
// multiples of pack.
struct Columns {
    int first, width, group_channels, pack;

    FASTDIFF_HD int packs() const { return width / pack; }
    FASTDIFF_HD int first_group() const { return first / group_channels; }
    FASTDIFF_HD int groups() const { return (first + width - 1) / group_channels - first_group() + 1; }
};

// How many groups a pack may touch.
FASTDIFF_HD int max_segments(int pack, int group_channels) {
    if (group_channels % pack == 0) return 1;
    if (pack % group_channels == 0) return pack / group_channels;
    return (pack + group_channels - 2) / group_channels + 1;
}

// Combines a thread's channels that are of one group and writes the groups' moments, slots[segment · stride].
// `channel` is the thread's first.
template <int Pack>
FASTDIFF_HD void store_segments(const float (&mean)[Pack], const float (&squares)[Pack], float count,
                                int channel, int group_channels, Moments* slots, int stride) {
    Moments moments{count, mean[0], squares[0]};
    int segment = 0, left = group_channels - channel % group_channels;
    FASTDIFF_UNROLL
    for (int i = 1; i < Pack; ++i) {
        const Moments next{count, mean[i], squares[i]};
        if (--left == 0) {
            slots[segment++ * stride] = moments;
            moments = next;
            left = group_channels;
        } else {
            moments = combine(moments, next);
        }
    }
    slots[segment * stride] = moments;
}

// Where a block's threads have left the moments of one group: in some packs of each row of threads. Only the
// first of these packs may begin in an earlier group, `segment` groups before.
struct Partials {
    int first_pack, packs, rows, segment;
};

// Those of group `group`, which the columns touch, from `rows` rows of threads.
FASTDIFF_HD Partials partials_of(Columns columns, int group, int rows) {
    const int begin = group * columns.group_channels - columns.first;
    const int end = begin + columns.group_channels;
    const int first = (begin > 0 ? begin : 0) / columns.pack;
    const int last = ((end < columns.width ? end : columns.width) - 1) / columns.pack;
    const int segment = group - (columns.first + first * columns.pack) / columns.group_channels;
    return Partials{first, last - first + 1, rows, segment};
}

// Combines every `step`-th of them, starting with `begin`.
FASTDIFF_HD Moments combine_partials(Partials partials, int packs, const Moments* slots, int stride,
                                     int begin, int step) {
    const int rows_step = step / partials.packs, packs_step = step % partials.packs;
    int row = begin / partials.packs, pack = begin % partials.packs;
    Moments moments{0.0f, 0.0f, 0.0f};
    while (row < partials.rows) {
        const int segment = pack == 0 ? partials.segment : 0;
        moments = combine(moments, slots[segment * stride + row * packs + partials.first_pack + pack]);
        row += rows_step;
        pack += packs_step;
        if (pack >= partials.packs) {
            pack -= partials.packs;
            ++row;
        }
    }
    return moments;
}

// The rows of part `part` of `parts`: [begin, end).
struct Range {
    int begin, end;
};

FASTDIFF_HD Range part_of(int rows, int part, int parts) {
    return Range{static_cast<int>(static_cast<int64_t>(rows) * part / parts),
                 static_cast<int>(static_cast<int64_t>(rows) * (part + 1) / parts)};
}

// Blocks that read a part of the columns of `group` each, and the first of them: with blocks of `width`
// columns a group lies in one block, or, where it is wider, in several.
FASTDIFF_HD int first_block(int group, int group_channels, int width) {
    return group * group_channels / width;
}
FASTDIFF_HD int last_block(int group, int group_channels, int width) {
    return ((group + 1) * group_channels - 1) / width;
}

// What normalises a group.
struct Statistics {
    float mean, inverse_deviation;
};

FASTDIFF_HD Statistics statistics(Moments moments, float eps) {
    const float variance = moments.squares / moments.count + eps;
#ifdef __CUDA_ARCH__
    return Statistics{moments.mean, rsqrtf(variance)};
#else
    return Statistics{moments.mean, 1.0f / sqrtf(variance)};
#endif
}

// Statistics of each of a thread's channels, from those of the block's groups; `channel` is the thread's
// first.
template <int Pack>
FASTDIFF_HD void spread(const Statistics* groups, Columns columns, int channel, float (&mean)[Pack],
                        float (&inverse_deviation)[Pack]) {
    const int group = channel / columns.group_channels;
    int left = (group + 1) * columns.group_channels - channel;
    const Statistics* own = groups + (group - columns.first_group());
    FASTDIFF_UNROLL
    for (int i = 0; i < Pack; ++i) {
        if (left == 0) {
            ++own;
            left = columns.group_channels;
        }
        --left;
        mean[i] = own->mean;
        inverse_deviation[i] = own->inverse_deviation;
    }
}

// x · sigmoid(x)
FASTDIFF_HD float silu(float x) {
#ifdef __CUDA_ARCH__
    const float e = __expf(-x);
#else
    const float e = expf(-x);
#endif
    return divide(x, 1.0f + e);
}

}  // namespace fastdiff::cuda
