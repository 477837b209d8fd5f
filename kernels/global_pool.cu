// Mean over the pixels of each image, and its gradient (src/ops/pool.rs, GlobalPool).
#include "common.cuh"

struct GlobalPoolParams {
    unsigned blocks;
    unsigned rows;
    unsigned channels;
    unsigned lanes;
    unsigned groups;
    unsigned pixels;
    unsigned accumulate;
    unsigned map_stride;
    Spot map;
    Spot mean;
    unsigned mean_stride;
    unsigned unused;
    Spot unused_1;
};

// Rows that a thread of global_pool_backward writes.
constexpr unsigned ROWS = 4;

// Adds the sums of all threads that own the same channels; row 0 gets the result.
__device__ inline float4 add_rows(float4 own, const Lane& lane, unsigned lanes) {
    __shared__ float4 sums[BLOCK];
    const unsigned t = threadIdx.x;
    for (unsigned width = lane.rows; width > 1;) {
        sums[t] = own;
        __syncthreads();
        const unsigned half = (width + 1) / 2;
        if (lane.row + half < width) own = own + sums[t + half * lanes];
        width = half;
        __syncthreads();
    }
    return own;
}

// A block a group of channels of an image.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
global_pool(const __grid_constant__ GlobalPoolParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const unsigned image = block / p.groups;
    const Lane lane = lane_of(p.channels, p.lanes, block % p.groups);
    const float* map = at(pages, p.map) + image * p.pixels * p.map_stride + lane.channel;
    float4 own = quad(0.0f);
#pragma unroll 4
    for (unsigned row = lane.row; lane.used && row < p.pixels; row += lane.rows) {
        own = own + load4(map + row * p.map_stride, lane.valid);
    }
    own = add_rows(own, lane, p.lanes);
    if (lane.row > 0 || !lane.used) return;
    float* mean = at(pages, p.mean) + image * p.mean_stride + lane.channel;
    put4(mean, 1.0f / float(p.pixels) * own, lane.valid, p.accumulate);
}

// A block writes ROWS times the rows that it covers at once.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
global_pool_backward(const __grid_constant__ GlobalPoolParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const Lane lane = lane_of(p.channels, p.lanes, block % p.groups);
    if (!lane.used) return;
    const unsigned first = block / p.groups * ROWS * lane.rows + lane.row;
#pragma unroll
    for (unsigned k = 0; k < ROWS; k++) {
        const unsigned row = first + k * lane.rows;
        if (row >= p.rows) continue;
        const float4 g = load4(at(pages, p.mean) + row / p.pixels * p.mean_stride + lane.channel, lane.valid);
        float* map = at(pages, p.map) + row * p.map_stride + lane.channel;
        put4(map, 1.0f / float(p.pixels) * g, lane.valid, p.accumulate);
    }
}
