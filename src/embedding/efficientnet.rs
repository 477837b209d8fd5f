//! EfficientNet-Lite: the family without squeeze-and-excitation and with ReLU6, as its authors published it for
//! TensorFlow and `efficientnet-lite-pytorch` ported it. Tensors carry the port's names (`_blocks.3._expand_conv.weight`).
//!
//! A block is expansion (1x1, left out where the factor is 1), depthwise convolution, projection (1x1, no activation) and,
//! where stride and channels allow it, a residual sum. Batch norms have eps 1e-3, padding is TensorFlow's `SAME`.

use std::path::Path;

use super::convnet::{ConvNet, Names};
use crate::data::Normalisation;
use crate::error::Result;
use crate::ops::folded::{Activation, Folded, Padding};
use crate::tensors::Tensors;

/// Added to variances.
const EPS: f64 = 1e-3;

/// Some blocks in a row, of which the first has the stride and changes the channels.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    /// Blocks.
    pub repeats: usize,
    /// Kernel size of the depthwise convolutions.
    pub kernel: usize,
    /// Stride of the first block.
    pub stride: usize,
    /// Channels within a block as a multiple of those before it.
    pub expand: usize,
    /// Channels behind a block.
    pub channels: usize,
}

/// Geometry of a network.
#[derive(Clone, Debug)]
pub struct Config {
    /// Height and width of the images, in three channels.
    pub size: usize,
    /// Channels of the stem (3x3, stride 2).
    pub stem: usize,
    /// The stages.
    pub stages: &'static [Stage],
    /// Features: channels of the last 1x1 convolution.
    pub head: usize,
}

const fn stage(repeats: usize, kernel: usize, stride: usize, expand: usize, channels: usize) -> Stage {
    Stage { repeats, kernel, stride, expand, channels }
}

/// EfficientNet-Lite0: 224 x 224 pixels, 1,280 features, 0.4 billion multiply-adds.
pub const LITE0: Config = Config {
    size: 224,
    stem: 32,
    stages: &[
        stage(1, 3, 1, 1, 16),
        stage(2, 3, 2, 6, 24),
        stage(2, 5, 2, 6, 40),
        stage(3, 3, 2, 6, 80),
        stage(3, 5, 1, 6, 112),
        stage(4, 5, 2, 6, 192),
        stage(1, 3, 1, 6, 320),
    ],
    head: 1280,
};

/// The constants of its authors: `(x - 127) / 128` for pixels of 0 to 255.
pub fn normalisation() -> Normalisation {
    Normalisation { mean: vec![127.0 / 255.0; 3], std: vec![128.0 / 255.0; 3] }
}

/// Builds the network from its tensors.
///
/// # Errors
/// [`crate::Error::Input`] naming a tensor that is missing, of another shape, or not finite.
pub fn load(config: &Config, tensors: &Tensors, path: &Path) -> Result<ConvNet> {
    let mut net = ConvNet::default();
    let mut push = |names: [&str; 2], kind: (bool, usize, usize, Activation), channels, residual: Option<usize>| {
        let (depthwise, kernel, stride, activation) = kind;
        let op = Folded { depthwise, kernel, stride, padding: Padding::Same, activation, residual: residual.is_some() };
        let [convolution, norm] = names;
        net.convolution((tensors, path), &Names { convolution, norm }, (op, EPS), channels, (None, residual))
    };
    let pointwise = |activation| (false, 1, 1, activation);
    let mut last = push(["_conv_stem", "_bn0"], (false, 3, 2, Activation::Relu6), (3, config.stem), None)?;
    let (mut c, mut number) = (config.stem, 0);
    for stage in config.stages {
        for repeat in 0..stage.repeats {
            let (inner, stride) = (c * stage.expand, if repeat == 0 { stage.stride } else { 1 });
            let name = |part: &str| format!("_blocks.{number}.{part}");
            if stage.expand > 1 {
                let names = [name("_expand_conv"), name("_bn0")];
                push([&names[0], &names[1]], pointwise(Activation::Relu6), (c, inner), None)?;
            }
            let names = [name("_depthwise_conv"), name("_bn1")];
            let kind = (true, stage.kernel, stride, Activation::Relu6);
            push([&names[0], &names[1]], kind, (inner, inner), None)?;
            let names = [name("_project_conv"), name("_bn2")];
            let residual = (stride == 1 && c == stage.channels).then_some(last);
            last = push([&names[0], &names[1]], pointwise(Activation::Identity), (inner, stage.channels), residual)?;
            c = stage.channels;
            number += 1;
        }
    }
    push(["_conv_head", "_bn1"], pointwise(Activation::Relu6), (c, config.head), None)?;
    Ok(net)
}
