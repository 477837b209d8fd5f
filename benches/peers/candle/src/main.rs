//! The layers of `supernet bench kernels --filter layer` in candle: forward and backward of one layer with respect to its
//! input and weights. Prints one JSON row a layer.
//!
//! Not to be had: `max_pool_3x3`, since candle's pooling has no padding and its backward needs a stride equal to the kernel.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{BatchNorm, BatchNormConfig, Conv2d, Conv2dConfig, Module, ModuleT, VarBuilder, VarMap};

/// Channels, side of the maps, images: as in `src/bench/cases/layers.rs`.
const SHAPES: [(usize, usize, usize); 3] = [(16, 32, 64), (64, 8, 64), (36, 32, 96)];
/// Seconds after which no further sample begins.
const BUDGET: f64 = 4.0;

type Layer = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

fn layer(name: &str, c: usize, vars: &VarBuilder) -> Result<Option<Layer>> {
    let norm = || -> Result<BatchNorm> {
        candle_nn::batch_norm(c, BatchNormConfig { affine: false, ..BatchNormConfig::default() }, vars.pp("bn"))
    };
    let conv = |kernel: usize, config: Conv2dConfig, name: &str| -> Result<Conv2d> {
        candle_nn::conv2d_no_bias(c, c, kernel, config, vars.pp(name))
    };
    let made: Layer = match name {
        "dil_conv_3x3" | "dil_conv_5x5" => {
            let kernel = if name == "dil_conv_3x3" { 3 } else { 5 };
            let config = Conv2dConfig { padding: kernel - 1, dilation: 2, groups: c, ..Conv2dConfig::default() };
            let (depthwise, pointwise) = (conv(kernel, config, "d")?, conv(1, Conv2dConfig::default(), "p")?);
            let norm = norm()?;
            Box::new(move |x| norm.forward_t(&pointwise.forward(&depthwise.forward(&x.relu()?)?)?, true))
        }
        "relu_pointwise_batch_norm" => {
            let (pointwise, norm) = (conv(1, Conv2dConfig::default(), "p")?, norm()?);
            Box::new(move |x| norm.forward_t(&pointwise.forward(&x.relu()?)?, true))
        }
        "batch_norm" => {
            let norm = norm()?;
            Box::new(move |x| norm.forward_t(x, true))
        }
        _ => return Ok(None),
    };
    Ok(Some(made))
}

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for (c, side, batch) in SHAPES {
        for name in ["dil_conv_3x3", "dil_conv_5x5", "relu_pointwise_batch_norm", "max_pool_3x3", "batch_norm"] {
            let case = format!("layer/c{c}/{side}x{side}/b{batch}/{name}");
            if !wanted.is_empty() && !wanted.iter().any(|part| case.contains(part.as_str())) {
                continue;
            }
            let map = VarMap::new();
            let vars = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
            let Some(layer) = layer(name, c, &vars)? else {
                let reason = "no padding in pooling, and a backward only for stride = kernel";
                println!("{}", serde_json::json!({ "peer": "candle", "case": case, "cannot": reason }));
                continue;
            };
            let x = Var::randn(0f32, 1f32, (batch, c, side, side), &Device::Cpu)?;
            let gradient = Tensor::randn(0f32, 1f32, (batch, c, side, side), &Device::Cpu)?;
            let mut milliseconds = Vec::new();
            let begin = Instant::now();
            for sample in 0.. {
                let start = Instant::now();
                // The gradient of this sum with respect to the output is `gradient`; other peers hand it over as such.
                let gradients = (layer(&x)? * &gradient)?.sum_all()?.backward()?;
                assert!(gradients.get(&x).is_some());
                if sample > 0 {
                    milliseconds.push(start.elapsed().as_secs_f64() * 1e3);
                }
                if sample >= 3 && begin.elapsed().as_secs_f64() > BUDGET {
                    break;
                }
            }
            println!("{}", serde_json::json!({ "peer": "candle", "case": case, "milliseconds": milliseconds }));
        }
    }
    Ok(())
}
