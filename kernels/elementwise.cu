// Fill, sums of scaled maps, and pending gradient terms (src/ops/elementwise.rs).
#include "common.cuh"

struct ElementwiseParams {
    unsigned blocks;
    unsigned rows;
    unsigned channels;
    unsigned quads;
    unsigned lanes;
    unsigned groups;
    unsigned pixels;
    unsigned terms;
    unsigned accumulate;
    unsigned out_stride;
    unsigned y_stride;
    unsigned with_y;
    float value;
    unsigned unused;
    Spot out;
    Spot y;
    Spot unused_1;
};

struct LinearSource {
    Spot map;
    unsigned stride;
    float coef;
};

struct AffineTerm {
    Spot g;
    Spot coef;
    Spot mask;
    unsigned g_stride;
    unsigned coef_stride;
    unsigned flags;
    unsigned unused;
    Spot unused_1;
};

constexpr unsigned MASK = 1;
constexpr unsigned COEF = 2;

// Quads that a thread of fill and linear takes.
constexpr unsigned TILE = 4;

// Rows that a thread of affine takes: more would not fit into its registers beside the coefficients.
constexpr unsigned ROWS = 2;

// One of the quads of a map, counted row by row.
struct Piece {
    unsigned row, channel, valid;  // none valid beyond the map
};

__device__ inline Piece piece_of(const ElementwiseParams& p, unsigned index) {
    const unsigned row = index / p.quads;
    const unsigned channel = 4 * (index % p.quads);
    return {row, channel, row < p.rows ? min(4u, p.channels - channel) : 0};
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
fill(const __grid_constant__ ElementwiseParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
#pragma unroll
    for (unsigned k = 0; k < TILE; k++) {
        const Piece piece = piece_of(p, (block * TILE + k) * BLOCK + threadIdx.x);
        if (piece.valid == 0) continue;
        put4(at(pages, p.out) + piece.row * p.out_stride + piece.channel, quad(p.value), piece.valid, p.accumulate);
    }
}

// out = sum_i coef_i map_i
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
linear(const __grid_constant__ ElementwiseParams p, const __grid_constant__ Pages pages, const LinearSource* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    Piece pieces[TILE];
    float4 sum[TILE];
#pragma unroll
    for (unsigned k = 0; k < TILE; k++) {
        pieces[k] = piece_of(p, (block * TILE + k) * BLOCK + threadIdx.x);
        sum[k] = quad(0.0f);
    }
    for (unsigned i = 0; i < p.terms; i++) {
        const LinearSource& s = table[i];
        const float* map = at(pages, s.map);
#pragma unroll
        for (unsigned k = 0; k < TILE; k++) {
            const Piece& piece = pieces[k];
            if (piece.valid == 0) continue;
            sum[k] = sum[k] + s.coef * load4(map + piece.row * s.stride + piece.channel, piece.valid);
        }
    }
#pragma unroll
    for (unsigned k = 0; k < TILE; k++) {
        const Piece& piece = pieces[k];
        if (piece.valid == 0) continue;
        put4(at(pages, p.out) + piece.row * p.out_stride + piece.channel, sum[k], piece.valid, p.accumulate);
    }
}

// out = sum_t a_t mask_t g_t + b_t y + d_t. A block writes ROWS times the rows that it covers at once.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
affine(const __grid_constant__ ElementwiseParams p, const __grid_constant__ Pages pages, const AffineTerm* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const Lane lane = lane_of(p.channels, p.lanes, block % p.groups);
    if (!lane.used) return;
    const unsigned first = block / p.groups * ROWS * lane.rows + lane.row;

    float4 y[ROWS];
    float4 sum[ROWS];
#pragma unroll
    for (unsigned k = 0; k < ROWS; k++) {
        const unsigned row = first + k * lane.rows;
        y[k] = p.with_y && row < p.rows ? load4(at(pages, p.y) + row * p.y_stride + lane.channel, lane.valid) : quad(0.0f);
        sum[k] = quad(0.0f);
    }
    for (unsigned i = 0; i < p.terms; i++) {
        const AffineTerm& t = table[i];
        float4 a = quad(1.0f), b = quad(0.0f), d = quad(0.0f);
        if (t.flags & COEF) {
            const float* coef = at(pages, t.coef) + lane.channel;
            a = load4(coef, lane.valid);
            b = load4(coef + t.coef_stride, lane.valid);
            d = load4(coef + 2 * t.coef_stride, lane.valid);
        }
        const float* g = at(pages, t.g) + lane.channel;
#pragma unroll
        for (unsigned k = 0; k < ROWS; k++) {
            const unsigned row = first + k * lane.rows;
            if (row >= p.rows) continue;
            const float factor = t.flags & MASK ? at(pages, t.mask)[row / p.pixels] : 1.0f;
            sum[k] = sum[k] + (a * (factor * load4(g + row * t.g_stride, lane.valid)) + b * y[k] + d);
        }
    }
#pragma unroll
    for (unsigned k = 0; k < ROWS; k++) {
        const unsigned row = first + k * lane.rows;
        if (row < p.rows) put4(at(pages, p.out) + row * p.out_stride + lane.channel, sum[k], lane.valid, p.accumulate);
    }
}
