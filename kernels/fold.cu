// Second halves of reductions (src/ops/launch/fold.rs): moments of chunks become mean and variance, sums of chunks one sum.
#include "common.cuh"

struct FoldMoments {
    unsigned first_block;
    unsigned blocks;
    unsigned channels;
    unsigned lanes;
    unsigned chunks;
    unsigned unused;
    Spot partial;
    Spot mean;
    Spot variance;
};

struct FoldSums {
    unsigned first_block;
    unsigned blocks;
    unsigned elements;
    unsigned columns;
    unsigned stride;
    unsigned chunks;
    unsigned chunk_stride;
    unsigned accumulate;
    Spot partial;
    Spot out;
};

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
fold_moments(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const FoldMoments* table) {
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const FoldMoments& j = table[job_of(table, p.jobs, block)];
    const Lane lane = lane_of(j.channels, j.lanes, block - j.first_block);
    const unsigned stride = moments_stride(j.channels);

    Moments own = none();
    for (unsigned chunk = lane.row; lane.used && chunk < j.chunks; chunk += lane.rows) {
        const float* partial = at(pages, j.partial) + chunk * stride;
        const float* mean = partial + lane.channel;
        own = merge(own, {partial[2 * padded(j.channels)], load4(mean, 4), load4(mean + padded(j.channels), 4)});
    }
    own = merge_rows(own, lane, j.lanes);
    if (lane.row == 0 && lane.used) {
        store4(at(pages, j.mean) + lane.channel, own.mean, lane.valid);
        store4(at(pages, j.variance) + lane.channel, (1.0f / own.count) * own.m2, lane.valid);
    }
}

// A thread adds up the chunks of one element.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
fold_sums(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const FoldSums* table) {
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const FoldSums& j = table[job_of(table, p.jobs, block)];
    const unsigned element = (block - j.first_block) * BLOCK + threadIdx.x;
    if (element >= j.elements) return;
    const float* partial = at(pages, j.partial) + element;
    float sum = 0.0f;
#pragma unroll 4
    for (unsigned chunk = 0; chunk < j.chunks; chunk++) sum += partial[chunk * j.chunk_stride];
    float* out = at(pages, j.out) + element / j.columns * j.stride + element % j.columns;
    *out = j.accumulate ? *out + sum : sum;
}
