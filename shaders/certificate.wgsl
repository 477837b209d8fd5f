// What plans of entropic transport are worth: kernels/certificate.cu in WGSL, function by function.

struct CertificateParams {
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
    stored: u32,
    stage: u32,
    weights: Spot,
    potentials: Spot,
    status: Spot,
    vectors: Spot,
    partials: Spot,
    rows: Spot,
    length: u32,
    unused: u32,
}

struct CertificateProblem {
    n: u32,
    m: u32,
    x: u32,
    y: u32,
    f: u32,
    g: u32,
    cost: u32,
    stride: u32,
    partial: u32,
    number: u32,
    block: u32,
    stretches: u32,
}

// Records of a full table.
const TABLE: u32 = 341;

@group(0) @binding(0) var<uniform> p: CertificateParams;
@group(0) @binding(1) var<uniform> table: array<CertificateProblem, TABLE>;

// Threads that share a point of a tile when its sums are added up.
const SHARERS: u32 = BLOCK / TILE;
// Columns of a certificate, and sums of a stretch.
const CERTIFICATE: u32 = 14;
const SUMS: u32 = 4;
// Powers stay below two to this: the plan of an unfinished schedule may have any mass.
const MOST: f32 = 60.0;

// Vectors in scratch, placed like the potentials: of rows after pass 1, of columns after pass 2, of rows after pass 3.
const FACTOR: u32 = 0;
const MASS: u32 = 1;
const VALUE: u32 = 2;
const COLUMN: u32 = 3;
const SHARE: u32 = 4;
const LACK: u32 = 5;
const LEAST_COLUMN: u32 = 6;
const ROW: u32 = 7;
const ROUNDED: u32 = 8;
const LEAST_ROW: u32 = 9;
const GAP: u32 = 10;

// ------------------------------------------------------------------------------------------------------------- costs

// Costs of a tile: [r][c] is that of row first_row + ty + r SIDE and column first_column + tx + c SIDE.
fn cost_tile(q: CertificateProblem, first_row: u32, first_column: u32, thread: u32) -> array<Quad, OWN> {
    let tx = thread % SIDE;
    let ty = thread / SIDE;
    var cost: array<Quad, OWN>;
    if p.stored == 0u {
        let left = ahead(p.points, (q.x + first_row) * p.point_stride);
        let right = ahead(p.points, (q.y + first_column) * p.point_stride);
        cost = square_distances(left, q.n - first_row, right, q.m - first_column, thread);
    }
    for (var r = 0u; r < OWN; r++) {
        let i = first_row + ty + r * SIDE;
        for (var c = 0u; c < OWN; c++) {
            let j = first_column + tx + c * SIDE;
            let exists = i < q.n && j < q.m;
            if p.stored != 0u {
                if exists {
                    cost[r][c] = load1(ahead(p.cost, q.cost + i * q.stride + j));
                }
            } else {
                cost[r][c] = p.point_scale * cost[r][c];
                if p.labelled != 0u && exists {
                    cost[r][c] = with_labels(cost[r][c], q.x + i, q.y + j);
                }
            }
        }
    }
    return cost;
}

// The exponent of a point: log2(weight) + potential log2(e) / eps.
fn shift_of(place: u32, scale: f32) -> f32 {
    return fma(load1(ahead(p.potentials, place)), scale, log2(load1(ahead(p.weights, place))));
}

// Elements of the plan.
fn power(left: f32, right: Quad, cost: Quad, scale: f32) -> Quad {
    return exp2(min(fma(quad(-scale), cost, quad(left) + right), quad(MOST)));
}

fn vector(which: u32, place: u32) -> Spot {
    return ahead(p.vectors, which * p.length + place);
}

fn scale_of(q: CertificateProblem) -> f32 {
    if p.stage == 0u {
        return 0.0;
    }
    return LOG2_E / load1(ahead(p.status, q.number * STATUS + 1u));
}

fn add_or_least(a: f32, b: f32, least: bool) -> f32 {
    if least {
        return min(a, b);
    }
    return a + b;
}

// Of four numbers.
fn add_or_least_four(a: f32, b: f32, c: f32, d: f32, least: bool) -> f32 {
    return add_or_least(add_or_least(a, b, least), add_or_least(c, d, least), least);
}

var<workgroup> parts: array<f32, TILE * (SIDE + 1u)>;

// Adds to `total` (or takes the least of both) what the threads of a tile have of its points own, own + SIDE, ...: SIDE
// lanes each, which SHARERS threads take over.
fn tally(total: f32, values: Quad, own: u32, lane: u32, least: bool, thread: u32) -> f32 {
    for (var r = 0u; r < OWN; r++) {
        parts[(own + r * SIDE) * (SIDE + 1u) + lane] = values[r];
    }
    workgroupBarrier();
    let four = thread / SHARERS * (SIDE + 1u) + thread % SHARERS * (SIDE / SHARERS);
    let sum = add_or_least_four(parts[four], parts[four + 1u], parts[four + 2u], parts[four + 3u], least);
    workgroupBarrier();
    return add_or_least(total, sum, least);
}

// What the SHARERS threads of a point have together.
fn gathered(total: f32, least: bool, thread: u32) -> f32 {
    parts[thread] = total;
    workgroupBarrier();
    let four = thread / SHARERS * SHARERS;
    let all = add_or_least_four(parts[four], parts[four + 1u], parts[four + 2u], parts[four + 3u], least);
    workgroupBarrier();
    return all;
}

// Writes the sums of a stretch of a point.
fn put_sums(start: u32, exists: bool, totals: Quad, thread: u32) {
    for (var k = 0u; k < SUMS; k++) {
        let all = gathered(totals[k], k == 2u, thread);
        if thread % SHARERS == 0u && exists {
            store1(ahead(p.partials, start + k), all);
        }
    }
}

// Passes 0, 1 and 3 over TILE rows and a stretch of columns.
@compute @workgroup_size(BLOCK)
fn certificate_rows(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let q = table[problem_of(block)];
    let scale = scale_of(q);
    let row = (block - q.block) / q.stretches * TILE;
    let stretch = (block - q.block) % q.stretches;
    let tiles = (q.m + TILE - 1u) / TILE;
    let length = (tiles + q.stretches - 1u) / q.stretches * TILE;
    let end = min(q.m, (stretch + 1u) * length);
    let tx = thread % SIDE;
    let ty = thread / SIDE;

    var totals = Quad(0.0, 0.0, -NOTHING, 0.0);
    for (var first = stretch * length; first < end; first += TILE) {
        var cost = cost_tile(q, row, first, thread);
        if p.stage != 0u {
            var shift = quad(NOTHING);
            var share = quad(1.0);
            for (var c = 0u; c < OWN; c++) {
                let j = first + tx + c * SIDE;
                if j < end {
                    shift[c] = shift_of(q.g + j, scale);
                    if p.stage == 3u {
                        share[c] = load1(vector(SHARE, q.g + j));
                    }
                }
            }
            var mass = quad(0.0);
            var value = quad(0.0);
            for (var r = 0u; r < OWN; r++) {
                let i = row + ty + r * SIDE;
                var left = NOTHING;
                var factor = 1.0;
                if i < q.n {
                    left = shift_of(q.f + i, scale);
                    if p.stage == 3u {
                        factor = load1(vector(FACTOR, q.f + i));
                    }
                }
                let plan = factor * power(left, shift, cost[r], scale) * share;
                mass[r] = (plan.x + plan.y) + (plan.z + plan.w);
                let paid = plan * cost[r];
                value[r] = (paid.x + paid.y) + (paid.z + paid.w);
            }
            totals.x = tally(totals.x, mass, ty, tx, false, thread);
            totals.y = tally(totals.y, value, ty, tx, false, thread);
        }
        if p.stage != 1u {
            var below = quad(NOTHING);
            var lack = quad(0.0);
            for (var c = 0u; c < OWN; c++) {
                let j = first + tx + c * SIDE;
                if j < end {
                    below[c] = 0.0;
                    lack[c] = 1.0;
                    if p.stage != 0u {
                        below[c] = load1(vector(LEAST_COLUMN, q.g + j));
                        lack[c] = load1(vector(LACK, q.g + j));
                    }
                }
            }
            // Pass 0 has the largest cost, as the least of the negative ones.
            let sign = select(1.0, -1.0, p.stage == 0u);
            var least = quad(0.0);
            var gap = quad(0.0);
            for (var r = 0u; r < OWN; r++) {
                let x = sign * cost[r] - below;
                least[r] = min(min(x.x, x.y), min(x.z, x.w));
                let paid = lack * cost[r];
                gap[r] = (paid.x + paid.y) + (paid.z + paid.w);
            }
            totals.z = tally(totals.z, least, ty, tx, true, thread);
            totals.w = tally(totals.w, gap, ty, tx, false, thread);
        }
    }
    let i = row + thread / SHARERS;
    put_sums(q.partial + SUMS * (stretch * q.n + i), i < q.n, totals, thread);
}

// Pass 2 over TILE columns and a stretch of rows.
@compute @workgroup_size(BLOCK)
fn certificate_columns(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let q = table[problem_of(block)];
    let scale = scale_of(q);
    let column = (block - q.block) / q.stretches * TILE;
    let stretch = (block - q.block) % q.stretches;
    let tiles = (q.n + TILE - 1u) / TILE;
    let length = (tiles + q.stretches - 1u) / q.stretches * TILE;
    let end = min(q.n, (stretch + 1u) * length);
    let tx = thread % SIDE;
    let ty = thread / SIDE;

    var totals = Quad(0.0, 0.0, -NOTHING, 0.0);
    for (var first = stretch * length; first < end; first += TILE) {
        var cost = cost_tile(q, first, column, thread);
        var least = quad(-NOTHING);
        for (var r = 0u; r < OWN; r++) {
            let i = first + ty + r * SIDE;
            var f = NOTHING;
            if i < end {
                f = load1(ahead(p.potentials, q.f + i));
            }
            least = min(least, cost[r] - quad(f));
        }
        totals.z = tally(totals.z, least, tx, ty, true, thread);
        var mass = quad(0.0);
        var rounded = quad(0.0);
        var shift = quad(NOTHING);
        for (var c = 0u; c < OWN; c++) {
            let j = column + tx + c * SIDE;
            if j < q.m {
                shift[c] = shift_of(q.g + j, scale);
            }
        }
        for (var r = 0u; r < OWN; r++) {
            let i = first + ty + r * SIDE;
            var left = NOTHING;
            var factor = 0.0;
            if i < end {
                left = shift_of(q.f + i, scale);
                factor = load1(vector(FACTOR, q.f + i));
            }
            let plan = power(left, shift, cost[r], scale);
            mass += plan;
            rounded += factor * plan;
        }
        totals.x = tally(totals.x, mass, tx, ty, false, thread);
        totals.y = tally(totals.y, rounded, tx, ty, false, thread);
    }
    let j = column + thread / SHARERS;
    put_sums(q.partial + SUMS * (stretch * q.m + j), j < q.m, totals, thread);
}

// The share of a sum that a weight leaves.
fn share_of(weight: f32, sum: f32) -> f32 {
    if sum > weight {
        return weight / sum;
    }
    return 1.0;
}

// Merges the stretches of BLOCK points in order, and takes what comes of them.
@compute @workgroup_size(BLOCK)
fn certificate_merge(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let q = table[problem_of(block)];
    let right = p.stage == 2u;
    let count = select(q.n, q.m, right);
    let i = (block - q.block) * BLOCK + thread;
    if i >= count {
        return;
    }
    let sums = ahead(p.partials, q.partial + SUMS * i);
    var all: Quad;
    for (var k = 0u; k < SUMS; k++) {
        all[k] = load1(ahead(sums, k));
    }
    for (var stretch = 1u; stretch < q.stretches; stretch++) {
        for (var k = 0u; k < SUMS; k++) {
            all[k] = add_or_least(all[k], load1(ahead(sums, SUMS * stretch * count + k)), k == 2u);
        }
    }
    let place = select(q.f, q.g, right) + i;
    if p.stage == 1u {
        store1(vector(MASS, place), all.x);
        store1(vector(VALUE, place), all.y);
        store1(vector(FACTOR, place), share_of(load1(ahead(p.weights, place)), all.x));
    } else if right {
        let weight = load1(ahead(p.weights, place));
        store1(vector(COLUMN, place), all.x);
        store1(vector(SHARE, place), share_of(weight, all.y));
        store1(vector(LACK, place), max(weight - all.y, 0.0));
        store1(vector(LEAST_COLUMN, place), all.z);
    } else {
        store1(vector(ROW, place), all.x);
        store1(vector(ROUNDED, place), all.y);
        store1(vector(LEAST_ROW, place), all.z);
        store1(vector(GAP, place), all.w);
    }
}

// Adds up what the points of a problem found, a block each.
@compute @workgroup_size(BLOCK)
fn certificate_totals(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let q = table[block];
    var value = 0.0;
    var upper = 0.0;
    var lower = 0.0;
    var dual = 0.0;
    var rows = 0.0;
    var columns = 0.0;
    var mass = 0.0;
    var missing = 0.0;
    var paid = 0.0;
    for (var i = thread; i < q.n; i += BLOCK) {
        let place = q.f + i;
        let a = load1(ahead(p.weights, place));
        let lack = max(a - load1(vector(ROW, place)), 0.0);
        value += load1(vector(VALUE, place));
        mass += load1(vector(MASS, place));
        rows += abs(load1(vector(MASS, place)) - a);
        upper += load1(vector(ROUNDED, place));
        missing += lack;
        paid += lack * load1(vector(GAP, place));
        lower += a * load1(vector(LEAST_ROW, place));
        dual += a * load1(ahead(p.potentials, place));
    }
    for (var j = thread; j < q.m; j += BLOCK) {
        let place = q.g + j;
        let b = load1(ahead(p.weights, place));
        columns += abs(load1(vector(COLUMN, place)) - b);
        lower += b * load1(vector(LEAST_COLUMN, place));
        dual += b * load1(ahead(p.potentials, place));
    }
    value = block_sum(value, thread);
    upper = block_sum(upper, thread);
    lower = block_sum(lower, thread);
    dual = block_sum(dual, thread);
    rows = block_sum(rows, thread);
    columns = block_sum(columns, thread);
    mass = block_sum(mass, thread);
    missing = block_sum(missing, thread);
    paid = block_sum(paid, thread);
    if thread == 0u {
        if missing > 0.0 {
            upper += paid / missing;
        }
        var numbers = array<f32, CERTIFICATE / 2u>(value, upper, lower, dual, rows, columns, mass);
        let to = ahead(p.rows, q.number * CERTIFICATE);
        for (var k = 0u; k < CERTIFICATE / 2u; k++) {
            store1(ahead(to, 2u * k), numbers[k]);
            store1(ahead(to, 2u * k + 1u), 0.0);
        }
    }
}

// The sum of a problem's costs and the largest of them, which is 0 at least, a block a problem.
@compute @workgroup_size(BLOCK)
fn extent_totals(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let q = table[block];
    var sum = 0.0;
    var own = 0.0;
    for (var i = thread; i < q.n; i += BLOCK) {
        sum += load1(vector(GAP, q.f + i));
        own = min(own, load1(vector(LEAST_ROW, q.f + i)));
    }
    sum = block_sum(sum, thread);
    parts[thread] = own;
    workgroupBarrier();
    for (var half = BLOCK / 2u; half > 0u; half /= 2u) {
        if thread < half {
            parts[thread] = min(parts[thread], parts[thread + half]);
        }
        workgroupBarrier();
    }
    if thread == 0u {
        let to = ahead(p.rows, 2u * q.number);
        store1(to, sum);
        store1(ahead(to, 1u), -parts[0]);
    }
}
