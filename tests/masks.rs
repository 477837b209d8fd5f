//! A summand whose factor is zero is absent: its map is neither seen in the node nor in a gradient, whatever it holds.

use supernet::device::cpu::Cpu;
use supernet::device::reference::Reference;
use supernet::graph::{Graph, Program, Shape, State, StoreLayout, Tensor};
use supernet::ops::dense::Dense;
use supernet::ops::mixture::{Mixture, SourceInput};
use supernet::ops::norm::Normalised;

const IMAGES: usize = 2;
const MAP: Shape = Shape { n: IMAGES, h: 2, w: 3, c: 5 };
const FACTOR: f64 = 1.25;

struct Masked {
    program: Program,
    layout: StoreLayout,
    values: Vec<(State, Vec<f64>)>,
    node: Tensor,
    dweights: Tensor,
}

/// Two weighted maps; the first image of the second is not finite, and its factor is zero.
fn masked() -> Masked {
    let mut layout = StoreLayout::new();
    let states = [("first", MAP), ("second", MAP), ("weights", Shape::vector(2)), ("mask", Shape::matrix(1, IMAGES))]
        .map(|(name, shape)| layout.add(name, shape));
    let ones = layout.add("ones", Shape::matrix(MAP.len(), 1));
    let mut graph = Graph::new();
    let [first, second, weights, mask] = states.map(|state| graph.state(state));
    let flat = graph.tensor(Shape::vector(MAP.len()), "node");
    let node = graph.slice(flat, 0, MAP).unwrap();
    let sources = [
        SourceInput { map: Normalised::plain(first), weight: Some(0), mask: None },
        SourceInput { map: Normalised::plain(second), weight: Some(1), mask: Some(0) },
    ];
    Mixture::record(&mut graph, &sources, Some(weights), Some(mask), node).unwrap();
    let g = graph.state(ones);
    let dot = Dense { kernel: 1, stride: 1, pad: 0, relu: false, bias: false, statistics: false };
    let loss = Dense::record(&mut graph, dot, flat, g, None, None).unwrap();
    let dweights = graph.gradients(loss, &[weights]).unwrap()[0];
    let program = Program::new("masked", graph, &[node, dweights]);
    let half = MAP.len() / IMAGES;
    let mut broken = vec![3.0; MAP.len()];
    broken[..half].iter_mut().enumerate().for_each(|(i, v)| *v = [f64::NAN, f64::INFINITY][i % 2]);
    let values = vec![
        (states[0], vec![1.0; MAP.len()]),
        (states[1], broken),
        (states[2], vec![2.0, 0.5]),
        (states[3], vec![0.0, FACTOR]),
        (ones, vec![1.0; MAP.len()]),
    ];
    Masked { program, layout, values, node, dweights }
}

fn check(device: &str, node: &[f64], dweights: &[f64]) {
    let half = MAP.len() / IMAGES;
    assert!(node[..half].iter().all(|&v| v == 2.0), "{device}: {:?}", &node[..half]);
    assert!(node[half..].iter().all(|&v| v == 2.0 + FACTOR * 0.5 * 3.0), "{device}: {:?}", &node[half..]);
    assert_eq!(dweights, [MAP.len() as f64, FACTOR * 3.0 * half as f64], "{device}");
}

#[test]
fn a_zero_factor_hides_a_map_that_is_not_finite() {
    let Masked { program, layout, values, node, dweights } = masked();
    let mut reference = Reference::<f64>::new(&layout);
    for (state, values) in &values {
        reference.state_mut(*state).copy_from_slice(values);
    }
    reference.run(&program);
    check("reference", &reference.read(&program, node), &reference.read(&program, dweights));
    let mut cpu = Cpu::new(&layout, 2).unwrap();
    for (state, values) in &values {
        cpu.state_mut(*state).iter_mut().zip(values).for_each(|(slot, &value)| *slot = value as f32);
    }
    let exe = cpu.prepare(program).unwrap();
    cpu.poison();
    cpu.run(&exe);
    let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
    check("cpu", &wide(&cpu.read(&exe, node)), &wide(&cpu.read(&exe, dweights)));
}
