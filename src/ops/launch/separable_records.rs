//! Records and flags of the gradients of separable convolutions, as the kernels declare them.

use super::{Spot, record, separable};

/// The map is normalised where it is read.
pub const NORM: u32 = separable::NORM;
/// gamma and beta apply.
pub const AFFINE: u32 = separable::AFFINE;
/// The term has coefficients.
pub const COEF: u32 = 4;
/// The term has a factor an image.
pub const MASK: u32 = 8;
/// The gradient at the output is kept.
pub const STORE: u32 = 16;
/// The gradient of the input, or the coefficients, are added to what is there.
pub const ADD: u32 = 32;
/// Sums of the input's gradient are wanted.
pub const SUMS: u32 = 64;
/// The depthwise kernel is one of the stencils that CUDA computes from shared memory.
pub const TILED: u32 = 128;
/// Gradient of the pointwise weights.
pub const POINTWISE: u32 = 0;
/// Gradient of the depthwise weights.
pub const TAPS: u32 = 1;
/// Gradient of the input.
pub const INPUT: u32 = 2;

/// Flags and kinds by name, as the kernels declare them.
pub const FLAGS: &[(&str, u32)] = &[
    ("NORM", NORM),
    ("AFFINE", AFFINE),
    ("COEF", COEF),
    ("MASK", MASK),
    ("STORE", STORE),
    ("ADD", ADD),
    ("SUMS", SUMS),
    ("TILED", TILED),
    ("POINTWISE", POINTWISE),
    ("TAPS", TAPS),
    ("INPUT", INPUT),
];

record! {
    /// One branch, or for [`INPUT`] the branches that read one map.
    SeparableGradient {
        /// See [`super::jobs`].
        first_block: u32,
        /// See [`super::jobs`].
        blocks: u32,
        /// [`POINTWISE`], [`TAPS`] or [`INPUT`].
        kind: u32,
        /// What applies and what is wanted.
        flags: u32,
        /// Pixels of the output.
        rows: u32,
        /// Pixels of the input.
        x_rows: u32,
        /// Channels of the input.
        channels: u32,
        /// Channels of the output.
        out_channels: u32,
        /// Quads of output channels that are in shared memory at once.
        step: u32,
        /// Quads of input channels that a block covers.
        lanes: u32,
        /// Blocks side by side that cover all of them.
        groups: u32,
        /// Quads of output channels that a block covers.
        out_lanes: u32,
        /// Blocks side by side that cover all of them.
        out_groups: u32,
        /// Pixels of a chunk for who goes along rows; the last ones may have fewer.
        chunk_rows: u32,
        /// Records of the job, one a branch that reads the map.
        branches: u32,
        /// Lines of an image of the input.
        x_h: u32,
        /// Pixels of its lines.
        x_w: u32,
        /// Lines of an image of the output.
        y_h: u32,
        /// Pixels of its lines.
        y_w: u32,
        /// Side of the depthwise kernel.
        kernel: u32,
        /// Spacing of the taps.
        dilation: u32,
        /// Stride of the convolution.
        stride: u32,
        /// Padding on each side.
        pad: u32,
        /// Elements from one pixel of the input to the next.
        x_stride: u32,
        /// Elements from one tap to the next.
        tap_stride: u32,
        /// Elements from one row of the pointwise weights to the next.
        weight_stride: u32,
        /// Elements from one pixel of the output to the next.
        y_stride: u32,
        /// Elements from one pixel of `g` to the next.
        g_stride: u32,
        /// Elements from one pixel of `dx` to the next.
        dx_stride: u32,
        /// Elements from one row of the coefficients to the next.
        coef_stride: u32,
        /// Tiles side by side in a region.
        tiles: u32,
        /// Regions side by side in an image.
        across: u32,
        /// Regions one below the other in an image.
        down: u32,
        /// Regions of all images.
        regions: u32,
        /// Regions of a chunk for who goes along regions; the last one may have fewer.
        chunk_regions: u32,
        /// Zero.
        unused: u32,
        /// Added to the variance.
        eps: f32,
        /// 1 / stride.
        inverse_stride: f32,
        /// The map.
        x: Spot,
        /// Mean a channel.
        mean: Spot,
        /// Variance a channel.
        variance: Spot,
        /// Scale a channel.
        gamma: Spot,
        /// Shift a channel.
        beta: Spot,
        /// Depthwise weights.
        depthwise: Spot,
        /// Pointwise weights.
        pointwise: Spot,
        /// The output of the forward, if there are coefficients.
        y: Spot,
        /// The gradient of the term; in [`POINTWISE`] that at the output itself.
        g: Spot,
        /// Coefficients a, b, d of the term.
        coef: Spot,
        /// The row of factors, one an image.
        mask: Spot,
        /// Gradient at the depthwise result, the channels rounded up to quads.
        dd: Spot,
        /// Gradient at the output, likewise.
        dy: Spot,
        /// Gradient at the input.
        dx: Spot,
        /// Sums of each chunk.
        partial: Spot,
    }
}
