// Cross-entropy, hit counts, their gradient and accumulation (src/ops/loss.rs). `lanes` threads of a warp share a row.
#include "common.cuh"

struct LossParams {
    unsigned blocks;
    unsigned rows;
    unsigned classes;
    unsigned lanes;
    unsigned rounds;
    unsigned partials;
    unsigned accumulate;
    unsigned accumulate_counts;
    float smoothing;
    unsigned logits_stride;
    unsigned dlogits_stride;
    unsigned unused;
    Spot logits;
    Spot labels;
    Spot loss;
    Spot counts;
    Spot partial;
    Spot g;
    Spot dlogits;
    Spot unused_1;
};

struct AccumulateParams {
    unsigned blocks;
    unsigned unused;
    Spot loss;
    Spot counts;
    Spot sums;
};

// Over the threads that share a row; each gets the result.
__device__ inline float row_sum(float v, unsigned lanes) {
    for (unsigned distance = lanes / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
    return v;
}

__device__ inline float row_max(float v, unsigned lanes) {
    for (unsigned distance = lanes / 2; distance > 0; distance /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, distance));
    return v;
}

// A row of logits as one of its threads sees it.
struct Row {
    const float* logits;
    unsigned label;
    bool valid;  // threads of rows that do not count take part in sums only
};

__device__ inline Row row_of(const LossParams& p, const Pages& pages, unsigned row) {
    const float label = row < p.rows ? at(pages, p.labels)[row] : -1.0f;
    const bool valid = label >= 0.0f;
    return {at(pages, p.logits) + (valid ? row * p.logits_stride : 0), valid ? unsigned(label) : 0, valid};
}

// Largest logit, and log of the sum of exponentials with that taken out.
struct Partition {
    float top, log_sum;
};

__device__ inline Partition partition_of(const LossParams& p, const Row& row, unsigned lane) {
    float top = -3.402823466e38f;
    for (unsigned j = lane; row.valid && j < p.classes; j += p.lanes) top = fmaxf(top, row.logits[j]);
    top = row_max(top, p.lanes);
    float sum = 0.0f;
    for (unsigned j = lane; row.valid && j < p.classes; j += p.lanes) sum += expf(row.logits[j] - top);
    return {top, logf(row_sum(sum, p.lanes))};
}

// Sums over rows.
struct Sums {
    float loss, hits, hits5, valid;
};

__device__ inline Sums block_sums(const Sums& own) {
    return {block_sum(own.loss), block_sum(own.hits), block_sum(own.hits5), block_sum(own.valid)};
}

__device__ inline void put(float* out, float v, bool accumulate) { *out = accumulate ? *out + v : v; }

__device__ inline void finish(const LossParams& p, const Pages& pages, const Sums& sums) {
    put(at(pages, p.loss), sums.loss / max(sums.valid, 1.0f), p.accumulate);
    float* counts = at(pages, p.counts);
    put(counts, sums.hits, p.accumulate_counts);
    put(counts + 1, sums.hits5, p.accumulate_counts);
    put(counts + 2, sums.valid, p.accumulate_counts);
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
cross_entropy(const __grid_constant__ LossParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const unsigned lane = threadIdx.x % p.lanes;
    const unsigned rows = BLOCK / p.lanes;
    Sums own = {0.0f, 0.0f, 0.0f, 0.0f};
    for (unsigned round = 0; round < p.rounds; round++) {
        const Row row = row_of(p, pages, (block * p.rounds + round) * rows + threadIdx.x / p.lanes);
        const Partition z = partition_of(p, row, lane);
        const float label = row.logits[row.label];
        float below = 0.0f;  // sum of top - logit
        float better = 0.0f;  // classes of a better rank
        for (unsigned j = lane; row.valid && j < p.classes; j += p.lanes) {
            const float value = row.logits[j];
            below += z.top - value;
            if (value > label || (value == label && j < row.label)) better += 1.0f;
        }
        below = row_sum(below, p.lanes);
        better = row_sum(better, p.lanes);
        if (lane == 0 && row.valid) {
            own.loss += z.log_sum + (1.0f - p.smoothing) * (z.top - label) + p.smoothing / float(p.classes) * below;
            own.valid += 1.0f;
            // A NaN is ahead of nothing and behind nothing: it must not count as a hit.
            if (better < 1.0f && is_finite(label)) own.hits += 1.0f;
            if (better < 5.0f && is_finite(label)) own.hits5 += 1.0f;
        }
    }
    const Sums sums = block_sums(own);
    if (threadIdx.x > 0) return;
    if (p.partials == 1) {
        finish(p, pages, sums);
        return;
    }
    float* partial = at(pages, p.partial) + 4 * block;
    partial[0] = sums.loss;
    partial[1] = sums.hits;
    partial[2] = sums.hits5;
    partial[3] = sums.valid;
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
cross_entropy_fold(const __grid_constant__ LossParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    if (block_index() >= p.blocks) return;
    Sums own = {0.0f, 0.0f, 0.0f, 0.0f};
    for (unsigned i = threadIdx.x; i < p.partials; i += BLOCK) {
        const float* partial = at(pages, p.partial) + 4 * i;
        own.loss += partial[0];
        own.hits += partial[1];
        own.hits5 += partial[2];
        own.valid += partial[3];
    }
    const Sums sums = block_sums(own);
    if (threadIdx.x == 0) finish(p, pages, sums);
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
cross_entropy_backward(const __grid_constant__ LossParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    float valid = 0.0f;
    for (unsigned r = threadIdx.x; r < p.rows; r += BLOCK) valid += at(pages, p.labels)[r] >= 0.0f ? 1.0f : 0.0f;
    const float scale = *at(pages, p.g) / max(block_sum(valid), 1.0f);
    const unsigned lane = threadIdx.x % p.lanes;
    const unsigned r = block * (BLOCK / p.lanes) + threadIdx.x / p.lanes;
    const Row row = row_of(p, pages, r);
    const Partition z = partition_of(p, row, lane);
    if (r >= p.rows) return;
    const float share = p.smoothing / float(p.classes);
    float* dlogits = at(pages, p.dlogits) + r * p.dlogits_stride;
    for (unsigned j = lane; j < p.classes; j += p.lanes) {
        float value = 0.0f;
        if (row.valid) {
            const float target = j == row.label ? share + (1.0f - p.smoothing) : share;
            value = scale * (expf(row.logits[j] - z.top - z.log_sum) - target);
        }
        put(dlogits + j, value, p.accumulate);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
accumulate_sums(const __grid_constant__ AccumulateParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    if (block_index() >= p.blocks || threadIdx.x > 0) return;
    const float* counts = at(pages, p.counts);
    float* sums = at(pages, p.sums);
    sums[0] += *at(pages, p.loss) * counts[2];
    for (unsigned i = 0; i < 3; i++) sums[i + 1] += counts[i];
}
