// Max and average pooling, with the moments of both, and their gradient: kernels/pool.cu in WGSL, function by function.

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
    x: Spot,
    max: Spot,
    average: Spot,
    max_partial: Spot,
    average_partial: Spot,
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
    x: Spot,
    dx: Spot,
    y: Spot,
    g: Spot,
    coef: Spot,
    mask: Spot,
}

const MAX: u32 = 1;
const AVERAGE: u32 = 2;
const MOMENTS: u32 = 4;
const MAX_ADD: u32 = 8;
const AVERAGE_ADD: u32 = 16;
const COEF: u32 = 32;
const MASK: u32 = 64;
const ACCUMULATE: u32 = 128;

// Records of full tables.
const JOBS: u32 = 146;
const TERMS: u32 = 128;

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

// The job of a block: the last record whose first block is not beyond it.
fn job_of(block: u32) -> u32 {
    var low = 0u;
    for (var high = p.jobs; high - low > 1u;) {
        let middle = (low + high) / 2u;
        if table[middle].first_block <= block {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
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
    let j = table[job_of(block)];
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
                var share = select(quad(0.0), quad(1.0), won);
                if most && !any(won) {
                    continue;
                }
                if average {
                    let width = window_of(u, j.kernel, j.stride, j.pad, j.x_width);
                    share = quad(1.0 / f32((height.end - height.first) * (width.end - width.first)));
                }
                var dy = a * load4(ahead(g, out * t.g_stride), lane.valid) + d;
                if affine {
                    dy += b * load4(ahead(map, out * t.y_stride), lane.valid);
                }
                dx += share * dy;
            }
        }
    }
    put4(ahead(j.dx, row * j.dx_stride + lane.channel), dx, lane.valid, has(j.flags, ACCUMULATE));
}
