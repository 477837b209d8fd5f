//! Memory of a GPU as pages, and programs as launches on them: what the wgpu and the CUDA device share. A page is one
//! buffer, no larger than the device binds at once; the store has pages of its own, the arena the ones behind them.

use std::collections::HashSet;

use super::Precision;
use crate::error::{Error, Result};
use crate::graph::plan::{Piece, Plan, Rules};
use crate::graph::{Graph, Node, Program, Root, Shape, State, StoreLayout, Tensor};
use crate::ops::launch::merge::{Lowered, merge};
use crate::ops::launch::{Launch, Place, Places};

/// Most elements of a page in which tensors may be stored in halves: kernels count those by 32 bits too.
pub const HALVES_PAGE: usize = 1 << 31;

/// Elements to which states are rounded: 256 bytes, the strictest alignment of bindings and copies.
const GRAIN: usize = 64;

/// Ops for which memory rests before it is reused. Measured on a first-order step C=16 L=8 batch 64, for 0, 2, 4, 6 and 8
/// ops: 1,431, 1,069, 972, 950 and 944 launches, 1,912, 1,943, 2,019, 2,039 and 2,145 MiB.
const LINGER: usize = 6;

/// The same for what ops leave to be summed late, such as weight gradients. For 6, 12, 24 and 10,000 ops: 970, 959, 952 and
/// 950 launches, 1,978, 2,009, 2,021 and 2,039 MiB; with C=36, 4,601, 4,753, 4,809 and 5,347 MiB.
const KEEP: usize = 24;

/// Where the states of a store lie.
#[derive(Clone, Debug)]
pub struct Store {
    /// Page and first element of each state.
    at: Vec<(u32, u32)>,
    /// Elements of each page.
    pub pages: Vec<usize>,
    /// Most elements of a page.
    pub page: usize,
    /// How programs that are placed beside it store feature maps.
    pub precision: Precision,
}

impl Store {
    /// Fills pages of at most `page` elements, a multiple of 64.
    ///
    /// # Errors
    /// [`Error::Memory`] naming a state that is larger than a page.
    pub fn new(layout: &StoreLayout, page: usize) -> Result<Self> {
        let (mut at, mut pages) = (Vec::new(), vec![0usize]);
        for (name, state) in layout.iter() {
            let len = state.shape.len().next_multiple_of(GRAIN).max(GRAIN);
            check_page(len, page, || format!("state `{name}` {}", state.shape))?;
            if pages[pages.len() - 1] + len > page {
                pages.push(0);
            }
            let index = pages.len() - 1;
            at.push((index as u32, pages[index] as u32));
            pages[index] += len;
        }
        if layout.is_empty() {
            pages[0] = GRAIN;
        }
        Ok(Self { at, pages, page, precision: Precision::F32 })
    }

    /// The same beside programs that store feature maps in this precision: halves may need smaller pages.
    ///
    /// # Errors
    /// As [`Store::new`].
    pub fn in_precision(layout: &StoreLayout, page: usize, precision: Precision) -> Result<Self> {
        let page = if precision.has_halves() { page.min(HALVES_PAGE) } else { page };
        Ok(Self { precision, ..Self::new(layout, page)? })
    }

    /// Page and first element of a state.
    pub fn place(&self, state: State) -> (u32, u32) {
        self.at[state.id as usize]
    }

    /// Elements of each page of an arena.
    pub fn arena_pages(&self, arena: usize) -> Vec<usize> {
        let last = (arena % self.page).next_multiple_of(GRAIN);
        let full = std::iter::repeat_n(self.page, arena / self.page);
        full.chain((last > 0).then_some(last)).collect()
    }
}

fn check_page(len: usize, page: usize, what: impl Fn() -> String) -> Result<()> {
    if len <= page {
        return Ok(());
    }
    let mib = |elements: usize| elements as f64 * 4.0 / (1024.0 * 1024.0);
    Err(Error::Memory(format!(
        "{} needs {:.1} MiB in one piece, but this device binds at most {:.1} MiB: lower --batch, --channels or --size, or \
         use another device",
        what(),
        mib(len),
        mib(page)
    )))
}

/// A program placed in pages.
#[derive(Clone, Debug)]
pub struct Placed {
    plan: Plan,
    /// Bases stored in halves.
    halves: HashSet<Tensor>,
}

fn scratch(graph: &Graph, node: &Node) -> Vec<Piece> {
    let (inputs, outputs) = node.shapes(graph);
    node.op.lower().pieces(&inputs, &outputs)
}

impl Placed {
    /// Places a program's tensors.
    ///
    /// # Errors
    /// [`Error::Memory`] naming a tensor that is larger than a page.
    pub fn new(program: &Program, store: &Store) -> Result<Self> {
        let graph = program.graph();
        let halves = store.precision.halves(program);
        let words = |base: Tensor| graph.shape(base).len() / if halves.contains(&base) { 2 } else { 1 };
        for node in program.nodes() {
            let name = node.op.name();
            for piece in scratch(graph, node) {
                check_page(piece.len, store.page, || format!("scratch of an op `{name}` of `{}`", program.name))?;
            }
            for output in &node.outputs {
                let base = graph.base(output.tensor);
                let info = graph.info(base);
                let what = || format!("tensor `{}` {} of `{}`", info.name, info.shape, program.name);
                check_page(words(base), store.page, what)?;
            }
        }
        let rules = Rules { page: store.page, linger: LINGER, keep: KEEP };
        let plan = Plan::new(graph, &program.results, rules, words, |node| scratch(graph, node));
        Ok(Self { plan, halves })
    }

    /// Words of the arena.
    pub fn arena(&self) -> usize {
        self.plan.arena
    }

    /// Where a tensor lies.
    ///
    /// # Panics
    /// If the tensor belongs to an op that was dropped.
    pub fn place(&self, program: &Program, store: &Store, tensor: Tensor) -> Place {
        let graph = program.graph();
        let info = graph.info(tensor);
        let half = self.halves.contains(&info.base);
        let (page, start) = match graph.info(info.base).root {
            Root::State(state) => store.place(state),
            Root::Arena => {
                let at = self.plan.offsets[info.base.index()].expect("every tensor of a live op is placed");
                self.arena_place(store, at)
            }
        };
        let offset = start * if half { 2 } else { 1 } + info.offset as u32;
        Place { page, offset, row_stride: info.row_stride as u32, shape: info.shape, half }
    }

    fn arena_place(&self, store: &Store, at: usize) -> (u32, u32) {
        ((store.pages.len() + at / store.page) as u32, (at % store.page) as u32)
    }

    /// The launches of each op.
    pub fn lower(&self, program: &Program, store: &Store) -> Vec<Lowered> {
        let one = |(step, node): (usize, &Node)| {
            let place = |tensor: Tensor| self.place(program, store, tensor);
            let reads: Vec<Place> = node.inputs.iter().map(|&t| place(t)).collect();
            let mut writes: Vec<Place> = node.outputs.iter().map(|o| place(o.tensor)).collect();
            let accumulate: Vec<bool> = node.outputs.iter().map(|o| o.accumulate).collect();
            let piece = |&(at, extent): &(usize, usize)| {
                let (page, offset) = self.arena_place(store, at);
                Place { page, offset, row_stride: extent as u32, shape: Shape::vector(extent), half: false }
            };
            let pieces: Vec<Place> = self.plan.scratch[step].iter().map(piece).collect();
            let scratch = pieces.first().copied().unwrap_or_default();
            let places = Places { inputs: &reads, outputs: &writes, accumulate: &accumulate, scratch, pieces: &pieces };
            let launches = node.op.lower().launches(&places);
            writes.extend(pieces);
            Lowered { launches, reads, writes }
        };
        let mut ops: Vec<Lowered> = program.nodes().iter().enumerate().map(one).collect();
        // Of a kernel that meets halves, all launches are compiled for them: they can be merged, and compute the same bits
        // whether they are or not.
        let launches = || ops.iter().flat_map(|op| &op.launches);
        let kernels: HashSet<&str> = launches().filter(|l| l.halves).map(|l| l.kernel).collect();
        let launches = ops.iter_mut().flat_map(|op| &mut op.launches);
        launches.for_each(|launch| launch.halves |= kernels.contains(launch.kernel));
        ops
    }

    /// All launches of a replay, merged where ops do not depend on each other.
    pub fn launches(&self, program: &Program, store: &Store) -> Vec<Launch> {
        merge(self.lower(program, store))
    }
}

#[cfg(test)]
mod tests {
    use super::super::needs::CUDA_PAGE;
    use super::*;
    use crate::config::SearchConfig;
    use crate::data::{Geometry, Normalisation};
    use crate::search::run::Setup;

    /// Launches of a whole first-order step, both halves, one after the other and merged; elements of the arena.
    fn launches(
        (channels, layers, batch): (usize, usize, usize),
        page: usize,
        precision: Precision,
    ) -> Result<[usize; 3]> {
        let config = SearchConfig { data: "x".into(), channels, layers, batch, ..SearchConfig::default() };
        let size = Geometry { height: 32, width: 32, channels: 3 };
        let norm = Normalisation { mean: vec![0.5; 3], std: vec![0.25; 3] };
        let setup = Setup::new(&config, &[(10, norm)], size, batch)?;
        let store = Store::in_precision(&setup.layout, page, precision)?;
        let mut counts = [0; 3];
        for program in [&setup.tasks[0].architecture, &setup.tasks[0].weight] {
            let placed = Placed::new(program, &store)?;
            let lowered = placed.lower(program, &store);
            counts[0] += lowered.iter().map(|op| op.launches.len()).sum::<usize>();
            counts[1] += merge(lowered).len();
            counts[2] = placed.arena().max(counts[2]);
        }
        Ok(counts)
    }

    #[test]
    fn a_whole_step_takes_few_launches() {
        // The second is what WebGPU promises of every device: 128 MiB.
        for page in [CUDA_PAGE, 1 << 25] {
            let [apart, merged, arena] = launches((16, 8, 64), page, Precision::F32).unwrap();
            let mib = (arena * 4) >> 20;
            let what = format!("pages of {page}: {apart} launches, {merged} merged, {mib} MiB");
            assert!(apart < 1_600 && merged < 960 && mib < 2_050, "{what}");
        }
    }

    #[test]
    fn halves_shrink_the_arena() {
        for size in [(16, 8, 64), (36, 8, 64)] {
            let [whole, halves] = [Precision::F32, Precision::F16].map(|p| launches(size, CUDA_PAGE, p).unwrap());
            let shown = |[_, merged, arena]: [usize; 3]| format!("{} MiB, {merged} launches", (arena * 4) >> 20);
            let what = format!("{size:?}: {}; in halves {}", shown(whole), shown(halves));
            println!("{what}");
            assert!(halves[2] as f64 <= 0.62 * whole[2] as f64 && halves[1] <= whole[1] + 20, "{what}");
        }
    }

    #[test]
    fn what_no_page_can_hold_is_refused_with_the_numbers() {
        let message = launches((16, 8, 64), 1 << 20, Precision::F32).unwrap_err().to_string();
        assert!(message.contains("MiB in one piece") && message.contains("at most 4.0 MiB"), "{message}");
    }
}
