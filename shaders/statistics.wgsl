// Mean and biased variance of each channel: kernels/statistics.cu in WGSL, function by function.

struct StatisticsParams {
    blocks: u32,
    rows: u32,
    channels: u32,
    lanes: u32,
    groups: u32,
    chunks: u32,
    chunk_rows: u32,
    map_stride: u32,
    map: Spot,
    mean: Spot,
    variance: Spot,
    partial: Spot,
}

@group(0) @binding(0) var<uniform> p: StatisticsParams;

// Rows that a thread holds in registers at once.
const TILE: u32 = 4;

// Number of values, their mean, and the sum of their squared deviations from it.
struct Moments {
    count: f32,
    mean: Quad,
    m2: Quad,
}

fn none() -> Moments {
    return Moments(0.0, quad(0.0), quad(0.0));
}

fn merge(a: Moments, b: Moments) -> Moments {
    if b.count == 0.0 {
        return a;
    }
    let count = a.count + b.count;
    let share = b.count / count;
    let delta = b.mean - a.mean;
    return Moments(count, a.mean + share * delta, a.m2 + b.m2 + (a.count * share) * (delta * delta));
}

var<workgroup> counts: array<f32, BLOCK>;
var<workgroup> means: array<Quad, BLOCK>;
var<workgroup> m2s: array<Quad, BLOCK>;

// Merges the moments of all threads that own the same channels; row 0 gets the result.
fn merge_rows(moments: Moments, t: u32) -> Moments {
    var own = moments;
    for (var width = BLOCK / p.lanes; width > 1u;) {
        counts[t] = own.count;
        means[t] = own.mean;
        m2s[t] = own.m2;
        workgroupBarrier();
        let half = (width + 1u) / 2u;
        if t / p.lanes + half < width {
            let other = t + half * p.lanes;
            own = merge(own, Moments(counts[other], means[other], m2s[other]));
        }
        width = half;
        workgroupBarrier();
    }
    return own;
}

@compute @workgroup_size(BLOCK)
fn statistics_partial(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let chunk = block / p.groups;
    let lane = lane_of(thread, p.channels, p.lanes, block % p.groups);
    let map = ahead(p.map, lane.channel);
    let first = chunk * p.chunk_rows;
    let end = min(first + p.chunk_rows, p.rows);

    var own = none();
    for (var row = first + lane.row; lane.used && row < end; row += TILE * lane.rows) {
        var x: array<Quad, TILE>;
        for (var k = 0u; k < TILE; k++) {
            let r = row + k * lane.rows;
            if r < end {
                x[k] = load4(ahead(map, r * p.map_stride), lane.valid);
            }
        }
        var tile = none();
        tile.count = f32(min(TILE, (end - row + lane.rows - 1u) / lane.rows));
        for (var k = 0u; k < TILE; k++) {
            tile.mean += x[k];
        }
        tile.mean = (1.0 / tile.count) * tile.mean;
        for (var k = 0u; k < TILE; k++) {
            let d = x[k] - tile.mean;
            if row + k * lane.rows < end {
                tile.m2 += d * d;
            }
        }
        own = merge(own, tile);
    }

    own = merge_rows(own, thread);
    if lane.row == 0u && lane.used {
        let partial = ahead(p.partial, 2u * chunk * padded(p.channels) + lane.channel);
        store4(partial, own.mean, 4u);
        store4(ahead(partial, padded(p.channels)), own.m2, 4u);
    }
}

@compute @workgroup_size(BLOCK)
fn statistics_fold(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let group = block_index(workgroup, grid);
    if group >= p.blocks {
        return;
    }
    let lane = lane_of(thread, p.channels, p.lanes, group);

    var own = none();
    for (var chunk = lane.row; lane.used && chunk < p.chunks; chunk += lane.rows) {
        let partial = ahead(p.partial, 2u * chunk * padded(p.channels) + lane.channel);
        let count = f32(min(p.chunk_rows, p.rows - chunk * p.chunk_rows));
        own = merge(own, Moments(count, load4(partial, 4u), load4(ahead(partial, padded(p.channels)), 4u)));
    }

    own = merge_rows(own, thread);
    if lane.row == 0u && lane.used {
        store4(ahead(p.mean, lane.channel), own.mean, lane.valid);
        store4(ahead(p.variance, lane.channel), (1.0 / f32(p.rows)) * own.m2, lane.valid);
    }
}
