//! A GPU device in miniature: places the tensors of a case in pages, lowers its ops, has a machine run the launches,
//! and compares every element of every page with the reference in f64.

use supernet::device::reference::Reference;
use supernet::graph::{Graph, Program, Root, Shape, State, StoreLayout, Tensor};
use supernet::ops::launch::{Launch, Place, Places};

/// Largest error, relative in norm.
const TOLERANCE: f64 = 2e-5;
/// Elements of NaN between tensors; nothing may write there.
const GAP: usize = 16;

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
        let mut page = Self(vec![0; elements.div_ceil(4)]);
        page.values_mut().fill(f32::NAN);
        page
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
    expected: Vec<Vec<f64>>,
    /// Page and first element of each state.
    at: Vec<(usize, usize)>,
    /// Page, first element and elements of each piece of scratch, in the order in which ops ask for them.
    scratch: Vec<(usize, usize, usize)>,
    sizes: Vec<usize>,
}

impl<'a> Placed<'a> {
    pub fn new(case: &'a Case, spread: Spread) -> Self {
        let program = Program::new(case.name.clone(), case.graph.clone(), &[]);
        let mut reference = Reference::<f64>::new(&case.layout);
        let states: Vec<State> = case.layout.iter().map(|(_, s)| s).collect();
        for (&state, values) in states.iter().zip(&case.values) {
            for (to, &from) in reference.state_mut(state).iter_mut().zip(values) {
                *to = f64::from(from);
            }
        }
        reference.run(&program);
        let expected = states.iter().map(|&s| reference.state(s).to_vec()).collect();

        let scratch = program.nodes().iter().map(|node| {
            let inputs: Vec<_> = node.inputs.iter().map(|&t| program.graph().shape(t)).collect();
            let outputs: Vec<_> = node.outputs.iter().map(|o| program.graph().shape(o.tensor)).collect();
            node.op.lower().expect("every op of a case runs on GPUs").pieces(&inputs, &outputs)
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
        let at = case.values.iter().map(|values| place(values.len())).collect();
        let mut piece = |elements| {
            let (page, offset) = place(elements);
            (page, offset, elements)
        };
        let scratch = pieces.into_iter().map(&mut piece).collect();
        Self { case, program, expected, at, scratch, sizes }
    }

    fn place(&self, tensor: Tensor) -> Place {
        let info = self.program.graph().info(tensor);
        let Root::State(state) = info.root else { panic!("the tensors of a case are states") };
        let (page, start) = self.at[state.id as usize];
        let offset = (start + info.offset) as u32;
        Place { page: page as u32, offset, row_stride: info.row_stride as u32, shape: info.shape }
    }

    /// The launches of all ops.
    pub fn launches(&self) -> Vec<Launch> {
        let lower = |node: &supernet::graph::Node| {
            let inputs: Vec<_> = node.inputs.iter().map(|&t| self.place(t)).collect();
            let outputs: Vec<_> = node.outputs.iter().map(|o| self.place(o.tensor)).collect();
            let accumulate: Vec<_> = node.outputs.iter().map(|o| o.accumulate).collect();
            let piece = |&(page, offset, elements): &(usize, usize, usize)| Place {
                page: page as u32,
                offset: offset as u32,
                row_stride: elements as u32,
                shape: Shape::vector(elements),
            };
            let pieces: Vec<Place> = self.scratch.iter().map(piece).collect();
            let scratch = pieces.first().copied().unwrap_or_default();
            let places =
                Places { inputs: &inputs, outputs: &outputs, accumulate: &accumulate, scratch, pieces: &pieces };
            node.op.lower().expect("every op of a case runs on GPUs").launches(&places)
        };
        self.program.nodes().iter().flat_map(lower).collect()
    }

    /// Memory before the run: states as given, NaN elsewhere.
    pub fn pages(&self) -> Vec<Page> {
        let mut pages: Vec<Page> = self.sizes.iter().map(|&size| Page::new(size)).collect();
        for (&(page, start), values) in self.at.iter().zip(&self.case.values) {
            pages[page].values_mut()[start..start + values.len()].copy_from_slice(values);
        }
        pages
    }

    /// Which elements of each page belong to no tensor.
    pub fn free(&self) -> Vec<Vec<bool>> {
        let mut free: Vec<Vec<bool>> = self.sizes.iter().map(|&size| vec![true; size]).collect();
        let extent = |values: &Vec<f32>| values.len();
        let taken = self.at.iter().copied().zip(self.case.values.iter().map(extent));
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
        for ((name, state), (&(page, start), expected)) in
            self.case.layout.iter().zip(self.at.iter().zip(&self.expected))
        {
            let actual = &pages[page].values()[start..start + expected.len()];
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
                let relative = (error / norm.max(1e-30)).sqrt();
                if error > 0.0 && relative > TOLERANCE {
                    return Err(format!("{name}, row {row}: off by {relative:.1e} in norm"));
                }
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
