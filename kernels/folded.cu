// Convolutions of pretrained networks at inference (src/ops/folded.rs): y = activation(conv(x) + bias + residual).
// folded_pointwise is a product in tiles that a block shares; in the others a thread owns a quad of output channels and
// RUN neighbouring pixels, for which it reads each weight once.
#include "common.cuh"

struct FoldedParams {
    unsigned blocks;
    unsigned rows;
    unsigned channels;
    unsigned inputs;
    unsigned lanes;
    unsigned groups;
    unsigned flags;
    unsigned line_runs;
    unsigned kernel;
    unsigned stride;
    unsigned top;
    unsigned left;
    unsigned height;
    unsigned width;
    unsigned out_height;
    unsigned out_width;
    unsigned x_stride;
    unsigned w_stride;
    unsigned residual_stride;
    unsigned y_stride;
    unsigned runs;
    unsigned unused;
    Spot x;
    Spot w;
    Spot bias;
    Spot residual;
    Spot y;
};

constexpr unsigned RELU = 1;
constexpr unsigned RESIDUAL = 2;
constexpr unsigned ACCUMULATE = 4;
constexpr unsigned SIX = 8;

// Rows and channels that a block of folded_pointwise computes.
constexpr unsigned TILE = 64;
// Input channels that it holds in shared memory at once, in quads.
constexpr unsigned STEP = 4;
// Quads from one row of the shared tile of x to the next: one more than there are, so that rows lie in other banks.
constexpr unsigned PITCH = STEP + 1;
// Rows that a thread of it computes.
constexpr unsigned ROWS = 4;
// Neighbouring pixels that a thread of the other kernels computes.
constexpr unsigned RUN = 4;

// NaN passes through, as through rectified().
__device__ inline float six(float v) { return v > 6.0f ? 6.0f : v; }

// Adds bias and residual to a quad of sums, bounds it and writes it.
__device__ inline void finish(const FoldedParams& p, const Pages& pages, unsigned row, unsigned channel, unsigned valid, float4 sum) {
    float4 v = sum + load4(at(pages, p.bias) + channel, valid);
    if (p.flags & RESIDUAL) v = v + load4(at(pages, p.residual) + row * p.residual_stride + channel, valid);
    if (p.flags & RELU) v = rectified(v);
    if (p.flags & SIX) v = make_float4(six(v.x), six(v.y), six(v.z), six(v.w));
    put4(at(pages, p.y) + row * p.y_stride + channel, v, valid, p.flags & ACCUMULATE);
}

// How many of the four channels from i on exist.
__device__ inline unsigned valid_of(unsigned i, unsigned inputs) { return i < inputs ? min(4u, inputs - i) : 0; }

// 64 rows by 64 channels; a thread computes four rows of one quad. While a step is computed, the next one is on its way
// to registers.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
folded_pointwise(const __grid_constant__ FoldedParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    __shared__ float4 xs[TILE * PITCH];
    __shared__ float4 ws[4 * STEP * TILE / 4];
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const unsigned first = block / p.groups * TILE;
    const unsigned left = block % p.groups * TILE;
    const unsigned t = threadIdx.x;

    // What this thread brings of x: a quad of one row. Of w: a quad of one input channel.
    const unsigned x_row = t / STEP, x_quad = t % STEP;
    const unsigned w_row = t / (TILE / 4), column = left + 4 * (t % (TILE / 4));
    const bool there = first + x_row < p.rows;
    const float* x = at(pages, p.x) + (first + x_row) * p.x_stride;
    const float* w = at(pages, p.w) + column;
    const unsigned valid = valid_of(column, p.channels);

    float4 sum[ROWS];
#pragma unroll
    for (unsigned r = 0; r < ROWS; r++) sum[r] = quad(0.0f);
    float4 next_x = load4(x + 4 * x_quad, there ? valid_of(4 * x_quad, p.inputs) : 0);
    float4 next_w = load4(w + w_row * p.w_stride, w_row < p.inputs ? valid : 0);
    const unsigned row = t / (TILE / 4) * ROWS;
    for (unsigned i = 0; i < p.inputs; i += 4 * STEP) {
        xs[x_row * PITCH + x_quad] = next_x;
        ws[t] = next_w;
        __syncthreads();
        const unsigned x_next = i + 4 * (STEP + x_quad), w_next = i + 4 * STEP + w_row;
        next_x = load4(x + x_next, there ? valid_of(x_next, p.inputs) : 0);
        next_w = load4(w + w_next * p.w_stride, w_next < p.inputs ? valid : 0);
#pragma unroll
        for (unsigned q = 0; q < STEP; q++) {
            const float4* b = ws + 4 * q * (TILE / 4) + t % (TILE / 4);
            const float4 b0 = b[0], b1 = b[TILE / 4], b2 = b[2 * TILE / 4], b3 = b[3 * TILE / 4];
#pragma unroll
            for (unsigned r = 0; r < ROWS; r++) {
                const float4 a = xs[(row + r) * PITCH + q];
                sum[r] = sum[r] + a.x * b0;
                sum[r] = sum[r] + a.y * b1;
                sum[r] = sum[r] + a.z * b2;
                sum[r] = sum[r] + a.w * b3;
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (unsigned r = 0; r < ROWS; r++) {
        const unsigned out = first + row + r;
        if (out < p.rows && valid > 0) finish(p, pages, out, column, valid, sum[r]);
    }
}

// A thread's run of pixels in a line of the output.
struct Run {
    unsigned image, y, x;
};

__device__ inline Run run_of(const FoldedParams& p, unsigned run) {
    const unsigned line = run / p.line_runs;
    return {line / p.out_height, line % p.out_height, run % p.line_runs * RUN};
}

__device__ inline void finish_run(const FoldedParams& p, const Pages& pages, const Run& run, const Lane& lane, const float4* sum) {
#pragma unroll
    for (unsigned k = 0; k < RUN; k++) {
        const unsigned row = (run.image * p.out_height + run.y) * p.out_width + run.x + k;
        if (run.x + k < p.out_width) finish(p, pages, row, lane.channel, lane.valid, sum[k]);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
folded_depthwise(const __grid_constant__ FoldedParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const Lane lane = lane_of(p.channels, p.lanes, block % p.groups);
    const unsigned index = block / p.groups * lane.rows + lane.row;
    if (!lane.used || index >= p.runs) return;
    const Run run = run_of(p, index);
    const float* x = at(pages, p.x) + run.image * p.height * p.width * p.x_stride + lane.channel;
    const float* w = at(pages, p.w) + lane.channel;

    float4 sum[RUN];
#pragma unroll
    for (unsigned k = 0; k < RUN; k++) sum[k] = quad(0.0f);
    for (unsigned ky = 0; ky < p.kernel; ky++) {
        // In front of the map rows and columns wrap around.
        const unsigned from_y = run.y * p.stride + ky - p.top;
        if (from_y >= p.height) continue;
        for (unsigned kx = 0; kx < p.kernel; kx++) {
            const float4 weight = load4(w + (ky * p.kernel + kx) * p.w_stride, lane.valid);
#pragma unroll
            for (unsigned k = 0; k < RUN; k++) {
                const unsigned from_x = (run.x + k) * p.stride + kx - p.left;
                if (from_x >= p.width) continue;
                sum[k] = sum[k] + weight * load4(x + (from_y * p.width + from_x) * p.x_stride, lane.valid);
            }
        }
    }
    finish_run(p, pages, run, lane, sum);
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
folded_dense(const __grid_constant__ FoldedParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const Lane lane = lane_of(p.channels, p.lanes, block % p.groups);
    const unsigned index = block / p.groups * lane.rows + lane.row;
    if (!lane.used || index >= p.runs) return;
    const Run run = run_of(p, index);
    const float* x = at(pages, p.x) + run.image * p.height * p.width * p.x_stride;
    const float* w = at(pages, p.w) + lane.channel;

    float4 sum[RUN];
#pragma unroll
    for (unsigned k = 0; k < RUN; k++) sum[k] = quad(0.0f);
    for (unsigned ky = 0; ky < p.kernel; ky++) {
        // In front of the map rows and columns wrap around.
        const unsigned from_y = run.y * p.stride + ky - p.top;
        if (from_y >= p.height) continue;
        for (unsigned kx = 0; kx < p.kernel; kx++) {
            const float* tap = w + (ky * p.kernel + kx) * p.inputs * p.w_stride;
            for (unsigned i = 0; i < p.inputs; i++) {
                const float4 weight = load4(tap + i * p.w_stride, lane.valid);
#pragma unroll
                for (unsigned k = 0; k < RUN; k++) {
                    const unsigned from_x = (run.x + k) * p.stride + kx - p.left;
                    if (from_x >= p.width) continue;
                    sum[k] = sum[k] + x[(from_y * p.width + from_x) * p.x_stride + i] * weight;
                }
            }
        }
    }
    finish_run(p, pages, run, lane, sum);
}
