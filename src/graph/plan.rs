//! From a recorded graph to a program: drops what no result needs, gives every tensor a place in the arena, and sums
//! the cost. Peak memory is known before anything runs.

use std::collections::HashSet;

use super::{Graph, Node, Root, Shape, Tensor};
use crate::ops::Cost;

/// Elements to which arena offsets are rounded: 64 bytes of f32, a cache line and the widest vector.
const ALIGNMENT: usize = 16;

/// A graph reduced to the ops that its results need, with all tensors placed.
#[derive(Clone, Debug)]
pub struct Program {
    /// Name, for messages and profiles.
    pub name: String,
    pub(crate) graph: Graph,
    /// Tensors that stay readable after a replay.
    pub(crate) results: Vec<Tensor>,
    /// Whether a device that stores maps in halves may store results so, too; else they are whole.
    pub(crate) halved_results: bool,
    /// Placement of the arena tensors in one piece, with the scratch of the CPU's kernels.
    pub plan: Plan,
}

/// Placement of the arena.
#[derive(Clone, Debug)]
pub struct Plan {
    /// First element of each base tensor in the arena; None for states, views and tensors of dropped ops.
    pub offsets: Vec<Option<usize>>,
    /// Elements of the arena.
    pub arena: usize,
    /// First element and extent of each piece of each op's private scratch in the arena.
    pub scratch: Vec<Vec<(usize, usize)>>,
}

impl Program {
    /// Keeps the ops that lead to `results` or write a state, and plans the arena. Results stay readable after a replay.
    pub fn new(name: impl Into<String>, mut graph: Graph, results: &[Tensor]) -> Self {
        let mut needed: HashSet<Tensor> = results.iter().map(|&t| graph.base(t)).collect();
        let mut live = vec![false; graph.nodes.len()];
        for (index, node) in graph.nodes.iter().enumerate().rev() {
            let state = |t: Tensor| matches!(graph.info(graph.base(t)).root, Root::State(_));
            live[index] = node.outputs.iter().any(|o| state(o.tensor) || needed.contains(&graph.base(o.tensor)));
            if live[index] {
                needed.extend(node.inputs.iter().map(|&t| graph.base(t)));
                needed.extend(node.outputs.iter().filter(|o| o.accumulate).map(|o| graph.base(o.tensor)));
            }
        }
        let mut keep = live.iter();
        graph.nodes.retain(|_| *keep.next().expect("one flag a node"));
        let scratch = |node: &Node| {
            let (inputs, outputs) = node.shapes(&graph);
            Piece::one(node.op.scratch(&inputs, &outputs))
        };
        let rules = Rules { page: usize::MAX, linger: 0, keep: 0 };
        let plan = Plan::new(&graph, results, rules, |base| graph.shape(base).len(), scratch);
        Self { name: name.into(), graph, results: results.to_vec(), halved_results: false, plan }
    }

    /// The ops, in order of execution.
    pub fn nodes(&self) -> &[Node] {
        &self.graph.nodes
    }

    /// The graph behind the program.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// First element in the arena of the base of a tensor, and that base's elements. None for states and for tensors
    /// of ops that were dropped.
    pub fn place(&self, tensor: Tensor) -> Option<(usize, usize)> {
        let base = self.graph.base(tensor);
        self.plan.offsets[base.index()].map(|offset| (offset, self.graph.shape(base).len()))
    }

    /// Bytes of the arena in f32.
    pub fn arena_bytes(&self) -> usize {
        self.plan.arena * 4
    }

    /// Cost of one replay, summed over the ops.
    pub fn cost(&self) -> Cost {
        self.graph.nodes.iter().map(|n| n.cost(&self.graph)).sum()
    }
}

impl Node {
    /// Cost of the op at its shapes.
    pub fn cost(&self, graph: &Graph) -> Cost {
        let (inputs, outputs) = self.shapes(graph);
        self.op.cost(&inputs, &outputs)
    }

    /// Shapes of inputs and outputs.
    pub fn shapes(&self, graph: &Graph) -> (Vec<Shape>, Vec<Shape>) {
        let inputs = self.inputs.iter().map(|&t| graph.shape(t)).collect();
        (inputs, self.outputs.iter().map(|o| graph.shape(o.tensor)).collect())
    }
}

/// A piece of an op's scratch.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Elements.
    pub len: usize,
    /// Rests longer than others: what is left there is used late.
    pub kept: bool,
}

impl Piece {
    /// One piece, or none if it is empty.
    pub(crate) fn one(len: usize) -> Vec<Self> {
        if len > 0 { vec![Self { len, kept: false }] } else { Vec::new() }
    }
}

/// What a device asks of a plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// No tensor and no scratch crosses a multiple of so many elements; each is to fit one page.
    pub page: usize,
    /// Ops for which memory rests after its last use before it is given to others: ops that share no memory can share
    /// launches.
    pub linger: usize,
    /// The same for pieces of scratch that are kept.
    pub keep: usize,
}

struct Block {
    start: usize,
    end: usize,
    first: usize,
    last: usize,
}

impl Plan {
    /// Places all tensors, each base in so many words, and each op's scratch.
    pub(crate) fn new(
        graph: &Graph,
        results: &[Tensor],
        rules: Rules,
        words: impl Fn(Tensor) -> usize,
        scratch_of: impl Fn(&Node) -> Vec<Piece>,
    ) -> Self {
        let Rules { page, linger, keep } = rules;
        let count = graph.infos.len();
        let mut first = vec![usize::MAX; count];
        let mut last = vec![0; count];
        let end = graph.nodes.len();
        for (step, node) in graph.nodes.iter().enumerate() {
            for tensor in node.inputs.iter().copied().chain(node.outputs.iter().map(|o| o.tensor)) {
                let base = graph.base(tensor).index();
                first[base] = first[base].min(step);
                last[base] = last[base].max(step);
            }
        }
        for &tensor in results {
            last[graph.base(tensor).index()] = end;
        }
        // Largest first into the lowest gap that is free for the whole lifetime.
        let mut order: Vec<(usize, usize, usize, usize)> = (0..count)
            .filter(|&t| first[t] != usize::MAX && graph.infos[t].root == Root::Arena)
            .map(|t| (words(Tensor(t as u32)).next_multiple_of(ALIGNMENT), first[t], last[t] + linger, t))
            .collect();
        let mut scratch: Vec<Vec<(usize, usize)>> = vec![Vec::new(); end];
        // Op and index of each piece, counted behind the tensors.
        let mut pieces = Vec::new();
        for (step, node) in graph.nodes.iter().enumerate() {
            for Piece { len, kept } in scratch_of(node) {
                let last = step + if kept { keep } else { linger };
                order.push((len.next_multiple_of(ALIGNMENT), step, last, count + pieces.len()));
                pieces.push((step, scratch[step].len()));
                scratch[step].push((0, 0));
            }
        }
        order.sort_unstable_by_key(|&(extent, first, _, t)| (std::cmp::Reverse(extent), first, t));
        let mut placed: Vec<Block> = Vec::with_capacity(order.len());
        let mut offsets = vec![None; count];
        let mut arena = 0;
        for (extent, first, last, tensor) in order {
            let within_page =
                |at: usize| if at / page < (at + extent - 1) / page { at.next_multiple_of(page) } else { at };
            let mut at = 0;
            // `placed` is sorted by start, so the first gap that fits is the lowest.
            for block in placed.iter().filter(|b| b.first <= last && first <= b.last) {
                if block.start >= at + extent {
                    break;
                }
                at = within_page(at.max(block.end));
            }
            let position = placed.partition_point(|b| b.start <= at);
            placed.insert(position, Block { start: at, end: at + extent, first, last });
            arena = arena.max(at + extent);
            if tensor < count {
                offsets[tensor] = Some(at);
            } else {
                let (step, piece) = pieces[tensor - count];
                scratch[step][piece] = (at, extent);
            }
        }
        Self { offsets, arena, scratch }
    }
}
