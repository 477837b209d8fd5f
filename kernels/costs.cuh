// What kernels of transport and of its certificates share: problems of a launch, and costs of pairs of points in tiles. Templates
// take the records of either, which have the fields that are used here.
#pragma once
#include "common.cuh"

// Costs along each side of a tile, and coordinates staged at once.
constexpr unsigned TILE = 64;
constexpr unsigned STEP = 16;
// Elements from one coordinate's points to the next one's: odd, so that points staged side by side hit all banks.
constexpr unsigned PITCH = TILE + 1;
// A block is SIDE by SIDE threads; in a tile each owns OWN by OWN costs, SIDE apart.
constexpr unsigned SIDE = 16;
constexpr unsigned OWN = TILE / SIDE;
// Columns of the status.
constexpr unsigned STATUS = 4;
// Below every exponent, and with the other sign above every cost.
constexpr float NOTHING = -1e30f;
constexpr float LOG2_E = 1.44269504f;

// The problem that a block belongs to: the last one that starts no later.
template <class Problem>
__device__ inline unsigned problem_of(const Problem* table, unsigned problems, unsigned block) {
    unsigned low = 0;
    unsigned high = problems;
    while (high - low > 1) {
        const unsigned middle = (low + high) / 2;
        if (table[middle].block <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// Transposes STEP coordinates of TILE points into shared memory; zeros for what does not exist.
__device__ inline void stage_points(float* tile, const float* points, unsigned stride, unsigned count, unsigned channels) {
    const unsigned c = threadIdx.x % STEP;
#pragma unroll
    for (unsigned k = 0; k < TILE * STEP / BLOCK; k++) {
        const unsigned i = threadIdx.x / STEP + k * (BLOCK / STEP);
        tile[c * PITCH + i] = i < count && c < channels ? points[i * stride + c] : 0.0f;
    }
}

// Squared distances of `rows` left and `columns` right points, TILE of each at most: sum[r][c] is that of points
// ty + r SIDE and tx + c SIDE.
template <class Params>
__device__ inline void square_distances(float (&sum)[OWN][OWN], const Params& p, const float* left, unsigned rows, const float* right,
                                        unsigned columns) {
    __shared__ float xs[STEP * PITCH];
    __shared__ float ys[STEP * PITCH];
    const unsigned tx = threadIdx.x % SIDE;
    const unsigned ty = threadIdx.x / SIDE;
#pragma unroll
    for (unsigned r = 0; r < OWN; r++) {
#pragma unroll
        for (unsigned c = 0; c < OWN; c++) sum[r][c] = 0.0f;
    }
    // Coordinates are summed in steps: the rounding errors of a long sum grow with the number of steps only.
    for (unsigned channel = 0; channel < p.channels; channel += STEP) {
        stage_points(xs, left + channel, p.point_stride, rows, p.channels - channel);
        stage_points(ys, right + channel, p.point_stride, columns, p.channels - channel);
        __syncthreads();
        float part[OWN][OWN] = {};
#pragma unroll
        for (unsigned k = 0; k < STEP; k++) {
            float y[OWN];
#pragma unroll
            for (unsigned c = 0; c < OWN; c++) y[c] = ys[k * PITCH + tx + c * SIDE];
#pragma unroll
            for (unsigned r = 0; r < OWN; r++) {
                const float x = xs[k * PITCH + ty + r * SIDE];
#pragma unroll
                for (unsigned c = 0; c < OWN; c++) {
                    const float d = x - y[c];
                    part[r][c] += d * d;
                }
            }
        }
#pragma unroll
        for (unsigned r = 0; r < OWN; r++) {
#pragma unroll
            for (unsigned c = 0; c < OWN; c++) sum[r][c] += part[r][c];
        }
        __syncthreads();
    }
}

// The cost of two points with what their labels add to it. Rounded once, so that all passes over a plan see the same.
template <class Params>
__device__ inline float with_labels(const Params& p, const Pages& pages, float cost, unsigned left, unsigned right) {
    const float* labels = at(pages, p.labels);
    const unsigned from = unsigned(labels[left]);
    const unsigned to = unsigned(labels[right]);
    return fmaf(p.label_scale, at(pages, p.distances)[from * p.distance_stride + to], cost);
}
