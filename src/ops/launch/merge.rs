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
