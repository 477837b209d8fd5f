//! Reverse mode on the graph. This is the only place that knows the chain rule.
//!
//! Each op appends its own gradient ops through [`Backward`]. A cotangent (gradient of the loss with respect to a
//! tensor) has two forms. *Dense*: a tensor into which consumers write or accumulate, by regions, so that the slices of
//! a concatenation or of a flat parameter vector share one buffer and need neither zero fill nor addition. *Terms*: a
//! list of products that were never computed, `coef_a * mask_n * g + coef_b * y + coef_c` with one coefficient a
//! channel. Batch normalisation's backward has just that form, so the gradient before a normalisation is read by the
//! producer's kernel from the gradient after it and the stored map, and never stored itself.

use std::collections::{HashMap, HashSet};

use super::{Graph, Node, Output, Root, Shape, Tensor};
use crate::error::{Error, Result};
use crate::ops::elementwise::{Affine, Fill};

/// A product that stands for a gradient: `a[c] * m[n] * g + b[c] * y + d[c]`, `y` being the tensor itself.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    /// The gradient behind the normalisation or weight.
    pub g: Tensor,
    /// `[3, c]`: the rows a, b, d. None means 1, 0, 0.
    pub coef: Option<Tensor>,
    /// One factor an image: a row of a mask tensor `[rows, n]`. None means 1.
    pub mask: Option<(Tensor, usize)>,
}

/// Which parts of a [`Term`] are present among an op's inputs, which hold `g`, then coefficients, then the mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TermKind {
    /// Coefficients follow.
    pub coef: bool,
    /// The mask follows; its row.
    pub mask: Option<usize>,
}

impl Term {
    /// A dense gradient.
    pub fn plain(g: Tensor) -> Self {
        Self { g, coef: None, mask: None }
    }

    /// Appends the tensors of the term to an input list and says which there are.
    pub fn push(&self, inputs: &mut Vec<Tensor>) -> TermKind {
        inputs.push(self.g);
        inputs.extend(self.coef);
        inputs.extend(self.mask.map(|m| m.0));
        TermKind { coef: self.coef.is_some(), mask: self.mask.map(|m| m.1) }
    }
}

/// What part of a base tensor a view covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    /// First column, the base seen as `rows x c`.
    start: usize,
    /// Behind the last column.
    end: usize,
    /// Whether the view covers every element of these columns, not only some of them.
    whole: bool,
}

impl Region {
    fn of(graph: &Graph, tensor: Tensor) -> Self {
        let (view, base) = (graph.info(tensor), graph.info(graph.base(tensor)));
        let (rows, c) = (view.shape.rows(), view.shape.c);
        let contiguous = view.row_stride == c || rows == 1;
        if rows == base.shape.rows() && (rows == 1 || view.row_stride == base.row_stride) {
            Self { start: view.offset, end: view.offset + c, whole: true }
        } else if base.shape.rows() == 1 {
            Self { start: view.offset, end: view.offset + (rows - 1) * view.row_stride + c, whole: contiguous }
        } else {
            // Some rows of a matrix, or all of it in another shape.
            Self { start: 0, end: base.shape.c, whole: contiguous && view.shape.len() == base.shape.len() }
        }
    }

    fn overlaps(self, start: usize, end: usize) -> bool {
        start < self.end && end > self.start
    }
}

/// Whether two views of one base look at the same elements in the same shape.
fn same_elements(graph: &Graph, a: Tensor, b: Tensor) -> bool {
    let extent = |t: Tensor| (graph.info(t).offset, graph.info(t).row_stride, graph.info(t).shape);
    extent(a) == extent(b)
}

#[derive(Default)]
struct Cotangents {
    /// Base tensor -> its dense gradient and the column ranges written so far.
    dense: HashMap<Tensor, (Tensor, Vec<(usize, usize)>)>,
    /// Base tensor -> the terms that wait at it or at views of it, in order.
    terms: HashMap<Tensor, Vec<(Tensor, Term)>>,
}

impl Cotangents {
    /// The dense gradient of `tensor`, made on first use, and whether the caller must add to it.
    fn slot(&mut self, graph: &mut Graph, tensor: Tensor) -> Output {
        let base = graph.base(tensor);
        let Region { start, end, whole } = Region::of(graph, tensor);
        let (gradient, mut written) = self.dense.remove(&base).unwrap_or_else(|| {
            let info = graph.info(base);
            let (shape, name) = (info.shape, format!("d {}", info.name));
            let scope = std::mem::take(&mut graph.scope);
            let gradient = graph.tensor(shape, &name);
            graph.scope = scope;
            (gradient, Vec::new())
        });
        let covered: usize = written.iter().map(|&(a, b)| b.min(end).saturating_sub(a.max(start))).sum();
        let accumulate = covered > 0 || !whole;
        if accumulate && covered < end - start {
            Self::fill_gaps(graph, gradient, &mut written, start, end);
        } else if covered == 0 {
            written.push((start, end));
        }
        self.dense.insert(base, (gradient, written));
        Output { tensor: Self::view_like(graph, gradient, tensor), accumulate }
    }

    /// Whether a dense gradient reaches any part of `tensor`.
    fn written(&self, graph: &Graph, tensor: Tensor) -> bool {
        let region = Region::of(graph, tensor);
        self.dense.get(&graph.base(tensor)).is_some_and(|(_, w)| w.iter().any(|&(a, b)| region.overlaps(a, b)))
    }

    /// Whether anything flows back into any part of `tensor`.
    fn has(&self, graph: &Graph, tensor: Tensor) -> bool {
        let region = Region::of(graph, tensor);
        let touches = |view: Tensor| {
            let other = Region::of(graph, view);
            region.overlaps(other.start, other.end)
        };
        let terms = self.terms.get(&graph.base(tensor));
        self.written(graph, tensor) || terms.is_some_and(|list| list.iter().any(|&(view, _)| touches(view)))
    }

    /// Takes the terms that wait at exactly the elements of `tensor`, whatever handle they were left at.
    fn take(&mut self, graph: &Graph, tensor: Tensor) -> Vec<Term> {
        let Some(list) = self.terms.get_mut(&graph.base(tensor)) else { return Vec::new() };
        let mut taken = Vec::new();
        list.retain(|&(view, term)| {
            let same = same_elements(graph, view, tensor);
            taken.extend(same.then_some(term));
            !same
        });
        taken
    }

    /// Computes terms of `tensor` into its dense gradient.
    fn compute(&mut self, graph: &mut Graph, tensor: Tensor, terms: &[Term]) -> Tensor {
        let slot = self.slot(graph, tensor);
        if !terms.is_empty() {
            let mut inputs = Vec::new();
            if terms.iter().any(|t| t.coef.is_some()) {
                inputs.push(tensor);
            }
            let kinds = terms.iter().map(|t| t.push(&mut inputs)).collect();
            graph.push(Affine { terms: kinds }, inputs, vec![slot]);
        }
        slot.tensor
    }

    /// Computes the terms that wait at other views which share elements with `output`: its producer sees only the
    /// terms at the output itself.
    fn settle(&mut self, graph: &mut Graph, output: Tensor) {
        let region = Region::of(graph, output);
        let waiting: Vec<Tensor> = self.terms.get(&graph.base(output)).into_iter().flatten().map(|t| t.0).collect();
        for view in waiting {
            let other = Region::of(graph, view);
            if same_elements(graph, view, output) || !region.overlaps(other.start, other.end) {
                continue;
            }
            let terms = self.take(graph, view);
            if !terms.is_empty() {
                self.compute(graph, view, &terms);
            }
        }
    }

    /// The view into `gradient` that corresponds to `tensor` in its base.
    fn view_like(graph: &mut Graph, gradient: Tensor, tensor: Tensor) -> Tensor {
        if graph.base(tensor) == tensor {
            return gradient;
        }
        let view = graph.info(tensor).clone();
        let info = graph.info(gradient);
        let mirrored = super::Info { base: gradient, root: Root::Arena, name: info.name.clone(), ..view };
        graph.infos.push(mirrored);
        Tensor(graph.infos.len() as u32 - 1)
    }

    /// Writes zeros into the columns of `start..end` that nothing has written.
    fn fill_gaps(graph: &mut Graph, gradient: Tensor, written: &mut Vec<(usize, usize)>, start: usize, end: usize) {
        written.sort_unstable();
        let mut at = start;
        let mut gaps = Vec::new();
        for &(a, b) in written.iter() {
            if b <= at {
                continue;
            }
            if a >= end {
                break;
            }
            if a > at {
                gaps.push((at, a));
            }
            at = b;
        }
        if at < end {
            gaps.push((at, end));
        }
        for (a, b) in gaps {
            let info = graph.info(gradient).clone();
            graph.infos.push(super::Info { shape: info.shape.with_channels(b - a), offset: a, ..info });
            let view = Tensor(graph.infos.len() as u32 - 1);
            graph.push(Fill { value: 0.0 }, vec![], vec![view.into()]);
            written.push((a, b));
        }
    }
}

/// What an op's gradient rule may use.
pub struct Backward<'a> {
    graph: &'a mut Graph,
    node: Node,
    depends: &'a HashSet<Tensor>,
    cotangents: &'a mut Cotangents,
}

impl Backward<'_> {
    /// The `i`-th input of the op being differentiated.
    pub fn input(&self, i: usize) -> Tensor {
        self.node.inputs[i]
    }

    /// All inputs.
    pub fn inputs(&self) -> &[Tensor] {
        &self.node.inputs
    }

    /// The `i`-th output.
    pub fn output(&self, i: usize) -> Tensor {
        self.node.outputs[i].tensor
    }

    /// Shape of a tensor.
    pub fn shape(&self, tensor: Tensor) -> Shape {
        self.graph.shape(tensor)
    }

    /// Whether a gradient of this tensor is of any use.
    pub fn wants(&self, tensor: Tensor) -> bool {
        self.depends.contains(&self.graph.base(tensor))
    }

    /// Whether anything flows back into this output.
    pub fn flows(&self, output: Tensor) -> bool {
        self.cotangents.has(self.graph, output)
    }

    /// All terms of an output's gradient; its dense part, if any, comes first as a plain term.
    pub fn terms(&mut self, output: Tensor) -> Vec<Term> {
        let mut terms = Vec::new();
        if self.cotangents.written(self.graph, output) {
            terms.push(Term::plain(self.cotangents.slot(self.graph, output).tensor));
        }
        terms.extend(self.cotangents.take(self.graph, output));
        terms
    }

    /// The gradient of an output as one term; sums of several are computed first.
    pub fn single(&mut self, output: Tensor) -> Option<Term> {
        if !self.flows(output) {
            return None;
        }
        let mut terms = self.cotangents.take(self.graph, output);
        if terms.len() == 1 && !self.cotangents.written(self.graph, output) {
            return terms.pop();
        }
        Some(Term::plain(self.cotangents.compute(self.graph, output, &terms)))
    }

    /// The gradient of an output as a tensor; pending terms are computed and added first.
    pub fn dense(&mut self, output: Tensor) -> Option<Tensor> {
        if !self.flows(output) {
            return None;
        }
        let terms = self.cotangents.take(self.graph, output);
        Some(self.cotangents.compute(self.graph, output, &terms))
    }

    /// Takes the terms that wait at a tensor, so that a kernel may add them on its way.
    pub fn absorb(&mut self, tensor: Tensor) -> Vec<Term> {
        self.cotangents.take(self.graph, tensor)
    }

    /// Where the gradient of an input is to be written, overwriting or accumulating.
    pub fn slot(&mut self, input: Tensor) -> Output {
        self.cotangents.slot(self.graph, input)
    }

    /// Leaves a term at an input instead of writing its gradient.
    pub fn leave(&mut self, input: Tensor, term: Term) {
        self.cotangents.terms.entry(self.graph.base(input)).or_default().push((input, term));
    }

    /// A new tensor for a gradient op's result.
    pub fn tensor(&mut self, shape: Shape, like: Tensor, what: &str) -> Tensor {
        let name = format!("{what} of {}", self.graph.info(like).name);
        let scope = std::mem::take(&mut self.graph.scope);
        let tensor = self.graph.tensor(shape, &name);
        self.graph.scope = scope;
        tensor
    }

    /// Appends a gradient op.
    pub fn push(&mut self, op: impl Into<crate::ops::Op>, inputs: Vec<Tensor>, outputs: Vec<Output>) {
        self.graph.push(op, inputs, outputs);
    }
}

impl Graph {
    /// Appends the gradient of the scalar `loss` with respect to each of `wrt`; whatever does not lead to one of them is
    /// never recorded. The gradient of a flat state comes as one flat tensor; parts that the loss does not reach are
    /// zero.
    ///
    /// # Errors
    /// [`Error::Shape`] if `loss` is not a scalar, or an op on the way has no gradient rule.
    pub fn gradients(&mut self, loss: Tensor, wrt: &[Tensor]) -> Result<Vec<Tensor>> {
        if self.shape(loss).len() != 1 {
            let message = format!("the loss must be a scalar, not {}", self.shape(loss));
            return Err(Error::Shape { op: "gradients", message });
        }
        let leaves: HashSet<Tensor> = wrt.iter().map(|&t| self.base(t)).collect();
        let mut depends = leaves.clone();
        for node in &self.nodes {
            if !node.op.detached() && node.inputs.iter().any(|&t| depends.contains(&self.base(t))) {
                let bases: Vec<_> = node.outputs.iter().map(|o| self.base(o.tensor)).collect();
                depends.extend(bases.into_iter().filter(|b| self.infos[b.index()].root == Root::Arena));
            }
        }
        let mut cotangents = Cotangents::default();
        let recorded = self.nodes.len();
        let seed = cotangents.slot(self, loss);
        self.push(Fill { value: 1.0 }, vec![], vec![seed]);
        for index in (0..recorded).rev() {
            let node = &self.nodes[index];
            let ends_here = node.outputs.iter().any(|o| leaves.contains(&self.base(o.tensor)));
            let wanted = node.inputs.iter().any(|&t| depends.contains(&self.base(t)));
            let reached = node.outputs.iter().any(|o| cotangents.has(self, o.tensor));
            if node.op.detached() || ends_here || !wanted || !reached {
                continue;
            }
            let node = node.clone();
            let op = node.op.clone();
            for output in &node.outputs {
                cotangents.settle(self, output.tensor);
            }
            let mut backward = Backward { graph: self, node, depends: &depends, cotangents: &mut cotangents };
            op.backward(&mut backward)?;
        }
        // Terms that wait at a leaf have no producer whose rule would collect them.
        for &leaf in wrt {
            while let Some(&(view, _)) = cotangents.terms.get(&self.base(leaf)).and_then(|list| list.first()) {
                let terms = cotangents.take(self, view);
                cotangents.compute(self, view, &terms);
            }
        }
        let mut gradients = Vec::with_capacity(wrt.len());
        for &tensor in wrt {
            let base = self.base(tensor);
            let columns = self.infos[base.index()].shape.c;
            let (gradient, mut written) = match cotangents.dense.remove(&base) {
                Some(found) => found,
                None => (cotangents.slot(self, base).tensor, Vec::new()),
            };
            Cotangents::fill_gaps(self, gradient, &mut written, 0, columns);
            cotangents.dense.insert(base, (gradient, written));
            gradients.push(Cotangents::view_like(self, gradient, tensor));
        }
        Ok(gradients)
    }
}
