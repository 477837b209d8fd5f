// Softmax of short rows and its gradient (src/ops/softmax.rs): a thread takes a row.
#include "common.cuh"

struct SoftmaxParams {
    unsigned blocks;
    unsigned rows;
    unsigned channels;
    unsigned accumulate;
    Spot x;
    Spot dp;
    Spot out;
    unsigned x_stride;
    unsigned dp_stride;
    unsigned out_stride;
    unsigned unused;
    Spot unused_1;
};

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
softmax(const __grid_constant__ SoftmaxParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    const unsigned row = block * BLOCK + threadIdx.x;
    if (block >= p.blocks || row >= p.rows) return;
    const float* x = at(pages, p.x) + row * p.x_stride;
    float* out = at(pages, p.out) + row * p.out_stride;
    float top = x[0];
    for (unsigned c = 1; c < p.channels; c++) top = fmaxf(top, x[c]);
    float sum = 0.0f;
    for (unsigned c = 0; c < p.channels; c++) sum += expf(x[c] - top);
    for (unsigned c = 0; c < p.channels; c++) {
        const float value = expf(x[c] - top) / sum;
        out[c] = p.accumulate ? out[c] + value : value;
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
softmax_backward(const __grid_constant__ SoftmaxParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    const unsigned row = block * BLOCK + threadIdx.x;
    if (block >= p.blocks || row >= p.rows) return;
    const float* x = at(pages, p.x) + row * p.x_stride;
    const float* dp = at(pages, p.dp) + row * p.dp_stride;
    float* out = at(pages, p.out) + row * p.out_stride;
    float dot = 0.0f;
    for (unsigned c = 0; c < p.channels; c++) dot += x[c] * dp[c];
    for (unsigned c = 0; c < p.channels; c++) {
        const float value = x[c] * (dp[c] - dot);
        out[c] = p.accumulate ? out[c] + value : value;
    }
}
