//! Merging launches changes no value: whole steps of a small supernet, apart and merged, and the memory that launches say
//! they touch, by which merging judges.

use supernet::data::{Geometry, Normalisation};
use supernet::device::pages::{Placed, Store};
use supernet::device::precision::Precision;
use supernet::device::reference::Reference;
use supernet::graph::{Program, State, StoreLayout};
use supernet::network::{SearchSpace, Supernet};
use supernet::ops::launch::{Launch, Place};
use supernet::ops::optimiser::Adam;
use supernet::search::step::{self, InputPipeline, Order, SearchRecipe, SearchStates, WeightOptimiser};

use super::cases;
use super::cuda_cpu::{self, CudaCpu};
use super::harness::{self, Machine, Page, Spread};

/// Largest difference from the reference in f64, relative in norm, over a whole step.
pub(super) const TOLERANCE: f64 = 1e-3;

/// Both halves of a step, and the states' values before it.
pub(super) struct Step {
    pub(super) layout: StoreLayout,
    pub(super) programs: [Program; 2],
    pub(super) values: Vec<(State, Vec<f32>)>,
}

impl Step {
    pub(super) fn new(channels: usize) -> Self {
        let size = Geometry { height: 8, width: 8, channels: 3 };
        let network = Supernet::new(SearchSpace::darts(channels, 3).unwrap(), size, 3);
        let mut layout = StoreLayout::new();
        let states = SearchStates::declare(&mut layout, &network, 4);
        let recipe = SearchRecipe {
            order: Order::First,
            optimiser: WeightOptimiser { momentum: 0.9, decay: 3e-4, clip: 5.0 },
            adam: Adam { beta1: 0.5, beta2: 0.999, eps: 1e-8, decay: 1e-3 },
            input: InputPipeline {
                pad: 1,
                flip: true,
                cutout: 0,
                normalisation: Normalisation { mean: vec![0.5; 3], std: vec![0.25; 3] },
                seed: 5,
            },
        };
        let halves = [step::architecture_step, step::weight_step].map(|record| record(&network, &states, &recipe));
        let programs = halves.map(|half| half.unwrap().program("half a step", false));
        let mut values = vec![
            (states.model.weights, network.layout.initial_weights(3)),
            (states.model.running, network.layout.initial_running()),
            (states.alphas, network.initial_alphas(3)),
            (states.model.rate, vec![0.1]),
        ];
        for batch in [states.model.train, states.valid] {
            let len = batch.pixels.shape.len();
            values.push((batch.pixels, (0..len).map(|i| (i * 37 % 256) as f32).collect()));
            values.push((batch.labels, vec![0.0, 1.0, 2.0, 1.0]));
        }
        Self { layout, programs, values }
    }

    /// What the states are after both halves, in f64 but for the maps that are stored in this precision.
    pub(super) fn reference(&self, precision: Precision) -> Reference<f64> {
        let mut reference = Reference::<f64>::new(&self.layout);
        for (state, values) in &self.values {
            let slots = reference.state_mut(*state).iter_mut();
            slots.zip(values).for_each(|(to, &from)| *to = f64::from(from));
        }
        for program in &self.programs {
            reference.run_in(program, precision);
        }
        reference
    }

    /// The smallest page on which both programs find place, so that there are many.
    fn small_page(&self, precision: Precision) -> usize {
        let fits = |page: &usize| {
            let store = Store::in_precision(&self.layout, *page, precision);
            store.is_ok_and(|store| self.programs.iter().all(|p| Placed::new(p, &store).is_ok()))
        };
        (10..30).map(|bits| 1 << bits).find(fits).expect("a small step fits into 4 GiB")
    }

    /// Runs both halves; returns all memory's bits behind each, and the states.
    fn run(&self, machine: &mut CudaCpu, store: &Store, merged: bool) -> (Vec<Vec<u32>>, Vec<Vec<f32>>) {
        let placed = self.programs.each_ref().map(|p| Placed::new(p, store).unwrap());
        let arena = store.arena_pages(placed.iter().map(Placed::arena).max().unwrap());
        let mut pages: Vec<Page> = store.pages.iter().chain(&arena).map(|&len| Page::new(len)).collect();
        for page in &mut pages[..store.pages.len()] {
            page.values_mut().fill(0.0);
        }
        for (state, values) in &self.values {
            let (page, at) = store.place(*state);
            pages[page as usize].values_mut()[at as usize..][..values.len()].copy_from_slice(values);
        }
        let mut bits = Vec::new();
        for (program, placed) in self.programs.iter().zip(&placed) {
            let apart = placed.lower(program, store).into_iter().flat_map(|op| op.launches).collect();
            let launches: Vec<Launch> = if merged { placed.launches(program, store) } else { apart };
            machine.run(&launches, &mut pages).unwrap();
            bits.push(pages.iter().flat_map(Page::values).map(|v| v.to_bits()).collect());
        }
        let states = self.layout.iter().map(|(_, state)| {
            let (page, at) = store.place(state);
            pages[page as usize].values()[at as usize..][..state.shape.len()].to_vec()
        });
        (bits, states.collect())
    }
}

fn machine(purpose: &str) -> CudaCpu {
    CudaCpu::new(purpose, &cuda_cpu::all(|_| true), str::to_owned)
}

/// Distance of values from others, relative in norm.
pub(super) fn distance(actual: impl IntoIterator<Item = f64>, expected: &[f64]) -> f64 {
    let norm = expected.iter().map(|e| e * e).sum::<f64>().sqrt().max(1e-6);
    expected.iter().zip(actual).map(|(e, a)| (e - a).powi(2)).sum::<f64>().sqrt() / norm
}

/// Compares the states behind a step with the reference. A device that rounds maps may be as far from it as the reference is
/// that rounds the same ones: not closer to that, for which number of two a value is rounded to hangs on its last bit, and
/// the next map on that.
pub(super) struct Check {
    exact: Reference<f64>,
    /// How far rounding leads, for each state.
    effects: Vec<f64>,
    precision: Precision,
}

impl Check {
    pub(super) fn new(step: &Step, precision: Precision) -> Self {
        let (exact, rounded) = (step.reference(Precision::F32), step.reference(precision));
        let effect = |(_, state)| distance(rounded.state(state).iter().copied(), exact.state(state));
        let effects = step.layout.iter().map(effect).collect();
        Self { exact, effects, precision }
    }

    /// How far rounding leads a state.
    pub(super) fn effect(&self, step: &Step, name: &str) -> f64 {
        let at = step.layout.iter().position(|(other, _)| other == name).expect("the state exists");
        self.effects[at]
    }

    pub(super) fn check(&self, what: &str, step: &Step, states: &[Vec<f32>]) {
        let mut most = 0.0f64;
        for (((name, state), actual), effect) in step.layout.iter().zip(states).zip(&self.effects) {
            let distance = distance(actual.iter().map(|&a| f64::from(a)), self.exact.state(state));
            let limit = TOLERANCE + 3.0 * effect;
            assert!(distance <= limit, "{what}, {}: {name} is off by {distance:.1e} in norm", self.precision);
            most = most.max(distance);
        }
        println!("{what}, {}: off by at most {most:.1e} in norm", self.precision);
        assert!(self.precision == Precision::F32 || most > TOLERANCE, "{what}, {}: nothing is rounded", self.precision);
    }
}

#[test]
fn merged_programs_compute_what_they_do_apart() {
    let mut machine = machine("steps");
    for channels in [4, 6] {
        let step = Step::new(channels);
        for precision in [Precision::F32, Precision::Bf16] {
            let check = Check::new(&step, precision);
            for page in [1 << 24, step.small_page(precision)] {
                let store = Store::in_precision(&step.layout, page, precision).unwrap();
                let (apart, _) = step.run(&mut machine, &store, false);
                let (merged, states) = step.run(&mut machine, &store, true);
                let what = format!("{channels} channels, pages of {page}");
                assert!(apart == merged, "{what}, {precision}: merging changes values");
                check.check(&what, &step, &states);
            }
        }
    }
}

/// Marks the elements of a place.
fn mark(place: &Place, marks: &mut [Vec<bool>]) {
    for row in 0..place.shape.rows() {
        let start = place.offset as usize + row * place.row_stride as usize;
        let end = start + place.shape.c;
        assert!(end <= marks[place.page as usize].len(), "{place:?} lies beyond its page");
        marks[place.page as usize][start..end].fill(true);
    }
}

/// Runs launches one by one, each also with NaN wherever it does not say that it reads or writes.
fn touch(machine: &mut CudaCpu, launches: &[Launch], mut pages: Vec<Page>, what: &str) {
    for launch in launches {
        if launch.jobs.is_none() {
            machine.run(std::slice::from_ref(launch), &mut pages).unwrap();
            continue;
        }
        let none = || pages.iter().map(|p| vec![false; p.values().len()]).collect::<Vec<_>>();
        let (mut known, mut written) = (none(), none());
        launch.reads.iter().for_each(|place| mark(place, &mut known));
        launch.writes.iter().for_each(|place| {
            mark(place, &mut known);
            mark(place, &mut written);
        });
        let before = pages.clone();
        let mut poisoned = pages.clone();
        for (page, known) in poisoned.iter_mut().zip(&known) {
            page.values_mut().iter_mut().zip(known).filter(|(_, known)| !**known).for_each(|(v, _)| *v = f32::NAN);
        }
        machine.run(std::slice::from_ref(launch), &mut pages).unwrap();
        machine.run(std::slice::from_ref(launch), &mut poisoned).unwrap();
        for (page, written) in written.iter().enumerate() {
            for (element, &written) in written.iter().enumerate() {
                let bits = |pages: &[Page]| pages[page].values()[element].to_bits();
                let other = if written { bits(&poisoned) } else { bits(&before) };
                let how = if written { "depends on what it does not say" } else { "is not said to be written" };
                assert!(bits(&pages) == other, "{what}, {}: element {element} of page {page} {how}", launch.kernel);
            }
        }
    }
}

#[test]
fn launches_touch_what_they_say() {
    let mut machine = machine("touch");
    for case in cases::all() {
        let placed = harness::Placed::new(&case, Spread::One);
        touch(&mut machine, &placed.launches(), placed.pages(), &case.name);
    }
}
