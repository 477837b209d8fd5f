// What all shaders share: the same functions as kernels/common.cuh, by the same names.
//
// A device puts four texts together (src/device/source.rs): constants BLOCK and the bindings of the pages, then this
// file, then access_wide.wgsl or access_narrow.wgsl, then the shader. Binding 0 is the parameter record, binding 1 the
// table, both uniforms; from binding 2 on come the pages, all read_write. The first text also defines
//     fn read_element(page: u32, index: u32) -> Element
//     fn write_element(page: u32, index: u32, value: Element)

// A tensor in a record: page, first element.
alias Spot = vec2<u32>;

// Four neighbouring channels, the unit in which threads own maps.
alias Quad = vec4<f32>;

fn quad(v: f32) -> Quad {
    return Quad(v, v, v, v);
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

var<workgroup> block_values: array<f32, BLOCK>;

// Sum over all threads of the block, in a fixed order; every thread gets it.
fn block_sum(v: f32, thread: u32) -> f32 {
    block_values[thread] = v;
    workgroupBarrier();
    for (var half = BLOCK / 2u; half > 0u; half /= 2u) {
        if thread < half {
            block_values[thread] += block_values[thread + half];
        }
        workgroupBarrier();
    }
    let sum = block_values[0];
    workgroupBarrier();
    return sum;
}

// Neither NaN nor infinite: judged by the exponent's bits, for WGSL compilers may assume that comparisons meet neither.
fn is_finite(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7f800000u) != 0x7f800000u;
}
