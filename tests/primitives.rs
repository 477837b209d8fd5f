//! Every primitive alone against PyTorch in f64: maps, input gradients, weight gradients and running statistics.

use supernet::device::reference::Reference;
use supernet::graph::{Graph, Program, Shape, StoreLayout};
use supernet::network::parameters::{Layout, Pass};
use supernet::network::primitives::{EdgeOp, record};
use supernet::network::space::Primitive;
use supernet::ops::dense::Dense;
use supernet::ops::elementwise::Linear;
use supernet::ops::mixture::Mixture;
use supernet::ops::optimiser::GlobalNorm;
use supernet::ops::running::RunningUpdate;

use crate::torch::{Fixture, close, pixels};

const C: usize = 6;
const N: usize = 3;

/// NCHW to NHWC.
fn channels_last(x: &[f64], shape: Shape) -> Vec<f64> {
    pixels(x, (shape.n, shape.h, shape.w, shape.c)).into_iter().map(|v| v / 255.0).collect()
}

fn check(fixture: &Fixture, primitive: Primitive, case: &str, stride: usize, (h, w): (usize, usize)) {
    let prefix = format!("{primitive}/{case}/");
    let mut network = Layout::default();
    // An empty module name: the fixture's names are relative to the primitive.
    let op = EdgeOp::declare(&mut network, "", primitive, (C, stride), false, Some(&mut [None; 2]));
    let (x_shape, y_shape) = (Shape::map(N, h, w, C), Shape::map(N, h.div_ceil(stride), w.div_ceil(stride), C));
    let mut layout = StoreLayout::new();
    let x_state = layout.add("x", x_shape);
    let w_state = layout.add("w", Shape::vector(network.weights_len().max(1)));
    let running_state = layout.add("running", Shape::vector(network.running_len().max(1)));
    let g_state = layout.add("g", Shape::matrix(y_shape.len(), 1));
    let mut graph = Graph::new();
    let [x, weights, g] = [x_state, w_state, g_state].map(|s| graph.state(s));
    let mut pass = Pass::train(&mut graph, &network, weights);
    let map = record(&mut pass, x, stride, &[&op]).unwrap()[0].expect("all but `none` have a map");
    let (statistics, segments) = pass.finish();
    let y = Mixture::normalise(&mut graph, map, "y").unwrap();
    let flat = graph.tensor(Shape::vector(y_shape.len()), "flat");
    let copy = graph.slice(flat, 0, y_shape).unwrap();
    Linear::record_into(&mut graph, &[(1.0, y)], copy).unwrap();
    let dot = Dense { kernel: 1, stride: 1, pad: 0, relu: false, bias: false, statistics: false };
    let loss = Dense::record(&mut graph, dot, flat, g, None, None).unwrap();
    let gradients = graph.gradients(loss, &[x, weights]).unwrap();
    let guard = GlobalNorm::record(&mut graph, gradients[0], "guard");
    let running = graph.state(running_state);
    RunningUpdate::record(&mut graph, RunningUpdate { momentum: 0.1, segments }, statistics, guard, running);
    let program = Program::new("primitive", graph, &[y, gradients[0], gradients[1]]);
    let mut device = Reference::<f64>::new(&layout);
    device.state_mut(x_state).copy_from_slice(&channels_last(fixture.get(&format!("{prefix}x")), x_shape));
    device.state_mut(g_state).copy_from_slice(&channels_last(fixture.get(&format!("{prefix}g")), y_shape));
    if network.weights_len() > 0 {
        device.state_mut(w_state).copy_from_slice(&fixture.weights(&network, &format!("{prefix}w/")));
    }
    if network.running_len() > 0 {
        device.state_mut(running_state).copy_from_slice(&fixture.running(&network, &format!("{prefix}buf/")));
    }
    device.run(&program);
    let expected = |name: &str, shape| channels_last(fixture.get(&format!("{prefix}{name}")), shape);
    close(&format!("{prefix}y"), &device.read(&program, y), &expected("y", y_shape), 1e-9);
    close(&format!("{prefix}dx"), &device.read(&program, gradients[0]), &expected("dx", x_shape), 1e-9);
    if network.weights_len() > 0 {
        let theirs = fixture.weights(&network, &format!("{prefix}grad/"));
        close(&format!("{prefix}grad"), &device.read(&program, gradients[1]), &theirs, 1e-9);
    }
    if network.running_len() > 0 {
        let theirs = fixture.running(&network, &format!("{prefix}buf_after/"));
        close(&format!("{prefix}buf_after"), device.state(running_state), &theirs, 1e-9);
    }
}

#[test]
fn every_primitive_equals_pytorch_at_both_strides() {
    let fixture = Fixture::load("primitives");
    for primitive in Primitive::DARTS.into_iter().filter(|&p| p != Primitive::None) {
        for stride in [1, 2] {
            check(&fixture, primitive, &format!("stride{stride}"), stride, (8, 6));
        }
    }
    for primitive in [Primitive::MaxPool3, Primitive::AvgPool3, Primitive::SepConv5, Primitive::DilConv5] {
        check(&fixture, primitive, "stride2_odd", 2, (9, 7));
    }
}
