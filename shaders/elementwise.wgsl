// Fill, sums of scaled maps, and pending gradient terms: kernels/elementwise.cu in WGSL, function by function.

struct ElementwiseParams {
    blocks: u32,
    rows: u32,
    channels: u32,
    quads: u32,
    lanes: u32,
    groups: u32,
    pixels: u32,
    terms: u32,
    accumulate: u32,
    out_stride: u32,
    y_stride: u32,
    with_y: u32,
    value: f32,
    unused: u32,
    out: Spot,
    y: Spot,
    unused_1: Spot,
}

struct LinearSource {
    map: Spot,
    stride: u32,
    coef: f32,
}

struct AffineTerm {
    g: Spot,
    coef: Spot,
    mask: Spot,
    g_stride: u32,
    coef_stride: u32,
    flags: u32,
    unused: u32,
    unused_1: Spot,
}

const MASK: u32 = 1;
const COEF: u32 = 2;

// Quads that a thread of fill and linear takes.
const TILE: u32 = 4;

// Rows that a thread of affine takes: more would not fit into its registers beside the coefficients.
const ROWS: u32 = 2;

// Records of a full table.
const TABLE: u32 = 64;

@group(0) @binding(0) var<uniform> p: ElementwiseParams;
// Each entry point uses one of these.
@group(0) @binding(1) var<uniform> sources: array<LinearSource, TABLE>;
@group(0) @binding(1) var<uniform> terms: array<AffineTerm, TABLE>;

// One of the quads of a map, counted row by row.
struct Piece {
    row: u32,
    channel: u32,
    valid: u32, // none beyond the map
}

fn piece_of(index: u32) -> Piece {
    let row = index / p.quads;
    let channel = 4u * (index % p.quads);
    var valid = 0u;
    if row < p.rows {
        valid = min(4u, p.channels - channel);
    }
    return Piece(row, channel, valid);
}

@compute @workgroup_size(BLOCK)
fn fill(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    for (var k = 0u; k < TILE; k++) {
        let piece = piece_of((block * TILE + k) * BLOCK + thread);
        if piece.valid == 0u {
            continue;
        }
        let out = ahead(p.out, piece.row * p.out_stride + piece.channel);
        put4(out, quad(p.value), piece.valid, p.accumulate != 0u);
    }
}

// out = sum_i coef_i map_i
@compute @workgroup_size(BLOCK)
fn linear(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    var pieces: array<Piece, TILE>;
    var sum: array<Quad, TILE>;
    for (var k = 0u; k < TILE; k++) {
        pieces[k] = piece_of((block * TILE + k) * BLOCK + thread);
    }
    for (var i = 0u; i < p.terms; i++) {
        for (var k = 0u; k < TILE; k++) {
            let piece = pieces[k];
            if piece.valid == 0u {
                continue;
            }
            let map = ahead(sources[i].map, piece.row * sources[i].stride + piece.channel);
            sum[k] += sources[i].coef * load4(map, piece.valid);
        }
    }
    for (var k = 0u; k < TILE; k++) {
        let piece = pieces[k];
        if piece.valid == 0u {
            continue;
        }
        let out = ahead(p.out, piece.row * p.out_stride + piece.channel);
        put4(out, sum[k], piece.valid, p.accumulate != 0u);
    }
}

// out = sum_t a_t mask_t g_t + b_t y + d_t. A block writes ROWS times the rows that it covers at once.
@compute @workgroup_size(BLOCK)
fn affine(
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

    var y: array<Quad, ROWS>;
    var sum: array<Quad, ROWS>;
    for (var k = 0u; k < ROWS; k++) {
        let row = first + k * lane.rows;
        if p.with_y != 0u && row < p.rows {
            y[k] = load4(ahead(p.y, row * p.y_stride + lane.channel), lane.valid);
        }
    }
    for (var i = 0u; i < p.terms; i++) {
        var a = quad(1.0);
        var b = quad(0.0);
        var d = quad(0.0);
        if (terms[i].flags & COEF) != 0u {
            let coef = ahead(terms[i].coef, lane.channel);
            a = load4(coef, lane.valid);
            b = load4(ahead(coef, terms[i].coef_stride), lane.valid);
            d = load4(ahead(coef, 2u * terms[i].coef_stride), lane.valid);
        }
        let g = ahead(terms[i].g, lane.channel);
        for (var k = 0u; k < ROWS; k++) {
            let row = first + k * lane.rows;
            if row >= p.rows {
                continue;
            }
            var factor = 1.0;
            if (terms[i].flags & MASK) != 0u {
                factor = load1(ahead(terms[i].mask, row / p.pixels));
            }
            sum[k] += a * (factor * load4(ahead(g, row * terms[i].g_stride), lane.valid)) + b * y[k] + d;
        }
    }
    for (var k = 0u; k < ROWS; k++) {
        let row = first + k * lane.rows;
        if row < p.rows {
            put4(ahead(p.out, row * p.out_stride + lane.channel), sum[k], lane.valid, p.accumulate != 0u);
        }
    }
}
