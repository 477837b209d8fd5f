// Updates of flat vectors: kernels/optimiser.cu in WGSL, function by function.

struct NormParams {
    blocks: u32,
    len: u32,
    partials: u32,
    accumulate: u32,
    x: Spot,
    norm: Spot,
    partial: Spot,
    unused: Spot,
}

struct SgdParams {
    blocks: u32,
    len: u32,
    g: Spot,
    norm: Spot,
    lr: Spot,
    w: Spot,
    v: Spot,
    flag: Spot,
    momentum: f32,
    decay: f32,
    clip: f32,
    unused: f32,
    unused_1: Spot,
}

struct AdamParams {
    blocks: u32,
    len: u32,
    g: Spot,
    norm: Spot,
    lr: Spot,
    p: Spot,
    m: Spot,
    v: Spot,
    steps: Spot,
    flag: Spot,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    log1: f32,
    log2: f32,
    eps: f32,
    decay: f32,
    unused: Spot,
}

struct RunningParams {
    blocks: u32,
    keep: f32,
    share: f32,
    unused: u32,
    batch: Spot,
    guard: Spot,
    running: Spot,
    unused_1: Spot,
}

struct RunningStretch {
    offset: u32,
    len: u32,
    factor: f32,
    unused: u32,
}

// Records of a full table.
const TABLE: u32 = 1024;

// Each entry point uses one of these.
@group(0) @binding(0) var<uniform> norm_params: NormParams;
@group(0) @binding(0) var<uniform> sgd_params: SgdParams;
@group(0) @binding(0) var<uniform> adam_params: AdamParams;
@group(0) @binding(0) var<uniform> running_params: RunningParams;
@group(0) @binding(1) var<uniform> table: array<RunningStretch, TABLE>;

// Elements summed into one partial of a norm.
const NORM_BLOCK: u32 = 4096;
// Elements from one partial to the next: blocks write side by side, and where pages are vectors only whole ones are stored.
const PARTIAL: u32 = 4;

@compute @workgroup_size(BLOCK)
fn norm_partial(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let p = norm_params;
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let end = min((block + 1u) * NORM_BLOCK, p.len);
    var own = quad(0.0);
    for (var k = 0u; k < NORM_BLOCK / (4u * BLOCK); k++) {
        let i = block * NORM_BLOCK + 4u * (k * BLOCK + thread);
        if i < end {
            let v = load4(ahead(p.x, i), min(4u, end - i));
            own += v * v;
        }
    }
    let sum = block_sum(own.x + own.y + (own.z + own.w), thread);
    if thread == 0u {
        store4(ahead(p.partial, PARTIAL * block), quad(sum), PARTIAL);
    }
}

@compute @workgroup_size(BLOCK)
fn norm_fold(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let p = norm_params;
    if block_index(workgroup, grid) >= p.blocks {
        return;
    }
    var own = 0.0;
    for (var i = thread; i < p.partials; i += BLOCK) {
        own += load1(ahead(p.partial, PARTIAL * i));
    }
    let sum = block_sum(own, thread);
    if thread > 0u {
        return;
    }
    var value = sqrt(sum);
    if p.accumulate != 0u {
        value += load1(p.norm);
    }
    store1(p.norm, value);
}

@compute @workgroup_size(BLOCK)
fn sgd(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let p = sgd_params;
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let i = 4u * (block * BLOCK + thread);
    let norm = load1(p.norm);
    if !is_finite(norm) {
        if i == 0u {
            store1(p.flag, 1.0);
        }
        return;
    }
    if i >= p.len {
        return;
    }
    let valid = min(4u, p.len - i);
    let scale = min(1.0, p.clip / (norm + 1e-6));
    let w = load4(ahead(p.w, i), valid);
    let v = load4(ahead(p.v, i), valid);
    let g = load4(ahead(p.g, i), valid);
    let step = p.momentum * v + scale * g + p.decay * w;
    store4(ahead(p.v, i), step, valid);
    store4(ahead(p.w, i), w - load1(p.lr) * step, valid);
}

// 1 - beta^t. Near beta^t = 1 the difference would lose its digits: there the series of 1 - exp.
fn correction(log_beta: f32, t: f32) -> f32 {
    let x = t * log_beta;
    if x < -0.5 {
        return 1.0 - exp(x);
    }
    var series = 1.0;
    for (var k = 9.0; k > 1.0; k -= 1.0) {
        series = 1.0 + x / k * series;
    }
    return -x * series;
}

@compute @workgroup_size(BLOCK)
fn adam(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let p = adam_params;
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let i = 4u * (block * BLOCK + thread);
    if i >= p.len || !is_finite(load1(p.norm)) {
        return;
    }
    let valid = min(4u, p.len - i);
    let t = load1(p.steps) + 1.0;
    let rate = load1(p.lr) / correction(p.log1, t);
    let c2 = 1.0 / correction(p.log2, t);
    let w = load4(ahead(p.p, i), valid);
    let g = load4(ahead(p.g, i), valid) + p.decay * w;
    let m = p.beta1 * load4(ahead(p.m, i), valid) + p.rest1 * g;
    let v = p.beta2 * load4(ahead(p.v, i), valid) + p.rest2 * (g * g);
    store4(ahead(p.m, i), m, valid);
    store4(ahead(p.v, i), v, valid);
    let step = m / (sqrt(c2 * v) + quad(p.eps));
    store4(ahead(p.p, i), w - rate * step, valid);
}

@compute @workgroup_size(BLOCK)
fn adam_count(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let p = adam_params;
    if block_index(workgroup, grid) >= p.blocks || thread > 0u {
        return;
    }
    if is_finite(load1(p.norm)) {
        store1(p.steps, load1(p.steps) + 1.0);
    } else {
        store1(p.flag, 1.0);
    }
}

// A block a stretch.
@compute @workgroup_size(BLOCK)
fn running_update(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let p = running_params;
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    if thread >= table[block].len || !is_finite(load1(p.guard)) {
        return;
    }
    let i = table[block].offset + thread;
    let batch = table[block].factor * load1(ahead(p.batch, i));
    let running = ahead(p.running, i);
    store1(running, p.keep * load1(running) + p.share * batch);
}
