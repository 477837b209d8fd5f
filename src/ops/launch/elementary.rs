//! Elementary ops on GPUs. Scaling and batch norm are mixtures of a single source and run as such; only what no fused
//! family does by itself has kernels of its own. Tests compare networks of these ops with fused ones, so the kernels are plain.

use super::{BLOCK, Lanes, Launch, Lower, Place, Places, Slots, Spot, grid, record};
use crate::graph::Shape;
use crate::graph::plan::Piece;
use crate::ops::elementary::{
    BatchNorm, BatchNormBackward, Depthwise, DepthwiseBackward, Relu, ReluBackward, Scale, ScaleBackward,
};
use crate::ops::mixture::{Mixture, MixtureBackward, Source};
use crate::ops::norm::{Norm, Statistics};

/// Most chunks of rows whose sums `depthwise_fold` adds.
const CHUNKS: usize = 16;
/// Rows that a thread of `depthwise_weights` sums at least, if there are so many.
const ROWS: usize = 4;

record! {
    /// Parameters of all elementary kernels. `x` is the map of the forward op, `g` the output or its gradient, `y` what
    /// is written.
    ElementaryParams {
        /// Blocks that have work.
        blocks: u32,
        /// Rows of what is written; in reductions, of what is summed.
        rows: u32,
        /// Channels of all maps.
        channels: u32,
        /// See [`Lanes`].
        lanes: u32,
        /// See [`Lanes`].
        groups: u32,
        /// Whether the output is added to what is there.
        accumulate: u32,
        /// Size of the window.
        kernel: u32,
        /// Spacing of its taps.
        dilation: u32,
        /// Stride.
        stride: u32,
        /// Zeros on each side of the map.
        pad: u32,
        /// Extent of the map.
        height: u32,
        /// Extent of the map.
        width: u32,
        /// Extent of the output.
        out_height: u32,
        /// Extent of the output.
        out_width: u32,
        /// Chunks of rows.
        chunks: u32,
        /// Rows of a chunk; the last one may have fewer.
        chunk_rows: u32,
        /// Elements from one pixel of `x` to the next.
        x_stride: u32,
        /// Elements from one row of `w` to the next.
        w_stride: u32,
        /// Elements from one pixel of `g` to the next.
        g_stride: u32,
        /// Elements from one row of `y` to the next.
        y_stride: u32,
        /// The map.
        x: Spot,
        /// Weights, or coefficients a, b, d.
        w: Spot,
        /// Gradient of the output.
        g: Spot,
        /// What is written.
        y: Spot,
    }
}

/// The tensors of one launch; those that a kernel does not read are absent.
#[derive(Clone, Copy, Default)]
struct Operands {
    x: Option<Place>,
    w: Option<Place>,
    g: Option<Place>,
    y: Place,
    accumulate: bool,
}

impl Operands {
    /// A launch of `blocks` groups of blocks that cover `channels` channels; `params` is geometry.
    fn launch(self, kernel: &'static str, blocks: usize, channels: usize, params: ElementaryParams) -> Launch {
        let lanes = Lanes::new(channels);
        let mut slots = Slots::default();
        let mut read = |place: Option<Place>| place.map_or((Spot::default(), 0), |p| (slots.reads(p), p.row_stride));
        let ((x, x_stride), (w, w_stride), (g, g_stride)) = (read(self.x), read(self.w), read(self.g));
        let params = ElementaryParams {
            blocks: (blocks * lanes.groups) as u32,
            channels: channels as u32,
            lanes: lanes.lanes as u32,
            groups: lanes.groups as u32,
            accumulate: u32::from(self.accumulate),
            x_stride,
            w_stride,
            g_stride,
            y_stride: self.y.row_stride,
            x,
            w,
            g,
            y: slots.writes(self.y),
            ..params
        };
        Launch {
            source: "elementary",
            kernel,
            wide: [self.x, self.w, self.g, Some(self.y)].into_iter().flatten().all(Place::wide),
            halves: slots.halves,
            params: bytemuck::bytes_of(&params).to_vec(),
            table: Vec::new(),
            pages: slots.pages,
            grid: grid(params.blocks as usize),
            block: BLOCK,
            jobs: None,
            reads: Vec::new(),
            writes: Vec::new(),
        }
    }

    /// A launch in which each thread writes a quad of one row of `y`.
    fn map(self, kernel: &'static str, params: ElementaryParams) -> Launch {
        let shape = self.y.shape;
        let blocks = shape.rows().div_ceil(Lanes::new(shape.c).rows);
        self.launch(kernel, blocks, shape.c, ElementaryParams { rows: shape.rows() as u32, ..params })
    }
}

impl Lower for Relu {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let operands =
            Operands { x: Some(at.inputs[0]), y: at.outputs[0], accumulate: at.accumulate[0], ..Default::default() };
        vec![operands.map("relu_forward", ElementaryParams::default())]
    }
}

impl Lower for ReluBackward {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let (x, g) = (Some(at.inputs[0]), Some(at.inputs[1]));
        let operands = Operands { x, g, y: at.outputs[0], accumulate: at.accumulate[0], w: None };
        vec![operands.map("relu_backward", ElementaryParams::default())]
    }
}

/// The one summand of a mixture that only scales.
fn scaled(index: usize) -> Vec<Source> {
    vec![Source { norm: None, weight: Some(index), mask: None }]
}

impl Lower for Scale {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let inputs = [at.inputs[1], at.inputs[0]];
        Mixture { sources: scaled(self.index) }.launches(&Places { inputs: &inputs, ..*at })
    }
}

impl ScaleBackward {
    fn weights(self) -> MixtureBackward {
        MixtureBackward { sources: scaled(self.index), wants: vec![(false, false)], weights: true }
    }
}

impl Lower for ScaleBackward {
    fn scratch(&self, inputs: &[Shape], outputs: &[Shape]) -> usize {
        self.weights().scratch(inputs, outputs)
    }

    fn pieces(&self, inputs: &[Shape], outputs: &[Shape]) -> Vec<Piece> {
        self.weights().pieces(inputs, outputs)
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let [x, w, g] = [0, 1, 2].map(|i| at.inputs[i]);
        let part = |output: usize| (&at.outputs[output..=output], &at.accumulate[output..=output]);
        let (outputs, accumulate) = part(0);
        let mut launches =
            Mixture { sources: scaled(self.index) }.launches(&Places { inputs: &[w, g], outputs, accumulate, ..*at });
        let (outputs, accumulate) = part(1);
        launches.extend(self.weights().launches(&Places { inputs: &[g, w, x], outputs, accumulate, ..*at }));
        launches
    }
}

impl BatchNorm {
    /// The one summand of a mixture that only normalises.
    fn source(self) -> Vec<Source> {
        vec![Source { norm: Some(Norm { affine: self.affine, eps: self.eps }), weight: None, mask: None }]
    }
}

impl Lower for BatchNorm {
    fn scratch(&self, inputs: &[Shape], outputs: &[Shape]) -> usize {
        Statistics.scratch(inputs, outputs)
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let (x, mean, var) = (at.inputs[0], at.outputs[1], at.outputs[2]);
        let mut launches = Statistics.launches(&Places {
            inputs: &[x],
            outputs: &[mean, var],
            accumulate: &at.accumulate[1..3],
            ..*at
        });
        let mut inputs = vec![x, mean, var];
        inputs.extend_from_slice(&at.inputs[1..]);
        launches.extend(Mixture { sources: self.source() }.launches(&Places {
            inputs: &inputs,
            outputs: &at.outputs[..1],
            accumulate: &at.accumulate[..1],
            ..*at
        }));
        launches
    }
}

impl BatchNormBackward {
    fn mixture(self) -> MixtureBackward {
        MixtureBackward { sources: self.norm.source(), wants: vec![(true, self.norm.affine)], weights: false }
    }
}

impl Lower for BatchNormBackward {
    fn scratch(&self, inputs: &[Shape], outputs: &[Shape]) -> usize {
        3 * inputs[0].c.next_multiple_of(4) + self.mixture().scratch(inputs, outputs)
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let (x, [mean, var, g]) = (at.inputs[0], [3, 2, 1].map(|back| at.inputs[at.inputs.len() - back]));
        let padded = x.shape.c.next_multiple_of(4) as u32;
        let coefficients = Place { row_stride: padded, shape: Shape::matrix(3, x.shape.c), ..at.scratch };
        let mut inputs = vec![g, x, mean, var];
        inputs.extend_from_slice(&at.inputs[1..at.inputs.len() - 3]);
        let mut outputs = vec![coefficients];
        outputs.extend_from_slice(&at.outputs[1..]);
        let mut accumulate = vec![false];
        accumulate.extend_from_slice(&at.accumulate[1..]);
        let mut launches = self.mixture().launches(&Places {
            inputs: &inputs,
            outputs: &outputs,
            accumulate: &accumulate,
            scratch: Place { offset: at.scratch.offset + 3 * padded, ..at.scratch },
            pieces: &[],
        });
        let (y, accumulate) = (at.outputs[0], at.accumulate[0]);
        let operands = Operands { x: Some(x), w: Some(coefficients), g: Some(g), y, accumulate };
        launches.push(operands.map("affine_gradient", ElementaryParams::default()));
        launches
    }
}

impl Depthwise {
    fn params(self, x: Shape, y: Shape) -> ElementaryParams {
        ElementaryParams {
            kernel: self.kernel as u32,
            dilation: self.dilation as u32,
            stride: self.stride as u32,
            pad: self.branch().pad() as u32,
            height: x.h as u32,
            width: x.w as u32,
            out_height: y.h as u32,
            out_width: y.w as u32,
            ..Default::default()
        }
    }
}

impl Lower for Depthwise {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let (x, w, y) = (at.inputs[0], at.inputs[1], at.outputs[0]);
        let operands = Operands { x: Some(x), w: Some(w), g: None, y, accumulate: at.accumulate[0] };
        vec![operands.map("depthwise_forward", self.params(x.shape, y.shape))]
    }
}

impl DepthwiseBackward {
    /// Rows of a chunk and number of chunks of the weights' gradient, from the shape of the output's gradient.
    fn chunks(g: Shape) -> (usize, usize) {
        Lanes::new(g.c).chunks(g.rows(), ROWS, CHUNKS)
    }
}

impl Lower for DepthwiseBackward {
    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        let taps = self.depthwise.kernel * self.depthwise.kernel;
        Self::chunks(inputs[2]).1 * taps * inputs[0].c.next_multiple_of(4)
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let [x, w, g] = [0, 1, 2].map(|i| at.inputs[i]);
        let (c, taps) = (x.shape.c, self.depthwise.kernel * self.depthwise.kernel);
        let (chunk_rows, chunks) = Self::chunks(g.shape);
        let params = self.depthwise.params(x.shape, g.shape);
        let sums = ElementaryParams {
            rows: g.shape.rows() as u32,
            chunks: chunks as u32,
            chunk_rows: chunk_rows as u32,
            ..params
        };
        // Sums of a chunk and tap a row.
        let partial =
            Place { row_stride: c.next_multiple_of(4) as u32, shape: Shape::matrix(chunks * taps, c), ..at.scratch };
        let input = Operands { x: None, w: Some(w), g: Some(g), y: at.outputs[0], accumulate: at.accumulate[0] };
        let weights = Operands { x: Some(x), g: Some(g), y: partial, ..Default::default() };
        let fold = Operands { x: Some(partial), y: at.outputs[1], accumulate: at.accumulate[1], ..Default::default() };
        vec![
            input.map("depthwise_input", params),
            weights.launch("depthwise_weights", chunks * taps, c, sums),
            fold.launch("depthwise_fold", taps, c, sums),
        ]
    }
}
