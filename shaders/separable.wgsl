// Separable convolutions: kernels/separable.cu in WGSL. Here every tap reads the map itself, for all kernels of a depthwise
// convolution, and a chunk is a stretch of rows instead of regions.

struct SeparableJob {
    first_block: u32,
    blocks: u32,
    flags: u32,
    rows: u32,
    channels: u32,
    step: u32,
    out_channels: u32,
    lanes: u32,
    groups: u32,
    chunk_rows: u32,
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
    tiles: u32,
    across: u32,
    down: u32,
    regions: u32,
    chunk_regions: u32,
    branches: u32,
    reach: u32,
    eps: f32,
    x: Spot,
    mean: Spot,
    variance: Spot,
    gamma: Spot,
    beta: Spot,
    depthwise: Spot,
    pointwise: Spot,
    y: Spot,
    partial: Spot,
}

const NORM: u32 = 1;
const AFFINE: u32 = 2;
const MOMENTS: u32 = 4;
const ADD: u32 = 8;
const TILED: u32 = 16;

// Records of a full table.
const JOBS: u32 = 85;

@group(0) @binding(0) var<uniform> p: JobsParams;
@group(0) @binding(1) var<uniform> table: array<SeparableJob, JOBS>;

// Pixels of a tile, and how many of them a thread multiplies at most.
const PIXELS: u32 = 64;
const ROWS: u32 = 4;
// Quads of input channels that are in shared memory at once, and of output channels that a block computes, at most. With
// the moments these arrays take the 16 KiB that there are.
const STEP: u32 = 4;
const COLUMNS: u32 = 12;

// The depthwise result, a quad of channels after the other; and as many rows of the pointwise weights.
var<workgroup> tile: array<Quad, STEP * PIXELS>;
var<workgroup> matrix: array<Quad, 4 * STEP * COLUMNS>;

// Moments in shared memory, a slot a thread; the arrays are those of merge_rows.
fn merge_into(slot: u32, more: Moments) {
    let all = merge(Moments(shared_counts[slot], shared_means[slot], shared_m2s[slot]), more);
    shared_counts[slot] = all.count;
    shared_means[slot] = all.mean;
    shared_m2s[slot] = all.m2;
}

// One branch.
fn forward(t: u32, j: u32, chunk: u32, group: u32) {
    let channels = table[j].channels;
    let lanes = table[j].lanes;
    let step = table[j].step;
    let lane = lane_of(t, table[j].out_channels, lanes, group);
    let end = min((chunk + 1u) * table[j].chunk_rows, table[j].rows);

    shared_counts[t] = 0.0;
    shared_means[t] = quad(0.0);
    shared_m2s[t] = quad(0.0);
    for (var first = chunk * table[j].chunk_rows; first < end; first += PIXELS) {
        var sum = array<Quad, ROWS>();
        for (var base = 0u; base < channels; base += 4u * step) {
            let pixel = t / step;
            let channel = base + 4u * (t % step);
            if pixel < PIXELS {
                var d = quad(0.0);
                if first + pixel < end && channel < channels {
                    d = depthwise(j, first + pixel, channel, min(4u, channels - channel));
                }
                tile[t % step * PIXELS + pixel] = d;
            }
            if lane.row < 4u * step {
                let row = base + lane.row;
                var w = quad(0.0);
                if row < channels {
                    w = load4(ahead(table[j].pointwise, row * table[j].weight_stride + lane.channel), lane.valid);
                }
                matrix[t] = w;
            }
            workgroupBarrier();
            for (var q = 0u; q < step; q++) {
                let w = 4u * q * lanes + t % lanes;
                let w0 = matrix[w];
                let w1 = matrix[w + lanes];
                let w2 = matrix[w + 2u * lanes];
                let w3 = matrix[w + 3u * lanes];
                for (var k = 0u; k < ROWS; k++) {
                    let row = lane.row + k * lane.rows;
                    if row < PIXELS {
                        let d = tile[q * PIXELS + row];
                        sum[k] = sum[k] + d.x * w0 + d.y * w1 + d.z * w2 + d.w * w3;
                    }
                }
            }
            workgroupBarrier();
        }

        var part = none();
        for (var k = 0u; k < ROWS; k++) {
            let row = lane.row + k * lane.rows;
            if !lane.used || row >= PIXELS || first + row >= end {
                continue;
            }
            let y = ahead(table[j].y, (first + row) * table[j].y_stride + lane.channel);
            if (table[j].flags & ADD) != 0u {
                sum[k] = load4(y, lane.valid) + sum[k];
            }
            store4(y, sum[k], lane.valid);
            part.count += 1.0;
            part.mean += sum[k];
        }
        // Not left early by who has nothing: all go on to the barriers of the next tile.
        if (table[j].flags & MOMENTS) != 0u && part.count > 0.0 {
            part.mean = (1.0 / part.count) * part.mean;
            for (var k = 0u; k < ROWS; k++) {
                let row = lane.row + k * lane.rows;
                let d = sum[k] - part.mean;
                if row < PIXELS && first + row < end {
                    part.m2 += d * d;
                }
            }
            merge_into(t, part);
        }
    }
    if (table[j].flags & MOMENTS) == 0u {
        return;
    }

    // Rows of threads that hold moments of the same columns, as a tree.
    for (var width = BLOCK / lanes; width > 1u;) {
        workgroupBarrier();
        let half = (width + 1u) / 2u;
        let other = t + half * lanes;
        if lane.row + half < width {
            merge_into(t, Moments(shared_counts[other], shared_means[other], shared_m2s[other]));
        }
        width = half;
    }
    if lane.row == 0u && lane.used {
        let own = Moments(shared_counts[t], shared_means[t], shared_m2s[t]);
        let partial = ahead(table[j].partial, chunk * moments_stride(table[j].out_channels));
        store_moments(partial, own, table[j].out_channels, lane.channel);
    }
}

// A block computes quads `lanes` wide of a chunk of pixels, tile by tile, for all branches of its job.
@compute @workgroup_size(BLOCK)
fn separable_forward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let job = job_of(block);
    let chunk = (block - table[job].first_block) / table[job].groups;
    let group = (block - table[job].first_block) % table[job].groups;
    for (var branch = 0u; branch < table[job].branches; branch++) {
        workgroupBarrier();
        forward(t, job + branch, chunk, group);
    }
}
