// Weighted sum of normalised maps, and the reductions of its gradient (src/ops/mixture.rs). The table of sources says of
// each map where it lies, how it is normalised, its weight and its factor for each image.
#include "common.cuh"

struct MixtureParams {
    unsigned blocks;
    unsigned rows;
    unsigned channels;
    unsigned lanes;
    unsigned groups;
    unsigned pixels;
    unsigned sources;
    unsigned accumulate;
    Spot node;
    Spot dweights;
    unsigned node_stride;
    unsigned chunks;
    unsigned chunk_rows;
    unsigned weight_columns;
    unsigned weight_stride;
    unsigned unused_0;
    Spot unused_1;
};

struct MixtureSource {
    Spot map;
    unsigned map_stride;
    unsigned flags;
    Spot mean;
    Spot variance;
    Spot gamma;
    Spot beta;
    Spot weight;
    Spot mask;
    float eps;
    unsigned weight_index;
    Spot coef;
    unsigned coef_stride;
    unsigned unused;
    Spot dgamma;
    Spot dbeta;
    Spot partial;
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

// Rows of a map that a thread of mixture_forward holds in registers.
constexpr unsigned ROWS = 4;

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

// Factor of an image. Where it is zero the summand is absent: its map may hold anything.
__device__ inline float factor_of(const MixtureSource& s, const Pages& pages, unsigned image) {
    return s.flags & MASK ? at(pages, s.mask)[image] : 1.0f;
}

// node = sum_s factor * weight * h. A block writes ROWS times the rows that it covers at once.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
mixture_forward(const __grid_constant__ MixtureParams p, const __grid_constant__ Pages pages, const MixtureSource* table) {
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const Lane lane = lane_of(p.channels, p.lanes, block % p.groups);
    if (!lane.used) return;
    const unsigned first = block / p.groups * ROWS * lane.rows + lane.row;

    float4 sum[ROWS];
#pragma unroll
    for (unsigned k = 0; k < ROWS; k++) sum[k] = quad(0.0f);
    for (unsigned i = 0; i < p.sources; i++) {
        const MixtureSource& s = table[i];
        const Norm n = norm_of(s, pages, lane);
        const float weight = weight_of(s, pages);
        const float4 scale = weight * (n.gamma * n.inv);
        const float4 shift = weight * n.beta;
        const float* map = at(pages, s.map) + lane.channel;
        float4 y[ROWS];
#pragma unroll
        for (unsigned k = 0; k < ROWS; k++) {
            const unsigned row = first + k * lane.rows;
            y[k] = row < p.rows ? load4(map + row * s.map_stride, lane.valid) : quad(0.0f);
        }
#pragma unroll
        for (unsigned k = 0; k < ROWS; k++) {
            const unsigned row = first + k * lane.rows;
            const float factor = row < p.rows ? factor_of(s, pages, row / p.pixels) : 0.0f;
            if (factor != 0.0f) sum[k] = sum[k] + factor * (scale * (y[k] - n.mean) + shift);
        }
    }
#pragma unroll
    for (unsigned k = 0; k < ROWS; k++) {
        const unsigned row = first + k * lane.rows;
        if (row < p.rows) put4(at(pages, p.node) + row * p.node_stride + lane.channel, sum[k], lane.valid, p.accumulate);
    }
}

// Sum of g and sum of g y_hat.
struct Sums {
    float4 s1, s2;
};

// Adds the sums of all threads that own the same channels; row 0 gets the result.
__device__ inline Sums add_rows(Sums own, const Lane& lane, unsigned lanes) {
    __shared__ float4 s1[BLOCK];
    __shared__ float4 s2[BLOCK];
    const unsigned t = threadIdx.x;
    for (unsigned width = lane.rows; width > 1;) {
        s1[t] = own.s1;
        s2[t] = own.s2;
        __syncthreads();
        const unsigned half = (width + 1) / 2;
        if (lane.row + half < width) {
            own.s1 = own.s1 + s1[t + half * lanes];
            own.s2 = own.s2 + s2[t + half * lanes];
        }
        width = half;
        __syncthreads();
    }
    return own;
}

// One chunk of rows of one source: s1 = sum factor g, s2 = sum factor g y_hat.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
mixture_backward_partial(const __grid_constant__ MixtureParams p, const __grid_constant__ Pages pages, const MixtureSource* table) {
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const unsigned chunk = block / p.groups % p.chunks;
    const MixtureSource& s = table[block / p.groups / p.chunks];
    const Lane lane = lane_of(p.channels, p.lanes, block % p.groups);
    const unsigned first = chunk * p.chunk_rows;
    const unsigned end = min(first + p.chunk_rows, p.rows);
    const Norm n = norm_of(s, pages, lane);
    const float* gradient = at(pages, p.node) + lane.channel;
    const float* map = at(pages, s.map) + lane.channel;

    Sums own = {quad(0.0f), quad(0.0f)};
#pragma unroll 4
    for (unsigned row = first + lane.row; lane.used && row < end; row += lane.rows) {
        const float factor = factor_of(s, pages, row / p.pixels);
        if (factor == 0.0f) continue;
        const float4 g = factor * load4(gradient + row * p.node_stride, lane.valid);
        const float4 y = load4(map + row * s.map_stride, lane.valid);
        own.s1 = own.s1 + g;
        own.s2 = own.s2 + g * ((y - n.mean) * n.inv);
    }

    own = add_rows(own, lane, p.lanes);
    if (lane.row == 0 && lane.used) {
        float* partial = at(pages, s.partial) + 2 * chunk * padded(p.channels) + lane.channel;
        store4(partial, own.s1, 4);
        store4(partial + padded(p.channels), own.s2, 4);
    }
}

// Merges a source's chunks and writes what is wanted of it: coefficients a, b, d with dL/dy = a g + b y + d, gradients of
// gamma and beta, and each channel's share of the weight's gradient.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
mixture_backward_fold(const __grid_constant__ MixtureParams p, const __grid_constant__ Pages pages, const MixtureSource* table) {
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const MixtureSource& s = table[block / p.groups];
    const Lane lane = lane_of(p.channels, p.lanes, block % p.groups);

    Sums own = {quad(0.0f), quad(0.0f)};
    for (unsigned chunk = lane.row; s.flags & SUMS && lane.used && chunk < p.chunks; chunk += lane.rows) {
        const float* partial = at(pages, s.partial) + 2 * chunk * padded(p.channels) + lane.channel;
        own.s1 = own.s1 + load4(partial, 4);
        own.s2 = own.s2 + load4(partial + padded(p.channels), 4);
    }
    own = add_rows(own, lane, p.lanes);
    if (lane.row > 0 || !lane.used) return;

    const Norm n = norm_of(s, pages, lane);
    const float weight = weight_of(s, pages);
    if (s.flags & COEF) {
        float4 a = quad(weight), b = quad(0.0f), d = quad(0.0f);
        if (s.flags & NORM) {
            const float share = 1.0f / float(p.rows);
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
        float* shares = at(pages, s.partial) + 2 * p.chunks * padded(p.channels) + lane.channel;
        store4(shares, n.gamma * own.s2 + n.beta * own.s1, 4);
    }
}

// A block sums the shares of one weight, over its sources and their channels.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
mixture_backward_weights(const __grid_constant__ MixtureParams p, const __grid_constant__ Pages pages, const MixtureSource* table) {
    const unsigned index = block_index();
    if (index >= p.blocks) return;
    float own = 0.0f;
    for (unsigned i = 0; i < p.sources; i++) {
        if (table[i].weight_index != index) continue;
        const float* shares = at(pages, table[i].partial) + 2 * p.chunks * padded(p.channels);
        for (unsigned c = threadIdx.x; c < p.channels; c += BLOCK) own += shares[c];
    }
    const float sum = block_sum(own);
    if (threadIdx.x > 0) return;
    float* out = at(pages, p.dweights) + index / p.weight_columns * p.weight_stride + index % p.weight_columns;
    *out = p.accumulate ? *out + sum : sum;
}
