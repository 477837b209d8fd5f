// Cross-entropy, hit counts, their gradient and accumulation: kernels/loss.cu in WGSL, function by function.

struct LossParams {
    blocks: u32,
    rows: u32,
    classes: u32,
    lanes: u32,
    rounds: u32,
    partials: u32,
    accumulate: u32,
    accumulate_counts: u32,
    smoothing: f32,
    logits_stride: u32,
    dlogits_stride: u32,
    unused: u32,
    logits: Spot,
    labels: Spot,
    loss: Spot,
    counts: Spot,
    partial: Spot,
    g: Spot,
    dlogits: Spot,
    unused_1: Spot,
}

struct AccumulateParams {
    blocks: u32,
    unused: u32,
    loss: Spot,
    counts: Spot,
    sums: Spot,
}

// Each entry point uses one of these.
@group(0) @binding(0) var<uniform> p: LossParams;
@group(0) @binding(0) var<uniform> accumulate_params: AccumulateParams;

// Over the threads that share a row; each gets the result.
fn row_sum(v: f32, thread: u32) -> f32 {
    block_values[thread] = v;
    workgroupBarrier();
    for (var half = p.lanes / 2u; half > 0u; half /= 2u) {
        if thread % p.lanes < half {
            block_values[thread] += block_values[thread + half];
        }
        workgroupBarrier();
    }
    let sum = block_values[thread - thread % p.lanes];
    workgroupBarrier();
    return sum;
}

fn row_max(v: f32, thread: u32) -> f32 {
    block_values[thread] = v;
    workgroupBarrier();
    for (var half = p.lanes / 2u; half > 0u; half /= 2u) {
        if thread % p.lanes < half {
            block_values[thread] = max(block_values[thread], block_values[thread + half]);
        }
        workgroupBarrier();
    }
    let top = block_values[thread - thread % p.lanes];
    workgroupBarrier();
    return top;
}

// A row of logits as one of its threads sees it.
struct Row {
    logits: Spot,
    label: u32,
    valid: bool, // threads of rows that do not count take part in sums only
}

fn row_of(row: u32) -> Row {
    var label = -1.0;
    if row < p.rows {
        label = load1(ahead(p.labels, row));
    }
    if label >= 0.0 {
        return Row(ahead(p.logits, row * p.logits_stride), u32(label), true);
    }
    return Row(p.logits, 0u, false);
}

// Largest logit, and log of the sum of exponentials with that taken out.
struct Partition {
    top: f32,
    log_sum: f32,
}

fn partition_of(row: Row, thread: u32) -> Partition {
    var top = -3.402823466e38;
    for (var j = thread % p.lanes; row.valid && j < p.classes; j += p.lanes) {
        top = max(top, load1(ahead(row.logits, j)));
    }
    top = row_max(top, thread);
    var sum = 0.0;
    for (var j = thread % p.lanes; row.valid && j < p.classes; j += p.lanes) {
        sum += exp(load1(ahead(row.logits, j)) - top);
    }
    return Partition(top, log(row_sum(sum, thread)));
}

// Sums over rows.
struct Sums {
    loss: f32,
    hits: f32,
    hits5: f32,
    valid: f32,
}

fn block_sums(own: Sums, thread: u32) -> Sums {
    var sums: Sums;
    sums.loss = block_sum(own.loss, thread);
    sums.hits = block_sum(own.hits, thread);
    sums.hits5 = block_sum(own.hits5, thread);
    sums.valid = block_sum(own.valid, thread);
    return sums;
}

fn put(out: Spot, v: f32, accumulate: u32) {
    var value = v;
    if accumulate != 0u {
        value += load1(out);
    }
    store1(out, value);
}

fn finish(sums: Sums) {
    put(p.loss, sums.loss / max(sums.valid, 1.0), p.accumulate);
    put(p.counts, sums.hits, p.accumulate_counts);
    put(ahead(p.counts, 1u), sums.hits5, p.accumulate_counts);
    put(ahead(p.counts, 2u), sums.valid, p.accumulate_counts);
}

@compute @workgroup_size(BLOCK)
fn cross_entropy(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let lane = thread % p.lanes;
    let rows = BLOCK / p.lanes;
    var own = Sums(0.0, 0.0, 0.0, 0.0);
    for (var round = 0u; round < p.rounds; round++) {
        let row = row_of((block * p.rounds + round) * rows + thread / p.lanes);
        let z = partition_of(row, thread);
        let label = load1(ahead(row.logits, row.label));
        var below = 0.0; // sum of top - logit
        var better = 0.0; // classes of a better rank
        for (var j = lane; row.valid && j < p.classes; j += p.lanes) {
            let value = load1(ahead(row.logits, j));
            below += z.top - value;
            if value > label || (value == label && j < row.label) {
                better += 1.0;
            }
        }
        below = row_sum(below, thread);
        better = row_sum(better, thread);
        if lane == 0u && row.valid {
            own.loss += z.log_sum + (1.0 - p.smoothing) * (z.top - label) + p.smoothing / f32(p.classes) * below;
            own.valid += 1.0;
            // A NaN is ahead of nothing and behind nothing: it must not count as a hit.
            if better < 1.0 && is_finite(label) {
                own.hits += 1.0;
            }
            if better < 5.0 && is_finite(label) {
                own.hits5 += 1.0;
            }
        }
    }
    let sums = block_sums(own, thread);
    if thread > 0u {
        return;
    }
    if p.partials == 1u {
        finish(sums);
        return;
    }
    let partial = ahead(p.partial, 4u * block);
    store1(partial, sums.loss);
    store1(ahead(partial, 1u), sums.hits);
    store1(ahead(partial, 2u), sums.hits5);
    store1(ahead(partial, 3u), sums.valid);
}

@compute @workgroup_size(BLOCK)
fn cross_entropy_fold(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    if block_index(workgroup, grid) >= p.blocks {
        return;
    }
    var own = Sums(0.0, 0.0, 0.0, 0.0);
    for (var i = thread; i < p.partials; i += BLOCK) {
        let partial = ahead(p.partial, 4u * i);
        own.loss += load1(partial);
        own.hits += load1(ahead(partial, 1u));
        own.hits5 += load1(ahead(partial, 2u));
        own.valid += load1(ahead(partial, 3u));
    }
    let sums = block_sums(own, thread);
    if thread == 0u {
        finish(sums);
    }
}

@compute @workgroup_size(BLOCK)
fn cross_entropy_backward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    var valid = 0.0;
    for (var r = thread; r < p.rows; r += BLOCK) {
        if load1(ahead(p.labels, r)) >= 0.0 {
            valid += 1.0;
        }
    }
    let scale = load1(p.g) / max(block_sum(valid, thread), 1.0);
    let lane = thread % p.lanes;
    let r = block * (BLOCK / p.lanes) + thread / p.lanes;
    let row = row_of(r);
    let z = partition_of(row, thread);
    if r >= p.rows {
        return;
    }
    let share = p.smoothing / f32(p.classes);
    let dlogits = ahead(p.dlogits, r * p.dlogits_stride);
    for (var j = lane; j < p.classes; j += p.lanes) {
        var value = 0.0;
        if row.valid {
            var wanted = share;
            if j == row.label {
                wanted += 1.0 - p.smoothing;
            }
            value = scale * (exp(load1(ahead(row.logits, j)) - z.top - z.log_sum) - wanted);
        }
        put(ahead(dlogits, j), value, p.accumulate);
    }
}

@compute @workgroup_size(BLOCK)
fn accumulate_sums(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let sums = accumulate_params.sums;
    let counts = accumulate_params.counts;
    if block_index(workgroup, grid) >= accumulate_params.blocks || thread > 0u {
        return;
    }
    store1(sums, load1(sums) + load1(accumulate_params.loss) * load1(ahead(counts, 2u)));
    for (var i = 0u; i < 3u; i++) {
        let sum = ahead(sums, i + 1u);
        store1(sum, load1(sum) + load1(ahead(counts, i)));
    }
}
