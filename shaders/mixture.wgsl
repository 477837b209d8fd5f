// Weighted sum of normalised maps, and the reductions of its gradient: kernels/mixture.cu in WGSL, function by function.

struct MixtureSource {
    first_block: u32,
    blocks: u32,
    sources: u32,
    flags: u32,
    rows: u32,
    channels: u32,
    lanes: u32,
    groups: u32,
    pixels: u32,
    chunks: u32,
    chunk_rows: u32,
    node_stride: u32,
    map_stride: u32,
    coef_stride: u32,
    weight_index: u32,
    weight_columns: u32,
    eps: f32,
    unused: u32,
    node: Spot,
    map: Spot,
    mean: Spot,
    variance: Spot,
    gamma: Spot,
    beta: Spot,
    weight: Spot,
    mask: Spot,
    coef: Spot,
    dgamma: Spot,
    dbeta: Spot,
    partial: Spot,
    shares: Spot,
}

const NORM: u32 = 1;
const AFFINE: u32 = 2;
const WEIGHT: u32 = 4;
const MASK: u32 = 8;
const SUMS: u32 = 16;
const COEF: u32 = 32;
const COEF_ADD: u32 = 64;
const PARAMETERS: u32 = 128;
const DGAMMA_ADD: u32 = 256;
const DBETA_ADD: u32 = 512;
const SHARE: u32 = 1024;
const ACCUMULATE: u32 = 2048;

// Records of a full table.
const TABLE: u32 = 93;

@group(0) @binding(0) var<uniform> p: JobsParams;
@group(0) @binding(1) var<uniform> table: array<MixtureSource, TABLE>;

// Rows of a map that a thread of mixture_forward holds in registers.
const ROWS: u32 = 4;

fn has(flags: u32, flag: u32) -> bool {
    return (flags & flag) != 0u;
}

// h = gamma (y - mean) inv + beta, for a quad of one source.
struct Norm {
    mean: Quad,
    inv: Quad,
    gamma: Quad,
    beta: Quad,
}

fn norm_of(i: u32, lane: Lane) -> Norm {
    var n = Norm(quad(0.0), quad(1.0), quad(1.0), quad(0.0));
    if has(table[i].flags, NORM) {
        n.mean = load4(ahead(table[i].mean, lane.channel), lane.valid);
        n.inv = inverse_deviation(load4(ahead(table[i].variance, lane.channel), lane.valid), table[i].eps);
    }
    if has(table[i].flags, AFFINE) {
        n.gamma = load4(ahead(table[i].gamma, lane.channel), lane.valid);
        n.beta = load4(ahead(table[i].beta, lane.channel), lane.valid);
    }
    return n;
}

fn weight_of(i: u32) -> f32 {
    if has(table[i].flags, WEIGHT) {
        return load1(table[i].weight);
    }
    return 1.0;
}

// Factor of a row's image. Where it is zero the summand is absent: its map may hold anything.
fn factor_of(i: u32, row: u32) -> f32 {
    if has(table[i].flags, MASK) {
        return load1(ahead(table[i].mask, row / table[i].pixels));
    }
    return 1.0;
}

// node = sum_s factor * weight * h. A block writes ROWS times the rows that it covers at once.
@compute @workgroup_size(BLOCK)
fn mixture_forward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let job = job_of(block);
    let own = block - table[job].first_block;
    let groups = table[job].groups;
    let rows = table[job].rows;
    let lane = lane_of(thread, table[job].channels, table[job].lanes, own % groups);
    if !lane.used {
        return;
    }
    let first = own / groups * ROWS * lane.rows + lane.row;

    var sum: array<Quad, ROWS>;
    for (var i = job; i < job + table[job].sources; i++) {
        let n = norm_of(i, lane);
        let weight = weight_of(i);
        let scale = weight * (n.gamma * n.inv);
        let shift = weight * n.beta;
        let map = ahead(table[i].map, lane.channel);
        for (var k = 0u; k < ROWS; k++) {
            let row = first + k * lane.rows;
            if row < rows {
                let factor = factor_of(i, row);
                if factor != 0.0 {
                    let y = load4(ahead(map, row * table[i].map_stride), lane.valid);
                    sum[k] += factor * (scale * (y - n.mean) + shift);
                }
            }
        }
    }
    let add = has(table[job].flags, ACCUMULATE);
    for (var k = 0u; k < ROWS; k++) {
        let row = first + k * lane.rows;
        if row < rows {
            put4(ahead(table[job].node, row * table[job].node_stride + lane.channel), sum[k], lane.valid, add);
        }
    }
}

// Sum of g and sum of g y_hat.
struct Sums {
    s1: Quad,
    s2: Quad,
}

var<workgroup> shared_s1: array<Quad, BLOCK>;
var<workgroup> shared_s2: array<Quad, BLOCK>;

// Adds the sums of all threads that own the same channels; row 0 gets the result.
fn add_rows(sums: Sums, t: u32, lanes: u32) -> Sums {
    var own = sums;
    for (var width = BLOCK / lanes; width > 1u;) {
        shared_s1[t] = own.s1;
        shared_s2[t] = own.s2;
        workgroupBarrier();
        let half = (width + 1u) / 2u;
        if t / lanes + half < width {
            own.s1 += shared_s1[t + half * lanes];
            own.s2 += shared_s2[t + half * lanes];
        }
        width = half;
        workgroupBarrier();
    }
    return own;
}

// One chunk of rows of one source: s1 = sum factor g, s2 = sum factor g y_hat.
@compute @workgroup_size(BLOCK)
fn mixture_backward_partial(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let i = job_of(block);
    let chunk = (block - table[i].first_block) / table[i].groups;
    let channels = table[i].channels;
    let lane = lane_of(thread, channels, table[i].lanes, (block - table[i].first_block) % table[i].groups);
    let first = chunk * table[i].chunk_rows;
    let end = min(first + table[i].chunk_rows, table[i].rows);
    let n = norm_of(i, lane);
    let gradient = ahead(table[i].node, lane.channel);
    let map = ahead(table[i].map, lane.channel);

    var own = Sums(quad(0.0), quad(0.0));
    for (var row = first + lane.row; lane.used && row < end; row += lane.rows) {
        let factor = factor_of(i, row);
        if factor == 0.0 {
            continue;
        }
        let g = factor * load4(ahead(gradient, row * table[i].node_stride), lane.valid);
        let y = load4(ahead(map, row * table[i].map_stride), lane.valid);
        own.s1 += g;
        own.s2 += g * ((y - n.mean) * n.inv);
    }

    own = add_rows(own, thread, table[i].lanes);
    if lane.row == 0u && lane.used {
        let partial = ahead(table[i].partial, 2u * chunk * padded(channels) + lane.channel);
        store4(partial, own.s1, 4u);
        store4(ahead(partial, padded(channels)), own.s2, 4u);
    }
}

// Merges a source's chunks and writes what is wanted of it: coefficients a, b, d with dL/dy = a g + b y + d, gradients of
// gamma and beta, and each channel's share of the weight's gradient.
@compute @workgroup_size(BLOCK)
fn mixture_backward_fold(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let i = job_of(block);
    let flags = table[i].flags;
    let chunks = table[i].chunks;
    let channels = table[i].channels;
    let lane = lane_of(thread, channels, table[i].lanes, (block - table[i].first_block) % table[i].groups);

    var own = Sums(quad(0.0), quad(0.0));
    for (var chunk = lane.row; has(flags, SUMS) && lane.used && chunk < chunks; chunk += lane.rows) {
        let partial = ahead(table[i].partial, 2u * chunk * padded(channels) + lane.channel);
        own.s1 += load4(partial, 4u);
        own.s2 += load4(ahead(partial, padded(channels)), 4u);
    }
    own = add_rows(own, thread, table[i].lanes);
    if lane.row > 0u || !lane.used {
        return;
    }

    let n = norm_of(i, lane);
    let weight = weight_of(i);
    if has(flags, COEF) {
        var a = quad(weight);
        var b = quad(0.0);
        var d = quad(0.0);
        if has(flags, NORM) {
            let share = 1.0 / f32(table[i].rows);
            a = weight * (n.gamma * n.inv);
            b = -share * (a * n.inv * own.s2);
            d = -share * (a * own.s1) - b * n.mean;
        }
        let coef = ahead(table[i].coef, lane.channel);
        let add = has(flags, COEF_ADD);
        put4(coef, a, lane.valid, add);
        put4(ahead(coef, table[i].coef_stride), b, lane.valid, add);
        put4(ahead(coef, 2u * table[i].coef_stride), d, lane.valid, add);
    }
    if has(flags, PARAMETERS) {
        put4(ahead(table[i].dgamma, lane.channel), weight * own.s2, lane.valid, has(flags, DGAMMA_ADD));
        put4(ahead(table[i].dbeta, lane.channel), weight * own.s1, lane.valid, has(flags, DBETA_ADD));
    }
    if has(flags, SHARE) {
        store4(ahead(table[i].shares, lane.channel), n.gamma * own.s2 + n.beta * own.s1, 4u);
    }
}

var<workgroup> shared_sum: array<f32, BLOCK>;

// A block sums the shares of one weight, over its sources and their channels.
@compute @workgroup_size(BLOCK)
fn mixture_backward_weights(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let job = job_of(block);
    let index = block - table[job].first_block;
    var own = 0.0;
    for (var i = job; i < job + table[job].sources; i++) {
        if table[i].weight_index != index {
            continue;
        }
        for (var c = thread; c < table[i].channels; c += BLOCK) {
            own += load1(ahead(table[i].shares, c));
        }
    }
    shared_sum[thread] = own;
    workgroupBarrier();
    for (var half = BLOCK / 2u; half > 0u; half /= 2u) {
        if thread < half {
            shared_sum[thread] += shared_sum[thread + half];
        }
        workgroupBarrier();
    }
    if thread > 0u {
        return;
    }
    let columns = table[job].weight_columns;
    let out = ahead(table[job].node, index / columns * table[job].node_stride + index % columns);
    var value = shared_sum[0];
    if has(table[job].flags, ACCUMULATE) {
        value += load1(out);
    }
    store1(out, value);
}
