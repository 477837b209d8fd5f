//! The layers of `supernet bench kernels --filter layer` in burn, on its CPU backend: forward and backward of one layer
//! with respect to its input and weights. Prints one JSON row a layer. Its batch norm always has scale and shift.

use std::time::Instant;

use burn::nn::conv::Conv2dConfig;
use burn::nn::pool::MaxPool2dConfig;
use burn::nn::{BatchNormConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Distribution, Tensor};

/// Channels, side of the maps, images: as in `src/bench/cases/layers.rs`.
const SHAPES: [(usize, usize, usize); 3] = [(16, 32, 64), (64, 8, 64), (36, 32, 96)];
/// Seconds after which no further sample begins.
const BUDGET: f64 = 4.0;

type Layer = Box<dyn Fn(Tensor<4>) -> Tensor<4>>;

fn layer(name: &str, c: usize, device: &Device) -> Layer {
    let norm = BatchNormConfig::new(c).init(device);
    let pointwise = Conv2dConfig::new([c, c], [1, 1]).with_bias(false).init(device);
    match name {
        "dil_conv_3x3" | "dil_conv_5x5" => {
            let kernel = if name == "dil_conv_3x3" { 3 } else { 5 };
            let (before, after) = (kernel - 1, kernel - 1);
            let depthwise = Conv2dConfig::new([c, c], [kernel, kernel])
                .with_padding(PaddingConfig2d::Explicit(before, before, after, after))
                .with_dilation([2, 2])
                .with_groups(c)
                .with_bias(false)
                .init(device);
            Box::new(move |x| norm.forward(pointwise.forward(depthwise.forward(relu(x)))))
        }
        "relu_pointwise_batch_norm" => Box::new(move |x| norm.forward(pointwise.forward(relu(x)))),
        "max_pool_3x3" => {
            let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
            let pool = MaxPool2dConfig::new([3, 3]).with_strides([1, 1]).with_padding(padding).init();
            Box::new(move |x| norm.forward(pool.forward(x)))
        }
        _ => Box::new(move |x| norm.forward(x)),
    }
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let device = Device::default().autodiff();
    for (c, side, batch) in SHAPES {
        for name in ["dil_conv_3x3", "dil_conv_5x5", "relu_pointwise_batch_norm", "max_pool_3x3", "batch_norm"] {
            let case = format!("layer/c{c}/{side}x{side}/b{batch}/{name}");
            if !wanted.is_empty() && !wanted.iter().any(|part| case.contains(part.as_str())) {
                continue;
            }
            let layer = layer(name, c, &device);
            let draw = || Tensor::<4>::random([batch, c, side, side], Distribution::Normal(0.0, 1.0), &device);
            let (x, gradient) = (draw().require_grad(), draw());
            let mut milliseconds = Vec::new();
            let begin = Instant::now();
            for sample in 0.. {
                let start = Instant::now();
                // The gradient of this sum with respect to the output is `gradient`; other peers hand it over as such.
                let gradients = (layer(x.clone()) * gradient.clone()).sum().backward();
                let dx = x.grad(&gradients).expect("x requires a gradient");
                // Reading one value waits for whatever is still under way.
                let _ = dx.slice([0..1, 0..1, 0..1, 0..1]).into_data();
                if sample > 0 {
                    milliseconds.push(start.elapsed().as_secs_f64() * 1e3);
                }
                if sample >= 3 && begin.elapsed().as_secs_f64() > BUDGET {
                    break;
                }
            }
            println!("{}", serde_json::json!({ "peer": "burn", "case": case, "milliseconds": milliseconds }));
        }
    }
}
