//! A device with memory of its own: states and arena in pages, programs as recorded launches. What the GPUs share stands
//! here; what one of them does its own way is its [`Backend`].

use std::sync::Arc;

use super::pages::{Placed, Store};
use super::{Executable, Precision};
use crate::error::{Error, Result};
use crate::graph::{Program, Shape, State, StoreLayout, Tensor};
use crate::ops::launch::{Launch, Place};

/// What each kind of GPU does its own way. Pages are numbered in the order of their allocation; those of the store come
/// first.
pub trait Backend {
    /// Launches made ready for replays. It holds the pages that there are when it is made.
    type Recording;

    /// What computes, for people.
    fn name(&self) -> String;

    /// How matrices are multiplied, for people, where that is not always the same.
    fn products(&self) -> Option<String> {
        None
    }

    /// Most elements of a page, a multiple of 64.
    fn page(&self) -> usize;

    /// Says how programs compute, before any is recorded. What is stored how, their launches say.
    fn set_precision(&mut self, _precision: Precision) {}

    /// Bytes of the device's memory that nobody has, where the device tells.
    fn free(&self) -> Option<usize> {
        None
    }

    /// Appends pages of so many elements, filled with zeros.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] with the numbers if they do not fit; then there are no new pages.
    fn allocate(&mut self, pages: &[usize]) -> Result<()>;

    /// Gives back all pages but the first `keep`.
    fn release(&mut self, keep: usize);

    /// Compiles kernels and binds pages. `what` names the launches in errors.
    ///
    /// # Errors
    /// [`crate::Error::Device`] with the compiler's words.
    fn record(&mut self, what: &str, launches: &[Launch]) -> Result<Self::Recording>;

    /// Starts one replay, after everything that was started before.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device is lost or failed earlier.
    fn replay(&mut self, recording: &Self::Recording) -> Result<()>;

    /// Replays once and measures: seconds of each launch, in order.
    ///
    /// # Errors
    /// As [`Backend::replay`], and [`crate::Error::Usage`] where the device cannot measure.
    fn time(&mut self, recording: &Self::Recording) -> Result<Vec<f64>>;

    /// Writes values from the element `first` of a page on, before whatever is started later.
    ///
    /// # Errors
    /// As [`Backend::replay`].
    fn write(&mut self, page: u32, first: usize, values: &[f32]) -> Result<()>;

    /// Reads values, as all that was started before leaves them.
    ///
    /// # Errors
    /// As [`Backend::replay`].
    fn read(&mut self, page: u32, first: usize, values: &mut [f32]) -> Result<()>;

    /// One value, as it is now or was after one of the last replays: without waiting where that is possible.
    ///
    /// # Errors
    /// As [`Backend::replay`].
    fn peek(&mut self, page: u32, first: usize) -> Result<f32>;

    /// Bytes that are allocated.
    fn bytes(&self) -> usize;
}

/// Time of one kernel in a replay.
#[derive(Clone, Debug)]
pub struct KernelTime {
    /// Its entry point.
    pub kernel: &'static str,
    /// Seconds of all its launches.
    pub seconds: f64,
    /// Their number.
    pub launches: usize,
}

/// The ops of a program, each with launches of its own, as they ran one after the other.
#[derive(Clone, Debug)]
pub struct OpTimes {
    /// Launches of each op.
    pub launches: Vec<usize>,
    /// Seconds of each op in each replay.
    pub replays: Vec<Vec<f64>>,
}

/// A GPU with store, arena and programs, of whatever kind.
pub trait Gpu {
    /// What computes, for people.
    fn name(&self) -> String;

    /// As [`Backend::products`].
    fn products(&self) -> Option<String>;

    /// Values of a state.
    ///
    /// # Errors
    /// As [`Backend::read`].
    fn read(&mut self, state: State) -> Result<Vec<f32>>;

    /// Whether the first value of a state is other than zero, or was not long ago.
    ///
    /// # Errors
    /// As [`Backend::peek`].
    fn flag(&mut self, state: State) -> Result<bool>;

    /// Replaces all values of a state.
    ///
    /// # Errors
    /// As [`Backend::write`].
    ///
    /// # Panics
    /// If the state has another number of values.
    fn write(&mut self, state: State, values: &[f32]) -> Result<()>;

    /// Places and records a program. The arena grows to the largest program, which loses results of earlier runs.
    ///
    /// # Errors
    /// Those of [`Placed::new`], [`Backend::allocate`] and [`Backend::record`].
    fn prepare(&mut self, program: Program) -> Result<Executable>;

    /// One replay, which may still be under way afterwards.
    ///
    /// # Errors
    /// As [`Backend::replay`].
    fn run(&mut self, exe: &Executable) -> Result<()>;

    /// Launches of a replay.
    fn launches(&self, exe: &Executable) -> usize;

    /// Time of each kernel, the slowest first, as the mean of some replays, which change the store as replays do.
    ///
    /// # Errors
    /// As [`Backend::time`].
    fn profile(&mut self, exe: &Executable, repeats: usize) -> Result<Vec<KernelTime>>;

    /// Time of each op in some replays without merging, so that every launch belongs to one op. Changes the store as replays
    /// do.
    ///
    /// # Errors
    /// As [`Backend::time`] and [`Backend::record`].
    fn op_times(&mut self, exe: &Executable, repeats: usize) -> Result<OpTimes>;

    /// Values of a tensor after a run, row by row. Arena tensors must be among the program's results.
    ///
    /// # Errors
    /// As [`Backend::read`].
    fn read_tensor(&mut self, exe: &Executable, tensor: Tensor) -> Result<Vec<f32>>;

    /// Runs op by op, unmerged, and names the op and the tensor of the first output that is not finite. The store is left
    /// as it was.
    ///
    /// # Errors
    /// As [`Backend::replay`] and [`Backend::record`].
    fn find_non_finite(&mut self, exe: &Executable) -> Result<Option<String>>;

    /// Bytes that the device has allocated.
    fn bytes(&self) -> usize;

    /// Elements that a tensor may have beside what is there: what a page holds, and two thirds of the free memory. None
    /// where the device does not tell what is free.
    fn room(&self) -> Option<usize>;
}

/// As [`Gpu::room`], of so many free bytes and pages of so many elements.
pub fn room(free: usize, page: usize) -> usize {
    (free / 4 / 3 * 2).min(page)
}

/// Store, arena and programs on a GPU.
pub struct Paged<B: Backend> {
    backend: B,
    store: Store,
    /// Elements of the arena.
    arena: usize,
    prepared: Vec<Prepared<B>>,
}

struct Prepared<B: Backend> {
    program: Arc<Program>,
    placed: Placed,
    launches: Vec<Launch>,
    recording: Option<B::Recording>,
}

impl<B: Backend> Paged<B> {
    /// A store of zeros on a device, beside which programs store feature maps in this precision.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if the store does not fit.
    pub fn new(mut backend: B, layout: &StoreLayout, precision: Precision) -> Result<Self> {
        backend.set_precision(precision);
        let store = Store::in_precision(layout, backend.page(), precision)?;
        backend.allocate(&store.pages)?;
        Ok(Self { backend, store, arena: 0, prepared: Vec::new() })
    }

    /// The device behind it.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    fn index(&self, exe: &Executable) -> usize {
        let known = self.prepared.get(exe.index).is_some_and(|p| Arc::ptr_eq(&p.program, &exe.program));
        assert!(known, "an executable runs on the device that prepared it");
        exe.index
    }

    fn read_place(&mut self, place: Place) -> Result<Vec<f32>> {
        let (shape, stride) = (place.shape, place.row_stride as usize);
        let extent = shape.rows().saturating_sub(1) * stride + shape.c;
        let per_word = if place.half { 2 } else { 1 };
        let mut values = vec![0.0; extent / per_word];
        self.backend.read(place.page, place.offset as usize / per_word, &mut values)?;
        if place.half {
            values = values.into_iter().flat_map(|word| self.store.precision.unpack(word)).collect();
        }
        if stride != shape.c {
            values = values.chunks(stride).flat_map(|row| &row[..shape.c]).copied().collect();
        }
        Ok(values)
    }

    fn first_non_finite(&mut self, exe: &Executable) -> Result<Option<String>> {
        let program = Arc::clone(&exe.program);
        let placed = self.prepared[self.index(exe)].placed.clone();
        for (step, (node, op)) in program.nodes().iter().zip(placed.lower(&program, &self.store)).enumerate() {
            let what = format!("op {step} `{}` of `{}`", node.op.name(), program.name);
            let recording = self.backend.record(&what, &op.launches)?;
            self.backend.replay(&recording)?;
            for output in &node.outputs {
                let values = self.read_place(placed.place(&program, &self.store, output.tensor))?;
                if let Some(index) = values.iter().position(|v| !v.is_finite()) {
                    let info = program.graph().info(output.tensor);
                    let (value, Shape { n, h, w, c }) = (values[index], info.shape);
                    let name = &info.name;
                    return Ok(Some(format!("{what} wrote {value} to `{name}` ({n}x{h}x{w}x{c}) at element {index}")));
                }
            }
        }
        Ok(None)
    }
}

impl<B: Backend> Gpu for Paged<B> {
    fn name(&self) -> String {
        self.backend.name()
    }

    fn products(&self) -> Option<String> {
        self.backend.products()
    }

    fn read(&mut self, state: State) -> Result<Vec<f32>> {
        let (page, first) = self.store.place(state);
        let mut values = vec![0.0; state.shape.len()];
        self.backend.read(page, first as usize, &mut values)?;
        Ok(values)
    }

    fn flag(&mut self, state: State) -> Result<bool> {
        let (page, first) = self.store.place(state);
        Ok(self.backend.peek(page, first as usize)? != 0.0)
    }

    fn write(&mut self, state: State, values: &[f32]) -> Result<()> {
        assert_eq!(values.len(), state.shape.len(), "a state is written whole");
        let (page, first) = self.store.place(state);
        self.backend.write(page, first as usize, values)
    }

    fn prepare(&mut self, program: Program) -> Result<Executable> {
        let placed = Placed::new(&program, &self.store)?;
        let launches = placed.launches(&program, &self.store);
        if placed.arena() > self.arena {
            // The old arena is given back first, and every recording gets the new pages.
            self.prepared.iter_mut().for_each(|p| p.recording = None);
            self.backend.release(self.store.pages.len());
            self.arena = 0;
            self.backend.allocate(&self.store.arena_pages(placed.arena()))?;
            self.arena = placed.arena();
            for p in &mut self.prepared {
                p.recording = Some(self.backend.record(&p.program.name, &p.launches)?);
            }
        }
        let recording = Some(self.backend.record(&program.name, &launches)?);
        let program = Arc::new(program);
        self.prepared.push(Prepared { program: Arc::clone(&program), placed, launches, recording });
        Ok(Executable { index: self.prepared.len() - 1, program })
    }

    fn run(&mut self, exe: &Executable) -> Result<()> {
        let index = self.index(exe);
        match &self.prepared[index].recording {
            Some(recording) => self.backend.replay(recording),
            None => Err(Error::device("the arena could not grow for a later program: nothing can run any more")),
        }
    }

    fn launches(&self, exe: &Executable) -> usize {
        self.prepared[self.index(exe)].launches.len()
    }

    fn profile(&mut self, exe: &Executable, repeats: usize) -> Result<Vec<KernelTime>> {
        let prepared = &self.prepared[self.index(exe)];
        let mut times: Vec<KernelTime> = Vec::new();
        let Some(recording) = &prepared.recording else { return Ok(times) };
        for repeat in 0..repeats.max(1) {
            for (launch, seconds) in prepared.launches.iter().zip(self.backend.time(recording)?) {
                let at = times.iter().position(|t| t.kernel == launch.kernel).unwrap_or_else(|| {
                    times.push(KernelTime { kernel: launch.kernel, seconds: 0.0, launches: 0 });
                    times.len() - 1
                });
                times[at].seconds += seconds / repeats.max(1) as f64;
                times[at].launches += usize::from(repeat == 0);
            }
        }
        times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Ok(times)
    }

    fn op_times(&mut self, exe: &Executable, repeats: usize) -> Result<OpTimes> {
        let Prepared { program, placed, .. } = &self.prepared[self.index(exe)];
        let ops = placed.lower(program, &self.store);
        let launches: Vec<usize> = ops.iter().map(|op| op.launches.len()).collect();
        let all: Vec<Launch> = ops.into_iter().flat_map(|op| op.launches).collect();
        let recording = self.backend.record(&format!("{}, op by op", program.name), &all)?;
        let mut replays = Vec::with_capacity(repeats);
        for _ in 0..repeats {
            let mut seconds = self.backend.time(&recording)?.into_iter();
            replays.push(launches.iter().map(|&count| seconds.by_ref().take(count).sum()).collect());
        }
        Ok(OpTimes { launches, replays })
    }

    fn read_tensor(&mut self, exe: &Executable, tensor: Tensor) -> Result<Vec<f32>> {
        let prepared = &self.prepared[self.index(exe)];
        let place = prepared.placed.place(&prepared.program, &self.store, tensor);
        self.read_place(place)
    }

    fn find_non_finite(&mut self, exe: &Executable) -> Result<Option<String>> {
        let mut before = Vec::new();
        for (page, &len) in self.store.pages.iter().enumerate() {
            let mut values = vec![0.0; len];
            self.backend.read(page as u32, 0, &mut values)?;
            before.push(values);
        }
        let found = self.first_non_finite(exe);
        for (page, values) in before.iter().enumerate() {
            self.backend.write(page as u32, 0, values)?;
        }
        found
    }

    fn bytes(&self) -> usize {
        self.backend.bytes()
    }

    fn room(&self) -> Option<usize> {
        self.backend.free().map(|bytes| room(bytes, self.backend.page()))
    }
}
