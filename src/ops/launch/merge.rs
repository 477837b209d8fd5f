//! Fewer launches for a whole program: launches of one kernel that do not depend on each other become one.
//!
//! Ops stand in the order of their recording, and the memory of the arena is reused by that order. Two launches keep their
//! order if one of them writes what the other one touches; this is judged by memory, not by tensors, so that reuse is safe.
//! Any order that respects this computes the same values, and the longest chain of launches bounds their number from below.
//! Launches are therefore put in order by what still depends on them: the one at the head of the longest chain is next, and
//! takes along all others of its kernel that could run now. Whatever nothing waits for, such as sums of weight gradients,
//! comes late and in company. The same is done from the end; the shorter outcome counts.

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

/// Which launches must come before which.
struct Order {
    before: Vec<Vec<usize>>,
    after: Vec<Vec<usize>>,
}

impl Order {
    fn new(ops: &[Lowered]) -> Self {
        // Every access to memory, by page and first element.
        let mut accesses: Vec<(usize, Place, bool)> = Vec::new();
        let mut count = 0;
        for op in ops {
            for launch in &op.launches {
                let known = !(launch.reads.is_empty() && launch.writes.is_empty());
                let (reads, writes) = if known { (&launch.reads, &launch.writes) } else { (&op.reads, &op.writes) };
                accesses.extend(reads.iter().map(|&place| (count, place, false)));
                accesses.extend(writes.iter().map(|&place| (count, place, true)));
                count += 1;
            }
        }
        accesses.sort_unstable_by_key(|(_, place, _)| (place.page, place.extent().start));
        let mut clash = vec![false; count * count];
        for (index, &(a, place, writes)) in accesses.iter().enumerate() {
            let end = place.extent().end;
            let near =
                accesses[index + 1..].iter().take_while(|(_, p, _)| p.page == place.page && p.extent().start < end);
            for &(b, other, also_writes) in near {
                if a != b && (writes || also_writes) && !clash[a.min(b) * count + a.max(b)] && place.overlaps(other) {
                    clash[a.min(b) * count + a.max(b)] = true;
                }
            }
        }
        let after = |a: usize| (a + 1..count).filter(|&b| clash[a * count + b]).collect();
        let before = |b: usize| (0..b).filter(|&a| clash[a * count + b]).collect();
        Self { before: (0..count).map(before).collect(), after: (0..count).map(after).collect() }
    }

    /// The same seen from the end.
    fn reversed(self) -> Self {
        Self { before: self.after, after: self.before }
    }
}

/// Puts launches into groups to be merged, in order. `longest` are the launches of the longest chain that begins with each.
fn schedule(launches: &[Launch], order: &Order, longest: &[usize]) -> Vec<Vec<usize>> {
    let mut missing: Vec<usize> = order.before.iter().map(Vec::len).collect();
    let mut ready: Vec<usize> = (0..launches.len()).filter(|&i| missing[i] == 0).collect();
    let mut groups = Vec::new();
    while !ready.is_empty() {
        ready.sort_unstable_by_key(|&i| (std::cmp::Reverse(longest[i]), i));
        let mut whole = launches[ready[0]].clone();
        let mut group = vec![ready[0]];
        for &other in &ready[1..] {
            if jobs::joins(&whole, &launches[other]) {
                jobs::join(&mut whole, &launches[other]);
                group.push(other);
            }
        }
        ready.retain(|i| !group.contains(i));
        for &done in &group {
            for &next in &order.after[done] {
                missing[next] -= 1;
                ready.extend((missing[next] == 0).then_some(next));
            }
        }
        groups.push(group);
    }
    groups
}

/// Empties groups whose launches can all stand in others, before or behind.
fn dissolve(groups: &mut Vec<Vec<usize>>, launches: &[Launch], order: &Order) {
    let mut at = vec![0; launches.len()];
    for (index, group) in groups.iter().enumerate() {
        group.iter().for_each(|&launch| at[launch] = index);
    }
    let mut wholes: Vec<Launch> = groups.iter().map(|group| whole(group, launches)).collect();
    let mut again = true;
    while std::mem::take(&mut again) {
        for index in 0..groups.len() {
            let mut homes: Vec<(usize, Launch)> = Vec::new();
            let home = |&launch: &usize| {
                let first = order.before[launch].iter().map(|&other| at[other] + 1).max().unwrap_or(0);
                let end = order.after[launch].iter().map(|&other| at[other]).min().unwrap_or(groups.len());
                let fits = |&other: &usize| {
                    let filled = homes.iter().rev().find(|(home, _)| *home == other).map_or(&wholes[other], |(_, l)| l);
                    other != index && !groups[other].is_empty() && jobs::joins(filled, &launches[launch])
                };
                let other = (first..end).find(fits)?;
                let filled = homes.iter().rev().find(|(home, _)| *home == other).map_or(&wholes[other], |(_, l)| l);
                let mut filled = filled.clone();
                jobs::join(&mut filled, &launches[launch]);
                homes.push((other, filled));
                Some(())
            };
            if groups[index].is_empty() || groups[index].iter().map(home).any(|found| found.is_none()) {
                continue;
            }
            for (launch, (home, filled)) in std::mem::take(&mut groups[index]).into_iter().zip(homes) {
                at[launch] = home;
                groups[home].push(launch);
                wholes[home] = filled;
            }
            again = true;
        }
    }
    groups.retain(|group| !group.is_empty());
}

/// The launch that all of a group become.
fn whole(group: &[usize], launches: &[Launch]) -> Launch {
    let mut launch = launches[group[0]].clone();
    group[1..].iter().for_each(|&other| jobs::join(&mut launch, &launches[other]));
    launch
}

/// Launches of the longest chain that begins with each launch, if `indices` lists each behind all that come after it.
fn longest(order: &Order, indices: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut longest = vec![0; order.after.len()];
    for index in indices {
        longest[index] = 1 + order.after[index].iter().map(|&next| longest[next]).max().unwrap_or(0);
    }
    longest
}

/// Launches in groups to be merged, in an order that keeps `order`.
fn group(launches: &[Launch], order: Order) -> Vec<Vec<usize>> {
    let count = launches.len();
    let mut forward = schedule(launches, &order, &longest(&order, (0..count).rev()));
    dissolve(&mut forward, launches, &order);
    let order = order.reversed();
    let mut backward = schedule(launches, &order, &longest(&order, 0..count));
    dissolve(&mut backward, launches, &order);
    backward.reverse();
    if forward.len() <= backward.len() { forward } else { backward }
}

/// All launches of a program, in an order that computes the same values.
pub fn merge(ops: Vec<Lowered>) -> Vec<Launch> {
    let order = Order::new(&ops);
    let launches: Vec<Launch> = ops.into_iter().flat_map(|op| op.launches).collect();
    let groups = group(&launches, order);
    groups.iter().map(|group| whole(group, &launches)).collect()
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
        Place { page, offset, row_stride: shape.c as u32, shape, half: false }
    }

    /// Statistics of a map, into a vector of mean and variance.
    fn statistics(map: Place, to: (u32, u32), scratch: u32) -> Lowered {
        let vector = Shape::vector(map.shape.c);
        let outputs = [place(to.0, to.1, vector), place(to.0, to.1 + map.shape.c as u32, vector)];
        let len = Lower::scratch(&Statistics, &[map.shape], &[vector, vector]);
        let scratch = place(9, scratch, Shape::vector(len));
        let at = Places { inputs: &[map], outputs: &outputs, accumulate: &[false; 2], scratch, pieces: &[scratch] };
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
        assert_eq!(names(&merged), ["statistics_partial", "pool_forward"]);
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
        let first = statistics(place(3, 2, MAP), (5, 0), 0);
        let second = statistics(place(7, 0, MAP), (6, 0), 100_000);
        let third = statistics(place(6, 0, Shape::map(1, 1, 2, 16)), (5, 64), 200_000);
        let merged = merge(vec![first, second, third]);
        assert_eq!(merged.len(), 5);
        assert_eq!(merged.iter().filter(|l| l.kernel == "pool_forward").count(), 2);
        assert_eq!(merged.last().map(|l| l.kernel), Some("pool_forward"));
    }

    #[test]
    fn any_program_keeps_the_order_of_what_touches_the_same_memory() {
        let mut seed = 1u32;
        let mut draw = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % below
        };
        for _ in 0..50 {
            // Few places, so that everything is read, written and used again; some maps are not aligned.
            let mut op = || {
                let map = Place { offset: draw(6) * 512 + 2 * draw(2), ..place(draw(2), 0, Shape::map(1, 4, 8, 16)) };
                statistics(map, (draw(2), 512 * draw(6)), 4_096 * draw(3))
            };
            let ops: Vec<Lowered> = (0..20).map(|_| op()).collect();
            let order = Order::new(&ops);
            let launches: Vec<Launch> = ops.into_iter().flat_map(|op| op.launches).collect();
            let after = order.after.clone();
            let groups = group(&launches, order);
            let mut at = vec![None; launches.len()];
            for (index, group) in groups.iter().enumerate() {
                group.iter().for_each(|&launch| assert_eq!(at[launch].replace(index), None));
            }
            assert!(groups.len() < launches.len() && at.iter().all(Option::is_some));
            assert!(after.iter().enumerate().all(|(a, after)| after.iter().all(|&b| at[a] < at[b])));
        }
    }
}
