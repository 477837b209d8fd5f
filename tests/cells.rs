//! A search cell alone against PyTorch: output, gradients of both inputs, of the alphas behind their softmax and of every
//! weight, and running statistics; in f64 within 1e-9 on the reference device, in f32 within 1e-3 on the CPU.

use supernet::device::reference::Reference;
use supernet::graph::{Graph, Program, Shape, StoreLayout};
use supernet::network::parameters::{Layout, Pass};
use supernet::network::{Cell, SearchSpace};
use supernet::ops::dense::Dense;
use supernet::ops::elementwise::Linear;
use supernet::ops::optimiser::GlobalNorm;
use supernet::ops::running::RunningUpdate;
use supernet::ops::softmax::Softmax;

use crate::torch::{Engine, Fixture, Tuned, close, pixels};

/// The NCHW shape of a case's tensor, channels last.
fn shape_of(case: &serde_json::Value, name: &str) -> Shape {
    let at = |i: usize| case[name][i].as_u64().expect("an extent") as usize;
    Shape::map(at(0), at(2), at(3), at(1))
}

/// NCHW to NHWC.
fn channels_last(x: &[f64], shape: Shape) -> Vec<f64> {
    pixels(x, (shape.n, shape.h, shape.w, shape.c)).into_iter().map(|v| v / 255.0).collect()
}

fn check(
    fixture: &Fixture,
    case: &serde_json::Value,
    device: impl Fn(&StoreLayout) -> Box<dyn Engine>,
    tolerance: f64,
) {
    let number = |name: &str| case[name].as_u64().expect("a count") as usize;
    let flag = |name: &str| case[name].as_bool().expect("a flag");
    let prefix = case["prefix"].as_str().expect("a prefix");
    let space = SearchSpace::darts(number("c"), 1).unwrap();
    let mut network = Layout::default();
    // An empty module name: the fixture's names are relative to the cell.
    let channels = (number("c_prev_prev"), number("c_prev"), number("c"));
    let cell = Cell::declare(&mut network, &space, "", channels, (flag("reduction"), flag("reduction_prev")));
    let [s0_shape, s1_shape, out_shape] = ["s0", "s1", "out"].map(|name| shape_of(case, name));
    let mut layout = StoreLayout::new();
    let s0_state = layout.add("s0", s0_shape);
    let s1_state = layout.add("s1", s1_shape);
    let (_, alphas_len) = space.alpha_offsets();
    let alphas_state = layout.add("alphas", Shape::vector(alphas_len));
    let w_state = layout.add("w", Shape::vector(network.weights_len()));
    let running_state = layout.add("running", Shape::vector(network.running_len()));
    let g_state = layout.add("g", Shape::matrix(out_shape.len(), 1));

    let mut graph = Graph::new();
    let [s0, s1, alphas, weights, g] =
        [s0_state, s1_state, alphas_state, w_state, g_state].map(|state| graph.state(state));
    let rows: Vec<usize> = space.edges.iter().map(Vec::len).collect();
    let mixing = Softmax::record(&mut graph, alphas, &rows).unwrap();
    let mut pass = Pass::train(&mut graph, &network, weights);
    let out = cell.record(&mut pass, &space, (s0, s1), mixing).unwrap();
    let (statistics, segments) = pass.finish();
    let flat = graph.tensor(Shape::vector(out_shape.len()), "flat");
    let copy = graph.slice(flat, 0, out_shape).unwrap();
    Linear::record_into(&mut graph, &[(1.0, out)], copy).unwrap();
    let dot = Dense { kernel: 1, stride: 1, pad: 0, relu: false, bias: false, statistics: false };
    let loss = Dense::record(&mut graph, dot, flat, g, None, None).unwrap();
    let gradients = graph.gradients(loss, &[s0, s1, alphas, weights]).unwrap();
    let guard = GlobalNorm::record(&mut graph, gradients[3], "guard");
    let running = graph.state(running_state);
    RunningUpdate::record(&mut graph, RunningUpdate { momentum: 0.1, segments }, statistics, guard, running);
    let results: Vec<_> = [out].into_iter().chain(gradients.iter().copied()).collect();
    let program = Program::new("cell", graph, &results);

    let mut device = device(&layout);
    let given = |name: &str| fixture.get(&format!("{prefix}{name}"));
    device.set(s0_state, &channels_last(given("s0"), s0_shape));
    device.set(s1_state, &channels_last(given("s1"), s1_shape));
    device.set(alphas_state, given("alphas"));
    device.set(g_state, &channels_last(given("g"), out_shape));
    device.set(w_state, &fixture.weights(&network, &format!("{prefix}w/")));
    device.set(running_state, &fixture.running(&network, &format!("{prefix}buf/")));
    device.run(&program);
    let names = ["out", "grad/s0", "grad/s1"];
    for ((name, tensor), shape) in names.into_iter().zip(&results).zip([out_shape, s0_shape, s1_shape]) {
        let theirs = channels_last(given(name), shape);
        close(&format!("{prefix}{name}"), &device.read(&program, *tensor), &theirs, tolerance);
    }
    close(&format!("{prefix}grad/alphas"), &device.read(&program, results[3]), given("grad/alphas"), tolerance);
    let (ours, theirs) = (device.read(&program, results[4]), fixture.weights(&network, &format!("{prefix}grad/")));
    for p in network.parameters() {
        let part = p.offset..p.offset + p.shape.len();
        close(&format!("{prefix}grad/{}", p.name), &ours[part.clone()], &theirs[part], tolerance);
    }
    let theirs = fixture.running(&network, &format!("{prefix}buf_after/"));
    close(&format!("{prefix}buf_after"), &device.get(running_state), &theirs, tolerance);
}

#[test]
fn a_normal_and_a_reduction_cell_equal_pytorch() {
    let mut seen = 0;
    for name in ["cell_normal", "cell_reduction"] {
        let fixture = Fixture::load(name);
        for case in fixture.case["cases"].as_array().expect("a list of cases") {
            check(&fixture, case, |layout| Box::new(Reference::<f64>::new(layout)), 1e-9);
            check(&fixture, case, |layout| Box::new(Tuned::new(layout)), 1e-3);
            seen += 1;
        }
    }
    assert_eq!(seen, 3, "plain, behind a reduction, and reduction");
}
