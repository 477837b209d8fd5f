// Moments of the rows of maps, chunk by chunk: kernels/statistics.cu in WGSL, function by function.

struct StatisticsJob {
    first_block: u32,
    blocks: u32,
    rows: u32,
    channels: u32,
    lanes: u32,
    groups: u32,
    chunk_rows: u32,
    map_stride: u32,
    map: Spot,
    partial: Spot,
}

// Records of a full table.
const JOBS: u32 = 341;

@group(0) @binding(0) var<uniform> p: JobsParams;
@group(0) @binding(1) var<uniform> table: array<StatisticsJob, JOBS>;

// Rows that a thread holds in registers at once.
const TILE: u32 = 4;

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
    let j = job_of(block);
    let chunk = (block - table[j].first_block) / table[j].groups;
    let channels = table[j].channels;
    let lane = lane_of(thread, channels, table[j].lanes, (block - table[j].first_block) % table[j].groups);
    let map = ahead(table[j].map, lane.channel);
    let first = chunk * table[j].chunk_rows;
    let end = min(first + table[j].chunk_rows, table[j].rows);

    var own = none();
    for (var row = first + lane.row; lane.used && row < end; row += TILE * lane.rows) {
        var x: array<Quad, TILE>;
        for (var k = 0u; k < TILE; k++) {
            let r = row + k * lane.rows;
            if r < end {
                x[k] = load4(ahead(map, r * table[j].map_stride), lane.valid);
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

    own = merge_rows(own, thread, table[j].lanes);
    if lane.row == 0u && lane.used {
        store_moments(ahead(table[j].partial, chunk * moments_stride(channels)), own, channels, lane.channel);
    }
}
