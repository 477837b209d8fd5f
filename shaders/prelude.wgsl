// What all shaders share: the same functions as kernels/common.cuh, by the same names.
//
// A device puts five texts together (src/device/source.rs): constants BLOCK and the bindings of the pages, then this
// file, then one of access_*.wgsl, then reduce_tree.wgsl or reduce_subgroups.wgsl, then the shader. Binding 0 is the
// parameter record, binding 1 the table, both uniforms; from binding 2 on come the pages, all read_write. The first text
// also defines
//     fn read_element(page: u32, index: u32) -> Element
//     fn write_element(page: u32, index: u32, value: Element)

// A tensor in a record: page, first element. The page has the bit HALF if the tensor is stored in halves: as f16, two
// elements a word, in whole quads.
alias Spot = vec2<u32>;

const HALF: u32 = 0x10000u;

fn in_halves(spot: Spot) -> bool {
    return (spot.x & HALF) != 0u;
}

fn page_of(spot: Spot) -> u32 {
    return spot.x & (HALF - 1u);
}

// Four neighbouring channels, the unit in which threads own maps.
alias Quad = vec4<f32>;

fn quad(v: f32) -> Quad {
    return Quad(v, v, v, v);
}

// max(0, v) that lets NaN through: a map that has overflowed is not to look sound.
fn rectified(v: Quad) -> Quad {
    return select(v, quad(0.0), v < quad(0.0));
}

fn inverse_deviation(v: Quad, eps: f32) -> Quad {
    return quad(1.0) / sqrt(v + quad(eps));
}

fn ahead(spot: Spot, elements: u32) -> Spot {
    return Spot(spot.x, spot.y + elements);
}

// Writes, or adds to what is there.
fn put4(spot: Spot, v: Quad, valid: u32, accumulate: bool) {
    if accumulate {
        store4(spot, load4(spot, valid) + v, valid);
    } else {
        store4(spot, v, valid);
    }
}

// The block's number, whatever shape its grid was folded into. Blocks beyond a record's `blocks` return at once.
fn block_index(workgroup: vec3<u32>, grid: vec3<u32>) -> u32 {
    return workgroup.x + workgroup.y * grid.x;
}

// A thread's place in a map: a quad of channels, and one of the rows that the block covers at once (struct Lanes in Rust).
struct Lane {
    channel: u32, // first of its channels
    valid: u32,   // how many of the four exist
    row: u32,     // among the rows that the block covers at once
    rows: u32,    // how many those are
    used: bool,   // threads that are left over take part in barriers only
}

fn lane_of(thread: u32, channels: u32, lanes: u32, group: u32) -> Lane {
    var lane: Lane;
    lane.rows = BLOCK / lanes;
    lane.row = thread / lanes;
    lane.channel = 4u * (group * lanes + thread % lanes);
    lane.valid = 0u;
    if lane.channel < channels {
        lane.valid = min(4u, channels - lane.channel);
    }
    lane.used = lane.row < lane.rows && lane.valid > 0u;
    return lane;
}

// Channels rounded up to whole quads: the stride of partial sums in scratch.
fn padded(channels: u32) -> u32 {
    return (channels + 3u) / 4u * 4u;
}

// Parameters of shaders whose table holds jobs (src/ops/launch/jobs.rs).
struct JobsParams {
    blocks: u32,
    jobs: u32,
    unused_0: u32,
    unused_1: u32,
}

// Number of values, their mean, and the sum of their squared deviations from it.
struct Moments {
    count: f32,
    mean: Quad,
    m2: Quad,
}

fn none() -> Moments {
    return Moments(0.0, quad(0.0), quad(0.0));
}

// Merges centred moments (Chan, Golub & LeVeque 1979).
fn merge(a: Moments, b: Moments) -> Moments {
    if b.count == 0.0 {
        return a;
    }
    let count = a.count + b.count;
    let share = b.count / count;
    let delta = b.mean - a.mean;
    return Moments(count, a.mean + share * delta, a.m2 + b.m2 + (a.count * share) * (delta * delta));
}

var<workgroup> shared_counts: array<f32, BLOCK>;
var<workgroup> shared_means: array<Quad, BLOCK>;
var<workgroup> shared_m2s: array<Quad, BLOCK>;

// Merges the moments of all threads that own the same channels, as a tree; row 0 gets the result.
fn merge_rows(moments: Moments, t: u32, lanes: u32) -> Moments {
    var own = moments;
    for (var width = BLOCK / lanes; width > 1u;) {
        shared_counts[t] = own.count;
        shared_means[t] = own.mean;
        shared_m2s[t] = own.m2;
        workgroupBarrier();
        let half = (width + 1u) / 2u;
        if t / lanes + half < width {
            let other = t + half * lanes;
            own = merge(own, Moments(shared_counts[other], shared_means[other], shared_m2s[other]));
        }
        width = half;
        workgroupBarrier();
    }
    return own;
}

// A chunk's moments in scratch: a row of means, a row of M2, the count (src/ops/launch/fold.rs).
fn moments_stride(channels: u32) -> u32 {
    return 2u * padded(channels) + 4u;
}

fn store_moments(chunk: Spot, m: Moments, channels: u32, channel: u32) {
    store4(ahead(chunk, channel), m.mean, 4u);
    store4(ahead(chunk, padded(channels) + channel), m.m2, 4u);
    if channel == 0u {
        store4(ahead(chunk, 2u * padded(channels)), quad(m.count), 4u);
    }
}

// High word of a product, from products of halves: WGSL has no 64-bit integers.
fn mulhi(a: u32, b: u32) -> u32 {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let middle = a1 * b0 + ((a0 * b0) >> 16u);
    let cross = a0 * b1 + (middle & 0xffffu);
    return a1 * b1 + (middle >> 16u) + (cross >> 16u);
}

// Philox4x32-10, bit by bit as in src/random.rs.
fn philox(counter: vec4<u32>, key_low: u32, key_high: u32) -> vec4<u32> {
    let a = 0xD2511F53u;
    let b = 0xCD9E8D57u;
    var x = counter;
    var key = vec2<u32>(key_low, key_high);
    for (var round = 0u; round < 10u; round++) {
        x = vec4<u32>(mulhi(b, x.z) ^ x.y ^ key.x, b * x.z, mulhi(a, x.x) ^ x.w ^ key.y, a * x.x);
        key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return x;
}

// A word as a number in [0, 1): its top 24 bits.
fn uniform_of(word: u32) -> f32 {
    return f32(word >> 8u) * (1.0 / 16777216.0);
}

// A word as an integer below n.
fn below(word: u32, n: u32) -> u32 {
    return mulhi(word, n);
}

// A value a thread, for sums over threads (reduce_tree.wgsl or reduce_subgroups.wgsl).
var<workgroup> block_values: array<f32, BLOCK>;

// Neither NaN nor infinite: judged by the exponent's bits, for WGSL compilers may assume that comparisons meet neither.
fn is_finite(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7f800000u) != 0x7f800000u;
}
