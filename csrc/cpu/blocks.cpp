#include "cpu/blocks.h"

namespace fastdiff {
namespace {

// Rows of A in a block: enough to use what was loaded of B many times, few enough for `depth_block` of each
// to stay in a second-level cache of 1 MB. Whole tiles of 14 rows.
constexpr std::size_t linear_rows = 182, direct_rows = 112;
// Fewest rows that are worth a block of their own: two tiles.
constexpr std::size_t least_rows = 28;
// Fewest items per thread, so that a thread that is slowed down does not hold the others up for long.
constexpr std::size_t items_per_thread = 8;
// The same for the tiles of a Winograd round, whatever the number of threads.
constexpr std::size_t least_items = 8;
// Floats of transformed tiles in a Winograd round: they pass through the last-level cache, which others use
// too. With fewer tiles than the least, reading the weights again each round would cost more.
constexpr std::size_t round_floats = std::size_t{1} << 20;
constexpr std::size_t most_round_tiles = 224, least_round_tiles = 48, block_tiles = 56;

// Row strides of A are odd multiples of a cache line, so that the rows of a tile fall into different cache
// sets.
std::size_t spread(std::size_t channels) {
    const std::size_t lines = div_up(channels, 16);
    return 16 * (lines % 2 == 0 ? lines + 1 : lines);
}

// Into how many ranges `groups` is cut so that there are enough items for all threads: as many for each, and
// of the same size if there is such a number.
std::size_t column_blocks(std::size_t row_blocks, std::size_t groups, std::size_t threads) {
    if (threads < 2 || row_blocks == 0) return 1;
    const std::size_t wanted = div_up(items_per_thread * threads, row_blocks);
    if (wanted >= groups) return groups;
    std::size_t fair = 0;
    for (std::size_t n = wanted; n <= 2 * wanted + threads && n <= groups; ++n) {
        if (row_blocks * n % threads != 0) continue;
        if (groups % n == 0) return n;
        if (fair == 0) fair = n;
    }
    return fair != 0 ? fair : wanted;
}

}  // namespace

LinearBlocks linear_blocks(const LinearArgs& args, std::size_t threads) {
    LinearBlocks b{};
    const bool halves = args.activation == Activation::geglu;
    b.panels = div_up(args.out, 16);
    b.panels_at_once = args.rows <= few_rows ? 2 * group_panels : group_panels;
    if (halves) b.panels_at_once /= 2;  // each panel of y takes two of W
    b.row_blocks = div_up(args.rows, linear_rows);
    // Few columns that do not come out even: a range of rows for each thread.
    const std::size_t groups = div_up(b.panels, b.panels_at_once);
    if (b.row_blocks < threads && groups < items_per_thread * threads && groups % threads != 0 &&
        args.rows >= threads * least_rows) {
        b.row_blocks = threads;
    }
    b.rows = b.row_blocks == 0 ? 0 : div_up(args.rows, b.row_blocks);
    b.column_blocks = column_blocks(b.row_blocks, div_up(b.panels, b.panels_at_once), threads);
    const bool unaligned = halves && args.out % 16 != 0;
    if (unaligned) b.column_blocks = 1;
    const std::size_t at_once = unaligned ? div_up(2 * args.out, 16) : 2 * group_panels;
    b.sums = b.rows * 16 * at_once;
    b.weights = args.type == WeightType::fp32 ? 0 : half_depth_block * 16 * 2 * group_panels;
    return b;
}

DirectBlocks direct_blocks(const Conv2dArgs& args, std::size_t threads) {
    const Conv2dShape& s = args.shape;
    DirectBlocks b{};
    b.padded =
        args.affine != nullptr || s.upsample != 1 || s.pad_top + s.pad_bottom + s.pad_left + s.pad_right != 0;
    b.copy_height = s.seen_height() + s.pad_top + s.pad_bottom;
    b.copy_width = s.seen_width() + s.pad_left + s.pad_right;
    b.copy_step = s.in < 16 ? s.in : spread(s.in);
    b.copy = b.padded ? round_up(s.batch * b.copy_height * b.copy_width * b.copy_step, 16) : 0;
    b.panels = div_up(s.out, 16);
    const std::size_t rows = s.batch * s.out_height();
    const std::size_t per_block = s.out_width() == 0 ? 1 : div_up(direct_rows, s.out_width());
    b.row_blocks = div_up(rows, per_block);
    b.rows = b.row_blocks == 0 ? 0 : div_up(rows, b.row_blocks);
    b.column_blocks = column_blocks(b.row_blocks, div_up(b.panels, group_panels), threads);
    b.sums = b.rows * s.out_width() * 16 * group_panels;
    b.weights = args.type == WeightType::fp32 ? 0 : half_depth_block * 16 * group_panels;
    return b;
}

WinogradBlocks winograd_blocks(const Conv2dArgs& args) {
    const Conv2dShape& s = args.shape;
    WinogradBlocks b{};
    const bool plain = args.algorithm == ConvAlgorithm::winograd2_plain;
    b.m = plain || args.algorithm == ConvAlgorithm::winograd2 ? 2 : 4;
    b.points = (b.m + 2) * (b.m + 2);
    b.tiles_high = div_up(s.out_height(), b.m);
    b.tiles_wide = div_up(s.out_width(), b.m);
    b.tiles = s.batch * b.tiles_high * b.tiles_wide;
    b.row = spread(s.in);
    std::size_t most = round_floats / (b.points * b.row);
    most = most < least_round_tiles ? least_round_tiles : most > most_round_tiles ? most_round_tiles : most;
    b.rounds = div_up(b.tiles, most);
    b.round_tiles = b.rounds == 0 ? 0 : div_up(b.tiles, b.rounds);
    b.panels = div_up(s.out, 16);
    b.groups = div_up(b.panels, group_panels);
    b.tile_blocks = div_up(b.round_tiles, block_tiles);
    // Few groups of columns: cut the tiles instead.
    const std::size_t wanted = div_up(least_items, b.groups), most_blocks = div_up(b.round_tiles, 14);
    if (b.tile_blocks < wanted) {
        b.tile_blocks = wanted < most_blocks ? wanted : most_blocks;
        if (b.groups * b.tile_blocks % 2 != 0 && b.tile_blocks > 1) --b.tile_blocks;  // half for each of two
    }
    b.block_tiles = b.tile_blocks == 0 ? 0 : div_up(b.round_tiles, b.tile_blocks);
    // One line more than the tiles take: points fall into different cache sets.
    b.plane = spread(b.round_tiles * b.row);
    b.zeros = round_up(s.in, 16);
    if (args.affine != nullptr && b.rounds > 0) {
        // A range of tiles touches so many rows of tiles at most, and each image costs two rows more.
        const std::size_t tile_rows = div_up(b.round_tiles, b.tiles_wide) + 1;
        const std::size_t images = tile_rows < s.batch ? tile_rows : s.batch;
        b.strip = (tile_rows * b.m + 3 * images) * s.width * b.zeros;
    }
    b.sums = b.points * b.block_tiles * 16 * group_panels;
    const std::size_t depth = s.in < plain_depth ? s.in : plain_depth;
    b.weights = plain                           ? b.points * plain_step(depth) * group_panels
                : args.type == WeightType::fp32 ? 0
                                                : s.in * 16 * group_panels;
    return b;
}

Strip strip_of(const Conv2dShape& s, const WinogradBlocks& b, Range tiles, std::size_t image) {
    const std::size_t per_image = b.tiles_high * b.tiles_wide;
    const std::size_t first = tiles.begin > image * per_image ? tiles.begin - image * per_image : 0;
    const std::size_t past =
        tiles.end - image * per_image < per_image ? tiles.end - image * per_image : per_image;
    // Rows with padding and upsampling, then without.
    const std::size_t top = first / b.tiles_wide * b.m, bottom = (past - 1) / b.tiles_wide * b.m + b.m + 2;
    const std::size_t begin = top > s.pad_top ? (top - s.pad_top) / s.upsample : 0;
    const std::size_t end = bottom > s.pad_top ? div_up(bottom - s.pad_top, s.upsample) : 0;
    return {image, begin < s.height ? begin : s.height, end < s.height ? end : s.height, 0};
}

}  // namespace fastdiff
