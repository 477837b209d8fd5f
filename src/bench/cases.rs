//! The kernels at the shapes of real searches and trainings: what `supernet bench kernels` and the benches run.
//!
//! A name reads `op/channels/size/batch/what`: `separable/c16/32x32/b64/dil_conv_5x5`. Ops that a search records for all
//! edges of a state at once appear so too (`4_edges`). `layer` cases time a primitive's forward and backward together,
//! as a user of any framework would write it. To add a case, push one in the function of its family.

use super::recorder::{Built, Draw, Recorder};
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::graph::{Output, Shape, Tensor, TermKind};
use crate::ops::augment::{Augment, DropMask};
use crate::ops::dense::Dense;
use crate::ops::elementary::{BatchNorm, Depthwise, Relu, Scale};
use crate::ops::elementwise::{Affine, Fill, Linear};
use crate::ops::loss::{Accumulate, CrossEntropy};
use crate::ops::mixture::{Mixture, SourceInput};
use crate::ops::norm::{Normalised, Statistics};
use crate::ops::optimiser::{Adam, GlobalNorm, Sgd};
use crate::ops::pool::{GlobalPool, Pool};
use crate::ops::reduce::{Reduce, ReduceInput};
use crate::ops::running::{RunningUpdate, Segment};
use crate::ops::second_order::{HessianTerm, Perturb, Unroll};
use crate::ops::separable::{BranchInput, Separable};
use crate::ops::softmax::Softmax;

/// What of a case is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// The heaviest op of this name.
    Op(&'static str),
    /// Everything but the loss: forward and backward.
    Layer,
}

impl Timed {
    /// Whether the case needs gradients.
    pub fn backward(self) -> bool {
        match self {
            Self::Op(op) => op.ends_with("_backward"),
            Self::Layer => true,
        }
    }

    /// Name of the op, or `layer`.
    pub fn op(self) -> &'static str {
        match self {
            Self::Op(op) => op,
            Self::Layer => "layer",
        }
    }
}

type Record = Box<dyn Fn(&mut Recorder, usize) -> Result<()> + Send + Sync>;

/// One case.
pub struct Case {
    /// Name.
    pub name: String,
    /// What of it is timed.
    pub timed: Timed,
    /// Images of a batch, or transport problems; 1 where there are neither.
    pub batch: usize,
    record: Record,
}

impl Case {
    /// A case with a batch of images or of transport problems.
    pub(super) fn of(
        name: String,
        timed: Timed,
        batch: usize,
        record: impl Fn(&mut Recorder, usize) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { name, timed, batch, record: Box::new(record) }
    }

    /// Records the case for a number of images, to be run in a precision.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes do not fit, which is a mistake in this file.
    pub fn build(&self, batch: usize, precision: Precision) -> Result<Built> {
        let mut recorder = Recorder::new(precision);
        (self.record)(&mut recorder, batch)?;
        recorder.finish(&self.name, self.timed)
    }
}

/// Channels, side and batch of a map.
#[derive(Clone, Copy, Debug)]
struct At {
    c: usize,
    side: usize,
    batch: usize,
}

const fn at(c: usize, side: usize, batch: usize) -> At {
    At { c, side, batch }
}

impl At {
    fn shape(self, batch: usize) -> Shape {
        Shape::map(batch, self.side, self.side, self.c)
    }
}

/// The stages of a search with C=16, L=8, batch 64, 32x32.
const SEARCH: [At; 3] = [at(16, 32, 64), at(32, 16, 64), at(64, 8, 64)];
/// The stages of a training with C=36, batch 96.
const TRAINING: [At; 3] = [at(36, 32, 96), at(72, 16, 96), at(144, 8, 96)];
/// Other sizes that are searched: 28x28 with few channels and its smallest maps, larger images, larger batches.
const OTHERS: [At; 4] = [at(8, 28, 32), at(8, 7, 32), at(16, 64, 16), at(16, 32, 256)];

/// Kernel and dilation of the convolutions.
const CONVOLUTIONS: [(&str, usize, usize); 4] =
    [("sep_conv_3x3", 3, 1), ("sep_conv_5x5", 5, 1), ("dil_conv_3x3", 3, 2), ("dil_conv_5x5", 5, 2)];

/// The list being built.
#[derive(Default)]
struct List(Vec<Case>);

impl List {
    fn push(
        &mut self,
        ops: &[&'static str],
        at: At,
        what: &str,
        record: impl Fn(&mut Recorder, usize) -> Result<()> + Send + Sync + Clone + 'static,
    ) {
        for &op in ops {
            let timed = if op == "layer" { Timed::Layer } else { Timed::Op(op) };
            let name = format!("{op}/c{}/{}x{}/b{}/{what}", at.c, at.side, at.side, at.batch);
            self.0.push(Case { name, timed, batch: at.batch, record: Box::new(record.clone()) });
        }
    }

    /// A case without images: a vector of `len` elements.
    fn flat(
        &mut self,
        op: &'static str,
        len: usize,
        record: impl Fn(&mut Recorder) -> Result<()> + Send + Sync + 'static,
    ) {
        let record: Record = Box::new(move |r, _| record(r));
        self.0.push(Case { name: format!("{op}/n{len}"), timed: Timed::Op(op), batch: 1, record });
    }
}

/// All cases.
pub fn all() -> Vec<Case> {
    let mut list = List::default();
    separable(&mut list);
    dense(&mut list);
    pools(&mut list);
    reduce(&mut list);
    mixture(&mut list);
    elementwise(&mut list);
    ends(&mut list);
    vectors(&mut list);
    elementary(&mut list);
    layers(&mut list);
    list.0.extend(super::folded::cases());
    list.0.extend(super::transport::cases());
    list.0
}

/// The cases whose names hold one of the comma-separated parts of a filter; all without a filter.
///
/// # Errors
/// [`Error::Usage`] if a part is in no name.
pub fn matching(filter: Option<&str>) -> Result<Vec<Case>> {
    let cases = all();
    let Some(filter) = filter else { return Ok(cases) };
    let parts: Vec<&str> = filter.split(',').map(str::trim).collect();
    if let Some(part) = parts.iter().find(|part| part.is_empty() || !cases.iter().any(|c| c.name.contains(*part))) {
        let mut ops: Vec<&str> = cases.iter().map(|c| c.timed.op()).collect();
        ops.sort_unstable();
        ops.dedup();
        return Err(Error::usage(format!(
            "--filter {filter}: no case has `{part}` in its name; names read op/channels/size/batch/what, such as {}; the \
             ops are {}",
            cases[0].name,
            ops.join(", ")
        )));
    }
    Ok(cases.into_iter().filter(|c| parts.iter().any(|part| c.name.contains(part))).collect())
}

/// Weights of a branch that reads `x`.
fn branch(r: &mut Recorder, x: Normalised, c: usize, geometry: (usize, usize, usize)) -> BranchInput {
    let c_in = r.graph.shape(x.y).c;
    let (depthwise, pointwise) = (r.weight(geometry.0 * geometry.0, c_in), r.weight(c_in, c));
    BranchInput { x, depthwise, pointwise, geometry, statistics: Some(r.statistics(c)) }
}

/// Records branches as one op and, behind each, the normalisation through which a cell reads it.
fn branches(r: &mut Recorder, inputs: &[BranchInput]) -> Result<()> {
    let maps = Separable::record(&mut r.graph, inputs)?;
    for (y, input) in maps.into_iter().zip(inputs) {
        read_normalised(r, y, input.statistics.expect("every branch has them"))?;
    }
    Ok(())
}

/// An output that is read through its batch norm, so that the gradient at the map is a term.
fn read_normalised(r: &mut Recorder, y: Tensor, statistics: (Tensor, Tensor)) -> Result<()> {
    let map = r.normalised(y, statistics);
    let z = Mixture::normalise(&mut r.graph, map, "normalised")?;
    r.output(z);
    Ok(())
}

const SEPARABLE: [&str; 2] = ["separable", "separable_backward"];

fn separable(list: &mut List) {
    let one = |kernel: usize, dilation: usize, stride: usize, at: At| {
        move |r: &mut Recorder, batch: usize| {
            let x = Normalised::plain(r.map(at.shape(batch)));
            let input = branch(r, x, at.c, (kernel, dilation, stride));
            branches(r, &[input])
        }
    };
    for at in SEARCH.into_iter().chain(TRAINING) {
        for (name, kernel, dilation) in CONVOLUTIONS {
            list.push(&SEPARABLE, at, name, one(kernel, dilation, 1, at));
        }
        // The second half of a sep_conv reads the first half's map through its normalisation.
        list.push(&SEPARABLE, at, "sep_conv_5x5_second", move |r, batch| {
            let y = r.map(at.shape(batch));
            let x = r.drawn_normalised(y)?;
            let input = branch(r, x, at.c, (5, 1, 1));
            branches(r, &[input])
        });
    }
    for at in OTHERS {
        list.push(&SEPARABLE, at, "sep_conv_3x3", one(3, 1, 1, at));
        list.push(&SEPARABLE, at, "dil_conv_5x5", one(5, 2, 1, at));
    }
    for at in [at(32, 32, 64), at(64, 16, 64)] {
        list.push(&SEPARABLE, at, "sep_conv_5x5_stride_2", one(5, 1, 2, at));
        list.push(&SEPARABLE, at, "dil_conv_3x3_stride_2", one(3, 2, 2, at));
    }
    for at in SEARCH {
        // All convolutions of the four edges that leave a cell's input.
        list.push(&SEPARABLE, at, "4_edges", move |r, batch| {
            let x = Normalised::plain(r.map(at.shape(batch)));
            let mut inputs = Vec::new();
            for _ in 0..4 {
                for (_, kernel, dilation) in CONVOLUTIONS {
                    inputs.push(branch(r, x, at.c, (kernel, dilation, 1)));
                }
            }
            branches(r, &inputs)
        });
    }
}

fn dense(list: &mut List) {
    const OPS: [&str; 2] = ["dense", "dense_backward"];
    let convolution = |op: Dense, c_out: usize, at: At| {
        move |r: &mut Recorder, batch: usize| {
            let x = r.map(at.shape(batch));
            let (w, statistics) = (r.weight(op.kernel * op.kernel * at.c, c_out), r.statistics(c_out));
            let y = Dense::record(&mut r.graph, op, x, w, None, Some(statistics))?;
            read_normalised(r, y, statistics)
        }
    };
    let stem = Dense { kernel: 3, stride: 1, pad: 1, relu: false, bias: false, statistics: true };
    list.push(&OPS, at(3, 32, 64), "stem_48", convolution(stem, 48, at(3, 32, 64)));
    list.push(&OPS, at(3, 32, 96), "stem_108", convolution(stem, 108, at(3, 32, 96)));
    for (c_out, at) in [
        (16, at(64, 32, 64)),
        (32, at(128, 16, 64)),
        (64, at(256, 8, 64)),
        (36, at(144, 32, 96)),
        (72, at(288, 16, 96)),
        (144, at(576, 8, 96)),
    ] {
        list.push(&OPS, at, &format!("pointwise_{c_out}"), convolution(Dense::RELU_POINTWISE, c_out, at));
    }
    let head = at(256, 1, 64);
    list.push(&OPS, head, "classifier_10", move |r, batch| {
        let x = r.map(head.shape(batch));
        let (w, bias) = (r.weight(head.c, 10), r.variable(Shape::vector(10), Draw::Normal(0.1)));
        let op = Dense { kernel: 1, stride: 1, pad: 0, relu: false, bias: true, statistics: false };
        let y = Dense::record(&mut r.graph, op, x, w, Some(bias), None)?;
        r.output(y);
        Ok(())
    });
}

/// Both pools of a state with their statistics, read through their normalisations.
fn pool(r: &mut Recorder, x: Tensor, stride: usize, average: bool) -> Result<()> {
    let c = r.graph.shape(x).c;
    let op = Pool { kernel: 3, stride, pad: 1, max: true, average, statistics: true };
    let places: Vec<_> = (0..1 + usize::from(average)).map(|_| r.statistics(c)).collect();
    let pooled = Pool::record(&mut r.graph, op, x, &places)?;
    for (map, place) in pooled.into_iter().zip(places) {
        read_normalised(r, map.y, place)?;
    }
    Ok(())
}

fn pools(list: &mut List) {
    const OPS: [&str; 2] = ["pool", "pool_backward"];
    for at in SEARCH.into_iter().chain(TRAINING).chain(OTHERS) {
        list.push(&OPS, at, "max_avg_3x3", move |r, batch| {
            let x = r.map(at.shape(batch));
            pool(r, x, 1, true)
        });
    }
    for at in [at(32, 32, 64), at(64, 16, 64)] {
        list.push(&OPS, at, "max_avg_3x3_stride_2", move |r, batch| {
            let x = r.map(at.shape(batch));
            pool(r, x, 2, true)
        });
    }
    for at in [at(256, 8, 64), at(576, 8, 96)] {
        list.push(&["global_pool", "global_pool_backward"], at, "mean", move |r, batch| {
            let x = r.map(at.shape(batch));
            let y = GlobalPool::record(&mut r.graph, x);
            r.output(y);
            Ok(())
        });
    }
}

fn reduce(list: &mut List) {
    const OPS: [&str; 2] = ["reduce", "reduce_backward"];
    for (edges, c_out, at) in [
        (4, 32, at(32, 32, 64)),
        (4, 64, at(64, 16, 64)),
        (1, 32, at(64, 32, 64)),
        (1, 72, at(144, 32, 96)),
        (1, 144, at(288, 16, 96)),
    ] {
        list.push(&OPS, at, &format!("{edges}_edges_{c_out}"), move |r, batch| {
            let x = r.map(at.shape(batch));
            let mut inputs = Vec::new();
            for _ in 0..edges {
                let (even, odd) = (r.weight(at.c, c_out / 2), r.weight(at.c, c_out / 2));
                inputs.push(ReduceInput { even, odd, statistics: Some(r.statistics(c_out)) });
            }
            let maps = Reduce::record(&mut r.graph, x, &inputs)?;
            for (y, input) in maps.into_iter().zip(inputs) {
                read_normalised(r, y, input.statistics.expect("every edge has them"))?;
            }
            Ok(())
        });
    }
}

fn mixture(list: &mut List) {
    const OPS: [&str; 2] = ["mixture", "mixture_backward"];
    // A node of a search cell: every primitive but none on each edge, softmax weights, into a slice of the cell's output.
    for (edges, at) in SEARCH.into_iter().flat_map(|at| [(2, at), (5, at)]).chain(OTHERS.map(|at| (3, at))) {
        list.push(&OPS, at, &format!("search_{edges}_edges"), move |r, batch| {
            let alphas = r.variable(Shape::vector(8 * edges), Draw::Normal(0.5));
            let weights = Softmax::record(&mut r.graph, alphas, &vec![8; edges])?;
            let mut sources = Vec::new();
            for i in 0..7 * edges {
                let y = r.map(at.shape(batch));
                // The skip connection of an edge is the state itself.
                let map = if i % 7 == 2 { Normalised::plain(y) } else { r.drawn_normalised(y)? };
                sources.push(SourceInput { map, weight: Some(8 * (i / 7) + 1 + i % 7), mask: None });
            }
            let concat = r.graph.tensor(at.shape(batch).with_channels(4 * at.c), "output");
            let node = r.graph.channels(concat, at.c, at.c)?;
            Mixture::record(&mut r.graph, &sources, Some(weights), None, node)?;
            r.output(node);
            Ok(())
        });
    }
    // A node of a trained cell: two maps, drop path.
    for at in TRAINING {
        list.push(&OPS, at, "training_2_paths", move |r, batch| {
            let mask = r.constant(Shape::matrix(2, batch), Draw::Positive);
            let mut sources = Vec::new();
            for path in 0..2 {
                let y = r.map(at.shape(batch));
                let mut map = r.drawn_normalised(y)?;
                let affine = [Draw::Positive, Draw::Normal(0.1)].map(|d| r.variable(Shape::vector(at.c), d));
                map.norm = map.norm.map(|n| crate::ops::norm::NormTensors { affine: Some(affine.into()), ..n });
                sources.push(SourceInput { map, weight: None, mask: Some(path) });
            }
            let node = r.graph.tensor(at.shape(batch), "node");
            Mixture::record(&mut r.graph, &sources, None, Some(mask), node)?;
            r.output(node);
            Ok(())
        });
    }
}

fn elementwise(list: &mut List) {
    for at in [SEARCH[0], SEARCH[2], TRAINING[0]] {
        list.push(&["statistics"], at, "batch", move |r, batch| {
            let x = r.map(at.shape(batch));
            let x = r.before_normalisation(x)?;
            let (mean, _) = Statistics::record(&mut r.graph, x);
            r.output(mean);
            Ok(())
        });
        list.push(&["linear"], at, "sum_of_2", move |r, batch| {
            let (x, y) = (r.map(at.shape(batch)), r.map(at.shape(batch)));
            let sum = Linear::record(&mut r.graph, &[(1.0, x), (0.4, y)], "sum")?;
            r.output(sum);
            Ok(())
        });
        list.push(&["affine"], at, "2_terms", move |r, batch| {
            let (y, g, h) = (r.map(at.shape(batch)), r.map(at.shape(batch)), r.map(at.shape(batch)));
            let coefficients = r.constant(Shape::matrix(3, at.c), Draw::Normal(0.5));
            let out = r.graph.tensor(at.shape(batch), "gradient");
            let terms = vec![TermKind { coef: true, mask: None }, TermKind::default()];
            r.graph.push(Affine { terms }, vec![y, g, coefficients, h], vec![Output::from(out)]);
            r.output(out);
            Ok(())
        });
        list.push(&["fill"], at, "zeros", move |r, batch| {
            let out = r.graph.tensor(at.shape(batch), "zeros");
            r.graph.push(Fill { value: 0.0 }, vec![], vec![Output::from(out)]);
            r.output(out);
            Ok(())
        });
    }
}

/// What stands before the first cell and behind the last.
fn ends(list: &mut List) {
    for at in [at(3, 32, 64), at(3, 32, 256), at(1, 28, 32)] {
        list.push(&["augment"], at, "crop_flip_cutout", move |r, batch| {
            let pixels = r.constant(at.shape(batch), Draw::Below(256));
            let index = r.constant(Shape::vector(batch), Draw::Below(50_000));
            let epoch = r.constant(Shape::vector(1), Draw::Constant(3.0));
            let (mean, std) = (vec![0.5; at.c], vec![0.25; at.c]);
            let op = Augment { pad: 4, flip: true, cutout: 16, mean, std, seed: 11 };
            let out = Augment::record(&mut r.graph, op, [pixels, index, epoch]);
            r.output(out);
            Ok(())
        });
    }
    let logits = at(10, 1, 64);
    list.push(&["cross_entropy", "cross_entropy_backward"], logits, "10_classes", move |r, batch| {
        let x = r.map(logits.shape(batch));
        let labels = r.constant(Shape::vector(batch), Draw::Below(10));
        let (loss, _) = CrossEntropy::record(&mut r.graph, CrossEntropy { smoothing: 0.0 }, x, labels)?;
        r.output(loss);
        Ok(())
    });
    let masks = at(40, 1, 96);
    list.push(&["drop_mask"], masks, "40_paths", move |r, batch| {
        let p = r.constant(Shape::vector(1), Draw::Constant(0.2));
        let step = r.constant(Shape::vector(1), Draw::Constant(9.0));
        let mask = DropMask::record(&mut r.graph, DropMask { seed: 3 }, masks.c, batch, [p, step]);
        r.output(mask);
        Ok(())
    });
}

/// Ops on the flat vectors of weights, alphas and statistics, at the lengths of a search with C=16 and L=8.
fn vectors(list: &mut List) {
    const WEIGHTS: usize = 1_930_618;
    const ALPHAS: usize = 14 * 8;
    const STATISTICS: usize = 2 * 37_296;
    let vector = |r: &mut Recorder, len: usize, factor: f32| r.constant(Shape::vector(len), Draw::Normal(factor));
    let constant = |r: &mut Recorder, value: f32| r.constant(Shape::vector(1), Draw::Constant(value));
    list.flat("softmax", ALPHAS, move |r| {
        let alphas = r.variable(Shape::vector(ALPHAS), Draw::Normal(1.0));
        let p = Softmax::record(&mut r.graph, alphas, &[8; 14])?;
        r.output(p);
        Ok(())
    });
    list.flat("softmax_backward", ALPHAS, move |r| {
        let alphas = r.variable(Shape::vector(ALPHAS), Draw::Normal(1.0));
        let p = Softmax::record(&mut r.graph, alphas, &[8; 14])?;
        r.output(p);
        Ok(())
    });
    list.flat("global_norm", WEIGHTS, move |r| {
        let x = vector(r, WEIGHTS, 1e-2);
        let norm = GlobalNorm::record(&mut r.graph, x, "norm");
        r.output(norm);
        Ok(())
    });
    list.flat("sgd", WEIGHTS, move |r| {
        let (g, norm, rate) = (vector(r, WEIGHTS, 1e-2), constant(r, 12.0), constant(r, 0.025));
        let states = [vector(r, WEIGHTS, 1.0), vector(r, WEIGHTS, 0.1), constant(r, 0.0)];
        r.graph.push(
            Sgd { momentum: 0.9, decay: 3e-4, clip: 5.0 },
            vec![g, norm, rate],
            states.map(Output::from).into(),
        );
        Ok(())
    });
    list.flat("adam", 2 * ALPHAS, move |r| {
        let (g, norm, rate) = (vector(r, 2 * ALPHAS, 1e-2), constant(r, 0.2), constant(r, 3e-4));
        let second = r.constant(Shape::vector(2 * ALPHAS), Draw::Positive);
        let states =
            [vector(r, 2 * ALPHAS, 1.0), vector(r, 2 * ALPHAS, 0.1), second, constant(r, 2.0), constant(r, 0.0)];
        let op = Adam { beta1: 0.5, beta2: 0.999, eps: 1e-8, decay: 1e-3 };
        r.graph.push(op, vec![g, norm, rate], states.map(Output::from).into());
        Ok(())
    });
    list.flat("running_update", STATISTICS, move |r| {
        let (batch, guard, running) = (vector(r, STATISTICS, 1.0), constant(r, 1.0), vector(r, STATISTICS, 1.0));
        let segment = |i: usize| Segment { offset: 16 * i, len: 16, factor: 1.0 };
        let segments = (0..STATISTICS / 16).map(segment).collect();
        RunningUpdate::record(&mut r.graph, RunningUpdate { momentum: 0.1, segments }, batch, guard, running);
        Ok(())
    });
    list.flat("accumulate", 4, move |r| {
        let (loss, counts, sums) = (constant(r, 2.0), vector(r, 3, 1.0), vector(r, 4, 1.0));
        r.graph.push(Accumulate, vec![loss, counts], vec![Output::from(sums)]);
        Ok(())
    });
    list.flat("unroll", WEIGHTS, move |r| {
        let inputs = [vector(r, WEIGHTS, 1.0), vector(r, WEIGHTS, 0.1), vector(r, WEIGHTS, 0.1), constant(r, 0.025)];
        let out = Unroll::record(&mut r.graph, Unroll { momentum: 0.9, decay: 3e-4 }, inputs);
        r.output(out);
        Ok(())
    });
    list.flat("perturb", WEIGHTS, move |r| {
        let inputs = [vector(r, WEIGHTS, 1.0), vector(r, WEIGHTS, 0.1), constant(r, 139.0)];
        let out = Perturb::record(&mut r.graph, Perturb { radius: 0.01 }, inputs);
        r.output(out);
        Ok(())
    });
    list.flat("hessian_term", 2 * ALPHAS, move |r| {
        let maps = [1e-2; 3].map(|factor| vector(r, 2 * ALPHAS, factor));
        let all = [maps[0], maps[1], maps[2], constant(r, 1.0), constant(r, 0.025)];
        let (term, _) = HessianTerm::record(&mut r.graph, HessianTerm { radius: 0.01 }, all);
        r.output(term);
        Ok(())
    });
}

/// The unfused ops, from which the fused ones are checked. No network records them; one size each shows their cost.
fn elementary(list: &mut List) {
    let at = at(16, 16, 16);
    list.push(&["relu", "relu_backward"], at, "reference", move |r, batch| {
        let x = r.map(at.shape(batch));
        let y = Relu::record(&mut r.graph, x);
        r.output(y);
        Ok(())
    });
    list.push(&["depthwise", "depthwise_backward"], at, "reference_3x3", move |r, batch| {
        let (x, w) = (r.map(at.shape(batch)), r.weight(9, at.c));
        let y = Depthwise::record(&mut r.graph, Depthwise { kernel: 3, dilation: 1, stride: 1 }, x, w);
        r.output(y);
        Ok(())
    });
    list.push(&["batch_norm", "batch_norm_backward"], at, "reference", move |r, batch| {
        let x = r.map(at.shape(batch));
        let [y, _, _] = BatchNorm::record(&mut r.graph, x, None, 1e-5);
        r.output(y);
        Ok(())
    });
    list.push(&["scale", "scale_backward"], at, "reference", move |r, batch| {
        let (x, w) = (r.map(at.shape(batch)), r.variable(Shape::vector(8), Draw::Positive));
        let y = Scale::record(&mut r.graph, x, w, 3);
        r.output(y);
        Ok(())
    });
}

/// Primitives as other frameworks have them, forward and backward with respect to input and weights: what the peers in
/// `benches/peers` measure too.
fn layers(list: &mut List) {
    for at in [SEARCH[0], SEARCH[2], TRAINING[0]] {
        for (name, kernel, dilation) in [CONVOLUTIONS[2], CONVOLUTIONS[3]] {
            list.push(&["layer"], at, name, move |r, batch| {
                let x = Normalised::plain(r.map(at.shape(batch)));
                let input = branch(r, x, at.c, (kernel, dilation, 1));
                branches(r, &[input])
            });
        }
        list.push(&["layer"], at, "relu_pointwise_batch_norm", move |r, batch| {
            let x = r.map(at.shape(batch));
            let (w, statistics) = (r.weight(at.c, at.c), r.statistics(at.c));
            let y = Dense::record(&mut r.graph, Dense::RELU_POINTWISE, x, w, None, Some(statistics))?;
            read_normalised(r, y, statistics)
        });
        list.push(&["layer"], at, "max_pool_3x3", move |r, batch| {
            let x = r.map(at.shape(batch));
            pool(r, x, 1, false)
        });
        list.push(&["layer"], at, "batch_norm", move |r, batch| {
            let x = r.map(at.shape(batch));
            let statistics = Statistics::record(&mut r.graph, x);
            read_normalised(r, x, statistics)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::recorder::PROBE;
    use super::*;
    use crate::graph::Node;
    use crate::ops::Op;

    #[test]
    fn every_op_has_a_case_under_a_name_of_its_own() {
        let cases = all();
        let ops: HashSet<&str> = cases.iter().map(|c| c.timed.op()).collect();
        for name in Op::NAMES {
            assert!(ops.contains(name), "op `{name}` is never measured: add a case to bench/cases.rs");
        }
        let names: HashSet<&str> = cases.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
    }

    #[test]
    fn every_case_can_be_recorded_and_times_what_its_name_says() {
        for (case, precision) in all().iter().flat_map(|case| [(case, Precision::F32), (case, Precision::Bf16)]) {
            let built = case.build(case.batch.min(2), precision).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            assert!(built.cost.bytes > 0.0 && !built.results.is_empty(), "{}", case.name);
            let graph = built.program.graph();
            let of_loss = |node: &Node| node.outputs.iter().any(|o| graph.info(o.tensor).name.contains(PROBE));
            let timed_nodes = || built.ops.iter().flat_map(|ops| &built.program.nodes()[ops.clone()]);
            assert!(!timed_nodes().any(of_loss), "{}: the loss is timed", case.name);
            let timed: Vec<&str> = timed_nodes().map(|n| n.op.name()).collect();
            match case.timed {
                Timed::Op(op) => assert_eq!(timed, [op], "{}", case.name),
                Timed::Layer => {
                    assert!(timed.iter().any(|op| op.ends_with("_backward")), "{}: {timed:?}", case.name);
                    assert!(timed.len() >= 3 && timed.len() <= 8, "{}: {timed:?}", case.name);
                }
            }
        }
    }

    /// What a step has in halves, the ops have that are timed.
    #[test]
    fn timed_ops_meet_halves() {
        const OPS: [&str; 10] = [
            "statistics",
            "mixture",
            "mixture_backward",
            "separable",
            "separable_backward",
            "dense",
            "dense_backward",
            "pool",
            "pool_backward",
            "reduce",
        ];
        let meets = |case: &Case, precision: Precision| {
            let built = case.build(case.batch.min(2), precision).unwrap();
            let halves = precision.halves(&built.program);
            let nodes = built.ops.iter().flat_map(|ops| &built.program.nodes()[ops.clone()]);
            let mut tensors = nodes.flat_map(|n| n.inputs.iter().copied().chain(n.outputs.iter().map(|o| o.tensor)));
            tensors.any(|tensor| halves.contains(&built.program.graph().base(tensor)))
        };
        // A classifier is followed by no normalisation.
        let wide = |c: &Case| c.name.contains("/c16/") || c.name.contains("/c64/") && !c.name.contains("classifier");
        for op in OPS {
            let own: Vec<Case> = all().into_iter().filter(|c| c.timed.op() == op && wide(c)).collect();
            assert!(!own.is_empty(), "{op}");
            for case in own {
                assert!(meets(&case, Precision::Bf16), "{}", case.name);
                assert!(!meets(&case, Precision::Tf32), "{}", case.name);
            }
        }
    }

    #[test]
    fn filters_choose_by_parts_of_names() {
        let chosen = matching(Some("pool/c16,softmax")).unwrap();
        assert!(chosen.iter().all(|c| c.name.contains("pool/c16") || c.name.contains("softmax")));
        assert!(chosen.iter().any(|c| c.name.starts_with("softmax_backward")));
        for bad in ["", "pool,", "no such op"] {
            let Err(error) = matching(Some(bad)) else { panic!("`{bad}` is accepted") };
            assert!(error.to_string().contains("--filter") && error.exit_code() == 2, "{error}");
        }
        assert_eq!(matching(None).unwrap().len(), all().len());
    }
}
