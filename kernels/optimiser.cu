// Updates of flat vectors (src/ops/optimiser.rs, src/ops/running.rs): global norm, SGD, Adam, running statistics. A thread
// owns four neighbouring elements. A norm that is not finite leaves everything but the flag alone.
#include "common.cuh"

struct NormParams {
    unsigned blocks;
    unsigned len;
    unsigned partials;
    unsigned accumulate;
    Spot x;
    Spot norm;
    Spot partial;
    Spot unused;
};

struct SgdParams {
    unsigned blocks;
    unsigned len;
    Spot g;
    Spot norm;
    Spot lr;
    Spot w;
    Spot v;
    Spot flag;
    float momentum;
    float decay;
    float clip;
    float unused;
    Spot unused_1;
};

struct AdamParams {
    unsigned blocks;
    unsigned len;
    Spot g;
    Spot norm;
    Spot lr;
    Spot p;
    Spot m;
    Spot v;
    Spot steps;
    Spot flag;
    float beta1;
    float beta2;
    float rest1;
    float rest2;
    float log1;
    float log2;
    float eps;
    float decay;
    Spot unused;
};

struct RunningParams {
    unsigned blocks;
    float keep;
    float share;
    unsigned unused;
    Spot batch;
    Spot guard;
    Spot running;
    Spot unused_1;
};

struct RunningStretch {
    unsigned offset;
    unsigned len;
    float factor;
    unsigned unused;
};

// Elements summed into one partial of a norm.
constexpr unsigned NORM_BLOCK = 4096;
// Elements from one partial to the next, as the shader needs them.
constexpr unsigned PARTIAL = 4;

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
norm_partial(const __grid_constant__ NormParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const float* x = at(pages, p.x);
    const unsigned end = min((block + 1) * NORM_BLOCK, p.len);
    float4 own = quad(0.0f);
#pragma unroll
    for (unsigned k = 0; k < NORM_BLOCK / (4 * BLOCK); k++) {
        const unsigned i = block * NORM_BLOCK + 4 * (k * BLOCK + threadIdx.x);
        if (i < end) {
            const float4 v = load4(x + i, min(4u, end - i));
            own = own + v * v;
        }
    }
    const float sum = block_sum(own.x + own.y + (own.z + own.w));
    if (threadIdx.x == 0) at(pages, p.partial)[PARTIAL * block] = sum;
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
norm_fold(const __grid_constant__ NormParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    if (block_index() >= p.blocks) return;
    const float* partial = at(pages, p.partial);
    float own = 0.0f;
    for (unsigned i = threadIdx.x; i < p.partials; i += BLOCK) own += partial[PARTIAL * i];
    const float sum = block_sum(own);
    if (threadIdx.x > 0) return;
    float* norm = at(pages, p.norm);
    *norm = sqrtf(sum) + (p.accumulate ? *norm : 0.0f);
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
sgd(const __grid_constant__ SgdParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const unsigned i = 4 * (block * BLOCK + threadIdx.x);
    const float norm = *at(pages, p.norm);
    if (!is_finite(norm)) {
        if (i == 0) *at(pages, p.flag) = 1.0f;
        return;
    }
    if (i >= p.len) return;
    const unsigned valid = min(4u, p.len - i);
    const float scale = min(1.0f, p.clip / (norm + 1e-6f));
    const float4 w = load4(at(pages, p.w) + i, valid);
    const float4 v = load4(at(pages, p.v) + i, valid);
    const float4 g = load4(at(pages, p.g) + i, valid);
    const float4 step = p.momentum * v + scale * g + p.decay * w;
    store4(at(pages, p.v) + i, step, valid);
    store4(at(pages, p.w) + i, w - *at(pages, p.lr) * step, valid);
}

// 1 - beta^t. Near beta^t = 1 the difference would lose its digits: there the series of 1 - exp.
__device__ inline float correction(float log_beta, float t) {
    const float x = t * log_beta;
    if (x < -0.5f) return 1.0f - expf(x);
    float series = 1.0f;
    for (float k = 9.0f; k > 1.0f; k -= 1.0f) series = 1.0f + x / k * series;
    return -x * series;
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
adam(const __grid_constant__ AdamParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const unsigned i = 4 * (block * BLOCK + threadIdx.x);
    if (i >= p.len || !is_finite(*at(pages, p.norm))) return;
    const unsigned valid = min(4u, p.len - i);
    const float t = *at(pages, p.steps) + 1.0f;
    const float rate = *at(pages, p.lr) / correction(p.log1, t);
    const float c2 = 1.0f / correction(p.log2, t);
    const float4 w = load4(at(pages, p.p) + i, valid);
    const float4 g = load4(at(pages, p.g) + i, valid) + p.decay * w;
    const float4 m = p.beta1 * load4(at(pages, p.m) + i, valid) + p.rest1 * g;
    const float4 v = p.beta2 * load4(at(pages, p.v) + i, valid) + p.rest2 * (g * g);
    store4(at(pages, p.m) + i, m, valid);
    store4(at(pages, p.v) + i, v, valid);
    const float4 second = c2 * v;
    const float4 step = make_float4(m.x / (sqrtf(second.x) + p.eps), m.y / (sqrtf(second.y) + p.eps),
                                    m.z / (sqrtf(second.z) + p.eps), m.w / (sqrtf(second.w) + p.eps));
    store4(at(pages, p.p) + i, w - rate * step, valid);
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
adam_count(const __grid_constant__ AdamParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    if (block_index() >= p.blocks || threadIdx.x > 0) return;
    if (is_finite(*at(pages, p.norm))) {
        *at(pages, p.steps) += 1.0f;
    } else {
        *at(pages, p.flag) = 1.0f;
    }
}

// A block a stretch.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
running_update(const __grid_constant__ RunningParams p, const __grid_constant__ Pages pages, const RunningStretch* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const RunningStretch& s = table[block];
    if (threadIdx.x >= s.len || !is_finite(*at(pages, p.guard))) return;
    const unsigned i = s.offset + threadIdx.x;
    float* running = at(pages, p.running) + i;
    *running = p.keep * *running + p.share * (s.factor * at(pages, p.batch)[i]);
}
