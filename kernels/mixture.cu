// Weighted sum of normalised maps, and the reductions of its gradient (src/ops/mixture.rs). The table of sources says of
// each map where it lies, how it is normalised, its weight and its factor for each image.
#include "common.cuh"

struct MixtureSource {
    unsigned first_block;
    unsigned blocks;
    unsigned sources;
    unsigned flags;
    unsigned rows;
    unsigned channels;
    unsigned lanes;
    unsigned groups;
    unsigned pixels;
    unsigned chunks;
    unsigned chunk_rows;
    unsigned node_stride;
    unsigned map_stride;
    unsigned coef_stride;
    unsigned weight_index;
    unsigned weight_columns;
    float eps;
    unsigned unused;
    Spot node;
    Spot map;
    Spot mean;
    Spot variance;
    Spot gamma;
    Spot beta;
    Spot weight;
    Spot mask;
    Spot coef;
    Spot dgamma;
    Spot dbeta;
    Spot partial;
    Spot shares;
};

constexpr unsigned NORM = 1;
constexpr unsigned AFFINE = 2;
constexpr unsigned WEIGHT = 4;
constexpr unsigned MASK = 8;
constexpr unsigned SUMS = 16;
constexpr unsigned COEF = 32;
constexpr unsigned COEF_ADD = 64;
constexpr unsigned PARAMETERS = 128;
constexpr unsigned DGAMMA_ADD = 256;
constexpr unsigned DBETA_ADD = 512;
constexpr unsigned SHARE = 1024;
constexpr unsigned ACCUMULATE = 2048;

// Rows of a map that a thread of mixture_forward holds in registers.
constexpr unsigned ROWS = 4;
// How many of them are loaded at once: more would not leave enough registers.
constexpr unsigned UNDER_WAY = WIDE ? 2 : 1;

// h = gamma (y - mean) inv + beta, for a quad of one source.
struct Norm {
    float4 mean, inv, gamma, beta;
};

__device__ inline Norm norm_of(const MixtureSource& s, const Pages& pages, const Lane& lane) {
    Norm n = {quad(0.0f), quad(1.0f), quad(1.0f), quad(0.0f)};
    if (s.flags & NORM) {
        n.mean = load4(at(pages, s.mean) + lane.channel, lane.valid);
        n.inv = inverse_deviation(load4(at(pages, s.variance) + lane.channel, lane.valid), s.eps);
    }
    if (s.flags & AFFINE) {
        n.gamma = load4(at(pages, s.gamma) + lane.channel, lane.valid);
        n.beta = load4(at(pages, s.beta) + lane.channel, lane.valid);
    }
    return n;
}

__device__ inline float weight_of(const MixtureSource& s, const Pages& pages) {
    return s.flags & WEIGHT ? *at(pages, s.weight) : 1.0f;
}

// Factor of a row's image. Where it is zero the summand is absent: its map may hold anything.
__device__ inline float factor_of(const MixtureSource& s, const Pages& pages, unsigned row) {
    return s.flags & MASK ? at(pages, s.mask)[row / s.pixels] : 1.0f;
}

// node = sum_s factor * weight * h. A block writes ROWS times the rows that it covers at once.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
mixture_forward(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const MixtureSource* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const unsigned job = job_of(table, p.jobs, block);
    const MixtureSource& j = table[job];
    const unsigned own = block - j.first_block;
    const Lane lane = lane_of(j.channels, j.lanes, own % j.groups);
    if (!lane.used) return;
    const unsigned first = own / j.groups * ROWS * lane.rows + lane.row;

    float4 sum[ROWS];
#pragma unroll
    for (unsigned k = 0; k < ROWS; k++) sum[k] = quad(0.0f);
    for (unsigned i = 0; i < j.sources; i++) {
        const MixtureSource& s = table[job + i];
        const Norm n = norm_of(s, pages, lane);
        const float weight = weight_of(s, pages);
        const float4 scale = weight * (n.gamma * n.inv);
        const float4 shift = weight * n.beta;
        const Map map = map_at(pages, s.map) + lane.channel;
#pragma unroll
        for (unsigned start = 0; start < ROWS; start += UNDER_WAY) {
            float4 y[UNDER_WAY];
#pragma unroll
            for (unsigned k = 0; k < UNDER_WAY; k++) {
                const unsigned row = first + (start + k) * lane.rows;
                y[k] = row < j.rows ? load4(map + row * s.map_stride, lane.valid) : quad(0.0f);
            }
#pragma unroll
            for (unsigned k = 0; k < UNDER_WAY; k++) {
                const unsigned row = first + (start + k) * lane.rows;
                const float factor = row < j.rows ? factor_of(s, pages, row) : 0.0f;
                if (factor != 0.0f) sum[start + k] = sum[start + k] + factor * (scale * (y[k] - n.mean) + shift);
            }
        }
    }
#pragma unroll
    for (unsigned k = 0; k < ROWS; k++) {
        const unsigned row = first + k * lane.rows;
        if (row < j.rows) put4(at(pages, j.node) + row * j.node_stride + lane.channel, sum[k], lane.valid, j.flags & ACCUMULATE);
    }
}

// One chunk of rows of one source: s1 = sum factor g, s2 = sum factor g y_hat.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
mixture_backward_partial(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const MixtureSource* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const MixtureSource& s = table[job_of(table, p.jobs, block)];
    const unsigned chunk = (block - s.first_block) / s.groups;
    const Lane lane = lane_of(s.channels, s.lanes, (block - s.first_block) % s.groups);
    const unsigned first = chunk * s.chunk_rows;
    const unsigned end = min(first + s.chunk_rows, s.rows);
    const Norm n = norm_of(s, pages, lane);
    const float* gradient = at(pages, s.node) + lane.channel;
    const Map map = map_at(pages, s.map) + lane.channel;

    __shared__ float4 left[BLOCK];
    __shared__ float4 right[BLOCK];
    RowSums own = {quad(0.0f), quad(0.0f)};
#pragma unroll 4
    for (unsigned row = first + lane.row; lane.used && row < end; row += lane.rows) {
        const float factor = factor_of(s, pages, row);
        if (factor == 0.0f) continue;
        const float4 g = factor * load4(gradient + row * s.node_stride, lane.valid);
        const float4 y = load4(map + row * s.map_stride, lane.valid);
        own.s1 = own.s1 + g;
        own.s2 = own.s2 + g * ((y - n.mean) * n.inv);
    }

    own = add_rows(own, lane, s.lanes, left, right);
    if (lane.row == 0 && lane.used) {
        float* partial = at(pages, s.partial) + 2 * chunk * padded(s.channels) + lane.channel;
        store4(partial, own.s1, 4);
        store4(partial + padded(s.channels), own.s2, 4);
    }
}

// Merges a source's chunks and writes what is wanted of it: coefficients a, b, d with dL/dy = a g + b y + d, gradients of
// gamma and beta, and each channel's share of the weight's gradient.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
mixture_backward_fold(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const MixtureSource* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const MixtureSource& s = table[job_of(table, p.jobs, block)];
    const Lane lane = lane_of(s.channels, s.lanes, (block - s.first_block) % s.groups);

    __shared__ float4 left[BLOCK];
    __shared__ float4 right[BLOCK];
    RowSums own = {quad(0.0f), quad(0.0f)};
    for (unsigned chunk = lane.row; s.flags & SUMS && lane.used && chunk < s.chunks; chunk += lane.rows) {
        const float* partial = at(pages, s.partial) + 2 * chunk * padded(s.channels) + lane.channel;
        own.s1 = own.s1 + load4(partial, 4);
        own.s2 = own.s2 + load4(partial + padded(s.channels), 4);
    }
    own = add_rows(own, lane, s.lanes, left, right);
    if (lane.row > 0 || !lane.used) return;

    const Norm n = norm_of(s, pages, lane);
    const float weight = weight_of(s, pages);
    if (s.flags & COEF) {
        float4 a = quad(weight), b = quad(0.0f), d = quad(0.0f);
        if (s.flags & NORM) {
            const float share = 1.0f / float(s.rows);
            a = weight * (n.gamma * n.inv);
            b = -share * (a * n.inv * own.s2);
            d = -share * (a * own.s1) - b * n.mean;
        }
        float* coef = at(pages, s.coef) + lane.channel;
        put4(coef, a, lane.valid, s.flags & COEF_ADD);
        put4(coef + s.coef_stride, b, lane.valid, s.flags & COEF_ADD);
        put4(coef + 2 * s.coef_stride, d, lane.valid, s.flags & COEF_ADD);
    }
    if (s.flags & PARAMETERS) {
        put4(at(pages, s.dgamma) + lane.channel, weight * own.s2, lane.valid, s.flags & DGAMMA_ADD);
        put4(at(pages, s.dbeta) + lane.channel, weight * own.s1, lane.valid, s.flags & DBETA_ADD);
    }
    if (s.flags & SHARE) {
        store4(at(pages, s.shares) + lane.channel, n.gamma * own.s2 + n.beta * own.s1, 4);
    }
}

// A block sums the shares of one weight, over its sources and their channels.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
mixture_backward_weights(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const MixtureSource* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const unsigned job = job_of(table, p.jobs, block);
    const MixtureSource& j = table[job];
    const unsigned index = block - j.first_block;
    float own = 0.0f;
    for (unsigned i = 0; i < j.sources; i++) {
        const MixtureSource& s = table[job + i];
        if (s.weight_index != index) continue;
        const float* shares = at(pages, s.shares);
        for (unsigned c = threadIdx.x; c < s.channels; c += BLOCK) own += shares[c];
    }
    const float sum = block_sum(own);
    if (threadIdx.x > 0) return;
    float* out = at(pages, j.node) + index / j.weight_columns * j.node_stride + index % j.weight_columns;
    *out = j.flags & ACCUMULATE ? *out + sum : sum;
}
