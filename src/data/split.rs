//! Seeded orders and stratified parts: pure functions of the labels, the seed and the epoch.

use crate::random::Stream;

/// Purposes of the streams used here, apart from those of callers (which count from zero).
const PURPOSE_SPLIT: u32 = 0xDA7A_0001;
const PURPOSE_SUBSET: u32 = 0xDA7A_0002;

/// Seeded Fisher-Yates permutation of `0..n` keyed by `(seed, purpose, epoch)`: a pure function, so that a resumed
/// run sees the same order.
///
/// # Panics
/// If `n` is beyond 2^32.
pub fn permutation(n: usize, seed: u64, purpose: u32, epoch: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..u32::try_from(n).expect("at most 2^32 images")).collect();
    let stream = Stream::new(seed, purpose);
    for i in (1..n).rev() {
        // 64 bits a draw: the bias of multiply-shift is below 2^-32 for any n.
        let [low, high, ..] = stream.block(epoch, i as u32);
        let word = u64::from(high) << 32 | u64::from(low);
        let j = (u128::from(word) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}

/// Stratified, seeded split of the indices of `labels` into two parts, each in rising order.
///
/// The first part gets `round(fraction * n)` images, each class within one image of its share. Every class with at
/// least two images is in both parts, and a class with a single image is in the larger one; these two rules win
/// over the total where they disagree.
///
/// # Panics
/// If a label is not below `classes`.
pub fn stratified_split(labels: &[u32], classes: usize, fraction: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let members = members(labels, classes);
    let target = (fraction * labels.len() as f64).round() as usize;
    let quotas: Vec<Quota> = members
        .iter()
        .map(|class| {
            let n = class.len();
            let share = fraction * n as f64;
            let (least, most) = match n {
                0 => (0, 0),
                1 if fraction < 0.5 => (0, 0),
                1 => (1, 1),
                _ => (1, n - 1),
            };
            // Within one image of the share, so that making up the total never skews a class.
            let least = least.max((share - 1.0 - TOLERANCE).ceil().max(0.0) as usize).min(most);
            let most = most.min((share + 1.0 + TOLERANCE).floor() as usize).max(least);
            Quota { share, least, most }
        })
        .collect();
    let taken = allocate(&quotas, target);
    deal(&members, &taken, seed, PURPOSE_SPLIT)
}

/// Stratified, seeded subset of `n` images: indices in rising order. All of them if there are fewer than `n`; every
/// class is there if `n` is at least the number of classes that occur.
///
/// # Panics
/// If a label is not below `classes`.
pub fn stratified_subset(labels: &[u32], classes: usize, n: usize, seed: u64) -> Vec<usize> {
    let members = members(labels, classes);
    let n = n.min(labels.len());
    let occurring = members.iter().filter(|class| !class.is_empty()).count();
    let fraction = n as f64 / labels.len().max(1) as f64;
    let quotas: Vec<Quota> = members
        .iter()
        .map(|class| Quota {
            share: fraction * class.len() as f64,
            least: usize::from(!class.is_empty() && n >= occurring),
            most: class.len(),
        })
        .collect();
    deal(&members, &allocate(&quotas, n), seed, PURPOSE_SUBSET).0
}

/// Shares are products of decimals: this much is rounding, not a remainder.
const TOLERANCE: f64 = 1e-9;

/// What one class may give to the first part.
struct Quota {
    share: f64,
    least: usize,
    most: usize,
}

/// Indices of each class, in rising order.
fn members(labels: &[u32], classes: usize) -> Vec<Vec<usize>> {
    let mut members = vec![Vec::new(); classes];
    for (i, &label) in labels.iter().enumerate() {
        members[label as usize].push(i);
    }
    members
}

/// Largest remainders within each class's bounds; ties go to the lower class. The total is `target` unless the
/// bounds forbid it.
fn allocate(quotas: &[Quota], target: usize) -> Vec<usize> {
    let mut taken: Vec<usize> =
        quotas.iter().map(|q| ((q.share + TOLERANCE).floor() as usize).clamp(q.least, q.most)).collect();
    let mut order: Vec<usize> = (0..quotas.len()).collect();
    loop {
        let total: usize = taken.iter().sum();
        let owed = |class: &usize| quotas[*class].share - taken[*class] as f64;
        let moved = if total < target {
            order.sort_by(|a, b| owed(b).total_cmp(&owed(a)).then(a.cmp(b)));
            shift(&order, target - total, |class| {
                let room = taken[class] < quotas[class].most;
                taken[class] += usize::from(room);
                room
            })
        } else {
            order.sort_by(|a, b| owed(a).total_cmp(&owed(b)).then(a.cmp(b)));
            shift(&order, total - target, |class| {
                let room = taken[class] > quotas[class].least;
                taken[class] -= usize::from(room);
                room
            })
        };
        if moved == 0 {
            return taken;
        }
    }
}

/// One pass over the classes that moves at most `count` images, at most one a class; returns how many moved.
fn shift(order: &[usize], count: usize, mut step: impl FnMut(usize) -> bool) -> usize {
    order.iter().filter(|&&class| step(class)).take(count).count()
}

/// Draws `taken[class]` images of each class at random; the rest is the second part.
fn deal(members: &[Vec<usize>], taken: &[usize], seed: u64, purpose: u32) -> (Vec<usize>, Vec<usize>) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (class, (indices, &count)) in members.iter().zip(taken).enumerate() {
        for (rank, &i) in permutation(indices.len(), seed, purpose, class as u64).iter().enumerate() {
            if rank < count { &mut first } else { &mut second }.push(indices[i as usize]);
        }
    }
    first.sort_unstable();
    second.sort_unstable();
    (first, second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(labels: &[u32], part: &[usize], classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        part.iter().for_each(|&i| counts[labels[i] as usize] += 1);
        counts
    }

    #[test]
    fn permutation_is_pure_and_keyed_by_everything() {
        let base = permutation(100, 1, 2, 3);
        assert_eq!(base, permutation(100, 1, 2, 3));
        for other in [permutation(100, 2, 2, 3), permutation(100, 1, 3, 3), permutation(100, 1, 2, 4)] {
            assert_ne!(base, other);
        }
        let mut sorted = base;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<u32>>());
        assert!(permutation(0, 1, 2, 3).is_empty());
        assert_eq!(permutation(1, 1, 2, 3), [0]);
    }

    #[test]
    fn permutation_reaches_every_order_about_equally() {
        let mut seen = std::collections::HashMap::new();
        for epoch in 0..6000 {
            *seen.entry(permutation(3, 0, 0, epoch)).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 6);
        assert!(seen.values().all(|&n| (850..1150).contains(&n)), "{seen:?}");
    }

    #[test]
    fn rare_classes_are_in_both_parts() {
        let labels: Vec<u32> = std::iter::repeat_n(0, 1000).chain([1, 1, 2]).collect();
        let (train, test) = stratified_split(&labels, 3, 0.9, 0);
        assert_eq!(counts(&labels, &train, 3), [901, 1, 1]);
        assert_eq!(counts(&labels, &test, 3), [99, 1, 0]);
    }

    #[test]
    fn subset_is_exact_and_keeps_rare_classes() {
        let labels: Vec<u32> = std::iter::repeat_n(0, 1000).chain([1, 2, 3]).collect();
        assert_eq!(counts(&labels, &stratified_subset(&labels, 4, 10, 5), 4), [7, 1, 1, 1]);
        assert_eq!(stratified_subset(&labels, 4, 5000, 5).len(), 1003);
        assert_eq!(stratified_subset(&labels, 4, 2, 5).len(), 2);
        assert!(stratified_subset(&labels, 4, 0, 5).is_empty());
        assert!(stratified_subset(&[], 4, 3, 5).is_empty());
    }

    proptest! {
        #[test]
        fn splits_are_partitions_near_their_shares(
            labels in prop::collection::vec(0u32..7, 0..300), fraction in 0.0f64..1.0, seed: u64,
        ) {
            let (first, second) = stratified_split(&labels, 7, fraction, seed);
            let mut all: Vec<usize> = first.iter().chain(&second).copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..labels.len()).collect::<Vec<_>>());
            let everything: Vec<usize> = (0..labels.len()).collect();
            let (whole, part) = (counts(&labels, &everything, 7), counts(&labels, &first, 7));
            for class in 0..7 {
                let share = fraction * whole[class] as f64;
                prop_assert!((part[class] as f64 - share).abs() <= 1.0 + 1e-6, "{whole:?} {part:?} {fraction}");
                prop_assert!(whole[class] < 2 || (part[class] > 0 && part[class] < whole[class]));
            }
            if whole.iter().all(|&n| n as f64 * fraction.min(1.0 - fraction) >= 1.0) {
                prop_assert_eq!(first.len(), (fraction * labels.len() as f64).round() as usize);
            }
            prop_assert_eq!(stratified_split(&labels, 7, fraction, seed), (first, second));
        }

        #[test]
        fn subsets_have_the_size_asked_for(
            labels in prop::collection::vec(0u32..7, 1..300), n in 0usize..300, seed: u64,
        ) {
            let subset = stratified_subset(&labels, 7, n, seed);
            prop_assert_eq!(subset.len(), n.min(labels.len()));
            prop_assert!(subset.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
