// Mean over the pixels of each image, and its gradient: kernels/global_pool.cu in WGSL, function by function.

struct GlobalPoolParams {
    blocks: u32,
    rows: u32,
    channels: u32,
    lanes: u32,
    groups: u32,
    pixels: u32,
    accumulate: u32,
    map_stride: u32,
    map: Spot,
    mean: Spot,
    mean_stride: u32,
    unused: u32,
    unused_1: Spot,
}

@group(0) @binding(0) var<uniform> p: GlobalPoolParams;

// Rows that a thread of global_pool_backward writes.
const ROWS: u32 = 4;

var<workgroup> sums: array<Quad, BLOCK>;

// Adds the sums of all threads that own the same channels; row 0 gets the result.
fn add_rows(v: Quad, t: u32) -> Quad {
    var own = v;
    for (var width = BLOCK / p.lanes; width > 1u;) {
        sums[t] = own;
        workgroupBarrier();
        let half = (width + 1u) / 2u;
        if t / p.lanes + half < width {
            own += sums[t + half * p.lanes];
        }
        width = half;
        workgroupBarrier();
    }
    return own;
}

// A block a group of channels of an image.
@compute @workgroup_size(BLOCK)
fn global_pool(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let image = block / p.groups;
    let lane = lane_of(thread, p.channels, p.lanes, block % p.groups);
    let map = ahead(p.map, image * p.pixels * p.map_stride + lane.channel);
    var own = quad(0.0);
    for (var row = lane.row; lane.used && row < p.pixels; row += lane.rows) {
        own += load4(ahead(map, row * p.map_stride), lane.valid);
    }
    own = add_rows(own, thread);
    if lane.row > 0u || !lane.used {
        return;
    }
    let mean = ahead(p.mean, image * p.mean_stride + lane.channel);
    put4(mean, 1.0 / f32(p.pixels) * own, lane.valid, p.accumulate != 0u);
}

// A block writes ROWS times the rows that it covers at once.
@compute @workgroup_size(BLOCK)
fn global_pool_backward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let lane = lane_of(thread, p.channels, p.lanes, block % p.groups);
    if !lane.used {
        return;
    }
    let first = block / p.groups * ROWS * lane.rows + lane.row;
    for (var k = 0u; k < ROWS; k++) {
        let row = first + k * lane.rows;
        if row >= p.rows {
            continue;
        }
        let g = load4(ahead(p.mean, row / p.pixels * p.mean_stride + lane.channel), lane.valid);
        let map = ahead(p.map, row * p.map_stride + lane.channel);
        put4(map, 1.0 / f32(p.pixels) * g, lane.valid, p.accumulate != 0u);
    }
}
