//! Whole steps on a GPU behind the same checks as on the processor: search steps of first and second order and a training
//! step with its auxiliary head, against PyTorch's values in f64.

use supernet::device::{Device, Executable, Precision};
use supernet::graph::{Program, State, StoreLayout, Tensor};

use crate::torch::{Engine, Small, check_derived, check_first_order, check_second_order};

/// A device with the programs that it has prepared.
pub struct Gpu {
    pub device: Device,
    prepared: Vec<(String, usize, Executable)>,
}

impl Gpu {
    pub fn new(device: Device) -> Self {
        Self { device, prepared: Vec::new() }
    }

    /// Programs are told apart by name and number of ops; each is prepared once.
    fn executable(&mut self, program: &Program) -> Executable {
        let key = |p: &(String, usize, Executable)| p.0 == program.name && p.1 == program.nodes().len();
        if let Some(found) = self.prepared.iter().find(|p| key(p)) {
            return found.2.clone();
        }
        let exe = self.device.prepare(program.clone()).unwrap();
        self.prepared.push((program.name.clone(), program.nodes().len(), exe.clone()));
        exe
    }
}

impl Engine for Gpu {
    fn set(&mut self, state: State, values: &[f64]) {
        let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        self.device.write(state, &values).unwrap();
    }

    fn get(&mut self, state: State) -> Vec<f64> {
        self.device.read(state).unwrap().iter().map(|&v| f64::from(v)).collect()
    }

    fn run(&mut self, program: &Program) {
        let exe = self.executable(program);
        self.device.run(&exe).unwrap();
    }

    fn read(&mut self, program: &Program, tensor: Tensor) -> Vec<f64> {
        let exe = self.executable(program);
        self.device.read_tensor(&exe, tensor).unwrap().iter().map(|&v| f64::from(v)).collect()
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::*;
    use crate::gpu::missing;

    /// The first NVIDIA GPU; says loudly where there is none.
    fn open(layout: &StoreLayout) -> Option<Gpu> {
        match Device::open(&"cuda".parse().unwrap(), layout, 1, Precision::F32) {
            Ok(device) => Some(Gpu::new(device)),
            Err(why) => {
                missing("a CUDA device", "SUPERNET_REQUIRE_CUDA", &why.to_string());
                None
            }
        }
    }

    #[test]
    fn first_order_step() {
        let Some(mut gpu) = open(&Small::new().layout) else { return };
        check_first_order(&mut gpu, 1e-3);
    }

    #[test]
    fn second_order_step() {
        let Some(mut gpu) = open(&Small::new().layout) else { return };
        check_second_order(&mut gpu, 1e-3, false);
    }

    #[test]
    fn derived_network() {
        if open(&StoreLayout::new()).is_some() {
            check_derived(&mut |layout| Box::new(open(layout).unwrap()), 1e-3);
        }
    }
}

#[cfg(feature = "wgpu")]
mod wgpu {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::gpu::missing;
    use crate::torch::{plain_input, recipe};
    use crate::transport::datasets;
    #[cfg(feature = "files")]
    use supernet::config::SearchConfig;
    use supernet::device::paged::{Backend, Gpu as _, Paged};
    use supernet::device::wgpu::{Options as Limits, Wgpu};
    use supernet::network::{Geometry, SearchSpace, Supernet};
    #[cfg(feature = "files")]
    use supernet::run::{Control, Silent};
    #[cfg(feature = "files")]
    use supernet::search::search;
    use supernet::search::step::{Order, SearchRecipe, SearchStates, weight_step};
    use supernet::transport::{
        Cloud, Costs, Domain, Epsilon, Inner, Memory, Options, OtddOptions, Points, Problem, Values, distances, solve,
    };

    /// The fastest adapter; says loudly where there is none.
    fn open(layout: &StoreLayout) -> Option<Gpu> {
        match Device::open(&"wgpu".parse().unwrap(), layout, 1, Precision::F32) {
            Ok(device) => {
                println!("running on {}", device.name());
                Some(Gpu::new(device))
            }
            Err(why) => {
                missing("a Vulkan device", "SUPERNET_REQUIRE_WGPU", &why.to_string());
                None
            }
        }
    }

    #[test]
    fn first_order_step() {
        let Some(mut gpu) = open(&Small::new().layout) else { return };
        check_first_order(&mut gpu, 1e-3);
    }

    #[test]
    fn second_order_step() {
        let Some(mut gpu) = open(&Small::new().layout) else { return };
        check_second_order(&mut gpu, 1e-3, false);
    }

    #[test]
    fn derived_network() {
        if open(&StoreLayout::new()).is_none() {
            return;
        }
        check_derived(&mut |layout| Box::new(open(layout).unwrap()), 1e-3);
    }

    /// A device without subgroups, whose bindings are so small that a step spreads over many pages.
    #[test]
    fn first_order_step_in_small_pages() {
        let layout = Small::new().layout;
        if open(&StoreLayout::new()).is_none() {
            return;
        }
        let options = Limits { binding_bytes: Some(1 << 20), subgroups: false };
        let gpu = Paged::new(Wgpu::open(None, options).unwrap(), &layout, Precision::F32).unwrap();
        assert!(gpu.backend().page() == 1 << 18);
        check_first_order(&mut Gpu::new(Device::Gpu(Box::new(gpu))), 1e-3);
    }

    /// 200 replays allocate nothing.
    #[test]
    fn replays_leave_the_device_as_it_was() {
        let size = Geometry { height: 4, width: 4, channels: 1 };
        let network = Supernet::new(SearchSpace::darts(2, 1).unwrap(), size, 3);
        let mut layout = StoreLayout::new();
        let states = SearchStates::declare(&mut layout, &network, 2);
        if open(&StoreLayout::new()).is_none() {
            return;
        }
        let mut gpu = Paged::new(Wgpu::open(None, Limits::default()).unwrap(), &layout, Precision::F32).unwrap();
        let recipe = SearchRecipe { input: plain_input(1), ..recipe(Order::First) };
        let step = weight_step(&network, &states, &recipe).unwrap().program("weight step", false);
        let exe = gpu.prepare(step).unwrap();
        let mut replay = |times: usize| {
            for _ in 0..times {
                gpu.write(states.model.train.labels, &[0.0, 2.0]).unwrap();
                gpu.run(&exe).unwrap();
                gpu.flag(states.model.flag).unwrap();
            }
            gpu.read(states.model.flag).unwrap();
            (gpu.backend().live(), gpu.bytes())
        };
        let before = replay(20);
        assert!(before.0[0] > 2 && before.0[1] > 50, "{before:?}: the report counts what there is");
        assert_eq!(replay(200), before);
    }

    /// Rows of alphas that lead to each node of a cell.
    fn edges(node: usize) -> std::ops::Range<usize> {
        let first = (0..node).map(|earlier| earlier + 2).sum();
        first..first + node + 2
    }

    /// How far the alphas of a cell may move before the node is built of other edges or primitives.
    fn margin(alphas: &[f64], node: usize) -> f64 {
        let mut strengths = Vec::new();
        let mut margin = f64::INFINITY;
        for edge in edges(node) {
            let row = &alphas[edge * 8..edge * 8 + 8];
            let sum: f64 = row.iter().map(|a| a.exp()).sum();
            // `none` is never chosen.
            let mut shares: Vec<f64> = row[1..].iter().map(|a| a.exp() / sum).collect();
            shares.sort_by(|a, b| b.total_cmp(a));
            margin = margin.min(shares[0] - shares[1]);
            strengths.push(shares[0]);
        }
        strengths.sort_by(|a, b| b.total_cmp(a));
        if strengths.len() > 2 { margin.min(strengths[1] - strengths[2]) } else { margin }
    }

    /// A search follows that of the processor from the same seed. At the usual learning rate any two roundings part: the
    /// AVX-512 and the portable kernels of the processor are 1e-3 apart after 20 steps, as far as either is from f64. A
    /// small rate shows the devices and not the chaos.
    #[cfg(feature = "files")]
    #[test]
    fn a_search_follows_that_of_the_processor() {
        if open(&StoreLayout::new()).is_none() {
            return;
        }
        let run = |device: &str| {
            let out = std::env::temp_dir().join(format!("supernet-follow-{}-{device}", std::process::id()));
            let _ = std::fs::remove_dir_all(&out);
            let config = SearchConfig {
                data: "builtin:fashion".into(),
                size: Some((8, 8)),
                channels: 4,
                layers: 3,
                epochs: 1,
                batch: 16,
                train_images: Some(640),
                learning_rate: 0.001,
                crop_padding: 1,
                device: device.parse().unwrap(),
                threads: 1,
                ..SearchConfig::default()
            };
            let stop = AtomicBool::new(false);
            let report = search(&config, &out, false, &mut Control { observer: &mut Silent, stop: &stop }).unwrap();
            let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
            let record: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
            assert_eq!(record["images"], 640, "20 steps of two batches of 16");
            let alphas = record["alphas"].as_array().unwrap().iter().map(|a| a.as_f64().unwrap()).collect();
            let _ = std::fs::remove_dir_all(&out);
            (report, alphas)
        };
        let ((cpu, of_cpu), (gpu, of_gpu)): ((_, Vec<f64>), (_, Vec<f64>)) = (run("cpu"), run("wgpu"));
        let apart = of_cpu.iter().zip(&of_gpu).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        println!("alphas are {apart:.1e} apart after 20 steps");
        assert!(apart < 1e-4, "alphas are {apart:.1e} apart");
        let mut compared = 0;
        let cells = [(&cpu.genotype.normal, &gpu.genotype.normal), (&cpu.genotype.reduce, &gpu.genotype.reduce)];
        for (cell, alphas) in cells.into_iter().zip(of_cpu.chunks(of_cpu.len() / 2)) {
            for node in 0..4 {
                if margin(alphas, node) > 2.0 * apart {
                    assert_eq!(cell.0[2 * node..2 * node + 2], cell.1[2 * node..2 * node + 2], "node {node}");
                    compared += 1;
                }
            }
        }
        assert!(compared > 0, "no choice is clear enough to be compared");
    }

    /// Transport: problems of many sizes, in both domains and without a matrix, with certificates.
    #[test]
    fn transport_agrees_with_the_processor() {
        if open(&StoreLayout::new()).is_none() {
            return;
        }
        let value = |i: usize| (i as f64 * 0.7548776662).fract() - (i as f64 * 0.5698402910).fract();
        let clouds: Vec<Vec<f64>> = [3, 17, 64, 100, 1]
            .iter()
            .enumerate()
            .map(|(k, n)| (0..n * 5).map(|i| value(i * 7 + k) + 0.1 * k as f64).collect())
            .collect();
        let clouds: Vec<Cloud<'_>> =
            clouds.iter().map(|v| Cloud { name: "a cloud", values: Values::Double(v), dim: 5 }).collect();
        let points = Points::new(&clouds).unwrap();
        let pairs = (0..clouds.len()).flat_map(|a| (0..=a).map(move |b| (a, b)));
        let problems: Vec<Problem> =
            pairs.map(|(a, b)| Problem::uniform(points.cloud(a), points.cloud(b), Epsilon::Mean(0.02))).collect();
        let ways = [(Domain::Log, Memory::Stored), (Domain::Kernel, Memory::Stored), (Domain::Log, Memory::Recomputed)];
        for (domain, memory) in ways {
            let solve = |device: &str| {
                let options = Options { domain, memory, device: device.parse().unwrap(), ..Options::default() };
                let costs = Costs::Points { points: &points, point_scale: 0.5, labels: None };
                solve(costs, &problems, &options, &AtomicBool::new(false), &mut |_| ()).unwrap()
            };
            for (cpu, gpu) in solve("cpu").iter().zip(solve("wgpu")) {
                assert!(cpu.converged && gpu.converged, "{domain:?}, {memory:?}: {cpu:?} and {gpu:?}");
                let what = format!("{domain:?}, {memory:?}: {cpu:?} and {gpu:?}");
                assert!((cpu.cost - gpu.cost).abs() <= 1e-4 * (cpu.cost.abs() + 1e-3), "{what}");
                // A GPU's bounds are widened by a share of the largest cost, which even a cost of zero does not lessen.
                let mean = cpu.epsilon / 0.02;
                for (a, b) in [(cpu.lower, gpu.lower), (cpu.upper, gpu.upper)] {
                    assert!((a - b).abs() <= 1e-4 * a.abs() + 5e-5 * mean, "{what}");
                }
            }
        }
    }

    /// Bounds that a GPU certifies hold, and lie close together.
    #[test]
    fn bounds_of_transport_contain_the_exact_cost() {
        if open(&StoreLayout::new()).is_none() {
            return;
        }
        crate::transport::check_device("wgpu", 7);
        crate::transport::check_gap("wgpu");
    }

    /// Distances of labelled datasets: inner problems of all class pairs, outer ones of costs with labels.
    #[test]
    fn dataset_distances_agree_with_the_processor() {
        if open(&StoreLayout::new()).is_none() {
            return;
        }
        let sets = &datasets()[..3];
        for inner in [Inner::Exact, Inner::Gaussian] {
            let of = |device: &str| {
                let options = OtddOptions { inner, device: device.parse().unwrap(), ..OtddOptions::default() };
                distances(sets, &options, &AtomicBool::new(false)).unwrap()
            };
            let (cpu, gpu) = (of("cpu"), of("wgpu"));
            for (a, b) in cpu.matrix.iter().flatten().zip(gpu.matrix.iter().flatten()) {
                assert!((a - b).abs() <= 1e-3 * a.abs(), "{inner:?}: {a} and {b}");
            }
        }
    }
}
