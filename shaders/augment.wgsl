// Augmentation of image batches and drop-path masks: kernels/augment.cu in WGSL, function by function.

struct AugmentParams {
    blocks: u32,
    channels: u32,
    lanes: u32,
    groups: u32,
    chunks: u32,
    height: u32,
    width: u32,
    pad: u32,
    flip: u32,
    cutout: u32,
    seed_low: u32,
    seed_high: u32,
    map_stride: u32,
    out_stride: u32,
    accumulate: u32,
    unused: u32,
    map: Spot,
    index: Spot,
    epoch: Spot,
    out: Spot,
}

struct AugmentQuad {
    mean_0: f32,
    mean_1: f32,
    mean_2: f32,
    mean_3: f32,
    deviation_0: f32,
    deviation_1: f32,
    deviation_2: f32,
    deviation_3: f32,
}

struct DropMaskParams {
    blocks: u32,
    elements: u32,
    columns: u32,
    out_stride: u32,
    seed_low: u32,
    seed_high: u32,
    accumulate: u32,
    unused_0: u32,
    probability: Spot,
    step: Spot,
    out: Spot,
    unused_1: Spot,
}

// Records of a full table.
const TABLE: u32 = 512;

// Each entry point uses one of the two.
@group(0) @binding(0) var<uniform> p: AugmentParams;
@group(0) @binding(0) var<uniform> mask: DropMaskParams;
@group(0) @binding(1) var<uniform> table: array<AugmentQuad, TABLE>;

// Purposes of draws (ops::augment::purpose).
const AUGMENT: u32 = 1;
const DROP_PATH: u32 = 2;

// Pixels of one image that a thread writes.
const ROWS: u32 = 4;

// Whether a coordinate lies in a hole around `centre`; below the hole the difference wraps around.
fn in_hole(at: u32, centre: u32, cutout: u32) -> bool {
    return at + cutout / 2u - centre < cutout;
}

// A block writes a chunk of the pixels of one image.
@compute @workgroup_size(BLOCK)
fn augment_forward(
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
    let image = block / p.groups / p.chunks;
    let first = block / p.groups % p.chunks * ROWS * lane.rows + lane.row;
    let pixels = p.height * p.width;

    let index = u32(load1(ahead(p.index, image)));
    let epoch = u32(load1(p.epoch));
    let a = philox(vec4<u32>(index, epoch, AUGMENT, 0u), p.seed_low, p.seed_high);
    let b = philox(vec4<u32>(index, epoch, AUGMENT, 1u), p.seed_low, p.seed_high);
    let span = 2u * p.pad + 1u;
    let down = below(a.x, span);
    let right = below(a.y, span);
    let flip = p.flip != 0u && (a.z >> 31u) != 0u;
    let hole_y = below(b.x, p.height);
    let hole_x = below(b.y, p.width);

    let q = table[lane.channel / 4u];
    let mean = Quad(q.mean_0, q.mean_1, q.mean_2, q.mean_3);
    let deviation = Quad(q.deviation_0, q.deviation_1, q.deviation_2, q.deviation_3);
    let map = ahead(p.map, lane.channel);
    let out = ahead(p.out, lane.channel);
    for (var k = 0u; k < ROWS; k++) {
        let pixel = first + k * lane.rows;
        if pixel >= pixels {
            continue;
        }
        let y = pixel / p.width;
        let x = pixel % p.width;
        // In front of the image these wrap around.
        let from_y = y + down - p.pad;
        let from_x = select(x, p.width - 1u - x, flip) + right - p.pad;
        var raw = quad(0.0);
        if from_y < p.height && from_x < p.width {
            raw = load4(ahead(map, (image * pixels + from_y * p.width + from_x) * p.map_stride), lane.valid);
        }
        let hole = in_hole(y, hole_y, p.cutout) && in_hole(x, hole_x, p.cutout);
        let value = (raw / quad(255.0) - mean) / deviation;
        let to = ahead(out, (image * pixels + pixel) * p.out_stride);
        put4(to, select(value, quad(0.0), hole), lane.valid, p.accumulate != 0u);
    }
}

// A thread writes one factor.
@compute @workgroup_size(BLOCK)
fn drop_mask(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    let element = block * BLOCK + thread;
    if block >= mask.blocks || element >= mask.elements {
        return;
    }
    let path = element / mask.columns;
    let row = element % mask.columns;
    let probability = load1(mask.probability);
    let step = u32(load1(mask.step));
    let bits = philox(vec4<u32>(row, path, DROP_PATH, step), mask.seed_low, mask.seed_high);
    let factor = select(1.0 / (1.0 - probability), 0.0, uniform_of(bits.x) < probability);
    let out = ahead(mask.out, path * mask.out_stride + row);
    if mask.accumulate != 0u {
        store1(out, load1(out) + factor);
    } else {
        store1(out, factor);
    }
}
