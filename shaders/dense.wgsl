// Dense convolutions and their gradients: kernels/dense.cu in WGSL, function by function. The tables are uniforms of the same
// binding; an entry point uses one of them.

struct DenseJob {
    first_block: u32,
    blocks: u32,
    rows: u32,
    x_height: u32,
    x_width: u32,
    x_channels: u32,
    y_height: u32,
    y_width: u32,
    y_channels: u32,
    kernel: u32,
    stride: u32,
    pad: u32,
    lanes: u32,
    groups: u32,
    tiles: u32,
    flags: u32,
    x_stride: u32,
    w_stride: u32,
    y_stride: u32,
    unused: u32,
    x: Spot,
    w: Spot,
    bias: Spot,
    y: Spot,
    partial: Spot,
    unused_spot: Spot,
}

struct DenseInput {
    first_block: u32,
    blocks: u32,
    sources: u32,
    rows: u32,
    x_height: u32,
    x_width: u32,
    x_channels: u32,
    y_height: u32,
    y_width: u32,
    y_channels: u32,
    kernel: u32,
    stride: u32,
    pad: u32,
    phase: u32,
    lanes: u32,
    groups: u32,
    flags: u32,
    x_stride: u32,
    dx_stride: u32,
    w_stride: u32,
    y_stride: u32,
    g_stride: u32,
    coef_stride: u32,
    unused: u32,
    x: Spot,
    dx: Spot,
    w: Spot,
    y: Spot,
    g: Spot,
    coef: Spot,
    mask: Spot,
    unused_spot: Spot,
}

struct DenseWeight {
    first_block: u32,
    blocks: u32,
    rows: u32,
    x_height: u32,
    x_width: u32,
    x_channels: u32,
    y_height: u32,
    y_width: u32,
    y_channels: u32,
    kernel: u32,
    stride: u32,
    pad: u32,
    row_quads: u32,
    column_quads: u32,
    row_tiles: u32,
    column_tiles: u32,
    chunk_rows: u32,
    flags: u32,
    x_stride: u32,
    y_stride: u32,
    g_stride: u32,
    coef_stride: u32,
    x: Spot,
    y: Spot,
    g: Spot,
    coef: Spot,
    mask: Spot,
    partial: Spot,
    unused_spot: Spot,
}

const RELU: u32 = 1;
const BIAS: u32 = 2;
const MOMENTS: u32 = 4;
const ACCUMULATE: u32 = 8;
const COEF: u32 = 16;
const MASK: u32 = 32;
const ONES: u32 = 64;

// Records of full tables.
const JOBS: u32 = 128;
const INPUTS: u32 = 102;
const WEIGHTS: u32 = 113;

@group(0) @binding(0) var<uniform> p: JobsParams;
@group(0) @binding(1) var<uniform> table: array<DenseJob, JOBS>;
@group(0) @binding(1) var<uniform> inputs: array<DenseInput, INPUTS>;
@group(0) @binding(1) var<uniform> weights: array<DenseWeight, WEIGHTS>;

// Beyond any map: a pixel that does not exist.
const OUTSIDE: u32 = 0x40000000;
// No element's index.
const NOWHERE: u32 = 0xffffffff;

// The two factors of a product, a stretch of the summed index at a time: element [k][row] of the left one, [k][column] of
// the right one. Scalars, since several threads write the components of one quad.
var<workgroup> left_tile: array<f32, 2112>;
var<workgroup> right_tile: array<f32, 1088>;

fn has(flags: u32, flag: u32) -> bool {
    return (flags & flag) != 0u;
}

fn left4(i: u32) -> Quad {
    return Quad(left_tile[i], left_tile[i + 1u], left_tile[i + 2u], left_tile[i + 3u]);
}

fn right4(i: u32) -> Quad {
    return Quad(right_tile[i], right_tile[i + 1u], right_tile[i + 2u], right_tile[i + 3u]);
}

// Four elements of a tile, `stride` apart.
fn put_left(i: u32, stride: u32, v: Quad) {
    left_tile[i] = v.x;
    left_tile[i + stride] = v.y;
    left_tile[i + 2u * stride] = v.z;
    left_tile[i + 3u * stride] = v.w;
}

fn put_right(i: u32, stride: u32, v: Quad) {
    right_tile[i] = v.x;
    right_tile[i + stride] = v.y;
    right_tile[i + 2u * stride] = v.z;
    right_tile[i + 3u * stride] = v.w;
}

// How many of the four elements from `first` on exist.
fn exist(first: u32, end: u32) -> u32 {
    return min(4u, max(first, end) - first);
}

// What convolutions read where.
struct Geometry {
    x_height: u32,
    x_width: u32,
    x_channels: u32,
    y_height: u32,
    y_width: u32,
    kernel: u32,
    stride: u32,
    pad: u32,
}

// How a block of `lanes` quads of columns covers a product: four rows and four columns a thread.
struct Cover {
    rows: u32,         // of the block
    step: u32,         // of the summed index, that the tiles hold at once
    left_stride: u32,  // padded, against bank conflicts
    right_stride: u32,
    row: u32,          // first of the thread's rows in the block
    column: u32,       // first of its columns
    loads: u32,        // quads of the left tile that a thread fetches
}

fn cover_of(thread: u32, lanes: u32) -> Cover {
    var c: Cover;
    c.rows = 4u * BLOCK / lanes;
    c.step = select(8u, 16u, lanes >= 8u);
    c.left_stride = c.rows + 4u;
    c.right_stride = 4u * lanes + 4u;
    c.row = thread / lanes * 4u;
    c.column = thread % lanes * 4u;
    c.loads = c.rows * c.step / (4u * BLOCK);
    return c;
}

// Four rows by four columns.
alias Block = array<Quad, 4>;

// acc += left * right over the indices first, first + by, ... below `end`.
fn product(
    acc: ptr<function, Block>,
    left: u32,
    right: u32,
    left_stride: u32,
    right_stride: u32,
    first: u32,
    end: u32,
    by: u32,
) {
    for (var k = first; k < end; k += by) {
        let a = left4(left + k * left_stride);
        let b = right4(right + k * right_stride);
        (*acc)[0] += a.x * b;
        (*acc)[1] += a.y * b;
        (*acc)[2] += a.z * b;
        (*acc)[3] += a.w * b;
    }
}

// First pixel that an output pixel reads: `image` counts rows of pixels of the images before. Coordinates wrap around below
// zero.
struct Origin {
    image: u32,
    y: u32,
    x: u32,
}

fn origin_of(s: Geometry, row: u32, end: u32) -> Origin {
    if row >= end {
        return Origin(0u, OUTSIDE, OUTSIDE);
    }
    let line = row / s.y_width;
    let image = line / s.y_height;
    let y = (line - image * s.y_height) * s.stride - s.pad;
    return Origin(image * s.x_height, y, (row - line * s.y_width) * s.stride - s.pad);
}

// Element `k` of the patch that starts at `o`, tap by tap; NOWHERE where it has none.
fn patch_at(s: Geometry, o: Origin, x_stride: u32, k: u32) -> u32 {
    var tap = 0u;
    if s.kernel > 1u {
        tap = k / s.x_channels;
    }
    let line = tap / s.kernel;
    let y = o.y + line;
    let x = o.x + tap - line * s.kernel;
    if y >= s.x_height || x >= s.x_width {
        return NOWHERE;
    }
    return ((o.image + y) * s.x_width + x) * x_stride + k - tap * s.x_channels;
}

// Elements k..k+3 of a patch, zero beyond its end.
fn patch4(map: Spot, s: Geometry, o: Origin, x_stride: u32, relu: bool, k: u32) -> Quad {
    let depth = s.kernel * s.kernel * s.x_channels;
    var v = quad(0.0);
    if s.x_channels % 4u == 0u {
        // A quad lies within one tap.
        if k < depth {
            let i = patch_at(s, o, x_stride, k);
            if i != NOWHERE {
                v = load4(ahead(map, i), 4u);
            }
        }
    } else {
        for (var l = 0u; l < exist(k, depth); l++) {
            let i = patch_at(s, o, x_stride, k + l);
            if i != NOWHERE {
                v[l] = load1(ahead(map, i));
            }
        }
    }
    if relu {
        v = rectified(v);
    }
    return v;
}

// The gradient at a map: a (mask g) + b y + d, or mask g (TermView in src/ops/elementwise.rs).
struct Term {
    flags: u32,
    channels: u32,
    g_stride: u32,
    y_stride: u32,
    coef_stride: u32,
    g: Spot,
    y: Spot,
    coef: Spot,
    mask: Spot,
}

fn gradient4(t: Term, row: u32, image: u32, channel: u32) -> Quad {
    let valid = exist(channel, t.channels);
    var v = load4(ahead(t.g, row * t.g_stride + channel), valid);
    if has(t.flags, MASK) {
        v = load1(ahead(t.mask, image)) * v;
    }
    if has(t.flags, COEF) {
        let coef = ahead(t.coef, channel);
        let y = load4(ahead(t.y, row * t.y_stride + channel), valid);
        let b = load4(ahead(coef, t.coef_stride), valid);
        v = load4(coef, valid) * v + b * y + load4(ahead(coef, 2u * t.coef_stride), valid);
    }
    return v;
}

// Merges the moments of all threads that own the same columns, as merge_rows does, in the memory of the tiles; the threads
// of the first rows get the result.
fn merge_tile(moments: Moments, t: u32, lanes: u32) -> Moments {
    var own = moments;
    for (var width = BLOCK / lanes; width > 1u; width /= 2u) {
        right_tile[t] = own.count;
        put_left(4u * t, 1u, own.mean);
        put_left(4u * (BLOCK + t), 1u, own.m2);
        workgroupBarrier();
        if t / lanes < width / 2u {
            let other = t + width / 2u * lanes;
            own = merge(own, Moments(right_tile[other], left4(4u * other), left4(4u * (BLOCK + other))));
        }
        workgroupBarrier();
    }
    return own;
}

// Moments of the first `count` of four rows.
fn moments_of(rows: Block, count: u32) -> Moments {
    var v = rows;
    var m = none();
    m.count = f32(count);
    for (var r = 0u; r < count; r++) {
        m.mean += v[r];
    }
    m.mean = (1.0 / m.count) * m.mean;
    for (var r = 0u; r < count; r++) {
        let d = v[r] - m.mean;
        m.m2 += d * d;
    }
    return m;
}

// y = patches * w + bias. A block computes `tiles` tiles one after another: a chunk of the moments.
@compute @workgroup_size(BLOCK)
fn dense_forward(
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
    let group = (block - j.first_block) % j.groups * 4u * j.lanes;
    let s = Geometry(j.x_height, j.x_width, j.x_channels, j.y_height, j.y_width, j.kernel, j.stride, j.pad);
    let c = cover_of(thread, j.lanes);
    let depth = s.kernel * s.kernel * s.x_channels;
    let channel = group + c.column;
    let valid = exist(channel, j.y_channels);
    let quads = c.step / 4u;
    let load_k = thread % quads * 4u;
    let load_row = thread / quads;
    let right_k = thread / j.lanes;

    var own = none();
    for (var tile = chunk * j.tiles; tile < (chunk + 1u) * j.tiles && tile * c.rows < j.rows; tile++) {
        let first = tile * c.rows;
        var acc: Block;
        var origins: array<Origin, 2>;
        for (var l = 0u; l < c.loads; l++) {
            origins[l] = origin_of(s, first + load_row + l * (BLOCK / quads), j.rows);
        }
        for (var k = 0u; k < depth; k += c.step) {
            for (var l = 0u; l < c.loads; l++) {
                let v = patch4(j.x, s, origins[l], j.x_stride, has(j.flags, RELU), k + load_k);
                put_left(load_k * c.left_stride + load_row + l * (BLOCK / quads), c.left_stride, v);
            }
            if right_k < c.step {
                let w = ahead(j.w, (k + right_k) * j.w_stride + channel);
                put_right(right_k * c.right_stride + c.column, 1u, load4(w, select(0u, valid, k + right_k < depth)));
            }
            workgroupBarrier();
            product(&acc, c.row, c.column, c.left_stride, c.right_stride, 0u, c.step, 1u);
            workgroupBarrier();
        }
        let row = first + c.row;
        var bias = quad(0.0);
        if has(j.flags, BIAS) {
            bias = load4(ahead(j.bias, channel), valid);
        }
        let rows = exist(row, j.rows);
        for (var r = 0u; r < rows; r++) {
            let y = ahead(j.y, (row + r) * j.y_stride + channel);
            acc[r] += bias;
            if has(j.flags, ACCUMULATE) {
                acc[r] = load4(y, valid) + acc[r];
            }
            store4(y, acc[r], valid);
        }
        if has(j.flags, MOMENTS) && rows > 0u {
            own = merge(own, moments_of(acc, rows));
        }
    }

    if !has(j.flags, MOMENTS) {
        return;
    }
    own = merge_tile(own, thread, j.lanes);
    if c.row == 0u && valid > 0u {
        store_moments(ahead(j.partial, chunk * moments_stride(j.y_channels)), own, j.y_channels, channel);
    }
}

fn input_of(block: u32) -> u32 {
    var low = 0u;
    for (var high = p.jobs; high - low > 1u;) {
        let middle = (low + high) / 2u;
        if inputs[middle].first_block <= block {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// dx = relu' * sum over sources and taps of dy * w^T. The rows of a job are the pixels of one phase, those whose
// coordinates leave the same rests when divided by the stride: all of them are read by the same taps.
@compute @workgroup_size(BLOCK)
fn dense_input(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let index = input_of(block);
    let j = inputs[index];
    let first = (block - j.first_block) / j.groups;
    let group = (block - j.first_block) % j.groups * 4u * j.lanes;
    let c = cover_of(thread, j.lanes);
    let stride = j.stride;
    let phase_y = j.phase / stride;
    let phase_x = j.phase % stride;
    let height = (j.x_height - phase_y + stride - 1u) / stride;
    let width = (j.x_width - phase_x + stride - 1u) / stride;
    let quads = c.step / 4u;
    let load_k = thread % quads * 4u;
    let load_row = thread / quads;

    var acc: Block;
    var pixels: array<Origin, 2>;
    for (var l = 0u; l < c.loads; l++) {
        let row = first * c.rows + load_row + l * (BLOCK / quads);
        let line = row / width;
        let image = line / height;
        pixels[l] = Origin(image, select(OUTSIDE, line - image * height, row < j.rows), row - line * width);
    }
    for (var source = 0u; source < j.sources; source++) {
        let s = inputs[index + source];
        let t = Term(s.flags, s.y_channels, s.g_stride, s.y_stride, s.coef_stride, s.g, s.y, s.coef, s.mask);
        // Shifts from pixel to output pixel can be negative: they wrap around.
        let above = i32(phase_y + s.pad);
        let before = i32(phase_x + s.pad);
        let by = i32(stride);
        for (var tap_y = (above % by + by) % by; tap_y < i32(s.kernel); tap_y += by) {
            for (var tap_x = (before % by + by) % by; tap_x < i32(s.kernel); tap_x += by) {
                let shift_y = u32((above - tap_y) / by);
                let shift_x = u32((before - tap_x) / by);
                let tap = u32(tap_y) * s.kernel + u32(tap_x);
                for (var k = 0u; k < s.y_channels; k += c.step) {
                    for (var l = 0u; l < c.loads; l++) {
                        let y = pixels[l].y + shift_y;
                        let x = pixels[l].x + shift_x;
                        let image = pixels[l].image;
                        var v = quad(0.0);
                        if y < s.y_height && x < s.y_width {
                            v = gradient4(t, (image * s.y_height + y) * s.y_width + x, image, k + load_k);
                        }
                        put_left(load_k * c.left_stride + load_row + l * (BLOCK / quads), c.left_stride, v);
                    }
                    if load_row < 4u * j.lanes {
                        let channel = group + load_row;
                        let out = k + load_k;
                        let w = ahead(s.w, (tap * s.x_channels + channel) * s.w_stride + out);
                        let exists = select(0u, exist(out, s.y_channels), channel < s.x_channels);
                        put_right(load_k * c.right_stride + load_row, c.right_stride, load4(w, exists));
                    }
                    workgroupBarrier();
                    product(&acc, c.row, c.column, c.left_stride, c.right_stride, 0u, c.step, 1u);
                    workgroupBarrier();
                }
            }
        }
    }

    let channel = group + c.column;
    let valid = exist(channel, j.x_channels);
    for (var r = 0u; r < 4u; r++) {
        let row = first * c.rows + c.row + r;
        if row >= j.rows {
            continue;
        }
        let line = row / width;
        let image = line / height;
        let y = (line - image * height) * stride + phase_y;
        let x = (row - line * width) * stride + phase_x;
        let pixel = (image * j.x_height + y) * j.x_width + x;
        var v = acc[r];
        if has(j.flags, RELU) {
            let map = load4(ahead(j.x, pixel * j.x_stride + channel), valid);
            v = select(quad(0.0), v, map > quad(0.0));
        }
        put4(ahead(j.dx, pixel * j.dx_stride + channel), v, valid, has(j.flags, ACCUMULATE));
    }
}

fn weight_of(block: u32) -> u32 {
    var low = 0u;
    for (var high = p.jobs; high - low > 1u;) {
        let middle = (low + high) / 2u;
        if weights[middle].first_block <= block {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// dw = patches^T * dy over a chunk of rows; with ONES, a last row of the product is the sum of dy. Threads that are left
// over by a small product share its rows: slices.
@compute @workgroup_size(BLOCK)
fn dense_weight(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let j = weights[weight_of(block)];
    let tile = (block - j.first_block) / j.column_tiles;
    let chunk = tile / j.row_tiles;
    let row_quads = j.row_quads;
    let column_quads = j.column_quads;
    let tile_row = tile % j.row_tiles * 4u * row_quads;
    let tile_column = (block - j.first_block) % j.column_tiles * 4u * column_quads;
    let step = BLOCK / max(row_quads, column_quads);
    let slices = BLOCK / (row_quads * column_quads);
    let column = thread % column_quads;
    let row = thread / column_quads % row_quads;
    let slice = thread / (row_quads * column_quads);
    let s = Geometry(j.x_height, j.x_width, j.x_channels, j.y_height, j.y_width, j.kernel, j.stride, j.pad);
    let t = Term(j.flags, j.y_channels, j.g_stride, j.y_stride, j.coef_stride, j.g, j.y, j.coef, j.mask);
    let depth = s.kernel * s.kernel * s.x_channels;
    let end = min((chunk + 1u) * j.chunk_rows, j.rows);
    let pixels = j.y_height * j.y_width;
    let left_k = thread / row_quads;
    let left_quad = thread % row_quads;
    let right_k = thread / column_quads;
    let channel = tile_column + 4u * column;

    var acc: Block;
    for (var first = chunk * j.chunk_rows; first < end; first += step) {
        if left_k < step {
            let k = tile_row + 4u * left_quad;
            var v = patch4(j.x, s, origin_of(s, first + left_k, end), j.x_stride, has(j.flags, RELU), k);
            if has(j.flags, ONES) && k <= depth && depth < k + 4u {
                v[depth - k] = 1.0;
            }
            put_left(4u * thread, 1u, v);
        }
        if right_k < step {
            let r = first + right_k;
            var v = quad(0.0);
            if r < end {
                v = gradient4(t, r, r / pixels, channel);
            }
            put_right(4u * thread, 1u, v);
        }
        workgroupBarrier();
        product(&acc, 4u * row, 4u * column, 4u * row_quads, 4u * column_quads, slice, step, slices);
        workgroupBarrier();
    }

    let valid = exist(channel, j.y_channels);
    let rows = depth + select(0u, 1u, has(j.flags, ONES));
    let partial = ahead(j.partial, chunk * padded(rows * j.y_channels));
    for (var r = 0u; r < 4u; r++) {
        put_left(4u * thread, 1u, acc[r]);
        workgroupBarrier();
        let k = tile_row + 4u * row + r;
        if slice == 0u && k < rows {
            var sum = acc[r];
            for (var i = 1u; i < slices; i++) {
                sum += left4(4u * (i * row_quads * column_quads + thread));
            }
            store4(ahead(partial, k * j.y_channels + channel), sum, valid);
        }
        workgroupBarrier();
    }
}
