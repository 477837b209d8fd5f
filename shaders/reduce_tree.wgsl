// Sums over a block for devices without subgroups.

// Sum over all threads of the block, in a fixed order; every thread gets it, as a value that is uniform to the compiler.
fn block_sum(v: f32, thread: u32) -> f32 {
    block_values[thread] = v;
    for (var half = BLOCK / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            block_values[thread] += block_values[thread + half];
        }
    }
    return workgroupUniformLoad(&block_values[0]);
}
