// Softmax of short rows and its gradient: kernels/softmax.cu in WGSL, function by function.

struct SoftmaxParams {
    blocks: u32,
    rows: u32,
    channels: u32,
    accumulate: u32,
    x: Spot,
    dp: Spot,
    out: Spot,
    x_stride: u32,
    dp_stride: u32,
    out_stride: u32,
    unused: u32,
    unused_1: Spot,
}

@group(0) @binding(0) var<uniform> p: SoftmaxParams;

// Writes, or adds to what is there.
fn put(spot: Spot, v: f32) {
    var value = v;
    if p.accumulate != 0u {
        value += load1(spot);
    }
    store1(spot, value);
}

@compute @workgroup_size(BLOCK)
fn softmax(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    let row = block * BLOCK + thread;
    if block >= p.blocks || row >= p.rows {
        return;
    }
    let x = ahead(p.x, row * p.x_stride);
    let out = ahead(p.out, row * p.out_stride);
    var top = load1(x);
    for (var c = 1u; c < p.channels; c++) {
        top = max(top, load1(ahead(x, c)));
    }
    var sum = 0.0;
    for (var c = 0u; c < p.channels; c++) {
        sum += exp(load1(ahead(x, c)) - top);
    }
    for (var c = 0u; c < p.channels; c++) {
        put(ahead(out, c), exp(load1(ahead(x, c)) - top) / sum);
    }
}

@compute @workgroup_size(BLOCK)
fn softmax_backward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    let row = block * BLOCK + thread;
    if block >= p.blocks || row >= p.rows {
        return;
    }
    let x = ahead(p.x, row * p.x_stride);
    let dp = ahead(p.dp, row * p.dp_stride);
    let out = ahead(p.out, row * p.out_stride);
    var dot = 0.0;
    for (var c = 0u; c < p.channels; c++) {
        dot += load1(ahead(x, c)) * load1(ahead(dp, c));
    }
    for (var c = 0u; c < p.channels; c++) {
        put(ahead(out, c), load1(ahead(x, c)) * (load1(ahead(dp, c)) - dot));
    }
}
