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

#[derive(Default)]
struct Cotangents {
    /// Base tensor -> its dense gradient and the column ranges written so far.
    dense: HashMap<Tensor, (Tensor, Vec<(usize, usize)>)>,
    terms: HashMap<Tensor, Vec<Term>>,
}

/// Columns of the base that a view covers, the base seen as `rows x c` (one row for flat vectors).
fn region(graph: &Graph, tensor: Tensor) -> (usize, usize) {
    let (view, base) = (graph.info(tensor), graph.info(graph.base(tensor)));
    if view.row_stride == base.row_stride && view.shape.rows() == base.shape.rows() {
        (view.offset, view.offset + view.shape.c)
    } else {
        (view.offset, view.offset + view.shape.len())
    }
}

impl Cotangents {
    /// The dense gradient of `tensor`, made on first use, and whether the caller must add to it.
    fn slot(&mut self, graph: &mut Graph, tensor: Tensor) -> Output {
        let base = graph.base(tensor);
        let (start, end) = region(graph, tensor);
        let (gradient, mut written) = self.dense.remove(&base).unwrap_or_else(|| {
            let info = graph.info(base);
            let (shape, name) = (info.shape, format!("d {}", info.name));
            let scope = std::mem::take(&mut graph.scope);
            let gradient = graph.tensor(shape, &name);
            graph.scope = scope;
            (gradient, Vec::new())
        });
        let covered: usize = written.iter().map(|&(a, b)| b.min(end).saturating_sub(a.max(start))).sum();
        if covered > 0 && covered < end - start {
            Self::fill_gaps(graph, gradient, &mut written, start, end);
        } else if covered == 0 {
            written.push((start, end));
        }
        self.dense.insert(base, (gradient, written));
        Output { tensor: Self::view_like(graph, gradient, tensor), accumulate: covered > 0 }
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

    fn has(&self, graph: &Graph, tensor: Tensor) -> bool {
        let (start, end) = region(graph, tensor);
        self.terms.contains_key(&tensor)
            || self.dense.get(&graph.base(tensor)).is_some_and(|(_, w)| w.iter().any(|&(a, b)| a < end && b > start))
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
        let base = self.graph.base(output);
        let (start, end) = region(self.graph, output);
        if let Some((_, written)) = self.cotangents.dense.get(&base) {
            if written.iter().any(|&(a, b)| a < end && b > start) {
                terms.push(Term::plain(self.cotangents.slot(self.graph, output).tensor));
            }
        }
        terms.extend(self.cotangents.terms.remove(&output).unwrap_or_default());
        terms
    }

    /// The gradient of an output as one term; sums of several are computed first.
    pub fn single(&mut self, output: Tensor) -> Option<Term> {
        let lazy = self.cotangents.terms.get(&output).map_or(0, Vec::len);
        if lazy == 1 {
            let base = self.graph.base(output);
            let (start, end) = region(self.graph, output);
            let dense = self.cotangents.dense.get(&base);
            if !dense.is_some_and(|(_, w)| w.iter().any(|&(a, b)| a < end && b > start)) {
                return self.terms(output).pop();
            }
        }
        self.dense(output).map(Term::plain)
    }

    /// The gradient of an output as a tensor; pending terms are computed and added first.
    pub fn dense(&mut self, output: Tensor) -> Option<Tensor> {
        if !self.flows(output) {
            return None;
        }
        let terms = self.cotangents.terms.remove(&output).unwrap_or_default();
        let slot = self.cotangents.slot(self.graph, output);
        if !terms.is_empty() {
            let mut inputs = Vec::new();
            if terms.iter().any(|t| t.coef.is_some()) {
                inputs.push(output);
            }
            let kinds = terms.iter().map(|t| t.push(&mut inputs)).collect();
            self.graph.push(Affine { terms: kinds }, inputs, vec![slot]);
        }
        Some(slot.tensor)
    }

    /// Takes the terms that wait at a tensor, so that a kernel may add them on its way.
    pub fn absorb(&mut self, tensor: Tensor) -> Vec<Term> {
        self.cotangents.terms.remove(&tensor).unwrap_or_default()
    }

    /// Where the gradient of an input is to be written, overwriting or accumulating.
    pub fn slot(&mut self, input: Tensor) -> Output {
        self.cotangents.slot(self.graph, input)
    }

    /// Leaves a term at an input instead of writing its gradient.
    pub fn leave(&mut self, input: Tensor, term: Term) {
        self.cotangents.terms.entry(input).or_default().push(term);
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
            let mut backward = Backward { graph: self, node, depends: &depends, cotangents: &mut cotangents };
            op.backward(&mut backward)?;
        }
        // Terms that wait at a leaf have no producer whose rule would collect them.
        let mut waiting: Vec<Tensor> = cotangents.terms.keys().copied().collect();
        waiting.retain(|&t| leaves.contains(&self.base(t)));
        waiting.sort_unstable_by_key(|t| t.0);
        for tensor in waiting {
            let node = Node { op: Fill { value: 0.0 }.into(), inputs: vec![], outputs: vec![tensor.into()] };
            Backward { graph: self, node, depends: &depends, cotangents: &mut cotangents }.dense(tensor);
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
