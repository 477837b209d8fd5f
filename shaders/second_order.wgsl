// The vector updates of the unrolled architecture step: kernels/second_order.cu in WGSL, function by function.

struct UnrollParams {
    blocks: u32,
    len: u32,
    accumulate: u32,
    unused: u32,
    w: Spot,
    v: Spot,
    g: Spot,
    lr: Spot,
    out: Spot,
    momentum: f32,
    decay: f32,
}

struct PerturbParams {
    blocks: u32,
    len: u32,
    accumulate: u32,
    radius: f32,
    w: Spot,
    d: Spot,
    norm: Spot,
    out: Spot,
}

struct HessianParams {
    blocks: u32,
    len: u32,
    accumulate_hessian: u32,
    accumulate_total: u32,
    direct: Spot,
    plus: Spot,
    minus: Spot,
    norm: Spot,
    lr: Spot,
    hessian: Spot,
    total: Spot,
    radius: f32,
    unused: u32,
}

// Each entry point uses one of these.
@group(0) @binding(0) var<uniform> unroll_params: UnrollParams;
@group(0) @binding(0) var<uniform> perturb_params: PerturbParams;
@group(0) @binding(0) var<uniform> hessian_params: HessianParams;

// R = radius / norm; a direction of zero moves nothing, whatever R is.
fn step_of(radius: f32, norm: f32) -> f32 {
    if norm == 0.0 {
        return radius;
    }
    return radius / norm;
}

@compute @workgroup_size(BLOCK)
fn unroll(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let p = unroll_params;
    let block = block_index(workgroup, grid);
    let i = 4u * (block * BLOCK + thread);
    if block >= p.blocks || i >= p.len {
        return;
    }
    let valid = min(4u, p.len - i);
    let w = load4(ahead(p.w, i), valid);
    let v = load4(ahead(p.v, i), valid);
    let g = load4(ahead(p.g, i), valid);
    let step = p.momentum * v + g + p.decay * w;
    put4(ahead(p.out, i), w - load1(p.lr) * step, valid, p.accumulate != 0u);
}

@compute @workgroup_size(BLOCK)
fn perturb(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let p = perturb_params;
    let block = block_index(workgroup, grid);
    let i = 4u * (block * BLOCK + thread);
    if block >= p.blocks || i >= p.len {
        return;
    }
    let valid = min(4u, p.len - i);
    let r = step_of(p.radius, load1(p.norm));
    let w = load4(ahead(p.w, i), valid);
    let d = load4(ahead(p.d, i), valid);
    put4(ahead(p.out, i), w + r * d, valid, p.accumulate != 0u);
}

@compute @workgroup_size(BLOCK)
fn hessian_term(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let p = hessian_params;
    let block = block_index(workgroup, grid);
    let i = 4u * (block * BLOCK + thread);
    if block >= p.blocks || i >= p.len {
        return;
    }
    let valid = min(4u, p.len - i);
    let share = 1.0 / (2.0 * step_of(p.radius, load1(p.norm)));
    let plus = load4(ahead(p.plus, i), valid);
    let minus = load4(ahead(p.minus, i), valid);
    let direct = load4(ahead(p.direct, i), valid);
    let hessian = share * (plus - minus);
    put4(ahead(p.hessian, i), hessian, valid, p.accumulate_hessian != 0u);
    put4(ahead(p.total, i), direct - load1(p.lr) * hessian, valid, p.accumulate_total != 0u);
}
