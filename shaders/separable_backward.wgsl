// Gradients of separable convolutions: kernels/separable_backward.cu in WGSL. Here every tap reads the map itself, for all kernels of
// a depthwise convolution, and a chunk is a stretch of rows.

struct SeparableGradient {
    first_block: u32,
    blocks: u32,
    kind: u32,
    flags: u32,
    rows: u32,
    x_rows: u32,
    channels: u32,
    out_channels: u32,
    step: u32,
    lanes: u32,
    groups: u32,
    out_lanes: u32,
    out_groups: u32,
    chunk_rows: u32,
    branches: u32,
    x_h: u32,
    x_w: u32,
    y_h: u32,
    y_w: u32,
    kernel: u32,
    dilation: u32,
    stride: u32,
    pad: u32,
    x_stride: u32,
    tap_stride: u32,
    weight_stride: u32,
    y_stride: u32,
    g_stride: u32,
    dx_stride: u32,
    coef_stride: u32,
    tiles: u32,
    across: u32,
    down: u32,
    regions: u32,
    chunk_regions: u32,
    unused: u32,
    eps: f32,
    inverse_stride: f32,
    x: Spot,
    mean: Spot,
    variance: Spot,
    gamma: Spot,
    beta: Spot,
    depthwise: Spot,
    pointwise: Spot,
    y: Spot,
    g: Spot,
    coef: Spot,
    mask: Spot,
    dd: Spot,
    dy: Spot,
    dx: Spot,
    partial: Spot,
}

const NORM: u32 = 1;
const AFFINE: u32 = 2;
const COEF: u32 = 4;
const MASK: u32 = 8;
const STORE: u32 = 16;
const ADD: u32 = 32;
const SUMS: u32 = 64;
const TILED: u32 = 128;

// Kinds of jobs of separable_backward_gradients.
const POINTWISE: u32 = 0;
const TAPS: u32 = 1;
const INPUT: u32 = 2;

// Records of a full table.
const JOBS: u32 = 60;

@group(0) @binding(0) var<uniform> p: JobsParams;
@group(0) @binding(1) var<uniform> table: array<SeparableGradient, JOBS>;

// Pixels of a tile, and how many of them a thread multiplies at most.
const PIXELS: u32 = 64;
const ROWS: u32 = 4;

// In separable_backward_product: dy, a quad of channels after the other; and as many columns of the pointwise weights.
var<workgroup> shared_left: array<Quad, BLOCK>;
var<workgroup> shared_right: array<Quad, BLOCK>;

var<workgroup> shared_norms: array<Norm, BLOCK>;

// The term: a factor g + b y + d. Where an image's factor is zero, g may hold anything.
fn term(j: u32, row: u32, channel: u32, valid: u32) -> Quad {
    var factor = 1.0;
    if (table[j].flags & MASK) != 0u {
        factor = load1(ahead(table[j].mask, row / (table[j].y_h * table[j].y_w)));
    }
    var g = quad(0.0);
    if factor != 0.0 {
        g = factor * load4(ahead(table[j].g, row * table[j].g_stride + channel), valid);
    }
    if (table[j].flags & COEF) != 0u {
        let coef = ahead(table[j].coef, channel);
        let stride = table[j].coef_stride;
        let y = load4(ahead(table[j].y, row * table[j].y_stride + channel), valid);
        g = load4(coef, valid) * g + load4(ahead(coef, stride), valid) * y + load4(ahead(coef, 2u * stride), valid);
    }
    return g;
}

fn valid_of(channel: u32, channels: u32) -> u32 {
    if channel < channels {
        return min(4u, channels - channel);
    }
    return 0u;
}

// dd = dy pointwise^T, for `lanes` quads of a chunk of pixels, tile by tile. Keeps dy if it is to be read again.
@compute @workgroup_size(BLOCK)
fn separable_backward_product(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let j = job_of(block);
    let lanes = table[j].lanes;
    let step = table[j].step;
    let channels = table[j].channels;
    let out_channels = table[j].out_channels;
    let group = (block - table[j].first_block) % table[j].groups;
    let start = (block - table[j].first_block) / table[j].groups * table[j].chunk_rows;
    let lane = lane_of(t, channels, lanes, group);
    let end = min(start + table[j].chunk_rows, table[j].rows);

    for (var first = start; first < end; first += PIXELS) {
        var sum = array<Quad, ROWS>();
        for (var base = 0u; base < out_channels; base += 4u * step) {
            let pixel = t / step;
            let channel = base + 4u * (t % step);
            if pixel < PIXELS {
                let valid = valid_of(channel, out_channels);
                let there = first + pixel < end && valid > 0u;
                var dy = quad(0.0);
                if there {
                    dy = term(j, first + pixel, channel, valid);
                }
                shared_left[t % step * PIXELS + pixel] = dy;
                if there && group == 0u && (table[j].flags & STORE) != 0u {
                    store4(ahead(table[j].dy, (first + pixel) * padded(out_channels) + channel), dy, 4u);
                }
            }
            let column = base + t % (4u * step);
            let quads = t / (4u * step);
            if quads < lanes {
                let row = 4u * (group * lanes + quads);
                let stride = table[j].weight_stride;
                let w = ahead(table[j].pointwise, row * stride + column);
                var valid = 0u;
                if column < out_channels {
                    valid = valid_of(row, channels);
                }
                var v = quad(0.0);
                for (var i = 0u; i < valid; i++) {
                    v[i] = load1(ahead(w, i * stride));
                }
                shared_right[t % (4u * step) * lanes + quads] = v;
            }
            workgroupBarrier();
            for (var q = 0u; q < step; q++) {
                let w = 4u * q * lanes + t % lanes;
                let w0 = shared_right[w];
                let w1 = shared_right[w + lanes];
                let w2 = shared_right[w + 2u * lanes];
                let w3 = shared_right[w + 3u * lanes];
                for (var k = 0u; k < ROWS; k++) {
                    let row = lane.row + k * lane.rows;
                    if row < PIXELS {
                        let d = shared_left[q * PIXELS + row];
                        sum[k] = sum[k] + d.x * w0 + d.y * w1 + d.z * w2 + d.w * w3;
                    }
                }
            }
            workgroupBarrier();
        }
        for (var k = 0u; k < ROWS; k++) {
            let row = lane.row + k * lane.rows;
            if !lane.used || row >= PIXELS || first + row >= end {
                continue;
            }
            store4(ahead(table[j].dd, (first + row) * padded(channels) + lane.channel), sum[k], 4u);
        }
    }
}

// Gradient of the pointwise weights, d^T dy over a chunk of pixels. A thread owns two rows by four columns; the threads
// that are left share the pixels.
fn pointwise_gradient(j: u32, index: u32, t: u32) {
    let lanes = table[j].lanes;
    let out_lanes = table[j].out_lanes;
    let channels = table[j].channels;
    let out_channels = table[j].out_channels;
    let group = index / table[j].out_groups % table[j].groups;
    let channel = 4u * (group * lanes + t % lanes);
    let out_channel = 4u * (index % table[j].out_groups * out_lanes + t % out_lanes);
    let chunk = index / table[j].out_groups / table[j].groups;
    let end = min((chunk + 1u) * table[j].chunk_rows, table[j].rows);
    let pairs = 2u * lanes * out_lanes;
    let splits = BLOCK / pairs;
    let rows = BLOCK / max(lanes, out_lanes);
    let pair = t / out_lanes % (2u * lanes);

    var sum = array<Quad, 2>();
    for (var first = chunk * table[j].chunk_rows; first < end; first += rows) {
        let row = first + t / lanes;
        if t < rows * lanes {
            let valid = valid_of(channel, channels);
            var d = quad(0.0);
            if row < end && valid > 0u {
                d = depthwise(j, row, channel, valid);
            }
            shared_left[t] = d;
        }
        let out_row = first + t / out_lanes;
        if t < rows * out_lanes {
            let valid = valid_of(out_channel, out_channels);
            var dy = quad(0.0);
            if out_row < end && valid > 0u {
                dy = load4(ahead(table[j].g, out_row * table[j].g_stride + out_channel), valid);
            }
            shared_right[t] = dy;
        }
        workgroupBarrier();
        for (var r = t / pairs; r < rows && t < pairs * splits; r += splits) {
            let d = shared_left[r * lanes + pair / 2u];
            let dy = shared_right[r * out_lanes + t % out_lanes];
            sum[0] += select(d.x, d.z, pair % 2u == 1u) * dy;
            sum[1] += select(d.y, d.w, pair % 2u == 1u) * dy;
        }
        workgroupBarrier();
    }

    shared_left[t] = sum[0];
    shared_right[t] = sum[1];
    workgroupBarrier();
    if t >= pairs {
        return;
    }
    for (var split = 1u; split < splits; split++) {
        sum[0] += shared_left[t + split * pairs];
        sum[1] += shared_right[t + split * pairs];
    }
    let row = 4u * group * lanes + 2u * pair;
    let valid = valid_of(out_channel, out_channels);
    let partial = ahead(table[j].partial, chunk * padded(channels * out_channels) + row * out_channels + out_channel);
    if row < channels {
        store4(partial, sum[0], valid);
    }
    if row + 1u < channels {
        store4(ahead(partial, out_channels), sum[1], valid);
    }
}

// Gradient of the depthwise weights over a chunk of pixels: a thread owns a tap and a quad of channels; the threads that
// are left share the pixels.
fn taps_gradient(j: u32, index: u32, t: u32) {
    let lanes = table[j].lanes;
    let channels = table[j].channels;
    let kernel = table[j].kernel;
    let w = table[j].y_w;
    let h = table[j].y_h;
    let chunk = index / table[j].groups;
    let channel = 4u * (index % table[j].groups * lanes + t % lanes);
    let valid = valid_of(channel, channels);
    let units = lanes * kernel * kernel;
    let splits = BLOCK / units;
    let tap = t / lanes % (kernel * kernel);
    let end = min((chunk + 1u) * table[j].chunk_rows, table[j].rows);
    let top = tap / kernel * table[j].dilation - table[j].pad;
    let side = tap % kernel * table[j].dilation - table[j].pad;
    let x = ahead(table[j].x, channel);
    let dd = ahead(table[j].dd, channel);
    let n = norm_of(j, channel, valid);

    // Image, line and column of the pixel, and how they change from one to the next.
    var row = chunk * table[j].chunk_rows + t / units;
    var column = row % w;
    var line = row / w % h;
    var image = row / w / h;
    var sum = quad(0.0);
    for (; row < end && t < units * splits && valid > 0u; row += splits) {
        let iy = line * table[j].stride + top;
        let ix = column * table[j].stride + side;
        if iy < table[j].x_h && ix < table[j].x_w {
            let pixel = (image * table[j].x_h + iy) * table[j].x_w + ix;
            let r = relu(n, load4(ahead(x, pixel * table[j].x_stride), valid));
            sum += load4(ahead(dd, row * padded(channels)), valid) * r;
        }
        column += splits % w;
        line += splits / w % h;
        image += splits / w / h;
        if column >= w {
            column -= w;
            line++;
        }
        if line >= h {
            line -= h;
            image++;
        }
    }

    shared_left[t] = sum;
    workgroupBarrier();
    if t < units && valid > 0u {
        for (var split = 1u; split < splits; split++) {
            sum += shared_left[t + split * units];
        }
        let partial = ahead(table[j].partial, chunk * padded(kernel * kernel * channels));
        store4(ahead(partial, tap * channels + channel), sum, valid);
    }
}

// Sum of g, and of g (x - mean) or g y_hat.
struct Sums {
    s1: Quad,
    s2: Quad,
}

// Adds the sums of all threads that own the same channels; row 0 gets the result.
fn add_rows(sums: Sums, t: u32, lanes: u32) -> Sums {
    var own = sums;
    for (var width = BLOCK / lanes; width > 1u;) {
        shared_left[t] = own.s1;
        shared_right[t] = own.s2;
        workgroupBarrier();
        let half = (width + 1u) / 2u;
        if t / lanes + half < width {
            own.s1 += shared_left[t + half * lanes];
            own.s2 += shared_right[t + half * lanes];
        }
        width = half;
        workgroupBarrier();
    }
    return own;
}

// What one branch adds to the gradient at a pixel of its input. Multiplying by 1 / stride and rounding divides what the
// stride divides; the comparison rejects the rest, coordinates before the image included.
fn taps_at(j: u32, row: u32, channel: u32, valid: u32) -> Quad {
    let w = table[j].x_w;
    let image = row / (table[j].x_h * w);
    let pixel = row % (table[j].x_h * w);
    let bottom = pixel / w + table[j].pad;
    let right = pixel % w + table[j].pad;
    let stride = table[j].stride;
    let dd = ahead(table[j].dd, image * table[j].y_h * table[j].y_w * padded(table[j].channels) + channel);
    var weights = ahead(table[j].depthwise, channel);

    var sum = quad(0.0);
    let reach = table[j].kernel * table[j].dilation;
    for (var py = bottom; py != bottom - reach; py -= table[j].dilation) {
        let oy = u32(f32(py) * table[j].inverse_stride + 0.5);
        let line = oy < table[j].y_h && oy * stride == py;
        for (var px = right; px != right - reach; px -= table[j].dilation) {
            let ox = u32(f32(px) * table[j].inverse_stride + 0.5);
            if line && ox < table[j].y_w && ox * stride == px {
                let d = load4(ahead(dd, (oy * table[j].y_w + ox) * padded(table[j].channels)), valid);
                sum += load4(weights, valid) * d;
            }
            weights.y += table[j].tap_stride;
        }
    }
    return sum;
}

// Gradient of the input, over all branches that read it, for a chunk of its pixels.
fn input_gradient(j: u32, index: u32, t: u32) {
    let lanes = table[j].lanes;
    let channels = table[j].channels;
    let chunk = index / table[j].groups;
    let lane = lane_of(t, channels, lanes, index % table[j].groups);
    let end = min((chunk + 1u) * table[j].chunk_rows, table[j].x_rows);
    // What a thread keeps from pixel to pixel lies in shared memory, as in the kernel.
    shared_norms[t] = norm_of(j, lane.channel, lane.valid);
    shared_left[t] = quad(0.0);
    shared_right[t] = quad(0.0);
    for (var row = chunk * table[j].chunk_rows + lane.row; row < end && lane.used; row += lane.rows) {
        var g = quad(0.0);
        for (var b = 0u; b < table[j].branches; b++) {
            g += taps_at(j + b, row, lane.channel, lane.valid);
        }
        let x = load4(ahead(table[j].x, row * table[j].x_stride + lane.channel), lane.valid);
        g = select(quad(0.0), g, relu(shared_norms[t], x) > quad(0.0));
        let add = (table[j].flags & ADD) != 0u;
        put4(ahead(table[j].dx, row * table[j].dx_stride + lane.channel), g, lane.valid, add);
        if (table[j].flags & SUMS) != 0u {
            shared_left[t] += g;
            shared_right[t] += g * (x - load4(ahead(table[j].mean, lane.channel), lane.valid));
        }
    }
    if (table[j].flags & SUMS) == 0u {
        return;
    }

    let own = add_rows(Sums(shared_left[t], shared_right[t]), t, lanes);
    if lane.row == 0u && lane.used {
        let partial = ahead(table[j].partial, 2u * chunk * padded(channels) + lane.channel);
        store4(partial, own.s1, 4u);
        store4(ahead(partial, padded(channels)), own.s2, 4u);
    }
}

@compute @workgroup_size(BLOCK)
fn separable_backward_gradients(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let j = job_of(block);
    let index = block - table[j].first_block;
    if table[j].kind == POINTWISE {
        pointwise_gradient(j, index, t);
    }
    if table[j].kind == TAPS {
        taps_gradient(j, index, t);
    }
    if table[j].kind == INPUT {
        input_gradient(j, index, t);
    }
}
