// The vector updates of the unrolled architecture step (src/ops/second_order.rs): virtual step, perturbed weights,
// finite-difference Hessian term. A thread owns four neighbouring elements.
#include "common.cuh"

struct UnrollParams {
    unsigned blocks;
    unsigned len;
    unsigned accumulate;
    unsigned unused;
    Spot w;
    Spot v;
    Spot g;
    Spot lr;
    Spot out;
    float momentum;
    float decay;
};

struct PerturbParams {
    unsigned blocks;
    unsigned len;
    unsigned accumulate;
    float radius;
    Spot w;
    Spot d;
    Spot norm;
    Spot out;
};

struct HessianParams {
    unsigned blocks;
    unsigned len;
    unsigned accumulate_hessian;
    unsigned accumulate_total;
    Spot direct;
    Spot plus;
    Spot minus;
    Spot norm;
    Spot lr;
    Spot hessian;
    Spot total;
    float radius;
    unsigned unused;
};

// R = radius / norm; a direction of zero moves nothing, whatever R is.
__device__ inline float step_of(float radius, float norm) { return norm == 0.0f ? radius : radius / norm; }

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
unroll(const __grid_constant__ UnrollParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    const unsigned i = 4 * (block * BLOCK + threadIdx.x);
    if (block >= p.blocks || i >= p.len) return;
    const unsigned valid = min(4u, p.len - i);
    const float4 w = load4(at(pages, p.w) + i, valid);
    const float4 v = load4(at(pages, p.v) + i, valid);
    const float4 g = load4(at(pages, p.g) + i, valid);
    const float4 step = p.momentum * v + g + p.decay * w;
    put4(at(pages, p.out) + i, w - *at(pages, p.lr) * step, valid, p.accumulate);
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
perturb(const __grid_constant__ PerturbParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    const unsigned i = 4 * (block * BLOCK + threadIdx.x);
    if (block >= p.blocks || i >= p.len) return;
    const unsigned valid = min(4u, p.len - i);
    const float r = step_of(p.radius, *at(pages, p.norm));
    const float4 w = load4(at(pages, p.w) + i, valid);
    const float4 d = load4(at(pages, p.d) + i, valid);
    put4(at(pages, p.out) + i, w + r * d, valid, p.accumulate);
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
hessian_term(const __grid_constant__ HessianParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    const unsigned i = 4 * (block * BLOCK + threadIdx.x);
    if (block >= p.blocks || i >= p.len) return;
    const unsigned valid = min(4u, p.len - i);
    const float share = 1.0f / (2.0f * step_of(p.radius, *at(pages, p.norm)));
    const float4 plus = load4(at(pages, p.plus) + i, valid);
    const float4 minus = load4(at(pages, p.minus) + i, valid);
    const float4 direct = load4(at(pages, p.direct) + i, valid);
    const float4 hessian = share * (plus - minus);
    put4(at(pages, p.hessian) + i, hessian, valid, p.accumulate_hessian);
    put4(at(pages, p.total) + i, direct - *at(pages, p.lr) * hessian, valid, p.accumulate_total);
}
