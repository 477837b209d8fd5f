// What shaders share whose tables hold jobs (kernels/common.cuh).

// The job of a block: the last record whose first block is not beyond it.
fn job_of(block: u32) -> u32 {
    var low = 0u;
    for (var high = p.jobs; high - low > 1u;) {
        let middle = (low + high) / 2u;
        if table[middle].first_block <= block {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}
