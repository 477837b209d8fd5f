// Elementary ops that no fused family contains by itself: kernels/elementary.cu in WGSL, function by function.

struct ElementaryParams {
    blocks: u32,
    rows: u32,
    channels: u32,
    lanes: u32,
    groups: u32,
    accumulate: u32,
    kernel: u32,
    dilation: u32,
    stride: u32,
    pad: u32,
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    chunks: u32,
    chunk_rows: u32,
    x_stride: u32,
    w_stride: u32,
    g_stride: u32,
    y_stride: u32,
    x: Spot,
    w: Spot,
    g: Spot,
    y: Spot,
}

@group(0) @binding(0) var<uniform> p: ElementaryParams;

// A thread's quad of one row of what is written.
struct Item {
    lane: Lane,
    row: u32,
    used: bool,
}

fn item_of(block: u32, thread: u32) -> Item {
    var item: Item;
    item.lane = lane_of(thread, p.channels, p.lanes, block % p.groups);
    item.row = block / p.groups * item.lane.rows + item.lane.row;
    item.used = block < p.blocks && item.lane.used && item.row < p.rows;
    return item;
}

fn x_at(lane: Lane, row: u32) -> Quad {
    return load4(ahead(p.x, row * p.x_stride + lane.channel), lane.valid);
}

fn w_at(lane: Lane, row: u32) -> Quad {
    return load4(ahead(p.w, row * p.w_stride + lane.channel), lane.valid);
}

fn g_at(lane: Lane, row: u32) -> Quad {
    return load4(ahead(p.g, row * p.g_stride + lane.channel), lane.valid);
}

fn put_y(lane: Lane, row: u32, v: Quad) {
    put4(ahead(p.y, row * p.y_stride + lane.channel), v, lane.valid, p.accumulate != 0u);
}

// v where x > 0, else 0.
fn gate(x: Quad, v: Quad) -> Quad {
    return select(quad(0.0), v, x > quad(0.0));
}

@compute @workgroup_size(BLOCK)
fn relu_forward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = item_of(block_index(workgroup, grid), thread);
    if !item.used {
        return;
    }
    put_y(item.lane, item.row, rectified(x_at(item.lane, item.row)));
}

@compute @workgroup_size(BLOCK)
fn relu_backward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = item_of(block_index(workgroup, grid), thread);
    if !item.used {
        return;
    }
    put_y(item.lane, item.row, gate(x_at(item.lane, item.row), g_at(item.lane, item.row)));
}

// dx = a g + b x + d, the rows of w being a, b and d.
@compute @workgroup_size(BLOCK)
fn affine_gradient(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = item_of(block_index(workgroup, grid), thread);
    if !item.used {
        return;
    }
    let a = w_at(item.lane, 0u);
    let b = w_at(item.lane, 1u);
    let d = w_at(item.lane, 2u);
    let g = g_at(item.lane, item.row);
    let x = x_at(item.lane, item.row);
    put_y(item.lane, item.row, a * g + b * x + d);
}

// The row of x that a tap of an output pixel reads, if it lies inside.
struct Source {
    row: u32,
    inside: bool,
}

fn source_of(out: u32, tap: u32) -> Source {
    // In front of the map these wrap around.
    let y = out / p.out_width % p.out_height * p.stride + tap / p.kernel * p.dilation - p.pad;
    let x = out % p.out_width * p.stride + tap % p.kernel * p.dilation - p.pad;
    let image = out / p.out_width / p.out_height;
    return Source((image * p.height + y) * p.width + x, y < p.height && x < p.width);
}

@compute @workgroup_size(BLOCK)
fn depthwise_forward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = item_of(block_index(workgroup, grid), thread);
    if !item.used {
        return;
    }
    var sum = quad(0.0);
    for (var tap = 0u; tap < p.kernel * p.kernel; tap++) {
        let source = source_of(item.row, tap);
        if source.inside {
            sum += w_at(item.lane, tap) * x_at(item.lane, source.row);
        }
    }
    put_y(item.lane, item.row, sum);
}

// Whether an output has its window start at the coordinate `far` of the padded map; `far / stride` is that output.
fn reads(far: u32, extent: u32) -> bool {
    return far % p.stride == 0u && far / p.stride < extent;
}

// Gradient of x: each of its pixels gathers from the outputs that read it.
@compute @workgroup_size(BLOCK)
fn depthwise_input(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = item_of(block_index(workgroup, grid), thread);
    if !item.used {
        return;
    }
    let image = item.row / p.width / p.height;
    var sum = quad(0.0);
    for (var tap = 0u; tap < p.kernel * p.kernel; tap++) {
        let padded_y = item.row / p.width % p.height + p.pad;
        let padded_x = item.row % p.width + p.pad;
        let tap_y = tap / p.kernel * p.dilation;
        let tap_x = tap % p.kernel * p.dilation;
        if padded_y < tap_y || padded_x < tap_x {
            continue;
        }
        let y = padded_y - tap_y;
        let x = padded_x - tap_x;
        if !reads(y, p.out_height) || !reads(x, p.out_width) {
            continue;
        }
        let out = (image * p.out_height + y / p.stride) * p.out_width + x / p.stride;
        sum += w_at(item.lane, tap) * g_at(item.lane, out);
    }
    put_y(item.lane, item.row, sum);
}

var<workgroup> sums: array<Quad, BLOCK>;

// Adds the sums of all threads that own the same channels; row 0 gets the result.
fn add_rows(sum: Quad, t: u32) -> Quad {
    var own = sum;
    for (var width = BLOCK / p.lanes; width > 1u;) {
        sums[t] = own;
        workgroupBarrier();
        let other = (width + 1u) / 2u;
        if t / p.lanes + other < width {
            own += sums[t + other * p.lanes];
        }
        width = other;
        workgroupBarrier();
    }
    return own;
}

// Gradient of one tap's weights, summed over a chunk of rows of g.
@compute @workgroup_size(BLOCK)
fn depthwise_weights(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let lane = lane_of(thread, p.channels, p.lanes, block % p.groups);
    let part = block / p.groups;
    let taps = p.kernel * p.kernel;
    let first = part / taps * p.chunk_rows;
    let end = min(first + p.chunk_rows, p.rows);
    var sum = quad(0.0);
    for (var row = first + lane.row; lane.used && row < end; row += lane.rows) {
        let source = source_of(row, part % taps);
        if source.inside {
            sum += x_at(lane, source.row) * g_at(lane, row);
        }
    }
    sum = add_rows(sum, thread);
    if lane.row == 0u && lane.used {
        put_y(lane, part, sum);
    }
}

// Adds the chunks of one tap.
@compute @workgroup_size(BLOCK)
fn depthwise_fold(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let lane = lane_of(thread, p.channels, p.lanes, block % p.groups);
    let tap = block / p.groups;
    var sum = quad(0.0);
    for (var chunk = lane.row; lane.used && chunk < p.chunks; chunk += lane.rows) {
        sum += x_at(lane, chunk * p.kernel * p.kernel + tap);
    }
    sum = add_rows(sum, thread);
    if lane.row == 0u && lane.used {
        put_y(lane, tap, sum);
    }
}
