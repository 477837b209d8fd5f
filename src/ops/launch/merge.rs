//! Fewer launches for a whole program: launches of one kernel whose ops do not depend on each other become one.
//!
//! Ops stand in the order of their recording, and the memory of the arena is reused by that order. A launch may move to
//! another place among the others as long as it passes no launch that touches what it writes or writes what it touches;
//! this is judged by memory, not by tensors, so that reuse is safe. First every launch joins the earliest one that it may
//! join, then every one that is left sinks into the first later one that it may join: folds of statistics wait for those of
//! the next map, sums of weight gradients for those of other cells.

use super::{Launch, Place, jobs};

/// The launches of one op with the memory that the op touches.
pub struct Lowered {
    /// In order.
    pub launches: Vec<Launch>,
    /// Places read.
    pub reads: Vec<Place>,
    /// Places written, scratch included.
    pub writes: Vec<Place>,
}

struct Slot {
    launch: Launch,
    /// Ops whose launches stand here.
    ops: Vec<usize>,
}

/// Which ops must keep their order, `conflicts[a]` a bit for each later op.
struct Conflicts(Vec<Vec<bool>>);

impl Conflicts {
    fn new(ops: &[Lowered]) -> Self {
        let touches = |a: &[Place], b: &[Place]| a.iter().any(|x| b.iter().any(|y| x.overlaps(*y)));
        let clash = |a: &Lowered, b: &Lowered| {
            touches(&a.writes, &b.writes) || touches(&a.writes, &b.reads) || touches(&a.reads, &b.writes)
        };
        Self((0..ops.len()).map(|b| (0..=b).map(|a| a == b || clash(&ops[a], &ops[b])).collect()).collect())
    }

    fn between(&self, a: usize, b: usize) -> bool {
        self.0[a.max(b)][a.min(b)]
    }

    fn any(&self, a: &[usize], b: &[usize]) -> bool {
        a.iter().any(|&x| b.iter().any(|&y| self.between(x, y)))
    }
}

/// All launches of a program, in an order that computes the same values.
pub fn merge(ops: Vec<Lowered>) -> Vec<Launch> {
    let conflicts = Conflicts::new(&ops);
    let mut slots: Vec<Slot> = Vec::new();
    for (op, lowered) in ops.into_iter().enumerate() {
        for launch in lowered.launches {
            // Launches of one op conflict with each other, so they stay in order.
            let after = slots.iter().rposition(|s| conflicts.any(&s.ops, &[op])).map_or(0, |last| last + 1);
            match slots[after..].iter_mut().find(|s| jobs::joins(&s.launch, &launch)) {
                Some(slot) => {
                    jobs::join(&mut slot.launch, &launch);
                    slot.ops.push(op);
                }
                None => slots.push(Slot { launch, ops: vec![op] }),
            }
        }
    }
    for index in (0..slots.len()).rev() {
        let mut target = None;
        for later in index + 1..slots.len() {
            if conflicts.any(&slots[index].ops, &slots[later].ops) {
                break;
            }
            if jobs::joins(&slots[later].launch, &slots[index].launch) {
                target = Some(later);
                break;
            }
        }
        if let Some(later) = target {
            let slot = slots.remove(index);
            let into = &mut slots[later - 1];
            jobs::join(&mut into.launch, &slot.launch);
            into.ops.extend(slot.ops);
        }
    }
    slots.into_iter().map(|slot| slot.launch).collect()
}

#[cfg(test)]
mod tests {
    use super::super::jobs::JobsParams;
    use super::super::norm::StatisticsJob;
    use super::super::{Lower, Places};
    use super::*;
    use crate::graph::Shape;
    use crate::ops::norm::Statistics;

    fn place(page: u32, offset: u32, shape: Shape) -> Place {
        Place { page, offset, row_stride: shape.c as u32, shape }
    }

    /// Statistics of a map, into a vector of mean and variance.
    fn statistics(map: Place, to: (u32, u32), scratch: u32) -> Lowered {
        let vector = Shape::vector(map.shape.c);
        let outputs = [place(to.0, to.1, vector), place(to.0, to.1 + map.shape.c as u32, vector)];
        let len = Lower::scratch(&Statistics, &[map.shape], &[vector, vector]);
        let scratch = place(9, scratch, Shape::vector(len));
        let at = Places { inputs: &[map], outputs: &outputs, accumulate: &[false; 2], scratch };
        let writes = outputs.into_iter().chain([scratch]).collect();
        Lowered { launches: Statistics.launches(&at), reads: vec![map], writes }
    }

    fn names(launches: &[Launch]) -> Vec<&str> {
        launches.iter().map(|l| l.kernel).collect()
    }

    const MAP: Shape = Shape::map(2, 8, 8, 16);

    #[test]
    fn independent_ops_share_launches() {
        let first = statistics(place(3, 64, MAP), (5, 0), 0);
        let alone = first.launches.clone();
        let merged = merge(vec![first, statistics(place(7, 128, MAP), (5, 64), 100_000)]);
        assert_eq!(names(&merged), ["statistics_partial", "fold_moments"]);
        let blocks = |l: &Launch| bytemuck::pod_read_unaligned::<JobsParams>(&l.params).blocks;
        assert_eq!(blocks(&merged[0]), 2 * blocks(&alone[0]));
        let jobs: Vec<StatisticsJob> =
            merged[0].table.chunks_exact(size_of::<StatisticsJob>()).map(bytemuck::pod_read_unaligned).collect();
        assert_eq!(jobs.len(), 2);
        assert_eq!((jobs[0].first_block, jobs[1].first_block), (0, blocks(&alone[0])));
        let page = |job: &StatisticsJob| (merged[0].pages[job.map[0] as usize], job.map[1]);
        assert_eq!((page(&jobs[0]), page(&jobs[1])), ((3, 64), (7, 128)));
    }

    #[test]
    fn ops_that_touch_the_same_memory_keep_their_order() {
        // The second reads what the first writes; then both use the same scratch.
        let reads = statistics(place(5, 0, Shape::map(1, 1, 2, 16)), (5, 64), 100_000);
        assert_eq!(merge(vec![statistics(place(3, 0, MAP), (5, 0), 0), reads]).len(), 4);
        let reuses = statistics(place(7, 0, MAP), (5, 64), 0);
        assert_eq!(merge(vec![statistics(place(3, 0, MAP), (5, 0), 0), reuses]).len(), 4);
    }

    #[test]
    fn a_launch_waits_for_a_later_one_of_its_kernel() {
        // The third op depends on the second alone; the first one's fold can wait for that of the second.
        let narrow = Shape::map(2, 8, 8, 18);
        let first = statistics(place(3, 0, narrow), (5, 0), 0);
        let second = statistics(place(7, 0, MAP), (6, 0), 100_000);
        let third = statistics(place(6, 0, Shape::map(1, 1, 2, 16)), (5, 64), 200_000);
        let merged = merge(vec![first, second, third]);
        assert_eq!(names(&merged)[..2], ["statistics_partial", "statistics_partial"]);
        assert_eq!(merged.iter().filter(|l| l.kernel == "fold_moments").count(), 2);
        assert_eq!(merged.last().map(|l| l.kernel), Some("fold_moments"));
    }
}
