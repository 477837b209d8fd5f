// Moments of the rows of maps, chunk by chunk (src/ops/norm.rs, Statistics); fold.cu merges the chunks.
#include "common.cuh"

struct StatisticsJob {
    unsigned first_block;
    unsigned blocks;
    unsigned rows;
    unsigned channels;
    unsigned lanes;
    unsigned groups;
    unsigned chunk_rows;
    unsigned map_stride;
    Spot map;
    Spot partial;
};

// Rows that a thread holds in registers at once.
constexpr unsigned TILE = 4;

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
statistics_partial(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const StatisticsJob* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const StatisticsJob& j = table[job_of(table, p.jobs, block)];
    const unsigned chunk = (block - j.first_block) / j.groups;
    const Lane lane = lane_of(j.channels, j.lanes, (block - j.first_block) % j.groups);
    const Map map = map_at(pages, j.map) + lane.channel;
    const unsigned first = chunk * j.chunk_rows;
    const unsigned end = min(first + j.chunk_rows, j.rows);

    Moments own = none();
    for (unsigned row = first + lane.row; lane.used && row < end; row += TILE * lane.rows) {
        float4 x[TILE];
#pragma unroll
        for (unsigned k = 0; k < TILE; k++) {
            const unsigned r = row + k * lane.rows;
            x[k] = r < end ? load4(map + r * j.map_stride, lane.valid) : quad(0.0f);
        }
        Moments tile = none();
        tile.count = float(min(TILE, (end - row + lane.rows - 1) / lane.rows));
#pragma unroll
        for (unsigned k = 0; k < TILE; k++) tile.mean = tile.mean + x[k];
        tile.mean = (1.0f / tile.count) * tile.mean;
#pragma unroll
        for (unsigned k = 0; k < TILE; k++) {
            const float4 d = x[k] - tile.mean;
            if (row + k * lane.rows < end) tile.m2 = tile.m2 + d * d;
        }
        own = merge(own, tile);
    }

    own = merge_rows(own, lane, j.lanes);
    if (lane.row == 0 && lane.used) {
        store_moments(at(pages, j.partial) + chunk * moments_stride(j.channels), own, j.channels, lane.channel);
    }
}
