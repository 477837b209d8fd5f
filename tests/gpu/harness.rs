//! A GPU device in miniature: places the tensors of a case in pages, lowers its ops, has a machine run the launches,
//! and compares every element of every page with the reference in f64.

use supernet::device::precision::{Precision, in_quads};
use supernet::device::reference::Reference;
use supernet::graph::{Graph, Program, Root, Shape, State, StoreLayout, Tensor};
use supernet::ops::launch::{Launch, Place, Places};

/// Largest error, relative in norm.
const TOLERANCE: f64 = 2e-5;
/// The same where outputs are rounded to so few bits; or both factors of products, each by at most 2^-11 of itself.
const fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => TOLERANCE,
        Precision::Tf32 => 1.0 / 1024.0,
        Precision::F16 => 1e-3,
        Precision::Bf16 => 4e-3,
    }
}

/// Elements of NaN between tensors; nothing may write there.
const GAP: usize = 16;

/// All kernels that meet maps in halves in some case.
pub const KERNELS_WITH_HALVES: &[&str] = &[
    "dense_forward",
    "dense_input",
    "dense_weight",
    "mixture_backward_partial",
    "mixture_forward",
    "pool_backward",
    "pool_forward",
    "separable_backward_gradients",
    "separable_backward_product",
    "separable_forward",
    "statistics_partial",
];

/// Something that runs launches.
pub trait Machine {
    /// Runs launches in order, each after the last one's writes have landed.
    fn run(&mut self, launches: &[Launch], pages: &mut [Page]) -> Result<(), String>;
}

/// Memory of the device, aligned to 16 bytes.
#[derive(Clone)]
pub struct Page(Vec<u128>);

impl Page {
    /// So many elements of NaN.
    pub fn new(elements: usize) -> Self {
        let mut page = Self::sparse(elements);
        page.values_mut().fill(f32::NAN);
        page
    }

    /// So many zeros, of which only what is touched takes memory.
    pub fn sparse(elements: usize) -> Self {
        Self(vec![0; elements.div_ceil(4)])
    }

    pub fn values(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    pub fn values_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// Ops on states, with the states' values beforehand (NaN where an op is to write).
pub struct Case {
    pub name: String,
    pub graph: Graph,
    pub layout: StoreLayout,
    pub values: Vec<Vec<f32>>,
}

/// How tensors are spread over pages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    /// All in one page.
    One,
    /// Each state has a page of its own: launches must be cut to bind few enough.
    Each,
}

/// A case in memory.
pub struct Placed<'a> {
    case: &'a Case,
    program: Program,
    /// How the states are stored that are marked here.
    precision: Precision,
    halves: Vec<bool>,
    /// Values of all states before the run, as they are stored.
    values: Vec<Vec<f32>>,
    expected: Vec<Vec<f64>>,
    /// Page and first element of each state.
    at: Vec<(usize, usize)>,
    /// Page, first element and elements of each piece of scratch, in the order in which ops ask for them.
    scratch: Vec<(usize, usize, usize)>,
    sizes: Vec<usize>,
    /// Elements of each page before its memory begins.
    origin: usize,
}

impl<'a> Placed<'a> {
    pub fn new(case: &'a Case, spread: Spread) -> Self {
        Self::stored(case, spread, Precision::F32)
    }

    /// Maps that kernels touch in quads only are stored in this precision.
    pub fn stored(case: &'a Case, spread: Spread, precision: Precision) -> Self {
        let program = Program::new(case.name.clone(), case.graph.clone(), &[]);
        let mut halves = vec![false; case.values.len()];
        let inputs = program.nodes().iter().flat_map(|n| n.inputs.iter().copied());
        let outputs = program.nodes().iter().flat_map(|n| n.outputs.iter().map(|o| o.tensor));
        let fit = in_quads(&program);
        for tensor in inputs.chain(outputs) {
            let Root::State(state) = program.graph().info(tensor).root else {
                panic!("the tensors of a case are states")
            };
            // Gradients are never halved, and kernels do not ask whether they are.
            let gradient = case.layout.name(state).starts_with("g ") || case.layout.name(state) == "g";
            let fits = fit.contains(&program.graph().info(tensor).base) && !gradient;
            halves[state.id as usize] = fits && precision.has_halves();
        }
        let stored = |(values, &half): (&Vec<f32>, &bool)| -> Vec<f32> {
            let round = |&v: &f32| if half { precision.decode(precision.encode(v)) } else { v };
            values.iter().map(round).collect()
        };
        let values: Vec<Vec<f32>> = case.values.iter().zip(&halves).map(stored).collect();
        let mut reference = Reference::<f64>::new(&case.layout);
        let states: Vec<State> = case.layout.iter().map(|(_, s)| s).collect();
        for (&state, values) in states.iter().zip(&values) {
            for (to, &from) in reference.state_mut(state).iter_mut().zip(values) {
                *to = f64::from(from);
            }
        }
        reference.run(&program);
        let expected = states.iter().map(|&s| reference.state(s).to_vec()).collect();

        let scratch = program.nodes().iter().map(|node| {
            let inputs: Vec<_> = node.inputs.iter().map(|&t| program.graph().shape(t)).collect();
            let outputs: Vec<_> = node.outputs.iter().map(|o| program.graph().shape(o.tensor)).collect();
            node.op.lower().pieces(&inputs, &outputs)
        });
        let mut pieces: Vec<usize> = Vec::new();
        for own in scratch {
            pieces.resize(pieces.len().max(own.len()), 0);
            pieces.iter_mut().zip(own).for_each(|(most, piece)| *most = piece.len.max(*most));
        }
        let mut sizes: Vec<usize> = Vec::new();
        let mut place = |elements: usize| {
            if sizes.is_empty() || spread == Spread::Each {
                sizes.push(GAP);
            }
            let page = sizes.len() - 1;
            let offset = sizes[page];
            sizes[page] = (offset + elements + GAP).next_multiple_of(GAP);
            (page, offset)
        };
        let words = |(values, &half): (&Vec<f32>, &bool)| values.len() / if half { 2 } else { 1 };
        let at = values.iter().zip(&halves).map(|state| place(words(state))).collect();
        let mut piece = |elements| {
            let (page, offset) = place(elements);
            (page, offset, elements)
        };
        let scratch = pieces.into_iter().map(&mut piece).collect();
        Self { case, program, precision, halves, values, expected, at, scratch, sizes, origin: 0 }
    }

    /// The same at the end of pages of so many elements, of which only the end is there: what is added to the offsets.
    pub fn at_the_end_of(&mut self, page: usize) -> usize {
        let size = self.sizes.iter().max().expect("there is a page");
        self.origin = (page - size) / 64 * 64;
        self.origin
    }

    /// Whether anything is stored in halves.
    pub fn has_halves(&self) -> bool {
        self.halves.contains(&true)
    }

    /// Words that a state takes.
    fn words(&self, state: usize) -> usize {
        self.values[state].len() / if self.halves[state] { 2 } else { 1 }
    }

    fn place(&self, tensor: Tensor) -> Place {
        let info = self.program.graph().info(tensor);
        let Root::State(state) = info.root else { panic!("the tensors of a case are states") };
        let (page, start) = self.at[state.id as usize];
        let half = self.halves[state.id as usize];
        let offset = u32::try_from((self.origin + start) * if half { 2 } else { 1 } + info.offset).expect("32 bits");
        Place { page: page as u32, offset, row_stride: info.row_stride as u32, shape: info.shape, half }
    }

    /// The launches of all ops.
    pub fn launches(&self) -> Vec<Launch> {
        let lower = |node: &supernet::graph::Node| {
            let inputs: Vec<_> = node.inputs.iter().map(|&t| self.place(t)).collect();
            let outputs: Vec<_> = node.outputs.iter().map(|o| self.place(o.tensor)).collect();
            let accumulate: Vec<_> = node.outputs.iter().map(|o| o.accumulate).collect();
            let piece = |&(page, offset, elements): &(usize, usize, usize)| Place {
                page: page as u32,
                offset: (self.origin + offset) as u32,
                row_stride: elements as u32,
                shape: Shape::vector(elements),
                half: false,
            };
            let pieces: Vec<Place> = self.scratch.iter().map(piece).collect();
            let scratch = pieces.first().copied().unwrap_or_default();
            let places =
                Places { inputs: &inputs, outputs: &outputs, accumulate: &accumulate, scratch, pieces: &pieces };
            node.op.lower().launches(&places)
        };
        self.program.nodes().iter().flat_map(lower).collect()
    }

    /// Memory before the run: states as given, NaN elsewhere.
    pub fn pages(&self) -> Vec<Page> {
        let mut pages: Vec<Page> = self.sizes.iter().map(|&size| Page::new(size)).collect();
        for ((&(page, start), values), &half) in self.at.iter().zip(&self.values).zip(&self.halves) {
            if half {
                let halves: Vec<u16> = values.iter().map(|&v| self.precision.encode(v)).collect();
                let to = &mut pages[page].values_mut()[start..start + values.len() / 2];
                bytemuck::cast_slice_mut(to).copy_from_slice(&halves);
            } else {
                pages[page].values_mut()[start..start + values.len()].copy_from_slice(values);
            }
        }
        pages
    }

    /// Which elements of each page belong to no tensor.
    pub fn free(&self) -> Vec<Vec<bool>> {
        let mut free: Vec<Vec<bool>> = self.sizes.iter().map(|&size| vec![true; size]).collect();
        let taken = self.at.iter().copied().zip((0..self.values.len()).map(|state| self.words(state)));
        for ((page, start), length) in taken {
            free[page][start..start + length].fill(false);
        }
        for &(page, start, elements) in &self.scratch {
            free[page][start..start + elements].fill(false);
        }
        free
    }

    /// Compares memory after the run with the reference, and finds writes outside of all tensors. Vectors and matrices
    /// are compared row by row, maps as a whole.
    pub fn compare(&self, pages: &[Page]) -> Result<(), String> {
        let rounds = self.has_halves() || !self.precision.has_halves();
        let tolerance = tolerance(if rounds { self.precision } else { Precision::F32 });
        // What tf32 rounds is relative to the sum of the absolute products, of which a single row may keep little.
        let cancels = if self.precision == Precision::Tf32 { 8.0 } else { 1.0 };
        let relative = |error: f64, norm: f64| if error > 0.0 { (error / norm.max(1e-30)).sqrt() } else { 0.0 };
        for ((name, state), (&(page, start), expected)) in
            self.case.layout.iter().zip(self.at.iter().zip(&self.expected))
        {
            let id = state.id as usize;
            let words = &pages[page].values()[start..start + self.words(id)];
            let actual: Vec<f32> = match self.halves[id] {
                true => bytemuck::cast_slice(words).iter().map(|&half| self.precision.decode(half)).collect(),
                false => words.to_vec(),
            };
            let mut whole = (0.0, 0.0);
            let stretch = if state.shape.n * state.shape.h == 1 { state.shape.c } else { expected.len() };
            for (row, (actual, expected)) in actual.chunks(stretch).zip(expected.chunks(stretch)).enumerate() {
                let (mut error, mut norm) = (0.0, 0.0);
                for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
                    if a.is_nan() != e.is_nan() {
                        return Err(format!("{name}, row {row}, element {i}: {a}, expected {e}"));
                    }
                    if !e.is_nan() {
                        error += (f64::from(a) - e).powi(2);
                        norm += e * e;
                    }
                }
                whole = (whole.0 + error, whole.1 + norm);
                let relative = relative(error, norm);
                if relative > tolerance * cancels {
                    return Err(format!("{name}, row {row}: off by {relative:.1e} in norm"));
                }
            }
            let relative = relative(whole.0, whole.1);
            if relative > tolerance {
                return Err(format!("{name}: off by {relative:.1e} in norm"));
            }
        }
        let free = self.free();
        for (index, (page, free)) in pages.iter().zip(&free).enumerate() {
            let touched = page.values().iter().zip(free).position(|(value, &free)| free && !value.is_nan());
            if let Some(element) = touched {
                return Err(format!("element {element} of page {index} belongs to no tensor but was written"));
            }
        }
        Ok(())
    }

    /// Runs the launches on fresh memory and compares; returns the memory's bits.
    pub fn check(&self, machine: &mut dyn Machine, launches: &[Launch]) -> Vec<u32> {
        let mut pages = self.pages();
        let outcome = machine.run(launches, &mut pages).and_then(|()| self.compare(&pages));
        if let Err(message) = outcome {
            panic!("{}: {message}", self.case.name);
        }
        pages.iter().flat_map(|p| p.values()).map(|v| v.to_bits()).collect()
    }
}

/// The same launches with narrow accesses throughout.
pub fn narrow(launches: &[Launch]) -> Vec<Launch> {
    launches.iter().map(|l| Launch { wide: false, ..l.clone() }).collect()
}

/// The same launches, their grids folded into three blocks a row, as grids beyond the devices' limit are.
pub fn folded(launches: &[Launch]) -> Vec<Launch> {
    let fold = |l: &Launch| Launch { grid: [3, (l.grid[0] * l.grid[1]).div_ceil(3), 1], ..l.clone() };
    launches.iter().map(fold).collect()
}
