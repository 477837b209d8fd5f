//! Arguments of the kernels.
//!
//! A "map" is `h * w` pixels of `c` contiguous channels with a distance `ld*` (in floats, at least `c`) from one pixel
//! to the next. A "padded image" is `(h + 2 * pad) * (w + 2 * pad)` pixels of `c` channels without gaps. Buffers
//! aligned to 64 bytes with `c` a multiple of 16 run fastest; nothing else depends on alignment.

/// Arguments of `pad_prologue`: `out = pad(relu?(scale * x + shift))`, the border being zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PadPrologue {
    /// Map of `h * w` pixels.
    pub x: *const f32,
    /// Distance between the pixels of `x`.
    pub ldx: usize,
    /// Height of the map.
    pub h: usize,
    /// Width of the map.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Width of the border.
    pub pad: usize,
    /// Factor for each channel; null for 1.
    pub scale: *const f32,
    /// Summand for each channel; null for 0.
    pub shift: *const f32,
    /// Whether negative values become 0.
    pub relu: bool,
    /// Padded image, overwritten.
    pub out: *mut f32,
}

/// Arguments of `depthwise`: `out(i, j) = sum over (a, b) of weights[a * k + b] * inp(i * stride + a * dilation, ..)`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Depthwise {
    /// Padded image, of which the rows `0..=(oh - 1) * stride + (k - 1) * dilation` are read, likewise the columns.
    pub inp: *const f32,
    /// Pixels in a row of the padded image.
    pub width: usize,
    /// Output height.
    pub oh: usize,
    /// Output width.
    pub ow: usize,
    /// Channels.
    pub c: usize,
    /// Kernel size.
    pub k: usize,
    /// Distance between taps.
    pub dilation: usize,
    /// Distance between windows.
    pub stride: usize,
    /// `[k * k][c]`.
    pub weights: *const f32,
    /// Map of `oh * ow` pixels, overwritten.
    pub out: *mut f32,
    /// Distance between the pixels of `out`.
    pub ldo: usize,
}

/// Arguments of `depthwise_weight`: `dw[a * k + b] += sum over (i, j) of inp(i * stride + a * dilation, ..) * dd(i, j)`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DepthwiseWeight {
    /// Padded image, of which the rows `0..=(oh - 1) * stride + (k - 1) * dilation` are read, likewise the columns.
    pub inp: *const f32,
    /// Pixels in a row of the padded image.
    pub width: usize,
    /// Output height.
    pub oh: usize,
    /// Output width.
    pub ow: usize,
    /// Channels.
    pub c: usize,
    /// Kernel size.
    pub k: usize,
    /// Distance between taps.
    pub dilation: usize,
    /// Distance between windows.
    pub stride: usize,
    /// Gradient at the output, a map of `oh * ow` pixels.
    pub dd: *const f32,
    /// Distance between the pixels of `dd`.
    pub ldd: usize,
    /// `[k * k][c]`, added to.
    pub dw: *mut f32,
}

/// Arguments of `depthwise_scatter`: `dx(i * stride + a * dilation, ..) += dd(i, j) * weights[a * k + b]`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DepthwiseScatter {
    /// Gradient at the output, a map of `oh * ow` pixels.
    pub dd: *const f32,
    /// Distance between the pixels of `dd`.
    pub ldd: usize,
    /// Output height.
    pub oh: usize,
    /// Output width.
    pub ow: usize,
    /// Channels.
    pub c: usize,
    /// Kernel size.
    pub k: usize,
    /// Distance between taps.
    pub dilation: usize,
    /// Distance between windows.
    pub stride: usize,
    /// `[k * k][c]`.
    pub weights: *const f32,
    /// Padded image, added to.
    pub dx: *mut f32,
    /// Pixels in a row of the padded image.
    pub width: usize,
}

/// Arguments of `matmul` (`out[rows][n] (+)= a[rows][k] * b[k][n]`) and of `outer`
/// (`out[k][n] += a[rows][k]^T * b[rows][n]`, where `accumulate` is not looked at).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Matmul {
    /// `[rows][k]`.
    pub a: *const f32,
    /// Distance between the rows of `a`.
    pub lda: usize,
    /// `[k][n]`, for `outer` `[rows][n]`.
    pub b: *const f32,
    /// Distance between the rows of `b`.
    pub ldb: usize,
    /// `[rows][n]`, for `outer` `[k][n]`.
    pub out: *mut f32,
    /// Distance between the rows of `out`.
    pub ldo: usize,
    /// Rows of `a`: pixels.
    pub rows: usize,
    /// Columns of `a`: input channels.
    pub k: usize,
    /// Columns of `b`: output channels.
    pub n: usize,
    /// Whether `matmul` adds to `out`.
    pub accumulate: bool,
}

/// Arguments of `moments`: mean and sum of squared deviations of each channel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    /// Map of `rows` pixels, at least one.
    pub y: *const f32,
    /// Distance between the pixels of `y`.
    pub ldy: usize,
    /// Pixels.
    pub rows: usize,
    /// Channels.
    pub c: usize,
    /// Mean of each channel, overwritten.
    pub mean: *mut f32,
    /// Sum of squared deviations from that mean, overwritten.
    pub m2: *mut f32,
}

/// Arguments of `affine`: `out (+)= a * s * g + b * y + d`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    /// Map of `rows` pixels.
    pub g: *const f32,
    /// Distance between the pixels of `g`.
    pub ldg: usize,
    /// Second map; null to leave out `b * y`.
    pub y: *const f32,
    /// Distance between the pixels of `y`.
    pub ldy: usize,
    /// Pixels.
    pub rows: usize,
    /// Channels.
    pub c: usize,
    /// Factor for each channel; null for 1.
    pub a: *const f32,
    /// Factor for each channel; null to leave out `b * y`.
    pub b: *const f32,
    /// Summand for each channel; null for 0.
    pub d: *const f32,
    /// Factor of all of `g`.
    pub s: f32,
    /// Map of `rows` pixels, which may be `g` or `y` itself.
    pub out: *mut f32,
    /// Distance between the pixels of `out`.
    pub ldo: usize,
    /// Whether to add to `out`.
    pub accumulate: bool,
    /// Whether the maps of the whole batch are larger than the caches: then they are asked for ahead of their use.
    pub far: bool,
}

/// Arguments of `bound`: `x = min(max(x + bias + residual, low), high)` in place. NaN stays.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// Map of `rows` pixels, overwritten.
    pub x: *mut f32,
    /// Distance between the pixels of `x`.
    pub ldx: usize,
    /// Pixels.
    pub rows: usize,
    /// Channels.
    pub c: usize,
    /// Summand for each channel.
    pub bias: *const f32,
    /// Second map of `rows` pixels; null for 0.
    pub residual: *const f32,
    /// Distance between the pixels of `residual`.
    pub ldr: usize,
    /// Least result.
    pub low: f32,
    /// Greatest result.
    pub high: f32,
}

/// Arguments of `sums`: `s1 += sum of g`, `s2 += sum of g * (y - mean)`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sums {
    /// Map of `rows` pixels.
    pub g: *const f32,
    /// Distance between the pixels of `g`.
    pub ldg: usize,
    /// Second map; null to compute `s1` only.
    pub y: *const f32,
    /// Distance between the pixels of `y`.
    pub ldy: usize,
    /// Pixels.
    pub rows: usize,
    /// Channels.
    pub c: usize,
    /// Mean of `y` for each channel; null for 0.
    pub mean: *const f32,
    /// One sum for each channel, added to.
    pub s1: *mut f32,
    /// One sum for each channel, added to; not touched where `y` is null.
    pub s2: *mut f32,
}

/// Arguments of `mask_accumulate`: `out (+)= d * (scale * x + shift > 0)`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MaskAccumulate {
    /// First pixel of an image of rows of `w * c` contiguous floats: the interior of a padded image, or a plain map.
    pub d: *const f32,
    /// Distance between the image rows of `d`.
    pub d_row_stride: usize,
    /// Map of `h * w` pixels; not read without `relu`.
    pub x: *const f32,
    /// Distance between the pixels of `x`.
    pub ldx: usize,
    /// Height.
    pub h: usize,
    /// Width.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Factor for each channel of `x`; null for 1.
    pub scale: *const f32,
    /// Summand for each channel of `x`; null for 0.
    pub shift: *const f32,
    /// Whether there is a mask at all.
    pub relu: bool,
    /// Map of `h * w` pixels.
    pub out: *mut f32,
    /// Distance between the pixels of `out`.
    pub ldo: usize,
    /// Whether to add to `out`.
    pub accumulate: bool,
}

/// Arguments of `mask_sums`: `g = d * (scale * x + shift > 0)`, `s1 += sum of g`, `s2 += sum of g * (x - mean)`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MaskSums {
    /// The masked copy; `out` receives `g`, `accumulate` is not looked at, and `x` is always read.
    pub mask: MaskAccumulate,
    /// Mean of `x` for each channel; null for 0.
    pub mean: *const f32,
    /// One sum for each channel, added to.
    pub s1: *mut f32,
    /// One sum for each channel, added to.
    pub s2: *mut f32,
}

/// One summand of `weighted_sum`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Map of `rows` pixels.
    pub y: *const f32,
    /// Distance between the pixels of `y`.
    pub ld: usize,
    /// Factor for each channel.
    pub scale: *const f32,
}

/// Arguments of `weighted_sum`: `out (+)= bias + sum over the sources of scale * y`.
#[derive(Clone, Copy, Debug)]
pub struct WeightedSum<'a> {
    /// The summands, added in this order.
    pub sources: &'a [Source],
    /// Summand for each channel; null for 0.
    pub bias: *const f32,
    /// Pixels.
    pub rows: usize,
    /// Channels.
    pub c: usize,
    /// Map of `rows` pixels.
    pub out: *mut f32,
    /// Distance between the pixels of `out`.
    pub ldo: usize,
    /// Whether to add to `out`.
    pub accumulate: bool,
    /// Whether the maps of the whole batch are larger than the caches: then they are asked for ahead of their use.
    pub far: bool,
}

/// One reduction of `weighted_sums`: `s2 += sum of g * (y - mean)`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SourceSum {
    /// Map of `rows` pixels.
    pub y: *const f32,
    /// Distance between the pixels of `y`.
    pub ld: usize,
    /// Mean of `y` for each channel; null for 0.
    pub mean: *const f32,
    /// One sum for each channel, added to.
    pub s2: *mut f32,
}

/// Arguments of `weighted_sums`: the reductions of all sources against one gradient, and `s1 += sum of g`.
#[derive(Clone, Copy, Debug)]
pub struct WeightedSums<'a> {
    /// The reductions.
    pub sources: &'a [SourceSum],
    /// Gradient, a map of `rows` pixels.
    pub g: *const f32,
    /// Distance between the pixels of `g`.
    pub ldg: usize,
    /// Pixels.
    pub rows: usize,
    /// Channels.
    pub c: usize,
    /// One sum for each channel, added to; null where it is not wanted.
    pub s1: *mut f32,
    /// Whether the maps of the whole batch are larger than the caches: then they are asked for ahead of their use.
    pub far: bool,
}

/// Arguments of `pool_forward`: maximum and mean of each window, of which only the pixels inside the map count.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PoolForward {
    /// Map of `h * w` pixels.
    pub x: *const f32,
    /// Distance between the pixels of `x`.
    pub ldx: usize,
    /// Height of `x`.
    pub h: usize,
    /// Width of `x`.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Window size.
    pub k: usize,
    /// Distance between windows.
    pub stride: usize,
    /// How far the first window starts outside the map; less than `k`.
    pub pad: usize,
    /// Output height.
    pub oh: usize,
    /// Output width.
    pub ow: usize,
    /// Maxima, a map of `oh * ow` pixels, overwritten; null where they are not wanted.
    pub max: *mut f32,
    /// Distance between the pixels of `max`.
    pub ldmax: usize,
    /// Means, a map of `oh * ow` pixels, overwritten; null where they are not wanted.
    pub avg: *mut f32,
    /// Distance between the pixels of `avg`.
    pub ldavg: usize,
}

/// Arguments of `pool_backward`: `dx` receives the gradients of both poolings. That of a maximum goes to the first
/// pixel in row-major order of its window that attains it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PoolBackward {
    /// The map that was pooled; read only for the maxima.
    pub x: *const f32,
    /// Distance between the pixels of `x`.
    pub ldx: usize,
    /// Height of `x`.
    pub h: usize,
    /// Width of `x`.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Window size.
    pub k: usize,
    /// Distance between windows.
    pub stride: usize,
    /// How far the first window starts outside the map; less than `k`.
    pub pad: usize,
    /// Output height.
    pub oh: usize,
    /// Output width.
    pub ow: usize,
    /// Gradient at the maxima; null where there is none.
    pub dmax: *const f32,
    /// Distance between the pixels of `dmax`.
    pub ldmax: usize,
    /// Gradient at the means; null where there is none.
    pub davg: *const f32,
    /// Distance between the pixels of `davg`.
    pub ldavg: usize,
    /// Map of `h * w` pixels, added to.
    pub dx: *mut f32,
    /// Distance between the pixels of `dx`.
    pub lddx: usize,
}

/// Arguments of `gather`: `out(i, j) = relu?(x(i * stride + offset, j * stride + offset))`, 0 outside the map.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Gather {
    /// Map of `h * w` pixels.
    pub x: *const f32,
    /// Distance between the pixels of `x`.
    pub ldx: usize,
    /// Height of `x`.
    pub h: usize,
    /// Width of `x`.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Distance between the pixels taken.
    pub stride: usize,
    /// Row and column of the first pixel taken.
    pub offset: usize,
    /// Output height.
    pub oh: usize,
    /// Output width.
    pub ow: usize,
    /// Whether negative values become 0.
    pub relu: bool,
    /// Map of `oh * ow` pixels, overwritten.
    pub out: *mut f32,
    /// Distance between the pixels of `out`.
    pub ldo: usize,
}

/// Arguments of `scatter_masked`, the adjoint of `gather`:
/// `dx(i * stride + offset, j * stride + offset) += d(i, j) * (x > 0)`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScatterMasked {
    /// Gradient, a map of `oh * ow` pixels.
    pub d: *const f32,
    /// Distance between the pixels of `d`.
    pub ldd: usize,
    /// Output height.
    pub oh: usize,
    /// Output width.
    pub ow: usize,
    /// Channels.
    pub c: usize,
    /// Distance between the pixels taken.
    pub stride: usize,
    /// Row and column of the first pixel taken.
    pub offset: usize,
    /// Map of `h * w` pixels; not read without `relu`.
    pub x: *const f32,
    /// Distance between the pixels of `x`.
    pub ldx: usize,
    /// Height of `x`.
    pub h: usize,
    /// Width of `x`.
    pub w: usize,
    /// Whether there is a mask at all.
    pub relu: bool,
    /// Map of `h * w` pixels, added to.
    pub dx: *mut f32,
    /// Distance between the pixels of `dx`.
    pub lddx: usize,
}

/// Arguments of `sgd`: `v = momentum * v + clip_scale * g + decay * w`, then `w -= lr * v`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// Parameters.
    pub w: *mut f32,
    /// Gradient.
    pub g: *const f32,
    /// Velocity.
    pub v: *mut f32,
    /// Length of the three vectors.
    pub n: usize,
    /// Learning rate.
    pub lr: f32,
    /// Momentum.
    pub momentum: f32,
    /// Weight decay.
    pub decay: f32,
    /// Factor of the gradient.
    pub clip_scale: f32,
}

/// Arguments of `linear`: `out = sum of coefficient * vector` over the terms whose pointer is not null.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Length of all vectors.
    pub n: usize,
    /// Up to four terms, added in this order.
    pub terms: [(*const f32, f32); 4],
    /// Result; may be one of the vectors itself.
    pub out: *mut f32,
}
