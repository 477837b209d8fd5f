// Convolutions of pretrained networks at inference: kernels/folded.cu in WGSL, function by function.

struct FoldedParams {
    blocks: u32,
    rows: u32,
    channels: u32,
    inputs: u32,
    lanes: u32,
    groups: u32,
    flags: u32,
    line_runs: u32,
    kernel: u32,
    stride: u32,
    top: u32,
    left: u32,
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    x_stride: u32,
    w_stride: u32,
    residual_stride: u32,
    y_stride: u32,
    runs: u32,
    unused: u32,
    x: Spot,
    w: Spot,
    bias: Spot,
    residual: Spot,
    y: Spot,
}

@group(0) @binding(0) var<uniform> p: FoldedParams;

const RELU: u32 = 1;
const RESIDUAL: u32 = 2;
const ACCUMULATE: u32 = 4;
const SIX: u32 = 8;

// Rows and channels that a block of folded_pointwise computes.
const TILE: u32 = 64;
// Input channels that it holds in shared memory at once, in quads.
const STEP: u32 = 4;
// Quads from one row of the shared tile of x to the next: one more than there are, so that rows lie in other banks.
const PITCH: u32 = STEP + 1;
// Rows that a thread of it computes.
const ROWS: u32 = 4;
// Neighbouring pixels that a thread of the other kernels computes.
const RUN: u32 = 4;

fn has(flag: u32) -> bool {
    return (p.flags & flag) != 0u;
}

// Adds bias and residual to a quad of sums, bounds it and writes it.
fn finish(row: u32, channel: u32, valid: u32, sum: Quad) {
    var v = sum + load4(ahead(p.bias, channel), valid);
    if has(RESIDUAL) {
        v += load4(ahead(p.residual, row * p.residual_stride + channel), valid);
    }
    if has(RELU) {
        v = rectified(v);
    }
    // NaN passes through here too.
    if has(SIX) {
        v = select(v, quad(6.0), v > quad(6.0));
    }
    put4(ahead(p.y, row * p.y_stride + channel), v, valid, has(ACCUMULATE));
}

// How many of the four channels from i on exist.
fn valid_of(i: u32, inputs: u32) -> u32 {
    if i < inputs {
        return min(4u, inputs - i);
    }
    return 0u;
}

var<workgroup> xs: array<Quad, TILE * PITCH>;
var<workgroup> ws: array<Quad, 4 * STEP * TILE / 4>;

// 64 rows by 64 channels; a thread computes four rows of one quad. While a step is computed, the next one is on its way
// to registers.
@compute @workgroup_size(BLOCK)
fn folded_pointwise(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let first = block / p.groups * TILE;
    let left = block % p.groups * TILE;

    // What this thread brings of x: a quad of one row. Of w: a quad of one input channel.
    let x_row = t / STEP;
    let x_quad = t % STEP;
    let w_row = t / (TILE / 4u);
    let column = left + 4u * (t % (TILE / 4u));
    let there = first + x_row < p.rows;
    let x = ahead(p.x, (first + x_row) * p.x_stride);
    let w = ahead(p.w, column);
    let valid = valid_of(column, p.channels);

    var sum: array<Quad, ROWS>;
    var next_x = load4(ahead(x, 4u * x_quad), select(0u, valid_of(4u * x_quad, p.inputs), there));
    var next_w = load4(ahead(w, w_row * p.w_stride), select(0u, valid, w_row < p.inputs));
    let row = t / (TILE / 4u) * ROWS;
    for (var i = 0u; i < p.inputs; i += 4u * STEP) {
        xs[x_row * PITCH + x_quad] = next_x;
        ws[t] = next_w;
        workgroupBarrier();
        let x_next = i + 4u * (STEP + x_quad);
        let w_next = i + 4u * STEP + w_row;
        next_x = load4(ahead(x, x_next), select(0u, valid_of(x_next, p.inputs), there));
        next_w = load4(ahead(w, w_next * p.w_stride), select(0u, valid, w_next < p.inputs));
        for (var q = 0u; q < STEP; q++) {
            let b = 4u * q * (TILE / 4u) + t % (TILE / 4u);
            let b0 = ws[b];
            let b1 = ws[b + TILE / 4u];
            let b2 = ws[b + 2u * TILE / 4u];
            let b3 = ws[b + 3u * TILE / 4u];
            for (var r = 0u; r < ROWS; r++) {
                let a = xs[(row + r) * PITCH + q];
                sum[r] += a.x * b0;
                sum[r] += a.y * b1;
                sum[r] += a.z * b2;
                sum[r] += a.w * b3;
            }
        }
        workgroupBarrier();
    }
    for (var r = 0u; r < ROWS; r++) {
        let out = first + row + r;
        if out < p.rows && valid > 0u {
            finish(out, column, valid, sum[r]);
        }
    }
}

// A thread's run of pixels in a line of the output.
struct Run {
    image: u32,
    y: u32,
    x: u32,
}

fn run_of(run: u32) -> Run {
    let line = run / p.line_runs;
    return Run(line / p.out_height, line % p.out_height, run % p.line_runs * RUN);
}

fn finish_run(run: Run, lane: Lane, sum: array<Quad, RUN>) {
    var sums = sum;
    for (var k = 0u; k < RUN; k++) {
        let row = (run.image * p.out_height + run.y) * p.out_width + run.x + k;
        if run.x + k < p.out_width {
            finish(row, lane.channel, lane.valid, sums[k]);
        }
    }
}

@compute @workgroup_size(BLOCK)
fn folded_depthwise(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let lane = lane_of(thread, p.channels, p.lanes, block % p.groups);
    let index = block / p.groups * lane.rows + lane.row;
    if !lane.used || index >= p.runs {
        return;
    }
    let run = run_of(index);
    let x = ahead(p.x, run.image * p.height * p.width * p.x_stride + lane.channel);
    let w = ahead(p.w, lane.channel);

    var sum: array<Quad, RUN>;
    for (var ky = 0u; ky < p.kernel; ky++) {
        // In front of the map rows and columns wrap around.
        let from_y = run.y * p.stride + ky - p.top;
        if from_y >= p.height {
            continue;
        }
        for (var kx = 0u; kx < p.kernel; kx++) {
            let weight = load4(ahead(w, (ky * p.kernel + kx) * p.w_stride), lane.valid);
            for (var k = 0u; k < RUN; k++) {
                let from_x = (run.x + k) * p.stride + kx - p.left;
                if from_x >= p.width {
                    continue;
                }
                sum[k] += weight * load4(ahead(x, (from_y * p.width + from_x) * p.x_stride), lane.valid);
            }
        }
    }
    finish_run(run, lane, sum);
}

@compute @workgroup_size(BLOCK)
fn folded_dense(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let lane = lane_of(thread, p.channels, p.lanes, block % p.groups);
    let index = block / p.groups * lane.rows + lane.row;
    if !lane.used || index >= p.runs {
        return;
    }
    let run = run_of(index);
    let x = ahead(p.x, run.image * p.height * p.width * p.x_stride);
    let w = ahead(p.w, lane.channel);

    var sum: array<Quad, RUN>;
    for (var ky = 0u; ky < p.kernel; ky++) {
        // In front of the map rows and columns wrap around.
        let from_y = run.y * p.stride + ky - p.top;
        if from_y >= p.height {
            continue;
        }
        for (var kx = 0u; kx < p.kernel; kx++) {
            let tap = ahead(w, (ky * p.kernel + kx) * p.inputs * p.w_stride);
            for (var i = 0u; i < p.inputs; i++) {
                let weight = load4(ahead(tap, i * p.w_stride), lane.valid);
                for (var k = 0u; k < RUN; k++) {
                    let from_x = (run.x + k) * p.stride + kx - p.left;
                    if from_x >= p.width {
                        continue;
                    }
                    sum[k] += load1(ahead(x, (from_y * p.width + from_x) * p.x_stride + i)) * weight;
                }
            }
        }
    }
    finish_run(run, lane, sum);
}
