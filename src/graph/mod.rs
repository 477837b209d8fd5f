//! Records one step as a graph of ops on symbolic tensors with static shapes.
//!
//! A [`Graph`] is written once by ordinary Rust code, differentiated ([`Graph::gradients`], in `autograd`), reduced to
//! what its results need and placed in memory (`plan`), and then replayed many times by a device. Tensors are maps in
//! channels-last order: `rows = n * h * w` pixels of `c` channels, with a row stride, so that a slice of channels of a
//! wider map is a view. What outlives a step stands in a store ([`store::StoreLayout`]); the rest lives in the arena.

pub mod autograd;
pub mod plan;
pub mod store;

use crate::error::{Error, Result};
use crate::ops::Op;
pub use autograd::{Backward, Term, TermKind};
pub use plan::{Plan, Program};
pub use store::{State, StoreLayout};

/// Extent of a map: images, height, width, channels. Vectors are `[1, 1, 1, c]`, matrices `[1, 1, rows, c]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Shape {
    /// Images.
    pub n: usize,
    /// Pixel rows of an image.
    pub h: usize,
    /// Pixels of a row.
    pub w: usize,
    /// Channels of a pixel.
    pub c: usize,
}

impl Shape {
    /// A batch of maps.
    pub const fn map(n: usize, h: usize, w: usize, c: usize) -> Self {
        Self { n, h, w, c }
    }

    /// A vector of `c` elements.
    pub const fn vector(c: usize) -> Self {
        Self { n: 1, h: 1, w: 1, c }
    }

    /// A matrix of `rows` by `c`.
    pub const fn matrix(rows: usize, c: usize) -> Self {
        Self { n: 1, h: 1, w: rows, c }
    }

    /// Pixels over all images.
    pub const fn rows(self) -> usize {
        self.n * self.h * self.w
    }

    /// Elements.
    pub const fn len(self) -> usize {
        self.rows() * self.c
    }

    /// Whether the shape has no element.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The same map with another number of channels.
    pub const fn with_channels(self, c: usize) -> Self {
        Self { c, ..self }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}x{}", self.n, self.h, self.w, self.c)
    }
}

/// Handle of a symbolic tensor of one [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tensor(pub(crate) u32);

impl Tensor {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where the root of a tensor lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// Scratch that lives within one step.
    Arena,
    /// Lasting state of the store.
    State(State),
}

/// What the graph knows of a tensor.
#[derive(Clone, Debug)]
pub struct Info {
    /// Extent.
    pub shape: Shape,
    /// The tensor whose memory this one looks into (itself unless it is a view).
    pub base: Tensor,
    /// First element, counted from the start of the base.
    pub offset: usize,
    /// Elements from one pixel to the next.
    pub row_stride: usize,
    /// Where the base lives.
    pub root: Root,
    /// Name for messages.
    pub name: String,
}

/// A tensor that an op writes, and whether it adds to what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// The tensor.
    pub tensor: Tensor,
    /// Add to the present value instead of overwriting it.
    pub accumulate: bool,
}

impl From<Tensor> for Output {
    fn from(tensor: Tensor) -> Self {
        Self { tensor, accumulate: false }
    }
}

/// One recorded op.
#[derive(Clone, Debug)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Tensors read.
    pub inputs: Vec<Tensor>,
    /// Tensors written.
    pub outputs: Vec<Output>,
}

/// A step being recorded.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub(crate) infos: Vec<Info>,
    pub(crate) nodes: Vec<Node>,
    scope: String,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the prefix of the names of tensors recorded from here on (`cells.3.`), for messages.
    pub fn scope(&mut self, prefix: impl Into<String>) {
        self.scope = prefix.into();
    }

    fn add(&mut self, shape: Shape, root: Root, name: &str) -> Tensor {
        let tensor = Tensor(self.infos.len() as u32);
        let name = format!("{}{name}", self.scope);
        self.infos.push(Info { shape, base: tensor, offset: 0, row_stride: shape.c, root, name });
        tensor
    }

    /// A new arena tensor.
    pub fn tensor(&mut self, shape: Shape, name: &str) -> Tensor {
        self.add(shape, Root::Arena, name)
    }

    /// The tensor that stands for a state of the store; the same handle each time.
    pub fn state(&mut self, state: State) -> Tensor {
        let found = self.infos.iter().position(|i| i.root == Root::State(state));
        if let Some(index) = found {
            return self.infos[index].base;
        }
        let scope = std::mem::take(&mut self.scope);
        let tensor = self.add(state.shape, Root::State(state), &format!("state {}", state.id));
        self.scope = scope;
        tensor
    }

    /// Channels `start..start + c` of a map, as a view.
    ///
    /// # Errors
    /// [`Error::Shape`] if the slice does not lie within the map.
    pub fn channels(&mut self, map: Tensor, start: usize, c: usize) -> Result<Tensor> {
        let info = self.infos[map.index()].clone();
        if start + c > info.shape.c || c == 0 {
            let message = format!("channels {start}..{} of a map {}", start + c, info.shape);
            return Err(Error::Shape { op: "channels", message });
        }
        let tensor = Tensor(self.infos.len() as u32);
        let shape = info.shape.with_channels(c);
        self.infos.push(Info { shape, offset: info.offset + start, ..info });
        Ok(tensor)
    }

    /// `shape.len()` consecutive elements of a vector from `offset` on, seen as `shape`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the tensor is not contiguous or too short.
    pub fn slice(&mut self, vector: Tensor, offset: usize, shape: Shape) -> Result<Tensor> {
        let info = self.infos[vector.index()].clone();
        let contiguous = info.row_stride == info.shape.c || info.shape.rows() == 1;
        if !contiguous || offset + shape.len() > info.shape.len() {
            let message = format!("elements {offset}..{} of a tensor {}", offset + shape.len(), info.shape);
            return Err(Error::Shape { op: "slice", message });
        }
        let tensor = Tensor(self.infos.len() as u32);
        self.infos.push(Info { shape, offset: info.offset + offset, row_stride: shape.c, ..info });
        Ok(tensor)
    }

    /// Shape of a tensor.
    pub fn shape(&self, tensor: Tensor) -> Shape {
        self.infos[tensor.index()].shape
    }

    /// Everything known of a tensor.
    pub fn info(&self, tensor: Tensor) -> &Info {
        &self.infos[tensor.index()]
    }

    /// The recorded ops, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Appends an op. Families have their own recording functions, which check shapes; this is their last step.
    pub fn push(&mut self, op: impl Into<Op>, inputs: Vec<Tensor>, outputs: Vec<Output>) {
        self.nodes.push(Node { op: op.into(), inputs, outputs });
    }

    pub(crate) fn base(&self, tensor: Tensor) -> Tensor {
        self.infos[tensor.index()].base
    }
}
