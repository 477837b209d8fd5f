//! The host side of optimal transport against POT, scipy and a derivation of the released dataset distance in NumPy
//! (`fixtures/make_transport.py`), and what must hold without any of them.

use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use supernet::Error;
use supernet::embedding::Profile;
use supernet::ops::transport::Table;
use supernet::transport::{
    Cloud, Costs, Domain, Epsilon, Gaussian, Held, Inner, Labels, Memory, Options, OtddOptions, Points, Problem,
    Sample, Schedule, Solution, Values, bures, distances, divergences, rank, solve,
};

static FIXTURE: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("fixtures/transport.json")).unwrap());

/// The fixture's generator: 24 bits of splitmix64.
fn u(seed: u64, count: usize) -> Vec<f64> {
    let one = |i: u64| {
        let mut z = ((seed << 32) + i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
    };
    (0..count as u64).map(one).collect()
}

fn cloud(seed: u64, n: usize, d: usize, kind: u64, shift: f64) -> Vec<f64> {
    let place = |(i, x): (usize, f64)| match kind {
        1 if i % d == 0 => x + (i / d % 2) as f64 + shift,
        2 => (4.0 * x).floor() / 4.0 + shift,
        _ => x + shift,
    };
    u(seed, n * d).into_iter().enumerate().map(place).collect()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap()
}

fn count(value: &Value, key: &str) -> usize {
    value[key].as_u64().unwrap() as usize
}

/// Several problems of two clouds each, which share their dimensions.
fn solve_clouds(
    dim: usize,
    sets: &[Vec<f64>],
    pairs: &[(usize, usize)],
    epsilon: Epsilon,
    options: &Options,
) -> Result<Vec<Solution>, Error> {
    let clouds: Vec<Cloud<'_>> =
        sets.iter().map(|v| Cloud { name: "a cloud", values: Values::Double(v), dim }).collect();
    let points = Points::new(&clouds)?;
    let problems: Vec<Problem> =
        pairs.iter().map(|&(a, b)| Problem::uniform(points.cloud(a), points.cloud(b), epsilon)).collect();
    let costs = Costs::Points { points: &points, point_scale: 0.5, labels: None };
    solve(costs, &problems, options, &AtomicBool::new(false), &mut |_| ())
}

fn solve_one(dim: usize, x: &[f64], y: &[f64], epsilon: Epsilon, options: &Options) -> Solution {
    solve_clouds(dim, &[x.to_vec(), y.to_vec()], &[(0, 1)], epsilon, options).unwrap().remove(0)
}

fn tight() -> Options {
    Options { tolerance: 2e-6, iterations: 50_000, ..Options::default() }
}

/// The matrix of costs of two clouds.
fn matrix(dim: usize, x: &[f64], y: &[f64]) -> Vec<f64> {
    let cost = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / 2.0;
    x.chunks_exact(dim).flat_map(|a| y.chunks_exact(dim).map(move |b| cost(a, b))).collect()
}

#[test]
fn costs_are_those_of_pot_and_the_exact_cost_lies_between_the_bounds() {
    for (i, p) in FIXTURE["problems"].as_array().unwrap().iter().enumerate() {
        let (n, m, d, kind) = (count(p, "n"), count(p, "m"), count(p, "d"), count(p, "kind") as u64);
        let (x, y) = (cloud(2 * i as u64 + 1, n, d, kind, 0.0), cloud(2 * i as u64 + 2, m, d, kind, 0.25));
        let epsilon = Epsilon::Mean(number(p, "share"));
        let s = solve_one(d, &x, &y, epsilon, &tight());
        let (cost, exact) = (number(p, "cost"), number(p, "exact"));
        assert!((s.epsilon / number(p, "epsilon") - 1.0).abs() < 1e-5, "problem {i}: eps {}", s.epsilon);
        assert!((s.cost - cost).abs() <= 1e-4 * cost, "problem {i} ({n} x {m} x {d}): {cost}, found {s:?}");
        assert!(s.lower <= exact && exact <= s.upper, "problem {i} ({n} x {m} x {d}): {exact} not within {s:?}");
    }
}

/// A GPU's bounds contain the exact cost, and what it finds is what the processor does, finished and unfinished, with
/// matrices and without. Problems come in steps of `every`.
pub fn check_device(device: &str, every: usize) {
    for (i, p) in FIXTURE["problems"].as_array().unwrap().iter().enumerate().step_by(every) {
        let (n, m, d, kind) = (count(p, "n"), count(p, "m"), count(p, "d"), count(p, "kind") as u64);
        let (x, y) = (cloud(2 * i as u64 + 1, n, d, kind, 0.0), cloud(2 * i as u64 + 2, m, d, kind, 0.25));
        let exact = number(p, "exact");
        for (memory, iterations) in [(Memory::Stored, 2000), (Memory::Recomputed, 2000), (Memory::Stored, 3)] {
            let of = |device: &str| {
                let options = Options {
                    device: device.parse().unwrap(),
                    memory,
                    iterations,
                    domain: Domain::Log,
                    ..Options::default()
                };
                solve_one(d, &x, &y, Epsilon::Mean(number(p, "share")), &options)
            };
            let (cpu, gpu) = (of("cpu"), of(device));
            let what = format!("problem {i} ({n} x {m} x {d}), {memory:?}: {exact}, {cpu:?}, {gpu:?}");
            assert!(gpu.lower <= exact && exact <= gpu.upper, "{what}");
            assert!((cpu.cost - gpu.cost).abs() <= 1e-4 * cpu.cost, "{what}");
            // Bounds are apart by what is added for roundings, too: for Vulkan's quotients more.
            let apart = if device.starts_with("wgpu") { 2e-4 } else { 1e-4 };
            for (a, b) in [(cpu.lower, gpu.lower), (cpu.upper, gpu.upper)] {
                assert!((a - b).abs() <= apart * cpu.cost, "{what}");
            }
        }
    }
}

/// The gap of a device's bounds.
pub fn check_gap(device: &str) {
    let (x, y) = (cloud(61, 256, 64, 0, 0.0), cloud(62, 256, 64, 0, 0.25));
    for (share, gap) in [(0.01, 0.01), (0.002, 0.003)] {
        let options = Options { tolerance: 1e-4, device: device.parse().unwrap(), ..tight() };
        let s = solve_one(64, &x, &y, Epsilon::Mean(share), &options);
        assert!(s.converged && (s.upper - s.lower) <= gap * s.lower, "{share}: {s:?}");
    }
}

#[test]
fn bounds_hold_and_are_honest_without_convergence() {
    for (i, p) in FIXTURE["problems"].as_array().unwrap().iter().enumerate().take(60) {
        let (n, m, d, kind) = (count(p, "n"), count(p, "m"), count(p, "d"), count(p, "kind") as u64);
        let (x, y) = (cloud(2 * i as u64 + 1, n, d, kind, 0.0), cloud(2 * i as u64 + 2, m, d, kind, 0.25));
        let options = Options { iterations: 3, tolerance: -1.0, ..Options::default() };
        let s = solve_one(d, &x, &y, Epsilon::Mean(0.01), &options);
        let exact = number(p, "exact");
        assert!(!s.converged && s.iterations == 3);
        assert!(s.lower <= exact && exact <= s.upper, "problem {i}: {exact} not within {s:?}");
        // A matrix of the same costs, in double precision.
        let problem = Problem::uniform(0..n, 0..m, Epsilon::Mean(0.01));
        let costs = [matrix(d, &x, &y)];
        let s = solve(Costs::Matrices(&costs), &[problem], &tight(), &AtomicBool::new(false), &mut |_| ())
            .unwrap()
            .remove(0);
        assert!(s.lower <= exact && exact <= s.upper, "problem {i}: {exact} not within {s:?}");
    }
}

#[test]
fn the_gap_is_narrow() {
    check_gap("cpu");
}

#[test]
fn domains_agree_and_a_batch_is_the_same_as_one_by_one() {
    let sets: Vec<Vec<f64>> = (0..6).map(|i| cloud(70 + i, 3 + 29 * i as usize, 5, i % 3, 0.1 * i as f64)).collect();
    let pairs: Vec<(usize, usize)> = (0..6).flat_map(|a| (a..6).map(move |b| (a, b))).collect();
    let all = solve_clouds(5, &sets, &pairs, Epsilon::Mean(0.05), &tight()).unwrap();
    // Pieces of a few problems each, on two threads.
    let cut = Options { budget: 30_000, threads: 2, ..tight() };
    assert_eq!(solve_clouds(5, &sets, &pairs, Epsilon::Mean(0.05), &cut).unwrap(), all);
    for (i, &pair) in pairs.iter().enumerate() {
        let own = solve_clouds(5, &sets, &[pair], Epsilon::Mean(0.05), &tight()).unwrap();
        assert_eq!(own[0], all[i], "{pair:?}");
    }
    let log = Options { domain: Domain::Log, ..tight() };
    let log = solve_clouds(5, &sets, &pairs, Epsilon::Mean(0.05), &log).unwrap();
    for (log, kernel) in log.iter().zip(&all) {
        assert!((log.cost - kernel.cost).abs() <= 2e-5 * kernel.cost + 1e-9, "{log:?} {kernel:?}");
    }
}

fn close(a: &Solution, b: &Solution, part: f64) -> bool {
    let pairs = [(a.cost, b.cost), (a.lower, b.lower), (a.upper, b.upper), (a.dual, b.dual), (a.mass, b.mass)];
    pairs.iter().all(|(x, y)| (x - y).abs() <= part * a.upper.max(a.cost))
}

#[test]
fn costs_that_are_recomputed_give_what_stored_ones_give() {
    for (i, p) in FIXTURE["problems"].as_array().unwrap().iter().enumerate().step_by(3) {
        let (n, m, d, kind) = (count(p, "n"), count(p, "m"), count(p, "d"), count(p, "kind") as u64);
        let (x, y) = (cloud(2 * i as u64 + 1, n, d, kind, 0.0), cloud(2 * i as u64 + 2, m, d, kind, 0.25));
        let epsilon = Epsilon::Mean(number(p, "share"));
        let [stored, free] = [Memory::Stored, Memory::Recomputed]
            .map(|memory| solve_one(d, &x, &y, epsilon, &Options { memory, domain: Domain::Log, ..tight() }));
        let (cost, exact) = (number(p, "cost"), number(p, "exact"));
        assert_eq!((stored.costs, free.costs), (Held::Stored, Held::Recomputed));
        assert_eq!(stored.epsilon, free.epsilon, "problem {i}");
        assert!(close(&stored, &free, 1e-5), "problem {i} ({n} x {m} x {d}): {stored:?}, {free:?}");
        assert!((free.cost - cost).abs() <= 1e-4 * cost, "problem {i} ({n} x {m} x {d}): {cost}, found {free:?}");
        assert!(
            free.lower <= exact && exact <= free.upper,
            "problem {i} ({n} x {m} x {d}): {exact} not within {free:?}"
        );
    }
}

#[test]
fn all_ways_of_solving_work_without_a_matrix() {
    let (x, y) = (cloud(21, 150, 70, 1, 0.0), cloud(22, 90, 70, 2, 0.3));
    let clouds = [&x, &y].map(|v| Cloud { name: "a cloud", values: Values::Double(v), dim: 70 });
    let points = Points::new(&clouds).unwrap();
    let of_rows = (0..240).map(|i| i * i % 3).collect();
    let labels = Labels { of_rows, distances: (0..9).map(f64::from).collect(), count: 3, scale: 0.5 };
    let weights = |n: usize| {
        let all: Vec<f64> = (0..n).map(|i| (i % 5) as f64).collect();
        let sum: f64 = all.iter().sum();
        all.into_iter().map(|w| w / sum).collect::<Vec<f64>>()
    };
    let across = Problem::uniform(points.cloud(0), points.cloud(1), Epsilon::Median(0.05));
    let problems = [
        across.clone(),
        Problem { weights: Some((weights(150), weights(90))), diameter: 20.0, ..across.clone() },
        Problem::uniform(points.cloud(0), points.cloud(0), Epsilon::Absolute(0.5)),
        Problem { diameter: 20.0, ..across },
    ];
    let geom = Schedule::GeomLoss { factor: 0.25 };
    let settings = [
        tight(),
        Options { rho: 2.0, ..tight() },
        Options { schedule: geom, ..tight() },
        Options { schedule: Schedule::Converge { factor: 1.0 }, iterations: 7, ..tight() },
    ];
    for options in settings {
        for labels in [None, Some(&labels)] {
            let costs = Costs::Points { points: &points, point_scale: 0.5, labels };
            let all = |memory, threads| {
                let options = Options { memory, threads, domain: Domain::Log, potentials: true, ..options };
                solve(costs, &problems, &options, &AtomicBool::new(false), &mut |_| ()).unwrap()
            };
            let free = all(Memory::Recomputed, 1);
            assert_eq!(free, all(Memory::Recomputed, 2), "bits depend on the threads");
            for (a, b) in all(Memory::Stored, 2).iter().zip(&free) {
                assert!(a.epsilon == b.epsilon && a.converged == b.converged && close(a, b, 1e-5), "{a:?} {b:?}");
            }
        }
    }
}

#[test]
fn a_batch_may_mix_costs_that_are_stored_and_recomputed() {
    let sets: Vec<Vec<f64>> = (0..6).map(|i| cloud(70 + i, 3 + 29 * i as usize, 5, i % 3, 0.1 * i as f64)).collect();
    let pairs: Vec<(usize, usize)> = (0..6).flat_map(|a| (a..6).map(move |b| (a, b))).collect();
    let options = Options { budget: 5000, ..tight() };
    let all = solve_clouds(5, &sets, &pairs, Epsilon::Mean(0.05), &options).unwrap();
    for (i, (a, b)) in pairs.iter().enumerate() {
        let [n, m] = [a, b].map(|&set| sets[set].len() / 5);
        let large = n * m.next_multiple_of(16) > 5000;
        assert_eq!(all[i].costs == Held::Recomputed, large, "{n} x {m}");
        let own = solve_clouds(5, &sets, &[pairs[i]], Epsilon::Mean(0.05), &options).unwrap();
        assert_eq!(own[0], all[i], "{n} x {m}");
    }
    assert!(all.iter().any(|s| s.costs == Held::Stored) && all.iter().any(|s| s.costs == Held::Recomputed));
    // What does not fit into 32 bits needs no matrix.
    assert!(Table::default().push((70_000, 0), (70_000, 70_000), false).is_err());
    Table::matrix_free().push((70_000, 0), (70_000, 70_000), false).unwrap();
}

#[test]
fn order_of_points_changes_nothing() {
    let (n, d) = (41, 6);
    let (x, y) = (cloud(81, n, d, 1, 0.0), cloud(82, n, d, 0, 0.3));
    let turned: Vec<f64> = x.chunks_exact(d).rev().flatten().copied().collect();
    let [a, b] = [x, turned].map(|x| solve_one(d, &x, &y, Epsilon::Mean(0.02), &tight()));
    assert!((a.cost / b.cost - 1.0).abs() < 2e-5 && (a.upper / b.upper - 1.0).abs() < 2e-5, "{a:?} {b:?}");
}

#[test]
fn degenerate_clouds_have_right_answers() {
    let options = tight();
    let relative = Epsilon::Mean(0.01);
    // One sample: the mean cost.
    let s = solve_one(2, &[0.0, 0.0], &[1.0, 0.0, 0.0, 3.0], relative, &options);
    assert!((s.cost - 2.5).abs() < 1e-4 && s.lower <= 2.5 && 2.5 <= s.upper && s.converged, "{s:?}");
    // All points the same; and a cloud with itself, whose exact cost is zero.
    let s = solve_one(1, &[3.0; 4], &[3.0; 7], relative, &options);
    assert!(s.cost == 0.0 && s.lower <= 0.0 && s.upper >= 0.0 && s.upper < 1e-6 && s.converged, "{s:?}");
    let x = cloud(91, 20, 3, 0, 0.0);
    let s = solve_one(3, &x, &x, Epsilon::Mean(0.002), &options);
    assert!(s.lower <= 0.0 && s.upper >= 0.0 && s.upper < 0.02, "{s:?}");
    // Duplicated rows weigh as much as the row itself.
    let y = cloud(92, 13, 3, 0, 0.4);
    let twice: Vec<f64> = x.chunks_exact(3).flat_map(|row| [row, row].concat()).collect();
    let [a, b] = [&x, &twice].map(|x| solve_one(3, x, &y, Epsilon::Mean(0.02), &options));
    assert!((a.cost / b.cost - 1.0).abs() < 2e-5, "{a:?} {b:?}");
    // Scales beyond what squares of f32 hold, and far from the origin.
    for scale in [1e20, 1e-20, 1e100, 1e-100] {
        let scaled = |v: &[f64]| v.iter().map(|x| x * scale).collect::<Vec<_>>();
        let s = solve_one(3, &scaled(&x), &scaled(&y), Epsilon::Mean(0.02), &options);
        assert!((s.cost / scale / scale / a.cost - 1.0).abs() < 2e-5 && s.converged, "{scale}: {s:?}");
    }
    let far = |v: &[f64]| v.iter().map(|x| x + 1e6).collect::<Vec<_>>();
    let s = solve_one(3, &far(&x), &far(&y), Epsilon::Mean(0.02), &options);
    assert!((s.cost / a.cost - 1.0).abs() < 2e-5, "{s:?}");
}

#[test]
fn a_divergence_of_a_cloud_from_itself_is_zero() {
    let (x, y) = (cloud(95, 30, 4, 0, 0.0), cloud(96, 30, 4, 0, 0.0));
    let clouds = [&x, &x, &y].map(|v| Cloud { name: "a cloud", values: Values::Double(v), dim: 4 });
    let points = Points::new(&clouds).unwrap();
    let problems = [1, 2].map(|other| Problem::uniform(points.cloud(0), points.cloud(other), Epsilon::Mean(0.05)));
    let found = divergences((&points, 0.5, None), &problems, &tight(), &AtomicBool::new(false)).unwrap();
    assert!(found[0].value.abs() < 1e-5 && found[0].across.dual > 0.0, "{found:?}");
    assert!(found[1].value > 1e-3, "{found:?}");
    let unbalanced = Options { rho: 1.0, ..tight() };
    assert!(divergences((&points, 0.5, None), &problems, &unbalanced, &AtomicBool::new(false)).is_err());
}

#[test]
fn unbalanced_problems_move_less() {
    let (x, y) = (cloud(97, 20, 2, 0, 0.0), cloud(98, 20, 2, 0, 3.0));
    let balanced = solve_one(2, &x, &y, Epsilon::Mean(0.05), &tight());
    let cheap = solve_one(2, &x, &y, Epsilon::Mean(0.05), &Options { rho: 0.5, ..tight() });
    let dear = solve_one(2, &x, &y, Epsilon::Mean(0.05), &Options { rho: 1e6, ..tight() });
    assert!(cheap.mass < 0.2 && cheap.cost < 0.2 * balanced.cost, "{cheap:?}");
    assert!((dear.cost / balanced.cost - 1.0).abs() < 1e-3 && (dear.mass - 1.0).abs() < 1e-3, "{dear:?} {balanced:?}");
}

#[test]
fn senseless_problems_are_refused() {
    let x = vec![0.0, 1.0, 2.0, 3.0];
    let refuse = |sets: &[Vec<f64>], epsilon, options: &Options, part: &str| {
        let error = solve_clouds(2, sets, &[(0, 1)], epsilon, options).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(part), "no `{part}` in: {error}");
    };
    let (o, e) = (Options::default(), Epsilon::Mean(0.01));
    refuse(&[x.clone(), vec![]], e, &o, "at least one whole point");
    refuse(&[x.clone(), vec![0.0, 1.0, 2.0, f64::NAN]], e, &o, "NaN in row 1, column 1");
    refuse(&[x.clone(), vec![f64::MAX, -f64::MAX]], e, &o, "too far apart");
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refuse(&[x.clone(), x.clone()], Epsilon::Absolute(bad), &o, "epsilon is");
    }
    refuse(&[x.clone(), x.clone()], e, &Options { rho: -1.0, ..o }, "rho -1");
    refuse(&[x.clone(), x.clone()], e, &Options { iterations: 0, ..o }, "iterations 0");
    refuse(&[x.clone(), x], e, &Options { schedule: Schedule::Converge { factor: 1.5 }, ..o }, "factor");
    let problem = Problem::uniform(0..2, 0..2, e);
    let free = Options { memory: Memory::Recomputed, ..o };
    let matrix = [vec![0.0, 1.0, 2.0, 3.0]];
    let refused = solve(Costs::Matrices(&matrix), &[problem], &free, &AtomicBool::new(false), &mut |_| ());
    assert!(refused.unwrap_err().to_string().contains("cannot be recomputed"));
    let clouds = [("one", 2), ("other", 1)].map(|(name, dim)| Cloud { name, values: Values::Double(&[0.0; 4]), dim });
    assert_eq!(
        Points::new(&clouds).unwrap_err().to_string(),
        "other has points of 1 dimensions, one of 2: both need the same"
    );
}

#[test]
fn weights_count_and_points_of_none_are_left_out() {
    let (x, y) = (cloud(11, 6, 2, 0, 0.0), cloud(12, 5, 2, 0, 0.5));
    let clouds = [&x, &y].map(|v| Cloud { name: "a cloud", values: Values::Double(v), dim: 2 });
    let points = Points::new(&clouds).unwrap();
    let costs = Costs::Points { points: &points, point_scale: 0.5, labels: None };
    let stop = AtomicBool::new(false);
    let weighted = |a: Vec<f64>, b: Vec<f64>| {
        let problem = Problem::uniform(points.cloud(0), points.cloud(1), Epsilon::Absolute(0.01));
        solve(costs, &[Problem { weights: Some((a, b)), ..problem }], &tight(), &stop, &mut |_| ())
    };
    let found = weighted(vec![0.0, 0.25, 0.25, 0.25, 0.25, 0.0], vec![0.2; 5]).unwrap().remove(0);
    let fewer = solve_one(2, &x[2..10], &y, Epsilon::Absolute(0.01), &tight());
    assert!((found.cost / fewer.cost - 1.0).abs() < 2e-5, "{found:?} {fewer:?}");
    for (a, part) in [
        (vec![0.5, 0.5, 0.5, 0.5, -0.5, -0.5], "is -0.5"),
        (vec![0.1; 6], "of sum 0.6"),
        (vec![0.2; 5], "5 weights"),
        (vec![f64::NAN; 6], "is NaN"),
    ] {
        let message = weighted(a, vec![0.2; 5]).unwrap_err().to_string();
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

#[test]
fn gaussians_have_the_distances_of_scipy() {
    for (i, case) in FIXTURE["bures"].as_array().unwrap().iter().enumerate() {
        let (n, m, d) = (count(case, "n"), count(case, "m"), count(case, "d"));
        let single = |v: Vec<f64>, factor: f64| v.iter().map(|x| (x * factor) as f32).collect::<Vec<f32>>();
        let x = single(cloud(501 + 2 * i as u64, n, d, 0, 0.0), 1.0);
        let y = single(cloud(502 + 2 * i as u64, m, d, 0, 0.5), 3.0);
        let (found, expected) = (bures(&Gaussian::of(&x, d), &Gaussian::of(&y, d)), number(case, "value"));
        assert!((found / expected - 1.0).abs() < 1e-6, "case {i}: {found}, scipy {expected}");
    }
}

/// The datasets of the fixture.
pub fn datasets() -> Vec<Sample> {
    let (classes, per_class, dim) = (4, 11, 12);
    let sample = |number: usize| {
        let centres = u(700 + number as u64, classes * dim);
        let spread = 1.0 + number as f64 / 4.0;
        let place = |(i, x): (usize, f64)| {
            let class = i / dim / per_class;
            (spread * (16.0 * x + 40.0 * centres[class * dim + i % dim])) as f32
        };
        let points = u(800 + number as u64, classes * per_class * dim).into_iter().enumerate().map(place).collect();
        let labels = (0..classes * per_class).map(|i| (i / per_class) as u32).collect();
        Sample { name: format!("set {number}"), points, dim, labels }
    };
    (0..5).map(sample).collect()
}

#[test]
fn the_profile_of_the_paper_gives_the_released_values() {
    let sets = datasets();
    for (inner, key) in [(Inner::Exact, "exact"), (Inner::Gaussian, "gaussian")] {
        let options = OtddOptions { profile: Profile::Paper, inner, floor: false, ..OtddOptions::default() };
        let found = distances(&sets, &options, &AtomicBool::new(false)).unwrap().matrix;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for (i, row) in FIXTURE["otdd"][key].as_array().unwrap().iter().enumerate() {
            for (j, expected) in row.as_array().unwrap().iter().enumerate() {
                let (value, expected) = (found[i][i + j], expected.as_f64().unwrap());
                // A distance from itself is a small difference of large numbers.
                let slack = if j == 0 { 0.05 } else { 0.0 };
                assert!(
                    (value - expected).abs() <= 0.005 * expected.abs() + slack,
                    "{key} {i} {j}: {value}, {expected}"
                );
                if j > 0 {
                    ours.push(value);
                    theirs.push(expected);
                }
            }
        }
        let order = |v: &[f64]| {
            let mut order: Vec<usize> = (0..v.len()).collect();
            order.sort_by(|&a, &b| v[a].total_cmp(&v[b]));
            order
        };
        assert_eq!(order(&ours), order(&theirs), "{key}");
    }
}

#[test]
fn our_profile_is_zero_at_home_and_ranks_with_confidence() {
    let mut sets = datasets();
    // A class of one image, and a number of classes of its own.
    sets[1].labels[0] = 9;
    let options = OtddOptions { bootstrap: 8, ..OtddOptions::default() };
    let stop = AtomicBool::new(false);
    let found = distances(&sets, &options, &stop).unwrap();
    assert!(found.converged && found.names.len() == 5);
    for i in 0..5 {
        assert_eq!(found.matrix[i][i], 0.0);
        assert!((0..5).all(|j| found.matrix[i][j] == found.matrix[j][i]));
        let floor = found.floor[i].unwrap();
        assert!(floor > 0.0 && (0..5).all(|j| i == j || floor < found.matrix[i][j]), "{found:?}");
    }
    let ranked = rank(&sets[0], &sets, &options, &stop).unwrap();
    assert_eq!((ranked[0].index, ranked[0].name.as_str()), (0, "set 0"));
    // Rounding apart: a set is compared with a copy of itself.
    assert!(ranked[0].distance <= 1e-3 * ranked[1].distance && ranked[0].nearest.unwrap() > 0.9, "{ranked:?}");
    for r in &ranked[1..] {
        let expected = found.matrix[0][r.index];
        assert!((r.distance / expected - 1.0).abs() < 1e-3, "{r:?}: {expected}");
        let [low, high] = r.interval.unwrap();
        assert!(low <= high && r.floor.is_some());
    }
    let twin = Sample { dim: 6, labels: vec![0; 88], ..sets[0].clone() };
    let message = distances(&[sets[2].clone(), twin], &options, &stop).unwrap_err().to_string();
    assert!(message.contains("set 0") && message.contains("set 2") && message.contains('6'), "{message}");
}
