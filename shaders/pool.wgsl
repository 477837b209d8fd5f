// Max and average pooling, with the moments of both, their gradient, and folds: kernels/pool.cu in WGSL, function by
// function.

struct PoolJob {
    first_block: u32,
    blocks: u32,
    rows: u32,
    channels: u32,
    lanes: u32,
    groups: u32,
    chunk_rows: u32,
    flags: u32,
    x_height: u32,
    x_width: u32,
    y_height: u32,
    y_width: u32,
    kernel: u32,
    stride: u32,
    pad: u32,
    x_stride: u32,
    max_stride: u32,
    average_stride: u32,
    chunks: u32,
    unused: u32,
    x: Spot,
    max: Spot,
    average: Spot,
    max_partial: Spot,
    average_partial: Spot,
    partial: Spot,
    mean: Spot,
    variance: Spot,
}

struct PoolTerm {
    first_block: u32,
    blocks: u32,
    terms: u32,
    flags: u32,
    rows: u32,
    channels: u32,
    lanes: u32,
    groups: u32,
    x_height: u32,
    x_width: u32,
    y_height: u32,
    y_width: u32,
    kernel: u32,
    stride: u32,
    pad: u32,
    x_stride: u32,
    dx_stride: u32,
    y_stride: u32,
    g_stride: u32,
    coef_stride: u32,
    chunks: u32,
    eps: f32,
    unused_0: u32,
    unused_1: u32,
    x: Spot,
    dx: Spot,
    y: Spot,
    g: Spot,
    coef: Spot,
    mask: Spot,
    mean: Spot,
    variance: Spot,
    gamma: Spot,
    partial: Spot,
    dgamma: Spot,
    dbeta: Spot,
}

const MAX: u32 = 1;
const AVERAGE: u32 = 2;
const MOMENTS: u32 = 4;
const MAX_ADD: u32 = 8;
const AVERAGE_ADD: u32 = 16;
const COEF: u32 = 32;
const MASK: u32 = 64;
const ACCUMULATE: u32 = 128;
const FOLD: u32 = 256;
const AFFINE: u32 = 512;
const DGAMMA_ADD: u32 = 1024;
const DBETA_ADD: u32 = 2048;

// Records of full tables.
const JOBS: u32 = 113;
const TERMS: u32 = 85;

@group(0) @binding(0) var<uniform> p: JobsParams;
@group(0) @binding(1) var<uniform> table: array<PoolJob, JOBS>;
@group(0) @binding(1) var<uniform> terms: array<PoolTerm, TERMS>;

fn has(flags: u32, flag: u32) -> bool {
    return (flags & flag) != 0u;
}

// The part of a window that lies within the image, along one axis.
struct Stretch {
    first: u32,
    end: u32,
}

fn window_of(out: u32, kernel: u32, stride: u32, pad: u32, side: u32) -> Stretch {
    let start = out * stride;
    return Stretch(max(start, pad) - pad, min(start + kernel - pad, side));
}

// The windows that hold a pixel, along one axis.
fn windows_of(at: u32, kernel: u32, stride: u32, pad: u32, windows: u32) -> Stretch {
    let last = at + pad;
    var first = 0u;
    if last >= kernel {
        first = (last - kernel) / stride + 1u;
    }
    return Stretch(first, min(last / stride + 1u, windows));
}

fn larger(a: Quad, b: Quad) -> Quad {
    return select(a, b, b > a);
}

// Merges moments of chunks to mean and variance.
fn fold_moments(i: u32, block: u32, thread: u32) {
    let channels = table[i].channels;
    let lane = lane_of(thread, channels, table[i].lanes, block - table[i].first_block);
    let stride = moments_stride(channels);
    var own = none();
    for (var chunk = lane.row; lane.used && chunk < table[i].chunks; chunk += lane.rows) {
        let partial = ahead(table[i].partial, chunk * stride);
        let mean = ahead(partial, lane.channel);
        let count = load1(ahead(partial, 2u * padded(channels)));
        own = merge(own, Moments(count, load4(mean, 4u), load4(ahead(mean, padded(channels)), 4u)));
    }
    own = merge_rows(own, thread, table[i].lanes);
    if lane.row == 0u && lane.used {
        store4(ahead(table[i].mean, lane.channel), own.mean, lane.valid);
        store4(ahead(table[i].variance, lane.channel), (1.0 / own.count) * own.m2, lane.valid);
    }
}

@compute @workgroup_size(BLOCK)
fn pool_forward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let i = job_of(block);
    if has(table[i].flags, FOLD) {
        fold_moments(i, block, thread);
        return;
    }
    let j = table[i];
    let chunk = (block - j.first_block) / j.groups;
    let lane = lane_of(thread, j.channels, j.lanes, (block - j.first_block) % j.groups);
    let map = ahead(j.x, lane.channel);
    let first = chunk * j.chunk_rows;
    let end = min(first + j.chunk_rows, j.rows);

    var of_max = none();
    var of_average = none();
    for (var row = first + lane.row; lane.used && row < end; row += lane.rows) {
        let line = row / j.y_width;
        let image = line / j.y_height;
        let ys = window_of(line - image * j.y_height, j.kernel, j.stride, j.pad, j.x_height);
        let xs = window_of(row - line * j.y_width, j.kernel, j.stride, j.pad, j.x_width);
        let corner = (image * j.x_height + ys.first) * j.x_width + xs.first;
        var most = load4(ahead(map, corner * j.x_stride), lane.valid);
        var sum = quad(0.0);
        for (var y = ys.first; y < ys.end; y++) {
            for (var x = xs.first; x < xs.end; x++) {
                let pixel = (image * j.x_height + y) * j.x_width + x;
                let v = load4(ahead(map, pixel * j.x_stride), lane.valid);
                most = larger(most, v);
                sum += v;
            }
        }
        if has(j.flags, MAX) {
            let out = ahead(j.max, row * j.max_stride + lane.channel);
            if has(j.flags, MAX_ADD) {
                most = load4(out, lane.valid) + most;
            }
            store4(out, most, lane.valid);
            if has(j.flags, MOMENTS) {
                of_max = merge(of_max, Moments(1.0, most, quad(0.0)));
            }
        }
        if has(j.flags, AVERAGE) {
            let out = ahead(j.average, row * j.average_stride + lane.channel);
            var average = (1.0 / f32((ys.end - ys.first) * (xs.end - xs.first))) * sum;
            if has(j.flags, AVERAGE_ADD) {
                average = load4(out, lane.valid) + average;
            }
            store4(out, average, lane.valid);
            if has(j.flags, MOMENTS) {
                of_average = merge(of_average, Moments(1.0, average, quad(0.0)));
            }
        }
    }

    if !has(j.flags, MOMENTS) {
        return;
    }
    let at_chunk = chunk * moments_stride(j.channels);
    if has(j.flags, MAX) {
        of_max = merge_rows(of_max, thread, j.lanes);
        if lane.row == 0u && lane.used {
            store_moments(ahead(j.max_partial, at_chunk), of_max, j.channels, lane.channel);
        }
    }
    if has(j.flags, AVERAGE) {
        of_average = merge_rows(of_average, thread, j.lanes);
        if lane.row == 0u && lane.used {
            store_moments(ahead(j.average_partial, at_chunk), of_average, j.channels, lane.channel);
        }
    }
}

// Which windows, a bit each, a pixel wins for each of four channels.
alias Wins = vec4<u32>;

// A neighbour beats a pixel if it is larger, or as large and before it in row order.
fn beats(other: Quad, own: Quad, before: bool) -> vec4<bool> {
    if before {
        return other >= own;
    }
    return other > own;
}

// The windows in a rectangle, counted row by row of the pixel's `columns` windows, first of which is `first`.
fn bits_of(ys: Stretch, xs: Stretch, first_y: u32, first_x: u32, columns: u32) -> u32 {
    var bits = 0u;
    for (var y = ys.first; y < ys.end; y++) {
        bits |= ((1u << (xs.end - xs.first)) - 1u) << ((y - first_y) * columns + xs.first - first_x);
    }
    return bits;
}

fn both(a: Stretch, b: Stretch) -> Stretch {
    return Stretch(max(a.first, b.first), min(a.end, b.end));
}

// Every other pixel of the windows takes from the pixel those windows that hold both, where it beats it.
fn wins_of(map: Spot, i: u32, image: u32, y: u32, x: u32, ys: Stretch, xs: Stretch, valid: u32) -> Wins {
    let j = terms[i];
    let columns = xs.end - xs.first;
    var wins = Wins(bits_of(ys, xs, ys.first, xs.first, columns));
    let own = load4(ahead(map, ((image * j.x_height + y) * j.x_width + x) * j.x_stride), valid);
    let top = window_of(ys.first, j.kernel, j.stride, j.pad, j.x_height).first;
    let bottom = window_of(ys.end - 1u, j.kernel, j.stride, j.pad, j.x_height).end;
    let left = window_of(xs.first, j.kernel, j.stride, j.pad, j.x_width).first;
    let right = window_of(xs.end - 1u, j.kernel, j.stride, j.pad, j.x_width).end;
    for (var v = top; v < bottom; v++) {
        let rows = both(ys, windows_of(v, j.kernel, j.stride, j.pad, j.y_height));
        for (var u = left; u < right; u++) {
            let cols = both(xs, windows_of(u, j.kernel, j.stride, j.pad, j.y_width));
            if rows.first >= rows.end || cols.first >= cols.end || (v == y && u == x) {
                continue;
            }
            let before = v < y || (v == y && u < x);
            let shared_bits = bits_of(rows, cols, ys.first, xs.first, columns);
            let other = load4(ahead(map, ((image * j.x_height + v) * j.x_width + u) * j.x_stride), valid);
            wins = select(wins, wins & Wins(~shared_bits), beats(other, own, before));
        }
    }
    return wins;
}

fn first_term_of(block: u32) -> u32 {
    var low = 0u;
    for (var high = p.jobs; high - low > 1u;) {
        let middle = (low + high) / 2u;
        if terms[middle].first_block <= block {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// Sums of two quads over rows: of g, and of g times something.
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

// Coefficients a, b, d with dL/dx = a g + b x + d, and gradients of gamma and beta, from sums of g and of g (x - mean).
fn fold_coefficients(i: u32, block: u32, thread: u32) {
    let channels = terms[i].channels;
    let flags = terms[i].flags;
    let lane = lane_of(thread, channels, terms[i].lanes, block - terms[i].first_block);
    var own = Sums(quad(0.0), quad(0.0));
    for (var chunk = lane.row; lane.used && chunk < terms[i].chunks; chunk += lane.rows) {
        let partial = ahead(terms[i].partial, 2u * chunk * padded(channels) + lane.channel);
        own.s1 += load4(partial, 4u);
        own.s2 += load4(ahead(partial, padded(channels)), 4u);
    }
    own = add_rows(own, thread, terms[i].lanes);
    if lane.row > 0u || !lane.used {
        return;
    }

    let inv = inverse_deviation(load4(ahead(terms[i].variance, lane.channel), lane.valid), terms[i].eps);
    let share = 1.0 / f32(terms[i].rows);
    own.s2 *= inv;
    var a = inv;
    if has(flags, AFFINE) {
        a = load4(ahead(terms[i].gamma, lane.channel), lane.valid) * inv;
        put4(ahead(terms[i].dgamma, lane.channel), own.s2, lane.valid, has(flags, DGAMMA_ADD));
        put4(ahead(terms[i].dbeta, lane.channel), own.s1, lane.valid, has(flags, DBETA_ADD));
    }
    let b = -share * (a * inv * own.s2);
    let d = -share * (a * own.s1) - b * load4(ahead(terms[i].mean, lane.channel), lane.valid);
    let coef = ahead(terms[i].coef, lane.channel);
    let add = has(flags, ACCUMULATE);
    put4(coef, a, lane.valid, add);
    put4(ahead(coef, terms[i].coef_stride), b, lane.valid, add);
    put4(ahead(coef, 2u * terms[i].coef_stride), d, lane.valid, add);
}

// A thread gathers the gradient of a quad of one pixel: of the windows that it wins, the shares of those that hold it, and
// what comes to the pixel directly.
@compute @workgroup_size(BLOCK)
fn pool_backward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let index = first_term_of(block);
    if has(terms[index].flags, FOLD) {
        fold_coefficients(index, block, thread);
        return;
    }
    let j = terms[index];
    let lane = lane_of(thread, j.channels, j.lanes, (block - j.first_block) % j.groups);
    let row = (block - j.first_block) / j.groups * lane.rows + lane.row;
    if !lane.used || row >= j.rows {
        return;
    }
    let line = row / j.x_width;
    let image = line / j.x_height;
    let y = line - image * j.x_height;
    let x = row - line * j.x_width;
    let ys = windows_of(y, j.kernel, j.stride, j.pad, j.y_height);
    let xs = windows_of(x, j.kernel, j.stride, j.pad, j.y_width);
    let covered = ys.first < ys.end && xs.first < xs.end;
    var wins = Wins(0u);
    if covered && has(j.flags, MAX) {
        wins = wins_of(ahead(j.x, lane.channel), index, image, y, x, ys, xs, lane.valid);
    }

    var dx = quad(0.0);
    for (var term = 0u; term < j.terms; term++) {
        let t = terms[index + term];
        let g = ahead(t.g, lane.channel);
        let map = ahead(t.y, lane.channel);
        let affine = has(t.flags, COEF);
        let most = has(t.flags, MAX);
        let average = has(t.flags, AVERAGE);
        var a = quad(1.0);
        var b = quad(0.0);
        var d = quad(0.0);
        if has(t.flags, MASK) {
            a = quad(load1(ahead(t.mask, image)));
        }
        if affine {
            let coef = ahead(t.coef, lane.channel);
            a = a * load4(coef, lane.valid);
            b = load4(ahead(coef, t.coef_stride), lane.valid);
            d = load4(ahead(coef, 2u * t.coef_stride), lane.valid);
        }
        if !most && !average {
            dx += a * load4(ahead(g, row * t.g_stride), lane.valid) + d;
            if affine {
                dx += b * load4(ahead(map, row * t.y_stride), lane.valid);
            }
            continue;
        }
        var bit = 1u;
        for (var v = ys.first; covered && v < ys.end; v++) {
            let height = window_of(v, j.kernel, j.stride, j.pad, j.x_height);
            for (var u = xs.first; u < xs.end; u++) {
                let out = (image * j.y_height + v) * j.y_width + u;
                let won = (wins & Wins(bit)) != Wins(0u);
                bit <<= 1u;
                if most && !any(won) {
                    continue;
                }
                var dy = a * load4(ahead(g, out * t.g_stride), lane.valid) + d;
                if affine {
                    dy += b * load4(ahead(map, out * t.y_stride), lane.valid);
                }
                if most {
                    dy = select(quad(0.0), dy, won);
                } else {
                    let width = window_of(u, j.kernel, j.stride, j.pad, j.x_width);
                    dy = (1.0 / f32((height.end - height.first) * (width.end - width.first))) * dy;
                }
                dx += dy;
            }
        }
    }
    put4(ahead(j.dx, row * j.dx_stride + lane.channel), dx, lane.valid, has(j.flags, ACCUMULATE));
}
