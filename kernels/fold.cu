// Second half of reductions (src/ops/launch/fold.rs): sums of chunks become one sum. Moments are merged by pool_forward.
#include "common.cuh"

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

// A thread adds up the chunks of one element.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
fold_sums(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const FoldSums* table) {
    after_others();
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
