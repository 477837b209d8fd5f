//! The supernet recorded with the fused families against the same network written down from elementary ops, one formula
//! at a time, straight from the definition of DARTS' search space (Liu et al. 2019): outputs and all gradients agree.

use supernet::device::reference::Reference;
use supernet::graph::{Graph, Program, Shape, StoreLayout, Tensor};
use supernet::network::{Geometry, Layout, Pass, SearchSpace, Supernet};
use supernet::ops::Real;
use supernet::ops::dense::Dense;
use supernet::ops::elementary::{BatchNorm, Depthwise, Relu, Scale};
use supernet::ops::elementwise::{Fill, Linear};
use supernet::ops::loss::CrossEntropy;
use supernet::ops::pool::{GlobalPool, Pool};
use supernet::{Error, Result};

use super::cases::{Draw, draw, softmax};

const EPS: f64 = 1e-5;
const PRIMITIVES: usize = 8;
const EDGES: usize = 14;
const NODES: usize = 4;

/// The network from elementary ops, its weights found by PyTorch's names.
struct Elementary<'a> {
    graph: &'a mut Graph,
    layout: &'a Layout,
    weights: Tensor,
}

impl Elementary<'_> {
    fn weight(&mut self, name: &str) -> Result<Tensor> {
        let p = self.layout.parameters().iter().find(|p| p.name == name);
        let p = p.ok_or_else(|| Error::usage(format!("no parameter {name}")))?;
        self.graph.slice(self.weights, p.offset, p.shape)
    }

    fn norm(&mut self, x: Tensor) -> Tensor {
        BatchNorm::record(self.graph, x, None, EPS)[0]
    }

    fn convolution(&mut self, x: Tensor, w: Tensor, kernel: usize, stride: usize, pad: usize) -> Result<Tensor> {
        let op = Dense { kernel, stride, pad, relu: false, bias: false, statistics: false };
        Dense::record(self.graph, op, x, w, None, None)
    }

    /// ReLU, 1x1 convolution, batch norm.
    fn pointwise(&mut self, name: &str, x: Tensor) -> Result<Tensor> {
        let w = self.weight(&format!("{name}.op.1.weight"))?;
        let active = Relu::record(self.graph, x);
        let y = self.convolution(active, w, 1, 1, 0)?;
        Ok(self.norm(y))
    }

    /// ReLU, two 1x1 convolutions of stride 2, the second on the image shifted by one pixel, batch norm.
    fn reduce(&mut self, name: &str, x: Tensor) -> Result<Tensor> {
        let (even, odd) =
            (self.weight(&format!("{name}.conv_1.weight"))?, self.weight(&format!("{name}.conv_2.weight"))?);
        let active = Relu::record(self.graph, x);
        let left = self.convolution(active, even, 1, 2, 0)?;
        // The shift is a 3x3 kernel with padding of which only the last tap is not zero.
        let shape = self.graph.shape(odd);
        let kernel = self.graph.tensor(Shape::vector(9 * shape.len()), "shifted");
        let zeros = self.graph.slice(kernel, 0, Shape::vector(8 * shape.len()))?;
        self.graph.push(Fill { value: 0.0 }, vec![], vec![zeros.into()]);
        let tap = self.graph.slice(kernel, 8 * shape.len(), shape)?;
        Linear::record_into(self.graph, &[(1.0, odd)], tap)?;
        let kernel = self.graph.slice(kernel, 0, Shape::matrix(9 * shape.w, shape.c))?;
        let right = self.convolution(active, kernel, 3, 2, 1)?;
        let (a, b) = (self.graph.shape(left), self.graph.shape(right));
        let both = self.graph.tensor(a.with_channels(a.c + b.c), "halves");
        for (half, start) in [(left, 0), (right, a.c)] {
            let c = self.graph.shape(half).c;
            let place = self.graph.channels(both, start, c)?;
            Linear::record_into(self.graph, &[(1.0, half)], place)?;
        }
        Ok(self.norm(both))
    }

    /// ReLU, depthwise, pointwise, batch norm; `module` is the place of the depthwise convolution in PyTorch's list.
    fn separable(&mut self, name: &str, module: usize, x: Tensor, geometry: (usize, usize, usize)) -> Result<Tensor> {
        let (kernel, dilation, stride) = geometry;
        let depthwise = self.weight(&format!("{name}.op.{module}.weight"))?;
        let pointwise = self.weight(&format!("{name}.op.{}.weight", module + 1))?;
        let active = Relu::record(self.graph, x);
        let d = Depthwise::record(self.graph, Depthwise { kernel, dilation, stride }, active, depthwise);
        let y = self.convolution(d, pointwise, 1, 1, 0)?;
        Ok(self.norm(y))
    }

    fn pool(&mut self, x: Tensor, stride: usize, max: bool) -> Result<Tensor> {
        let op = Pool { kernel: 3, stride, pad: 1, max, average: !max, statistics: false };
        let y = Pool::record(self.graph, op, x, &[])?[0].y;
        Ok(self.norm(y))
    }

    /// Primitive `k` in DARTS' order; None for `none`.
    fn primitive(&mut self, name: &str, k: usize, x: Tensor, stride: usize) -> Result<Option<Tensor>> {
        let name = format!("{name}._ops.{k}");
        let twice = |own: &mut Self, kernel| {
            let y = own.separable(&name, 1, x, (kernel, 1, stride))?;
            own.separable(&name, 5, y, (kernel, 1, 1))
        };
        Ok(Some(match k {
            0 => return Ok(None),
            1 => self.pool(x, stride, true)?,
            2 => self.pool(x, stride, false)?,
            3 if stride == 1 => x,
            3 => self.reduce(&name, x)?,
            4 => twice(self, 3)?,
            5 => twice(self, 5)?,
            6 => self.separable(&name, 1, x, (3, 2, stride))?,
            7 => self.separable(&name, 1, x, (5, 2, stride))?,
            _ => unreachable!("there are eight primitives"),
        }))
    }

    fn cell(&mut self, name: &str, inputs: [Tensor; 2], kinds: (bool, bool), mixing: Tensor) -> Result<Tensor> {
        let (reduction, reduction_before) = kinds;
        let first = format!("{name}.preprocess0");
        let s0 = if reduction_before { self.reduce(&first, inputs[0])? } else { self.pointwise(&first, inputs[0])? };
        let s1 = self.pointwise(&format!("{name}.preprocess1"), inputs[1])?;
        let (mut states, mut edge) = (vec![s0, s1], 0);
        for node in 0..NODES {
            let mut sum = Vec::new();
            for (state, &x) in states.iter().enumerate() {
                let stride = if reduction && state < 2 { 2 } else { 1 };
                for k in 0..PRIMITIVES {
                    if let Some(y) = self.primitive(&format!("{name}._ops.{edge}"), k, x, stride)? {
                        sum.push((1.0, Scale::record(self.graph, y, mixing, PRIMITIVES * edge + k)));
                    }
                }
                edge += 1;
            }
            assert_eq!(sum.len(), (PRIMITIVES - 1) * (node + 2));
            states.push(Linear::record(self.graph, &sum, "node")?);
        }
        assert_eq!(edge, EDGES);
        let shape = self.graph.shape(states[2]);
        let concat = self.graph.tensor(shape.with_channels(NODES * shape.c), "output");
        for (node, &y) in states[2..].iter().enumerate() {
            let place = self.graph.channels(concat, node * shape.c, shape.c)?;
            Linear::record_into(self.graph, &[(1.0, y)], place)?;
        }
        Ok(concat)
    }

    fn logits(&mut self, images: Tensor, alphas: Tensor, reductions: &[bool]) -> Result<Tensor> {
        let mut mixing = [alphas; 2];
        for (kind, weights) in mixing.iter_mut().enumerate() {
            let len = EDGES * PRIMITIVES;
            let own = self.graph.slice(alphas, kind * len, Shape::vector(len))?;
            *weights = softmax(self.graph, own, EDGES, PRIMITIVES)?;
        }
        let w = self.weight("stem.0.weight")?;
        let y = self.convolution(images, w, 3, 1, 1)?;
        let affine = (self.weight("stem.1.weight")?, self.weight("stem.1.bias")?);
        let stem = BatchNorm::record(self.graph, y, Some(affine), EPS)[0];
        let (mut s0, mut s1, mut before) = (stem, stem, false);
        for (layer, &reduction) in reductions.iter().enumerate() {
            let kinds = (reduction, before);
            let out = self.cell(&format!("cells.{layer}"), [s0, s1], kinds, mixing[usize::from(reduction)])?;
            (s0, s1, before) = (s1, out, reduction);
        }
        let pooled = GlobalPool::record(self.graph, s1);
        let (w, bias) = (self.weight("classifier.weight")?, self.weight("classifier.bias")?);
        let op = Dense { kernel: 1, stride: 1, pad: 0, relu: false, bias: true, statistics: false };
        Dense::record(self.graph, op, pooled, w, Some(bias), None)
    }
}

/// Loss, logits and the gradients of weights, alphas and images, in f64.
fn results(
    network: &Supernet,
    n: usize,
    logits: impl Fn(&mut Graph, [Tensor; 3]) -> Result<Tensor>,
) -> (usize, Vec<Vec<f64>>) {
    let mut layout = StoreLayout::new();
    let Geometry { height, width, channels } = network.size;
    let images = layout.add("images", Shape::map(n, height, width, channels));
    let weights = layout.add("weights", Shape::vector(network.layout.weights_len()));
    let alphas = layout.add("alphas", Shape::vector(network.space.alphas_len()));
    let labels = layout.add("labels", Shape::vector(n));
    let mut graph = Graph::new();
    let inputs = [images, weights, alphas].map(|s| graph.state(s));
    let logits = logits(&mut graph, inputs).expect("the shapes fit");
    let labels_tensor = graph.state(labels);
    let op = CrossEntropy { smoothing: 0.1 };
    let (loss, _) = CrossEntropy::record(&mut graph, op, logits, labels_tensor).expect("a label a row");
    let mut all = vec![loss, logits];
    all.extend(graph.gradients(loss, &inputs).expect("every op has a rule"));
    let program = Program::new("supernet", graph, &all);
    let mut device = Reference::<f64>::new(&layout);
    for (number, (state, how)) in [
        (images, Draw::Normal(1.0)),
        (weights, Draw::Normal(0.4)),
        (alphas, Draw::Normal(1.0)),
        (labels, Draw::Below(network.heads[0])),
    ]
    .into_iter()
    .enumerate()
    {
        device.state_mut(state).copy_from_slice(&draw(23, number as u64, state.shape.len(), how));
    }
    device.run(&program);
    let read = all.into_iter().map(|t| device.read(&program, t).iter().map(|v| v.wide()).collect()).collect();
    (program.nodes().len(), read)
}

/// Three layers: a normal cell, then two reduction cells, the second of which finds a reduction before it.
fn compare(geometry: Geometry, n: usize) {
    let network = Supernet::new(SearchSpace::darts(4, 3).expect("a sound space"), geometry, 5);
    let (few, fused) = results(&network, n, |graph, [images, weights, alphas]| {
        let mut pass = Pass::train(graph, &network.layout, weights);
        network.forward(&mut pass, images, alphas, 0)
    });
    let (many, elementary) = results(&network, n, |graph, [images, weights, alphas]| {
        Elementary { graph, layout: &network.layout, weights }.logits(images, alphas, &[false, true, true])
    });
    assert!(many > 4 * few, "{few} fused ops stand for only {many} elementary ones");
    let names = ["loss", "logits", "gradient of the images", "gradient of the weights", "gradient of the alphas"];
    for (name, (a, b)) in names.into_iter().zip(fused.iter().zip(&elementary)) {
        let norm = b.iter().map(|y| y * y).sum::<f64>().sqrt();
        let distance = a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
        assert!(norm > 1e-6, "{name}: norm {norm}");
        assert!(distance <= 1e-10 * norm, "{name}: relative error {:.2e}", distance / norm);
    }
    // Every primitive but `none` has a say, and `none` only through the softmax.
    assert!(fused[4].iter().all(|g| g.is_finite() && *g != 0.0));
}

#[test]
fn the_fused_supernet_equals_the_elementary_one() {
    compare(Geometry { height: 8, width: 8, channels: 3 }, 2);
}

#[test]
fn the_fused_supernet_equals_the_elementary_one_at_odd_sizes() {
    compare(Geometry { height: 7, width: 10, channels: 1 }, 3);
}
