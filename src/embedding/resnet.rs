//! ResNets of basic blocks (He et al. 2016) as torchvision builds them; ResNet-18 is the embedder of the released distance
//! scripts of supernet transfer. Tensors carry torchvision's names (`layer2.0.downsample.0.weight`).
//!
//! A stem (7x7, stride 2), a max pool (3x3, stride 2), four stages of blocks, and the means of the last maps. A block is two
//! 3x3 convolutions and the sum with its input, which passes a 1x1 convolution where stride or channels change.

use std::path::Path;

use super::convnet::{ConvNet, Names};
use crate::data::Normalisation;
use crate::error::Result;
use crate::ops::folded::{Activation, Folded, Padding};
use crate::tensors::Tensors;

/// Added to variances.
const EPS: f64 = 1e-5;

/// Geometry of a network.
#[derive(Clone, Debug)]
pub struct Config {
    /// Height and width of the images, in three channels.
    pub size: usize,
    /// Blocks of each stage; each but the first stage begins with stride 2.
    pub blocks: [usize; 4],
    /// Channels of each stage; the stem has those of the first.
    pub channels: [usize; 4],
}

/// ResNet-18 on 128 x 128 pixels, as the released scripts use it: 512 features, 0.6 billion multiply-adds.
pub const RESNET18: Config = Config { size: 128, blocks: [2; 4], channels: [64, 128, 256, 512] };

/// The constants of its authors for ImageNet, of pixels scaled to 0..1.
pub fn normalisation() -> Normalisation {
    Normalisation { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }
}

/// Constants under which pixels of 0 to 255 stay what they are.
pub fn unnormalised() -> Normalisation {
    Normalisation { mean: vec![0.0; 3], std: vec![1.0 / 255.0; 3] }
}

/// Builds the network from its tensors.
///
/// # Errors
/// [`crate::Error::Input`] naming a tensor that is missing, of another shape, or not finite.
pub fn load(config: &Config, tensors: &Tensors, path: &Path) -> Result<ConvNet> {
    let mut net = ConvNet::default();
    let convolution = |net: &mut ConvNet, names: [&str; 2], (kernel, stride), activation, channels, from| {
        let (_, residual): (Option<usize>, Option<usize>) = from;
        let padding = Padding::Centred;
        let op = Folded { depthwise: false, kernel, stride, padding, activation, residual: residual.is_some() };
        let [convolution, norm] = names;
        net.convolution((tensors, path), &Names { convolution, norm }, (op, EPS), channels, from)
    };
    convolution(&mut net, ["conv1", "bn1"], (7, 2), Activation::Relu, (3, config.channels[0]), (None, None))?;
    let (mut last, mut c_in) = (net.max_pool(), config.channels[0]);
    for (stage, (&blocks, &c)) in config.blocks.iter().zip(&config.channels).enumerate() {
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let name = |part: &str| format!("layer{}.{block}.{part}", stage + 1);
            let mut layer = |parts: [&str; 2], geometry, activation, channels, from| {
                let [weights, norm] = parts.map(name);
                convolution(&mut net, [&weights, &norm], geometry, activation, channels, from)
            };
            let shortcut = if stride > 1 || c_in != c {
                let parts = ["downsample.0", "downsample.1"];
                layer(parts, (1, stride), Activation::Identity, (c_in, c), (Some(last), None))?
            } else {
                last
            };
            let inner = layer(["conv1", "bn1"], (3, stride), Activation::Relu, (c_in, c), (Some(last), None))?;
            last = layer(["conv2", "bn2"], (3, 1), Activation::Relu, (c, c), (Some(inner), Some(shortcut)))?;
            c_in = c;
        }
    }
    Ok(net)
}
