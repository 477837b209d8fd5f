// What shaders of transport and of its certificates share: problems of a launch, and costs of pairs of points in tiles.

// Costs along each side of a tile, and coordinates staged at once.
const TILE: u32 = 64;
const STEP: u32 = 16;
// Elements from one coordinate's points to the next one's: odd, so that points staged side by side hit all banks.
const PITCH: u32 = TILE + 1u;
// A block is SIDE by SIDE threads; in a tile each owns OWN by OWN costs, SIDE apart.
const SIDE: u32 = 16;
const OWN: u32 = TILE / SIDE;
// Columns of the status.
const STATUS: u32 = 4;
// Below every exponent, and with the other sign above every cost.
const NOTHING: f32 = -1e30;
const LOG2_E: f32 = 1.44269504;

// The problem that a block belongs to: the last one that starts no later.
fn problem_of(block: u32) -> u32 {
    var low = 0u;
    var high = p.problems;
    while high - low > 1u {
        let middle = (low + high) / 2u;
        if table[middle].block <= block {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

var<workgroup> xs: array<f32, STEP * PITCH>;
var<workgroup> ys: array<f32, STEP * PITCH>;

// A coordinate of one of `count` points; zero for what does not exist.
fn coordinate(points: Spot, i: u32, c: u32, count: u32, channels: u32) -> f32 {
    if i < count && c < channels {
        return load1(ahead(points, i * p.point_stride + c));
    }
    return 0.0;
}

// Squared distances of `rows` left and `columns` right points, TILE of each at most: [r][c] is that of points ty + r SIDE
// and tx + c SIDE.
fn square_distances(left: Spot, rows: u32, right: Spot, columns: u32, thread: u32) -> array<Quad, OWN> {
    let tx = thread % SIDE;
    let ty = thread / SIDE;
    // Coordinates are summed in steps: the rounding errors of a long sum grow with the number of steps only.
    var sum: array<Quad, OWN>;
    for (var channel = 0u; channel < p.channels; channel += STEP) {
        let own = thread % STEP;
        for (var i = thread / STEP; i < TILE; i += BLOCK / STEP) {
            xs[own * PITCH + i] = coordinate(ahead(left, channel), i, own, rows, p.channels - channel);
            ys[own * PITCH + i] = coordinate(ahead(right, channel), i, own, columns, p.channels - channel);
        }
        workgroupBarrier();
        var part: array<Quad, OWN>;
        for (var r = 0u; r < OWN; r++) {
            part[r] = quad(0.0);
        }
        for (var k = 0u; k < STEP; k++) {
            let at = k * PITCH + tx;
            let y = Quad(ys[at], ys[at + SIDE], ys[at + 2u * SIDE], ys[at + 3u * SIDE]);
            for (var r = 0u; r < OWN; r++) {
                let d = quad(xs[k * PITCH + ty + r * SIDE]) - y;
                part[r] += d * d;
            }
        }
        for (var r = 0u; r < OWN; r++) {
            sum[r] += part[r];
        }
        workgroupBarrier();
    }
    return sum;
}

// The cost of two points with what their labels add to it. Rounded once, so that all passes over a plan see the same.
fn with_labels(cost: f32, left: u32, right: u32) -> f32 {
    let from_label = u32(load1(ahead(p.labels, left)));
    let to_label = u32(load1(ahead(p.labels, right)));
    return fma(p.label_scale, load1(ahead(p.distances, from_label * p.distance_stride + to_label)), cost);
}
