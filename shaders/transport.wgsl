// Entropic optimal transport: kernels/transport.cu in WGSL, function by function.

struct TransportParams {
    blocks: u32,
    problems: u32,
    channels: u32,
    point_stride: u32,
    points: Spot,
    labels: Spot,
    distances: Spot,
    cost: Spot,
    distance_stride: u32,
    labelled: u32,
    point_scale: f32,
    label_scale: f32,
    annealed: u32,
    iterations: u32,
    begin: u32,
    right: u32,
    weights: Spot,
    schedule: Spot,
    potentials: Spot,
    status: Spot,
    shifts: Spot,
    soft: Spot,
}

struct TransportProblem {
    n: u32,
    m: u32,
    x: u32,
    y: u32,
    f: u32,
    g: u32,
    cost: u32,
    stride: u32,
    symmetric: u32,
    number: u32,
    block: u32,
    stretches: u32,
}

// Records of a full table.
const TABLE: u32 = 341;

@group(0) @binding(0) var<uniform> p: TransportParams;
@group(0) @binding(1) var<uniform> table: array<TransportProblem, TABLE>;

// Shifts staged at once.
const CHUNK: u32 = 1024;
// Exponents that a thread takes at once: their largest one is found before any power.
const AHEAD: u32 = 4;
// Fewest threads that share a row in sinkhorn_small: one sector of memory.
const LANES: u32 = 8;
// Columns of the schedule.
const SCHEDULE: u32 = 8;
const LN_2: f32 = 0.693147181;

// ------------------------------------------------------------------------------------------------------------- costs

// C[i, j] = point_scale |x_i - y_j|^2 + label_scale W[l(x_i), l(y_j)], a block a tile.
@compute @workgroup_size(BLOCK)
fn pair_cost(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let q = table[problem_of(block)];
    let across = (q.stride + TILE - 1u) / TILE;
    let row = (block - q.block) / across * TILE;
    let column = (block - q.block) % across * TILE;
    // The last tile of a row may hold nothing but padding.
    let rows = q.n - row;
    let columns = q.m - min(q.m, column);
    let left = ahead(p.points, (q.x + row) * p.point_stride);
    let right = ahead(p.points, (q.y + min(q.m, column)) * p.point_stride);
    let tx = thread % SIDE;
    let ty = thread / SIDE;

    let sum = square_distances(left, rows, right, columns, thread);
    for (var r = 0u; r < OWN; r++) {
        let i = row + ty + r * SIDE;
        for (var c = 0u; c < OWN; c++) {
            let j = column + tx + c * SIDE;
            if i >= q.n || j >= q.stride {
                continue;
            }
            var value = 0.0;
            if j < q.m {
                value = p.point_scale * sum[r][c];
                if p.labelled != 0u {
                    value = with_labels(value, q.x + i, q.y + j);
                }
            }
            store1(ahead(p.cost, q.cost + i * q.stride + j), value);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------- progress

// What an iteration needs of the schedule and the status of its problem (struct Progress in Rust).
struct Progress {
    first: f32,
    last: f32,
    factor: f32,
    tolerance: f32,
    most: f32,
    rho: f32,
    steps: f32,
    done: f32,
    eps: f32,
    error: f32,
    state: f32,
}

var<workgroup> shared_progress: Progress;

// One thread reads for all: what comes from memory would not count as uniform, and barriers depend on it.
fn progress_of(number: u32, thread: u32) -> Progress {
    if thread == 0u {
        let given = ahead(p.schedule, number * SCHEDULE);
        let status = ahead(p.status, number * STATUS);
        var now: Progress;
        now.first = load1(given);
        now.last = load1(ahead(given, 1u));
        now.factor = load1(ahead(given, 2u));
        now.tolerance = load1(ahead(given, 3u));
        now.most = load1(ahead(given, 4u));
        now.rho = load1(ahead(given, 5u));
        now.steps = load1(ahead(given, 6u));
        now.done = load1(status);
        now.eps = load1(ahead(status, 1u));
        now.error = load1(ahead(status, 2u));
        now.state = load1(ahead(status, 3u));
        if !(now.eps > 0.0) {
            now.eps = now.first;
        }
        shared_progress = now;
    }
    return workgroupUniformLoad(&shared_progress);
}

fn keep(number: u32, now: Progress) {
    let status = ahead(p.status, number * STATUS);
    store1(status, now.done);
    store1(ahead(status, 1u), now.eps);
    store1(ahead(status, 2u), now.error);
    store1(ahead(status, 3u), now.state);
}

// Books an iteration that found `error`.
fn advance(before: Progress, error: f32) -> Progress {
    var now = before;
    let settled = now.eps <= now.last;
    now.done += 1.0;
    now.error = error;
    if p.annealed != 0u {
        if now.done > now.steps + 1.0 {
            now.state = 2.0;
        }
        // The first value serves the step from zero and two half steps.
        if now.done >= now.steps {
            now.eps = now.last;
        } else if now.done > 2.0 {
            now.eps = max(now.eps * now.factor, now.last);
        }
    } else {
        if settled && error <= now.tolerance {
            now.state = 1.0;
        } else if now.done >= now.most {
            now.state = 2.0;
        }
        // Whoever stops early is judged at the eps of the last iteration.
        if now.state == 0.0 {
            now.eps = max(now.eps * now.factor, now.last);
        }
    }
    return now;
}

// The numbers of one iteration.
struct Pace {
    scale: f32,   // log2(e) / eps
    unit: f32,    // eps ln(2)
    step: f32,    // share of a whole step
    damping: f32, // rho / (rho + eps), or 1 where the marginals must be met
}

fn pace_of(now: Progress, symmetric: bool) -> Pace {
    var half = symmetric;
    if p.annealed != 0u {
        half = now.done > 0.0 && now.done <= now.steps;
    }
    var damping = 1.0;
    if now.rho > 0.0 {
        damping = now.rho / (now.rho + now.eps);
    }
    return Pace(LOG2_E / now.eps, now.eps * LN_2, select(1.0, 0.5, half), damping);
}

// A potential after the iteration that found its soft c-transform.
fn moved(potential: f32, soft: f32, pace: Pace) -> f32 {
    return potential + pace.step * (pace.damping * soft - potential);
}

// How far a left marginal is off, in shares of its weight. The plan of an unfinished schedule may have any mass.
fn deviation(potential: f32, soft: f32, pace: Pace, rho: f32) -> f32 {
    var off: f32;
    if rho > 0.0 {
        off = (pace.damping * soft - potential) * (pace.scale * LN_2);
    } else {
        off = exp2(min((potential - soft) * pace.scale, 120.0)) - 1.0;
    }
    return min(abs(off), 1e30);
}

// ------------------------------------------------------------------------------------------------------ sums of powers

// sum 2^top, a sum of powers of two.
struct Powers {
    top: f32,
    sum: f32,
}

fn join(a: Powers, b: Powers) -> Powers {
    let top = max(a.top, b.top);
    return Powers(top, a.sum * exp2(a.top - top) + b.sum * exp2(b.top - top));
}

fn add_four(before: Powers, x: Quad) -> Powers {
    var own = before;
    let top = max(max(x.x, x.y), max(x.z, x.w));
    if top > own.top {
        own.sum *= exp2(own.top - top);
        own.top = top;
    }
    let power = exp2(x - quad(own.top));
    own.sum += (power.x + power.y) + (power.z + power.w);
    return own;
}

var<workgroup> shifts: array<f32, CHUNK>;

// Adds the powers of shift - scale cost over the staged points first, first + step, ... of `count`; their costs lie
// `pitch` elements apart.
fn gather(before: Powers, costs: Spot, pitch: u32, first: u32, step: u32, count: u32, scale: f32) -> Powers {
    var own = before;
    for (var j = first; j < count; j += AHEAD * step) {
        var x = quad(NOTHING);
        for (var k = 0u; k < AHEAD; k++) {
            let i = j + k * step;
            if i < count {
                x[k] = shifts[i] - scale * load1(ahead(costs, i * pitch));
            }
        }
        own = add_four(own, x);
    }
    return own;
}

var<workgroup> tops: array<f32, BLOCK>;
var<workgroup> sums: array<f32, BLOCK>;

// Merges the powers of `ranks` threads that are `step` apart, a power of two of them; rank 0 gets the result.
fn fold(powers: Powers, rank: u32, ranks: u32, step: u32, t: u32) -> Powers {
    var own = powers;
    for (var half = ranks / 2u; half > 0u; half /= 2u) {
        tops[t] = own.top;
        sums[t] = own.sum;
        workgroupBarrier();
        if rank < half {
            own = join(own, Powers(tops[t + half * step], sums[t + half * step]));
        }
        workgroupBarrier();
    }
    return own;
}

// The soft c-transform: -eps log of a sum.
fn soft_of(all: Powers, unit: f32) -> f32 {
    return -(unit * (all.top + log2(all.sum)));
}

// The least power of two that is no less.
fn power_of_two(v: u32) -> u32 {
    var power = 1u;
    while power < v {
        power *= 2u;
    }
    return power;
}

var<workgroup> softs: array<f32, BLOCK>;

// All iterations of a replay on a problem of at most BLOCK points a side, a block each. Thread t owns the potentials f_t
// and g_t.
@compute @workgroup_size(BLOCK)
fn sinkhorn_small(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let q = table[block];
    let symmetric = q.symmetric != 0u;
    let costs = ahead(p.cost, q.cost);
    var now = progress_of(q.number, t);
    var a = 1.0;
    var log_b = 0.0;
    var f = 0.0;
    var g = 0.0;
    if t < q.n {
        a = load1(ahead(p.weights, q.f + t));
        f = load1(ahead(p.potentials, q.f + t));
    }
    if t < q.m {
        log_b = log2(load1(ahead(p.weights, q.g + t)));
        g = load1(ahead(p.potentials, q.g + t));
    }
    let log_a = log2(a);
    // Few rows are shared by many threads, many rows by a few.
    let lanes = max(LANES, BLOCK / power_of_two(q.n));
    let lane = t % lanes;
    // All columns are done at once.
    let columns = power_of_two(q.m);
    let column = t % columns;
    let rank = t / columns;

    for (var k = 0u; k < p.iterations && now.state == 0.0; k++) {
        let pace = pace_of(now, symmetric);
        shifts[t] = g * pace.scale + log_b;
        workgroupBarrier();
        for (var first = 0u; first < q.n; first += BLOCK / lanes) {
            let i = first + t / lanes;
            var own = Powers(NOTHING, 0.0);
            if i < q.n {
                own = gather(own, ahead(costs, i * q.stride), 1u, lane, lanes, q.m, pace.scale);
            }
            own = fold(own, lane, lanes, 1u, t);
            if lane == 0u && i < q.n {
                softs[i] = soft_of(own, pace.unit);
            }
        }
        workgroupBarrier();
        var error = 0.0;
        var next = 0.0;
        if t < q.n {
            error = a * deviation(f, softs[t], pace, now.rho);
            next = moved(f, softs[t], pace);
        }
        shifts[t] = select(next, f, p.annealed != 0u) * pace.scale + log_a;
        error = block_sum(error, t);
        if symmetric {
            g = next;
        } else {
            var own = Powers(NOTHING, 0.0);
            if column < q.m {
                own = gather(own, ahead(costs, column), q.stride, rank, BLOCK / columns, q.n, pace.scale);
            }
            own = fold(own, rank, BLOCK / columns, columns, t);
            if t < q.m {
                g = moved(g, soft_of(own, pace.unit), pace);
            }
            workgroupBarrier();
        }
        f = next;
        now = advance(now, error);
    }

    if t < q.n {
        store1(ahead(p.potentials, q.f + t), f);
    }
    if t < q.m && !symmetric {
        store1(ahead(p.potentials, q.g + t), g);
    }
    if t == 0u {
        keep(q.number, now);
    }
}

// ------------------------------------------------------------------------------------------------- larger problems

// Copies shifts to shared memory.
fn stage_shifts(from_spot: Spot, count: u32, t: u32) {
    workgroupBarrier();
    for (var i = t; i < count; i += BLOCK) {
        shifts[i] = load1(ahead(from_spot, i));
    }
    workgroupBarrier();
}

// The soft c-transform of left point i, and its shift for the columns.
fn take_left(q: TransportProblem, pace: Pace, i: u32, all: Powers) {
    let soft = soft_of(all, pace.unit);
    store1(ahead(p.soft, q.f + i), soft);
    if q.symmetric != 0u {
        return;
    }
    let f = load1(ahead(p.potentials, q.f + i));
    let log_a = log2(load1(ahead(p.weights, q.f + i)));
    store1(ahead(p.shifts, q.f + i), select(moved(f, soft, pace), f, p.annealed != 0u) * pace.scale + log_a);
}

// The new potential of right point j.
fn take_right(q: TransportProblem, pace: Pace, j: u32, all: Powers) {
    let g = ahead(p.potentials, q.g + j);
    store1(g, moved(load1(g), soft_of(all, pace.unit), pace));
}

// Soft c-transforms of SIDE left points, and their shifts for the columns.
@compute @workgroup_size(BLOCK)
fn sinkhorn_rows(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let q = table[problem_of(block)];
    let now = progress_of(q.number, thread);
    if now.state != 0.0 {
        return;
    }
    let pace = pace_of(now, q.symmetric != 0u);
    let lane = thread % SIDE;
    let i = (block - q.block) * SIDE + thread / SIDE;

    var own = Powers(NOTHING, 0.0);
    for (var first = 0u; first < q.m; first += CHUNK) {
        let count = min(CHUNK, q.m - first);
        stage_shifts(ahead(p.shifts, q.g + first), count, thread);
        if i < q.n {
            own = gather(own, ahead(p.cost, q.cost + i * q.stride + first), 1u, lane, SIDE, count, pace.scale);
        }
    }
    own = fold(own, lane, SIDE, 1u, thread);
    if lane == 0u && i < q.n {
        take_left(q, pace, i, own);
    }
}

// New potentials of SIDE right points.
@compute @workgroup_size(BLOCK)
fn sinkhorn_columns(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let q = table[problem_of(block)];
    let now = progress_of(q.number, thread);
    if now.state != 0.0 {
        return;
    }
    let pace = pace_of(now, q.symmetric != 0u);
    let rank = thread / SIDE;
    let j = (block - q.block) * SIDE + thread % SIDE;

    var own = Powers(NOTHING, 0.0);
    for (var first = 0u; first < q.n; first += CHUNK) {
        let count = min(CHUNK, q.n - first);
        stage_shifts(ahead(p.shifts, q.f + first), count, thread);
        if j < q.m {
            own = gather(own, ahead(p.cost, q.cost + first * q.stride + j), q.stride, rank, SIDE, count, pace.scale);
        }
    }
    own = fold(own, rank, SIDE, SIDE, thread);
    if rank == 0u && j < q.m {
        take_right(q, pace, j, own);
    }
}

// Sums of powers of TILE points of one side over a stretch of the other side, a block each. Their costs are computed from
// the points, as often as they are needed.
@compute @workgroup_size(BLOCK)
fn sinkhorn_points(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let q = table[problem_of(block)];
    let now = progress_of(q.number, thread);
    if now.state != 0.0 {
        return;
    }
    let scale = LOG2_E / now.eps;
    let right = p.right != 0u;
    let count = select(q.n, q.m, right);
    let others = select(q.m, q.n, right);
    let own_row = select(q.x, q.y, right);
    let other_row = select(q.y, q.x, right);
    let shift_spot = ahead(p.shifts, select(q.g, q.f, right));
    let row = (block - q.block) / q.stretches * TILE;
    let stretch = (block - q.block) % q.stretches;
    let tiles = (others + TILE - 1u) / TILE;
    let length = (tiles + q.stretches - 1u) / q.stretches * TILE;
    let end = min(others, (stretch + 1u) * length);
    let tx = thread % SIDE;
    let ty = thread / SIDE;

    var own: array<Powers, OWN>;
    for (var r = 0u; r < OWN; r++) {
        own[r] = Powers(NOTHING, 0.0);
    }
    for (var first = stretch * length; first < end; first += TILE) {
        let from_spot = ahead(p.points, (own_row + row) * p.point_stride);
        let to_spot = ahead(p.points, (other_row + first) * p.point_stride);
        let squares = square_distances(from_spot, count - row, to_spot, end - first, thread);
        var shift = quad(NOTHING);
        for (var c = 0u; c < OWN; c++) {
            let j = first + tx + c * SIDE;
            if j < end {
                shift[c] = load1(ahead(shift_spot, j));
            }
        }
        for (var r = 0u; r < OWN; r++) {
            let i = row + ty + r * SIDE;
            var cost = p.point_scale * squares[r];
            if p.labelled != 0u && i < count {
                for (var c = 0u; c < OWN; c++) {
                    let j = first + tx + c * SIDE;
                    if j < end {
                        cost[c] = with_labels(cost[c], q.x + select(i, j, right), q.y + select(j, i, right));
                    }
                }
            }
            let x = shift - scale * cost;
            own[r] = add_four(own[r], x);
        }
    }

    let sums = ahead(p.cost, q.cost + 2u * stretch * count);
    for (var r = 0u; r < OWN; r++) {
        let i = row + ty + r * SIDE;
        let all = fold(own[r], tx, SIDE, 1u, thread);
        if tx == 0u && i < count {
            store1(ahead(sums, 2u * i), all.top);
            store1(ahead(sums, 2u * i + 1u), all.sum);
        }
    }
}

// Merges the stretches of BLOCK points in order, and takes what comes of them.
@compute @workgroup_size(BLOCK)
fn sinkhorn_merge(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let q = table[problem_of(block)];
    let now = progress_of(q.number, thread);
    if now.state != 0.0 {
        return;
    }
    let pace = pace_of(now, q.symmetric != 0u);
    let right = p.right != 0u;
    let count = select(q.n, q.m, right);
    let i = (block - q.block) * BLOCK + thread;
    if i >= count {
        return;
    }
    let sums = ahead(p.cost, q.cost + 2u * i);
    var all = Powers(load1(sums), load1(ahead(sums, 1u)));
    for (var stretch = 1u; stretch < q.stretches; stretch++) {
        let next = ahead(sums, 2u * stretch * count);
        all = join(all, Powers(load1(next), load1(ahead(next, 1u))));
    }
    if right {
        take_right(q, pace, i, all);
    } else {
        take_left(q, pace, i, all);
    }
}

// Books an iteration, a block a problem: left potentials, error and status; then the right shifts for the next one.
@compute @workgroup_size(BLOCK)
fn sinkhorn_advance(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let q = table[block];
    var now = progress_of(q.number, thread);
    if now.state != 0.0 && p.begin == 0u {
        return;
    }

    var error = 0.0;
    if p.begin == 0u {
        let pace = pace_of(now, q.symmetric != 0u);
        for (var i = thread; i < q.n; i += BLOCK) {
            let f = load1(ahead(p.potentials, q.f + i));
            let soft = load1(ahead(p.soft, q.f + i));
            error += load1(ahead(p.weights, q.f + i)) * deviation(f, soft, pace, now.rho);
            store1(ahead(p.potentials, q.f + i), moved(f, soft, pace));
        }
    }
    error = block_sum(error, thread);
    if p.begin == 0u {
        now = advance(now, error);
    }

    let scale = LOG2_E / now.eps;
    for (var j = thread; j < q.m; j += BLOCK) {
        let log_b = log2(load1(ahead(p.weights, q.g + j)));
        store1(ahead(p.shifts, q.g + j), load1(ahead(p.potentials, q.g + j)) * scale + log_b);
    }
    if thread == 0u {
        keep(q.number, now);
    }
}
