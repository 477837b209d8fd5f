// Mean and biased variance of each channel (src/ops/norm.rs, Statistics). statistics_partial reduces chunks of rows to
// moments, statistics_fold merges the chunks. Both merge centred moments (Chan, Golub & LeVeque 1979), as a tree whose
// shape depends on the map's shape only.
#include "common.cuh"

struct StatisticsParams {
    unsigned blocks;
    unsigned rows;
    unsigned channels;
    unsigned lanes;
    unsigned groups;
    unsigned chunks;
    unsigned chunk_rows;
    unsigned map_stride;
    Spot map;
    Spot mean;
    Spot variance;
    Spot partial;
};

// Rows that a thread holds in registers at once.
constexpr unsigned TILE = 4;

// Number of values, their mean, and the sum of their squared deviations from it.
struct Moments {
    float count;
    float4 mean;
    float4 m2;
};

__device__ inline Moments none() { return {0.0f, quad(0.0f), quad(0.0f)}; }

__device__ inline Moments merge(const Moments& a, const Moments& b) {
    if (b.count == 0.0f) return a;
    const float count = a.count + b.count;
    const float share = b.count / count;
    const float4 delta = b.mean - a.mean;
    return {count, a.mean + share * delta, a.m2 + b.m2 + (a.count * share) * (delta * delta)};
}

// Merges the moments of all threads that own the same channels; row 0 gets the result.
__device__ inline Moments merge_rows(Moments own, const Lane& lane, unsigned lanes) {
    __shared__ float counts[BLOCK];
    __shared__ float4 means[BLOCK];
    __shared__ float4 m2s[BLOCK];
    const unsigned t = threadIdx.x;
    for (unsigned width = lane.rows; width > 1;) {
        counts[t] = own.count;
        means[t] = own.mean;
        m2s[t] = own.m2;
        __syncthreads();
        const unsigned half = (width + 1) / 2;
        if (lane.row + half < width) {
            const unsigned other = t + half * lanes;
            own = merge(own, {counts[other], means[other], m2s[other]});
        }
        width = half;
        __syncthreads();
    }
    return own;
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
statistics_partial(const __grid_constant__ StatisticsParams p, const __grid_constant__ Pages pages, const NoTable*) {
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const unsigned chunk = block / p.groups;
    const Lane lane = lane_of(p.channels, p.lanes, block % p.groups);
    const float* map = at(pages, p.map) + lane.channel;
    const unsigned first = chunk * p.chunk_rows;
    const unsigned end = min(first + p.chunk_rows, p.rows);

    Moments own = none();
    for (unsigned row = first + lane.row; lane.used && row < end; row += TILE * lane.rows) {
        float4 x[TILE];
#pragma unroll
        for (unsigned k = 0; k < TILE; k++) {
            const unsigned r = row + k * lane.rows;
            x[k] = r < end ? load4(map + r * p.map_stride, lane.valid) : quad(0.0f);
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

    own = merge_rows(own, lane, p.lanes);
    if (lane.row == 0 && lane.used) {
        float* partial = at(pages, p.partial) + 2 * chunk * padded(p.channels) + lane.channel;
        store4(partial, own.mean, 4);
        store4(partial + padded(p.channels), own.m2, 4);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
statistics_fold(const __grid_constant__ StatisticsParams p, const __grid_constant__ Pages pages, const NoTable*) {
    const unsigned group = block_index();
    if (group >= p.blocks) return;
    const Lane lane = lane_of(p.channels, p.lanes, group);

    Moments own = none();
    for (unsigned chunk = lane.row; lane.used && chunk < p.chunks; chunk += lane.rows) {
        const float* partial = at(pages, p.partial) + 2 * chunk * padded(p.channels) + lane.channel;
        const float count = float(min(p.chunk_rows, p.rows - chunk * p.chunk_rows));
        own = merge(own, {count, load4(partial, 4), load4(partial + padded(p.channels), 4)});
    }

    own = merge_rows(own, lane, p.lanes);
    if (lane.row == 0 && lane.used) {
        store4(at(pages, p.mean) + lane.channel, own.mean, lane.valid);
        store4(at(pages, p.variance) + lane.channel, (1.0f / float(p.rows)) * own.m2, lane.valid);
    }
}
