//! The candidate operations recorded together: all that leave one state of a cell, whatever their edge, share its map.
//! Supernet cells have every primitive on every edge and normalise without scale and shift; derived cells have one
//! primitive an edge, scale and shift, and pools without normalisation.

use super::parameters::{Kind, Layout, Pass, Running, Weight};
use super::space::Primitive;
use crate::error::Result;
use crate::graph::{Shape, Tensor};
use crate::ops::norm::Normalised;
use crate::ops::pool::Pool;
use crate::ops::reduce::{Reduce, ReduceInput};
use crate::ops::separable::{Branch, BranchInput, Separable};

/// A normalisation: running statistics, scale and shift.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    /// Statistics.
    pub running: Running,
    /// gamma and beta.
    pub affine: Option<(Weight, Weight)>,
}

impl BatchNorm {
    /// Declares a normalisation of `c` channels under PyTorch's name of the layer.
    pub fn declare(layout: &mut Layout, name: &str, c: usize, affine: bool) -> Self {
        let affine = affine.then(|| {
            let gamma = layout.weight(format!("{name}.weight"), Shape::vector(c), Kind::Gamma);
            (gamma, layout.weight(format!("{name}.bias"), Shape::vector(c), Kind::Beta))
        });
        Self { running: layout.statistic(name, c), affine }
    }
}

/// Depthwise and pointwise convolution with normalisation.
#[derive(Clone, Copy, Debug)]
struct Stage {
    depthwise: Weight,
    pointwise: Weight,
    norm: BatchNorm,
}

/// Factorized reduce with normalisation.
#[derive(Clone, Copy, Debug)]
pub struct FactorizedReduce {
    even: Weight,
    odd: Weight,
    norm: BatchNorm,
}

impl FactorizedReduce {
    /// Declares the op under PyTorch's name.
    pub fn declare(layout: &mut Layout, name: &str, c_in: usize, c: usize, affine: bool) -> Self {
        let half = |layout: &mut Layout, part: &str, c| {
            layout.weight(format!("{name}.{part}.weight"), Shape::matrix(c_in, c), Kind::Dense { kernel: 1 })
        };
        let even = half(layout, "conv_1", c / 2);
        let odd = half(layout, "conv_2", c - c / 2);
        Self { even, odd, norm: BatchNorm::declare(layout, &format!("{name}.bn"), c, affine) }
    }

    /// Records several that read one map; returns their maps under normalisation.
    pub fn record(pass: &mut Pass<'_>, x: Tensor, ops: &[Self]) -> Result<Vec<Normalised>> {
        let rows = Reduce::output(pass.graph.shape(x), 1).rows();
        let mut edges = Vec::with_capacity(ops.len());
        for op in ops {
            let (even, odd) = (pass.weight(op.even)?, pass.weight(op.odd)?);
            edges.push(ReduceInput { even, odd, statistics: pass.written(op.norm.running, rows)? });
        }
        let maps = Reduce::record(pass.graph, x, &edges)?;
        maps.into_iter().zip(ops).map(|(y, op)| pass.normalised(y, op.norm.running, op.norm.affine)).collect()
    }
}

/// The parameters of one primitive on one edge.
#[derive(Clone, Debug)]
pub struct EdgeOp {
    /// Which primitive.
    pub primitive: Primitive,
    stages: Vec<Stage>,
    reduce: Option<FactorizedReduce>,
    pool: Option<Running>,
}

impl EdgeOp {
    /// Declares a primitive under PyTorch's name of the module. `pools` holds the shared statistics of the state's
    /// maximum and average maps; None: pools are not normalised (derived cells).
    pub fn declare(
        layout: &mut Layout,
        name: &str,
        primitive: Primitive,
        (c, stride): (usize, usize),
        affine: bool,
        pools: Option<&mut [Option<Running>; 2]>,
    ) -> Self {
        let mut op = Self { primitive, stages: Vec::new(), reduce: None, pool: None };
        match primitive {
            Primitive::None => {}
            Primitive::MaxPool3 | Primitive::AvgPool3 => {
                if let Some(pools) = pools {
                    let name = format!("{name}.1");
                    let shared = &mut pools[usize::from(primitive == Primitive::AvgPool3)];
                    match *shared {
                        Some(running) => layout.share(running, name),
                        None => *shared = Some(layout.statistic(name, c)),
                    }
                    op.pool = *shared;
                }
            }
            Primitive::SkipConnect => {
                op.reduce = (stride == 2).then(|| FactorizedReduce::declare(layout, name, c, c, affine));
            }
            _ => {
                let (kernel, _, stages) = primitive.convolution().expect("all others are convolutions");
                for stage in 0..stages {
                    let module = |i: usize| format!("{name}.op.{}", 4 * stage + i);
                    let taps = Shape::matrix(kernel * kernel, c);
                    let depthwise = layout.weight(format!("{}.weight", module(1)), taps, Kind::Depthwise { kernel });
                    let square = Shape::matrix(c, c);
                    let pointwise = layout.weight(format!("{}.weight", module(2)), square, Kind::Dense { kernel: 1 });
                    let norm = BatchNorm::declare(layout, &module(3), c, affine);
                    op.stages.push(Stage { depthwise, pointwise, norm });
                }
            }
        }
        op
    }

    /// Whether drop path applies: on everything but the identity.
    pub fn droppable(&self) -> bool {
        self.primitive != Primitive::SkipConnect || self.reduce.is_some()
    }
}

/// Records all operations that leave state `x` with one stride; returns the map of each, None for `none`.
pub fn record(pass: &mut Pass<'_>, x: Tensor, stride: usize, ops: &[&EdgeOp]) -> Result<Vec<Option<Normalised>>> {
    let mut maps = vec![None; ops.len()];
    record_reduces(pass, x, ops, &mut maps)?;
    for (op, map) in ops.iter().zip(&mut maps) {
        if op.primitive == Primitive::SkipConnect && op.reduce.is_none() {
            *map = Some(Normalised::plain(x));
        }
    }
    // First stages read the state, second stages their own first stage's map through its normalisation.
    for stage in 0..2 {
        let chosen: Vec<usize> = (0..ops.len()).filter(|&i| ops[i].stages.len() > stage).collect();
        if chosen.is_empty() {
            continue;
        }
        let mut branches = Vec::with_capacity(chosen.len());
        for &i in &chosen {
            let (kernel, dilation, _) = ops[i].primitive.convolution().expect("only convolutions have stages");
            let input = if stage == 0 { Normalised::plain(x) } else { maps[i].expect("the first stage is recorded") };
            let stride = if stage == 0 { stride } else { 1 };
            let geometry = Branch { kernel, dilation, stride, norm: None, statistics: true };
            let rows = geometry.output(pass.graph.shape(input.y), 1).rows();
            let Stage { depthwise, pointwise, norm } = ops[i].stages[stage];
            branches.push(BranchInput {
                x: input,
                depthwise: pass.weight(depthwise)?,
                pointwise: pass.weight(pointwise)?,
                geometry: (kernel, dilation, stride),
                statistics: pass.written(norm.running, rows)?,
            });
        }
        let written = Separable::record(pass.graph, &branches)?;
        for (&i, y) in chosen.iter().zip(written) {
            let norm = ops[i].stages[stage].norm;
            maps[i] = Some(pass.normalised(y, norm.running, norm.affine)?);
        }
    }
    // Last, so that their gradient is the first to reach the state: on GPUs it keeps those of the convolutions company.
    record_pools(pass, x, stride, ops, &mut maps)?;
    Ok(maps)
}

fn record_pools(
    pass: &mut Pass<'_>,
    x: Tensor,
    stride: usize,
    ops: &[&EdgeOp],
    maps: &mut [Option<Normalised>],
) -> Result<()> {
    let kinds = [Primitive::MaxPool3, Primitive::AvgPool3];
    let wanted = kinds.map(|kind| ops.iter().find(|op| op.primitive == kind));
    let pool =
        Pool { kernel: 3, stride, pad: 1, max: wanted[0].is_some(), average: wanted[1].is_some(), statistics: false };
    if !(pool.max || pool.average) {
        return Ok(());
    }
    let rows = pool.output(pass.graph.shape(x)).rows();
    let mut statistics = Vec::new();
    for running in wanted.iter().flatten().filter_map(|op| op.pool) {
        statistics.extend(pass.written(running, rows)?);
    }
    let mut pooled = Pool::record(pass.graph, pool, x, &statistics)?.into_iter();
    for kind in kinds {
        let mut own = None;
        for (op, map) in ops.iter().zip(maps.iter_mut()).filter(|(op, _)| op.primitive == kind) {
            let y = *own.get_or_insert_with(|| pooled.next().expect("one map a wanted kind").y);
            *map = Some(match op.pool {
                Some(running) => pass.normalised(y, running, None)?,
                None => Normalised::plain(y),
            });
        }
    }
    Ok(())
}

fn record_reduces(pass: &mut Pass<'_>, x: Tensor, ops: &[&EdgeOp], maps: &mut [Option<Normalised>]) -> Result<()> {
    let (places, reduces): (Vec<usize>, Vec<FactorizedReduce>) =
        ops.iter().enumerate().filter_map(|(i, op)| op.reduce.map(|r| (i, r))).unzip();
    if !reduces.is_empty() {
        for (i, map) in places.into_iter().zip(FactorizedReduce::record(pass, x, &reduces)?) {
            maps[i] = Some(map);
        }
    }
    Ok(())
}
