//! Parity with PyTorch in f64: the fixtures that `tests/fixtures/make_fixtures.py` wrote, run on the reference device
//! (f64 within 1e-9) and on the f32 engine (within 1e-3), whole networks and whole steps.

use std::collections::HashMap;

use safetensors::{Dtype, SafeTensors};
use supernet::config::SearchConfig;
use supernet::data::Normalisation;
use supernet::device::Executable;
use supernet::device::cpu::Cpu;
use supernet::device::reference::Reference;
use supernet::graph::{Program, State, StoreLayout};
use supernet::network::{Derived, DerivedConfig, Genotype, Geometry, Layout, SearchSpace, Supernet};
use supernet::ops::Real;
use supernet::ops::optimiser::Adam;
use supernet::search::run::plan;
use supernet::search::step::{self, InputPipeline, Order, SearchRecipe, SearchStates, Watched, WeightOptimiser};
use supernet::train::step as train_step;

/// A fixture file: every tensor as f64, by name.
pub struct Fixture {
    tensors: HashMap<String, Vec<f64>>,
    pub case: serde_json::Value,
}

impl Fixture {
    pub fn load(name: &str) -> Self {
        // Asked at run time: the tests may run on another machine than the one that built them.
        let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
        let path = format!("{root}/tests/fixtures/{name}.safetensors");
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let case = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["case"]).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, t)| {
            let wide = match t.dtype() {
                Dtype::F64 => t.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
                Dtype::F32 => {
                    t.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
                }
                Dtype::I64 => {
                    t.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect()
                }
                other => panic!("{name}: unexpected type {other:?}"),
            };
            (name, wide)
        });
        Self { tensors: tensors.collect(), case }
    }

    pub fn get(&self, name: &str) -> &[f64] {
        // A module without a name of its own gives names that begin with a dot.
        let name = name.replace("/.", "/");
        self.tensors.get(&name).unwrap_or_else(|| panic!("the fixture has no tensor {name}"))
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(&name.replace("/.", "/"))
    }

    /// Weights under a prefix, in the engine's flat layout.
    pub fn weights(&self, layout: &Layout, prefix: &str) -> Vec<f64> {
        let mut flat = vec![0.0; layout.weights_len()];
        for p in layout.parameters() {
            let name = format!("{prefix}{}", p.name);
            let torch = if self.has(&name) { self.get(&name).to_vec() } else { big_weight(p.shape.len()) };
            for i in 0..p.shape.len() {
                flat[p.offset + i] = torch[p.torch_index(i)];
            }
        }
        flat
    }

    /// Running statistics under a prefix, in the engine's flat layout.
    pub fn running(&self, layout: &Layout, prefix: &str) -> Vec<f64> {
        let mut flat = vec![0.0; layout.running_len()];
        for s in layout.statistics() {
            for (i, part) in ["running_mean", "running_var"].into_iter().enumerate() {
                let at = s.offset + i * s.channels;
                flat[at..at + s.channels].copy_from_slice(self.get(&format!("{prefix}{}.{part}", s.names[0])));
            }
        }
        flat
    }

    /// Both alpha tables under a prefix, flat.
    pub fn alphas(&self, prefix: &str) -> Vec<f64> {
        ["normal", "reduce"].iter().flat_map(|k| self.get(&format!("{prefix}alphas_{k}")).iter().copied()).collect()
    }
}

/// The one weight of the derived network that is rebuilt by a formula instead of being stored.
fn big_weight(len: usize) -> Vec<f64> {
    let element = |i: usize| {
        let mut x = (i as u32).wrapping_mul(2654435761);
        x ^= x >> 16;
        x = x.wrapping_mul(2246822519);
        x ^= x >> 13;
        (f64::from(x >> 8) / f64::from(1 << 24) - 0.5) / 8.0
    };
    (0..len).map(element).collect()
}

/// `|a - b| / |b|` over a whole tensor.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().all(|v| v.is_finite()), "not finite");
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(x, y)| x - y)) / norm(&mut b.iter().copied()).max(1e-30)
}

#[track_caller]
pub fn close(what: &str, a: &[f64], b: &[f64], tolerance: f64) {
    let d = distance(a, b);
    assert!(d < tolerance, "{what}: relative distance {d:.3e}, allowed {tolerance:.0e}");
}

/// NCHW to NHWC, scaled so that the input pipeline's division by 255 gives the values back.
pub fn pixels(x: &[f64], (n, h, w, c): (usize, usize, usize, usize)) -> Vec<f64> {
    assert_eq!(x.len(), n * h * w * c);
    let mut out = vec![0.0; x.len()];
    for (i, &value) in x.iter().enumerate() {
        let (image, ch, pixel) = (i / (c * h * w), i / (h * w) % c, i % (h * w));
        out[(image * h * w + pixel) * c + ch] = 255.0 * value;
    }
    out
}

/// What runs a step: a device with a store.
pub trait Engine {
    fn set(&mut self, state: State, values: &[f64]);
    fn get(&mut self, state: State) -> Vec<f64>;
    fn run(&mut self, program: &Program);
    fn read(&mut self, program: &Program, tensor: supernet::graph::Tensor) -> Vec<f64>;
}

impl<T: Real> Engine for Reference<T> {
    fn set(&mut self, state: State, values: &[f64]) {
        for (to, &from) in self.state_mut(state).iter_mut().zip(values) {
            *to = T::of(from);
        }
    }

    fn get(&mut self, state: State) -> Vec<f64> {
        self.state(state).iter().map(|v| v.wide()).collect()
    }

    fn run(&mut self, program: &Program) {
        Reference::run(self, program);
    }

    fn read(&mut self, program: &Program, tensor: supernet::graph::Tensor) -> Vec<f64> {
        Reference::read(self, program, tensor).iter().map(|v| v.wide()).collect()
    }
}

const PLAIN: WeightOptimiser = WeightOptimiser { momentum: 0.9, decay: 3e-4, clip: 5.0 };

pub fn plain_input(channels: usize) -> InputPipeline {
    let normalisation = Normalisation { mean: vec![0.0; channels], std: vec![1.0; channels] };
    InputPipeline { pad: 0, flip: false, cutout: 0, normalisation, seed: 0 }
}

pub fn recipe(order: Order) -> SearchRecipe {
    let adam = Adam { beta1: 0.5, beta2: 0.999, eps: 1e-8, decay: 1e-3 };
    SearchRecipe { order, optimiser: PLAIN, adam, input: plain_input(3) }
}

/// The small supernet of the fixtures, its states declared.
pub struct Small {
    network: Supernet,
    states: SearchStates,
    pub layout: StoreLayout,
}

impl Small {
    pub fn new() -> Self {
        let size = Geometry { height: 16, width: 16, channels: 3 };
        let network = Supernet::new(SearchSpace::darts(4, 4).unwrap(), size, 5);
        let mut layout = StoreLayout::new();
        let states = SearchStates::declare(&mut layout, &network, 4);
        Self { network, states, layout }
    }

    fn stage(&self, engine: &mut dyn Engine, fixture: &Fixture) {
        let s = &self.states;
        engine.set(s.model.weights, &fixture.weights(&self.network.layout, "init/w/"));
        engine.set(s.model.running, &fixture.running(&self.network.layout, "init/buf/"));
        engine.set(s.alphas, &fixture.alphas("init/"));
        for (batch, name) in [(s.model.train, "train"), (s.valid, "valid")] {
            engine.set(batch.pixels, &pixels(fixture.get(&format!("{name}/x")), (4, 16, 16, 3)));
            engine.set(batch.labels, fixture.get(&format!("{name}/y")));
        }
        engine.set(s.model.rate, &[0.025]);
        engine.set(s.alpha_rate, &[3e-4]);
    }

    /// Runs a step and hands back what it watched.
    fn step(&self, engine: &mut dyn Engine, step: step::Step) -> (Program, Watched) {
        let watched = step.watched.clone();
        let program = step.program("step", true);
        engine.run(&program);
        (program, watched)
    }
}

pub fn check_first_order(engine: &mut dyn Engine, tolerance: f64) {
    let (small, fixture) = (Small::new(), Fixture::load("supernet"));
    let (layout, s) = (&small.network.layout, &small.states);
    small.stage(engine, &fixture);
    let step = step::architecture_step(&small.network, s, &recipe(Order::First)).unwrap();
    let (program, watched) = small.step(engine, step);
    close("logits", &engine.read(&program, watched.logits.unwrap()), fixture.get("alpha_step/logits"), tolerance);
    close("loss", &engine.read(&program, watched.loss.unwrap()), fixture.get("alpha_step/loss"), tolerance);
    let gradient = engine.read(&program, watched.gradient.unwrap());
    close("alpha gradient", &gradient, &fixture.alphas("alpha_step/grad/"), tolerance);
    close("alphas", &engine.get(s.alphas), &fixture.alphas("alpha_step/after/"), tolerance);
    close("buffers", &engine.get(s.model.running), &fixture.running(layout, "alpha_step/after/buf/"), tolerance);

    let step = step::weight_step(&small.network, s, &recipe(Order::First)).unwrap();
    let (weight_program, watched) = small.step(engine, step);
    let read = |engine: &mut dyn Engine, t: Option<_>| engine.read(&weight_program, t.unwrap());
    close("logits", &read(engine, watched.logits), fixture.get("weight_step/logits"), tolerance);
    close("loss", &read(engine, watched.loss), fixture.get("weight_step/loss"), tolerance);
    close("norm", &read(engine, watched.norm), fixture.get("weight_step/grad_norm"), tolerance);
    let gradient = read(engine, watched.gradient);
    let expected = fixture.weights(layout, "weight_step/grad/");
    for p in layout.parameters() {
        let range = p.offset..p.offset + p.shape.len();
        // Stored as f32. A weight in front of a batch norm may have no gradient but noise, so the floor is absolute.
        let (own, theirs) = (&gradient[range.clone()], &expected[range]);
        let floor = 1e-7 * theirs.iter().fold(1e-3f64, |a, b| a.max(b.abs()));
        let worst = own.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let scale = theirs.iter().map(|v| v * v).sum::<f64>().sqrt();
        assert!(
            worst < floor + tolerance.max(2e-7) * scale,
            "gradient of {}: off by {worst:.3e}, norm {scale:.3e}",
            p.name
        );
    }
    close("buffers", &engine.get(s.model.running), &fixture.running(layout, "weight_step/after/buf/"), tolerance);
    for _ in 0..2 {
        engine.run(&program);
        engine.run(&weight_program);
    }
    check_after_three(engine, &small, &fixture, tolerance);
}

fn check_after_three(engine: &mut dyn Engine, small: &Small, fixture: &Fixture, tolerance: f64) {
    let (layout, s) = (&small.network.layout, &small.states);
    // These weights are stored as f32.
    close("weights", &engine.get(s.model.weights), &fixture.weights(layout, "three/w/"), tolerance.max(1e-7));
    close("alphas", &engine.get(s.alphas), &fixture.alphas("three/"), tolerance);
    close("buffers", &engine.get(s.model.running), &fixture.running(layout, "three/buf/"), tolerance);
}

pub fn check_second_order(engine: &mut dyn Engine, tolerance: f64, small_radius: bool) {
    let (small, fixture) = (Small::new(), Fixture::load("second_order"));
    let s = &small.states;
    let stage = |engine: &mut dyn Engine| {
        small.stage(engine, &fixture);
        engine.set(s.model.velocity, &fixture.weights(&small.network.layout, "init/momentum/"));
        engine.set(s.first_moment, &fixture.alphas("init/adam_m/"));
        engine.set(s.second_moment, &fixture.alphas("init/adam_v/"));
        engine.set(s.adam_steps, &[1.0]);
    };
    if small_radius {
        stage(engine);
        let step = step::architecture_step_with_radius(&small.network, s, &recipe(Order::Second), 1e-5).unwrap();
        let (program, watched) = small.step(engine, step);
        let hessian = engine.read(&program, watched.hessian.unwrap());
        close("Hessian term, small radius", &hessian, &fixture.alphas("step1/hvp_small/"), 1e-6);
        close("Hessian term by double backward", &hessian, &fixture.alphas("step1/hvp_exact/"), 1e-4);
    }
    stage(engine);
    let step = step::architecture_step(&small.network, s, &recipe(Order::Second)).unwrap();
    let (program, watched) = small.step(engine, step);
    let read = |engine: &mut dyn Engine, t: Option<_>| engine.read(&program, t.unwrap());
    close("loss", &read(engine, watched.loss), fixture.get("step1/valid_loss"), tolerance);
    close("direct", &read(engine, watched.direct), &fixture.alphas("step1/direct/"), tolerance);
    close("Hessian term", &read(engine, watched.hessian), &fixture.alphas("step1/hvp/"), 10.0 * tolerance);
    close("total", &read(engine, watched.gradient), &fixture.alphas("step1/final/"), 10.0 * tolerance);
    close("alphas", &engine.get(s.alphas), &fixture.alphas("step1/after/"), tolerance);
    let step = step::weight_step(&small.network, s, &recipe(Order::Second)).unwrap();
    let (weight_program, _) = small.step(engine, step);
    for _ in 0..2 {
        engine.run(&program);
        engine.run(&weight_program);
    }
    check_after_three(engine, &small, &fixture, tolerance);
}

pub fn check_derived(engine_for: &mut dyn FnMut(&StoreLayout) -> Box<dyn Engine>, tolerance: f64) {
    let fixture = Fixture::load("derived");
    let genotype: Genotype = serde_json::from_value(fixture.case["genotype"].clone()).unwrap();
    let config = DerivedConfig { genotype, channels: 4, layers: 3, auxiliary: true };
    let network = Derived::new(config, Geometry { height: 32, width: 32, channels: 3 }, 5);
    let mut layout = StoreLayout::new();
    let s = train_step::TrainStates::declare(&mut layout, &network, 4);
    let mut engine = engine_for(&layout);
    engine.set(s.model.weights, &fixture.weights(&network.layout, "w/"));
    engine.set(s.model.running, &fixture.running(&network.layout, "buf/"));
    for batch in [s.model.train, s.test] {
        engine.set(batch.pixels, &pixels(fixture.get("x"), (4, 32, 32, 3)));
        engine.set(batch.labels, fixture.get("y"));
    }
    let recipe = train_step::TrainRecipe {
        optimiser: PLAIN,
        input: plain_input(3),
        smoothing: 0.0,
        auxiliary: 0.4,
        drop_path: false,
    };
    let step = train_step::train_step(&network, &s, &recipe).unwrap();
    let watched = step.watched.clone();
    let program = step.program("train", true);
    engine.run(&program);
    close("logits", &engine.read(&program, watched.logits.unwrap()), fixture.get("logits"), tolerance);
    close("loss", &engine.read(&program, watched.loss.unwrap()), fixture.get("loss"), tolerance);
    close("buffers", &engine.get(s.model.running), &fixture.running(&network.layout, "buf_after/"), tolerance);
    let gradient = engine.read(&program, watched.gradient.unwrap());
    for p in network.layout.parameters() {
        let mut torch = vec![0.0; p.shape.len()];
        for i in 0..p.shape.len() {
            torch[p.torch_index(i)] = gradient[p.offset + i];
        }
        let name = format!("grad/{}", p.name);
        let (own, theirs): (Vec<f64>, &[f64]) = if fixture.has(&name) {
            (torch, fixture.get(&name))
        } else {
            (torch.iter().step_by(16).copied().collect(), fixture.get("big_grad_sample"))
        };
        let worst = own.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let scale = theirs.iter().map(|v| v * v).sum::<f64>().sqrt();
        assert!(worst < tolerance * (scale + 1e-2), "gradient of {}: off by {worst:.3e}, norm {scale:.3e}", p.name);
    }
    let step = train_step::evaluation(&network, &s, &plain_input(3)).unwrap();
    let watched = step.watched.clone();
    let program = step.program("evaluate", true);
    // The fixture evaluates before the optimiser's step.
    engine.set(s.model.weights, &fixture.weights(&network.layout, "w/"));
    engine.run(&program);
    close("evaluation", &engine.read(&program, watched.logits.unwrap()), fixture.get("eval_logits"), tolerance);
}

#[test]
fn first_order_step_in_f64() {
    check_first_order(&mut Reference::<f64>::new(&Small::new().layout), 1e-9);
}

#[test]
fn first_order_step_in_f32() {
    check_first_order(&mut Reference::<f32>::new(&Small::new().layout), 1e-3);
}

/// The CPU device behind the same checks.
pub struct Tuned {
    cpu: Cpu,
    prepared: Vec<(String, usize, Executable)>,
}

impl Tuned {
    pub fn new(layout: &StoreLayout) -> Self {
        Self::with(Cpu::new(layout, 2).unwrap())
    }

    pub fn with(cpu: Cpu) -> Self {
        Self { cpu, prepared: Vec::new() }
    }

    /// Programs are told apart by name and number of ops; each is prepared once.
    fn executable(&mut self, program: &Program) -> Executable {
        let key = |p: &(String, usize, Executable)| p.0 == program.name && p.1 == program.nodes().len();
        if let Some(found) = self.prepared.iter().find(|p| key(p)) {
            return found.2.clone();
        }
        let exe = self.cpu.prepare(program.clone()).unwrap();
        self.prepared.push((program.name.clone(), program.nodes().len(), exe.clone()));
        exe
    }
}

impl Engine for Tuned {
    fn set(&mut self, state: State, values: &[f64]) {
        for (to, &from) in self.cpu.state_mut(state).iter_mut().zip(values) {
            *to = from as f32;
        }
    }

    fn get(&mut self, state: State) -> Vec<f64> {
        self.cpu.state(state).iter().map(|&v| f64::from(v)).collect()
    }

    fn run(&mut self, program: &Program) {
        let exe = self.executable(program);
        self.cpu.poison();
        self.cpu.run(&exe);
    }

    fn read(&mut self, program: &Program, tensor: supernet::graph::Tensor) -> Vec<f64> {
        let exe = self.executable(program);
        self.cpu.read(&exe, tensor).iter().map(|&v| f64::from(v)).collect()
    }
}

#[test]
fn first_order_step_on_the_cpu() {
    check_first_order(&mut Tuned::new(&Small::new().layout), 1e-3);
}

#[test]
fn second_order_step_on_the_cpu() {
    check_second_order(&mut Tuned::new(&Small::new().layout), 1e-3, false);
}

#[test]
fn derived_network_on_the_cpu() {
    check_derived(&mut |layout| Box::new(Tuned::new(layout)), 1e-3);
}

#[test]
fn second_order_step_in_f64() {
    check_second_order(&mut Reference::<f64>::new(&Small::new().layout), 1e-9, true);
}

#[test]
fn derived_network_in_f64() {
    check_derived(&mut |layout| Box::new(Reference::<f64>::new(layout)), 1e-9);
}

#[test]
fn parameters_and_macs_are_those_of_the_published_networks() {
    let size = Geometry { height: 32, width: 32, channels: 3 };
    let supernet = Supernet::new(SearchSpace::darts(16, 8).unwrap(), size, 10);
    assert_eq!(supernet.layout.weights_len(), 1_930_618);
    let config = SearchConfig::default();
    assert_eq!(plan(&config, 10, size).unwrap().macs_per_image, 300_255_744.0);
    for (name, parameters) in [("DARTS_V1", 3_169_414), ("DARTS_V2", 3_349_342)] {
        let genotype = Genotype::named(name).unwrap();
        let config = DerivedConfig { genotype, channels: 36, layers: 20, auxiliary: true };
        assert_eq!(Derived::new(config, size, 10).parameters(), parameters, "{name}");
    }
}
