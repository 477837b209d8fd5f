// Second half of reductions: kernels/fold.cu in WGSL, function by function.

struct FoldSums {
    first_block: u32,
    blocks: u32,
    elements: u32,
    columns: u32,
    stride: u32,
    chunks: u32,
    chunk_stride: u32,
    accumulate: u32,
    partial: Spot,
    out: Spot,
}

// Records of a full table.
const SUMS: u32 = 341;

@group(0) @binding(0) var<uniform> p: JobsParams;
@group(0) @binding(1) var<uniform> sums: array<FoldSums, SUMS>;

// The job of a block: the last record whose first block is not beyond it.
fn sums_of(block: u32) -> u32 {
    var low = 0u;
    for (var high = p.jobs; high - low > 1u;) {
        let middle = (low + high) / 2u;
        if sums[middle].first_block <= block {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// A thread adds up the chunks of one element.
@compute @workgroup_size(BLOCK)
fn fold_sums(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_index(workgroup, grid);
    if block >= p.blocks {
        return;
    }
    let j = sums_of(block);
    let element = (block - sums[j].first_block) * BLOCK + thread;
    if element >= sums[j].elements {
        return;
    }
    let partial = ahead(sums[j].partial, element);
    var sum = 0.0;
    for (var chunk = 0u; chunk < sums[j].chunks; chunk++) {
        sum += load1(ahead(partial, chunk * sums[j].chunk_stride));
    }
    let out = ahead(sums[j].out, element / sums[j].columns * sums[j].stride + element % sums[j].columns);
    if sums[j].accumulate != 0u {
        sum += load1(out);
    }
    store1(out, sum);
}
