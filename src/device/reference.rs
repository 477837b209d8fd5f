//! The reference device: runs any program op by op with the plain implementations, in f32 or f64.

use super::Precision;
use super::view::{Io, View};
use crate::graph::{Info, Program, Root, Shape, State, StoreLayout, Tensor};
use crate::ops::Real;

/// A store, an arena, and the plain implementations.
pub struct Reference<T> {
    store: Vec<Vec<T>>,
    arena: Vec<T>,
}

impl<T: Real> Reference<T> {
    /// A store of zeros.
    pub fn new(layout: &StoreLayout) -> Self {
        let store = layout.iter().map(|(_, s)| vec![T::of(0.0); s.shape.len()]).collect();
        Self { store, arena: Vec::new() }
    }

    /// Values of a state.
    pub fn state(&self, state: State) -> &[T] {
        &self.store[state.id as usize]
    }

    /// Values of a state, to be changed.
    pub fn state_mut(&mut self, state: State) -> &mut [T] {
        &mut self.store[state.id as usize]
    }

    fn view(&mut self, info: &Info, base_offset: Option<usize>) -> View<T> {
        let Info { shape, offset, row_stride, root, .. } = *info;
        let last = offset + shape.rows().saturating_sub(1) * row_stride + shape.c;
        let memory = match root {
            Root::State(state) => &mut self.store[state.id as usize][..],
            Root::Arena => &mut self.arena[base_offset.expect("every live tensor is placed")..],
        };
        assert!(last <= memory.len(), "{} reaches beyond its memory", info.name);
        // SAFETY: the extent lies within the memory as just checked; the device runs one op at a time on one thread.
        unsafe { View::new(memory.as_mut_ptr().add(offset), shape, row_stride) }
    }

    fn resolve(&mut self, program: &Program, tensor: Tensor) -> View<T> {
        let info = program.graph().info(tensor).clone();
        let offset = program.plan.offsets[info.base.index()];
        self.view(&info, offset)
    }

    /// Runs a program once. The arena is filled with NaN first, so that a read of what nothing wrote shows.
    pub fn run(&mut self, program: &Program) {
        self.run_until(program, |_, _, _| true);
    }

    /// Runs a program and rounds every map that a device of this precision stores in halves, once it is written.
    pub fn run_in(&mut self, program: &Program, precision: Precision) {
        let halves = precision.halves(program);
        let round = |v: T| T::of(precision.decode(precision.encode(v.wide() as f32)).into());
        self.run_until(program, |reference, op, program| {
            for output in &program.nodes()[op].outputs {
                if halves.contains(&program.graph().base(output.tensor)) {
                    reference.replace(program, output.tensor, round);
                }
            }
            true
        });
    }

    /// Runs a program, calling `look(device, op index, program)` after each op until it answers false.
    pub fn run_until(&mut self, program: &Program, mut look: impl FnMut(&mut Self, usize, &Program) -> bool) {
        self.arena.clear();
        self.arena.resize(program.plan.arena, T::of(f64::NAN));
        for (index, node) in program.nodes().iter().enumerate() {
            let inputs: Vec<_> = node.inputs.iter().map(|&t| self.resolve(program, t)).collect();
            let outputs: Vec<_> = node.outputs.iter().map(|o| self.resolve(program, o.tensor)).collect();
            let accumulate: Vec<_> = node.outputs.iter().map(|o| o.accumulate).collect();
            node.op.reference(&Io { inputs: &inputs, outputs: &outputs, accumulate: &accumulate });
            if !look(self, index, program) {
                return;
            }
        }
    }

    /// Values of a tensor after a run, row by row. Arena tensors must be among the program's results.
    pub fn read(&mut self, program: &Program, tensor: Tensor) -> Vec<T> {
        let view = self.resolve(program, tensor);
        (0..view.shape.len()).map(|i| view.at(i)).collect()
    }

    /// Replaces every value of a tensor, as a device does that stores it in fewer bits.
    pub fn replace(&mut self, program: &Program, tensor: Tensor, by: impl Fn(T) -> T) {
        let view = self.resolve(program, tensor);
        for row in 0..view.shape.rows() {
            (0..view.shape.c).for_each(|c| view.set(row, c, by(view.get(row, c))));
        }
    }

    /// Shape and values of every output of one op that are not finite, by name: empty if all is sound.
    pub fn non_finite(&mut self, program: &Program, op: usize) -> Vec<(String, Shape)> {
        let outputs: Vec<Tensor> = program.nodes()[op].outputs.iter().map(|o| o.tensor).collect();
        let sound = |values: Vec<T>| values.iter().all(|v| v.finite());
        outputs
            .into_iter()
            .filter(|&t| !sound(self.read(program, t)))
            .map(|t| (program.graph().info(t).name.clone(), program.graph().shape(t)))
            .collect()
    }
}
