//! The CPU device: a store, an arena shared by all programs, a pool of threads, and the tuned kernels in `cpu/`.
//!
//! A program is prepared once: every op becomes a kernel that holds the addresses of its tensors. A replay walks the
//! list of kernels and neither allocates nor looks anything up. Results have the same bits for every number of threads:
//! how an op is cut into tasks and in which order their results are folded depends on shapes only.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::Executable;
use super::memory::{Block, GRAIN};
use super::view::View;
use crate::cpu::kernel::{Context, Kernel, Launch, lower};
use crate::cpu::micro::{Level, Micro};
use crate::error::{Error, Result};
use crate::graph::{Node, Program, Root, Shape, State, StoreLayout, Tensor};

/// Store, arena, threads and kernels.
pub struct Cpu {
    store: Block,
    /// First element of each state in the store, and their number.
    states: Vec<(usize, usize)>,
    arena: Block,
    tiles: Block,
    pool: ThreadPool,
    threads: usize,
    micro: Micro,
    prepared: Vec<Prepared>,
}

/// A program with its kernels, whose addresses are those of the present arena.
struct Prepared {
    program: Arc<Program>,
    kernels: Vec<Box<dyn Kernel>>,
}

/// A kind of op, the seconds it takes in a replay, and how many of it the program has.
pub type OpTime = (&'static str, f64, usize);

impl Cpu {
    /// A store of zeros and `threads` threads, with the fastest kernels of this machine.
    ///
    /// # Errors
    /// [`Error::Memory`] if the store does not fit, [`Error::Usage`] if the threads cannot be started.
    pub fn new(layout: &StoreLayout, threads: usize) -> Result<Self> {
        Self::with_level(layout, threads, Level::detect())
    }

    /// The same with the kernels of a given level.
    ///
    /// # Errors
    /// As [`Cpu::new`], and [`Error::Usage`] if the machine has not the level's instructions.
    pub fn with_level(layout: &StoreLayout, threads: usize, level: Level) -> Result<Self> {
        let threads = threads.max(1);
        let micro = Micro::new(level).ok_or_else(|| Error::usage(format!("this machine has no {level:?}")))?;
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("supernet-cpu-{i}"))
            .build()
            .map_err(|e| Error::usage(format!("cannot start {threads} threads: {e}")))?;
        let mut end = 0;
        let states = layout
            .iter()
            .map(|(_, state)| {
                let start = end;
                end += state.shape.len().next_multiple_of(GRAIN);
                (start, state.shape.len())
            })
            .collect();
        let (store, arena, tiles) = (Block::new(end)?, Block::new(0)?, Block::new(0)?);
        Ok(Self { store, states, arena, tiles, pool, threads, micro, prepared: Vec::new() })
    }

    /// Threads that a replay uses.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Instruction set of the kernels.
    pub fn level(&self) -> Level {
        self.micro.level
    }

    /// Values of a state.
    pub fn state(&self, state: State) -> &[f32] {
        let (start, len) = self.states[state.id as usize];
        &self.store.slice()[start..start + len]
    }

    /// Values of a state, to be changed.
    pub fn state_mut(&mut self, state: State) -> &mut [f32] {
        let (start, len) = self.states[state.id as usize];
        &mut self.store.slice_mut()[start..start + len]
    }

    /// Prepares a program for replays. The arena grows to the largest program, which loses results of earlier runs.
    ///
    /// # Errors
    /// [`Error::Memory`] if the arena does not fit.
    pub fn prepare(&mut self, program: Program) -> Result<Executable> {
        let program = Arc::new(program);
        if program.plan.arena > self.arena.len() {
            // The old arena is given back first, and every kernel gets the new addresses.
            for prepared in &mut self.prepared {
                prepared.kernels.clear();
            }
            self.arena = Block::new(0)?;
            self.arena = Block::new(program.plan.arena)?;
            for index in 0..self.prepared.len() {
                self.prepared[index].kernels = self.kernels(&self.prepared[index].program);
            }
        }
        let kernels = self.kernels(&program);
        let tile = kernels.iter().map(|k| k.tile()).max().unwrap_or(0).next_multiple_of(GRAIN);
        if tile * self.threads > self.tiles.len() {
            self.tiles = Block::new(tile * self.threads)?;
        }
        self.prepared.push(Prepared { program: Arc::clone(&program), kernels });
        Ok(Executable { index: self.prepared.len() - 1, program })
    }

    fn kernels(&self, program: &Program) -> Vec<Box<dyn Kernel>> {
        let one = |(step, node): (usize, &Node)| {
            let (start, extent) = program.plan.scratch[step].first().copied().unwrap_or((0, 0));
            lower(Launch {
                op: &node.op,
                inputs: node.inputs.iter().map(|&t| self.resolve(program, t)).collect(),
                outputs: node.outputs.iter().map(|o| self.resolve(program, o.tensor)).collect(),
                accumulate: node.outputs.iter().map(|o| o.accumulate).collect(),
                scratch: Self::view(&self.arena, start, extent, 0, Shape::vector(extent), extent),
            })
        };
        program.nodes().iter().enumerate().map(one).collect()
    }

    /// A view into the elements `start..start + len` of a block.
    fn view(block: &Block, start: usize, len: usize, offset: usize, shape: Shape, row_stride: usize) -> View<f32> {
        let last = offset + shape.rows().saturating_sub(1) * row_stride + shape.c;
        assert!(last <= len && start + len <= block.len(), "a view reaches beyond its memory");
        // SAFETY: the extent lies within the block as just checked; blocks are replaced only together with all views.
        unsafe { View::new(block.ptr().add(start + offset), shape, row_stride) }
    }

    fn resolve(&self, program: &Program, tensor: Tensor) -> View<f32> {
        let info = program.graph().info(tensor);
        let base = program.graph().info(info.base);
        let (block, start) = match base.root {
            Root::State(state) => (&self.store, self.states[state.id as usize].0),
            Root::Arena => {
                let offset = program.plan.offsets[info.base.index()];
                (&self.arena, offset.expect("every tensor of a live op is placed"))
            }
        };
        Self::view(block, start, base.shape.len(), info.offset, info.shape, info.row_stride)
    }

    /// The kernels of an executable and what they run with.
    fn parts(&self, exe: &Executable) -> (&[Box<dyn Kernel>], Context<'_>) {
        let prepared = self.prepared.get(exe.index).filter(|p| Arc::ptr_eq(&p.program, &exe.program));
        let prepared = prepared.expect("an executable runs on the device that prepared it");
        let tile = self.tiles.len() / self.threads;
        let tiles = Self::view(&self.tiles, 0, self.tiles.len(), 0, Shape::matrix(self.threads, tile), tile);
        (&prepared.kernels, Context::new(&self.micro, tiles))
    }

    /// One replay.
    pub fn run(&mut self, exe: &Executable) {
        let (kernels, context) = self.parts(exe);
        self.pool.install(|| kernels.iter().for_each(|kernel| kernel.run(&context)));
    }

    /// Replays only the given stretches of ops, in the order of the list and so many times, within one replay. An op sees
    /// what the last replay left in its inputs, so whoever times one op first replays those before it.
    ///
    /// # Panics
    /// If the program has no such ops.
    pub fn run_ops(&mut self, exe: &Executable, stretches: &[Range<usize>], repeats: usize) {
        let (kernels, context) = self.parts(exe);
        let chosen = || stretches.iter().flat_map(|ops| &kernels[ops.clone()]);
        self.pool.install(|| (0..repeats).flat_map(|_| chosen()).for_each(|kernel| kernel.run(&context)));
    }

    /// Values of a tensor after a run, row by row. Arena tensors must be among the program's results.
    pub fn read(&self, exe: &Executable, tensor: Tensor) -> Vec<f32> {
        let view = self.resolve(&exe.program, tensor);
        (0..view.shape.len()).map(|i| view.at(i)).collect()
    }

    /// Fills the arena with NaN, so that a read of what nothing wrote shows.
    pub fn poison(&mut self) {
        self.arena.slice_mut().fill(f32::NAN);
        self.tiles.slice_mut().fill(f32::NAN);
    }

    /// Runs op by op and names the op and the tensor of the first output that is not finite. The store is left as it
    /// was.
    pub fn find_non_finite(&mut self, exe: &Executable) -> Option<String> {
        let before = self.store.slice().to_vec();
        let found = self.first_non_finite(exe);
        self.store.slice_mut().copy_from_slice(&before);
        found
    }

    fn first_non_finite(&mut self, exe: &Executable) -> Option<String> {
        let (kernels, context) = self.parts(exe);
        for (step, (kernel, node)) in kernels.iter().zip(exe.program.nodes()).enumerate() {
            self.pool.install(|| kernel.run(&context));
            for output in &node.outputs {
                let view = self.resolve(&exe.program, output.tensor);
                let bad = (0..view.shape.len()).find(|&i| !view.at(i).is_finite());
                if let Some(index) = bad {
                    let info = exe.program.graph().info(output.tensor);
                    let (value, op) = (view.at(index), node.op.name());
                    let Shape { n, h, w, c } = info.shape;
                    return Some(format!(
                        "op {step} `{op}` of `{}` wrote {value} to `{}` ({n}x{h}x{w}x{c}) at element {index}",
                        exe.program.name, info.name
                    ));
                }
            }
        }
        None
    }

    /// Time of each kind of op, the slowest first, as the mean of some replays. The store is left as it was.
    pub fn profile(&mut self, exe: &Executable, repeats: usize) -> Vec<OpTime> {
        let before = self.store.slice().to_vec();
        let mut times: Vec<OpTime> = Vec::new();
        let (kernels, context) = self.parts(exe);
        for repeat in 0..repeats.max(1) {
            for (kernel, node) in kernels.iter().zip(exe.program.nodes()) {
                let start = Instant::now();
                self.pool.install(|| kernel.run(&context));
                let seconds = start.elapsed().as_secs_f64() / repeats.max(1) as f64;
                let op = node.op.name();
                let at = times.iter().position(|t| t.0 == op).unwrap_or_else(|| {
                    times.push((op, 0.0, 0));
                    times.len() - 1
                });
                times[at].1 += seconds;
                times[at].2 += usize::from(repeat == 0);
            }
        }
        self.store.slice_mut().copy_from_slice(&before);
        times.sort_by(|a, b| b.1.total_cmp(&a.1));
        times
    }

    /// Bytes that the device has allocated: store, arena and the threads' tiles.
    pub fn peak_bytes(&self) -> usize {
        self.store.bytes() + self.arena.bytes() + self.tiles.bytes()
    }
}
