// Sums over a block for devices with subgroups, of any size, even of sizes that differ: whoever takes part in an operation
// is one subgroup, and how threads are dealt to them is left open.

var<workgroup> block_total: f32;

// Sum over all threads of the block, in an order that is fixed for a device; every thread gets it, as a value that is
// uniform to the compiler.
fn block_sum(v: f32, thread: u32) -> f32 {
    let part = subgroupAdd(v);
    block_values[thread] = select(0.0, part, subgroupExclusiveAdd(1u) == 0u);
    workgroupBarrier();
    // Asked only now: who diverged in the caller may have come to the barrier in parts.
    let lane = subgroupExclusiveAdd(1u);
    let lanes = subgroupAdd(1u);
    var own = 0.0;
    for (var i = lane; i < BLOCK; i += lanes) {
        own += block_values[i];
    }
    let sum = subgroupAdd(own);
    if thread == 0u {
        block_total = sum;
    }
    return workgroupUniformLoad(&block_total);
}
