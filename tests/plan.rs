//! The planner and the shape of recorded gradients: nothing that lives at one time shares memory, results do not depend
//! on where tensors lie, gradients that nobody asked for are not recorded, and the graph of a second-order step gives
//! the derivative of the whole step.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use supernet::device::reference::Reference;
use supernet::graph::{Graph, Program, Root, Shape, State, StoreLayout, Tensor};
use supernet::network::{Geometry, Pass, SearchSpace, Supernet};
use supernet::ops::Op;
use supernet::ops::dense::Dense;
use supernet::ops::elementary::{Depthwise, Relu};
use supernet::ops::elementwise::Linear;
use supernet::ops::loss::CrossEntropy;
use supernet::ops::mixture::{Mixture, SourceInput};
use supernet::ops::norm::{NormTensors, Normalised, Statistics};
use supernet::ops::optimiser::GlobalNorm;
use supernet::ops::pool::GlobalPool;
use supernet::ops::second_order::{HessianTerm, Perturb, Unroll};
use supernet::{Error, Result};

use super::cases::{CASES, Draw, draw, softmax};

/// Checks the arena of a program: every base tensor and every op's scratch has its place for as long as it lives.
/// Returns the most elements that live at one time, below which no arena can be.
fn check_plan(program: &Program, results: &[Tensor]) -> usize {
    let (graph, plan) = (program.graph(), &program.plan);
    let end = program.nodes().len();
    let mut lives: HashMap<Tensor, (usize, usize)> = HashMap::new();
    let mut touch = |tensor: Tensor, step: usize| {
        let base = graph.info(tensor).base;
        if graph.info(base).root == Root::Arena {
            lives.entry(base).or_insert((step, step)).1 = step;
        }
    };
    for (step, node) in program.nodes().iter().enumerate() {
        node.inputs.iter().for_each(|&t| touch(t, step));
        node.outputs.iter().for_each(|o| touch(o.tensor, step));
    }
    results.iter().for_each(|&t| touch(t, end));
    let mut blocks: Vec<(usize, usize, usize, usize, String)> = lives
        .iter()
        .map(|(&base, &(first, last))| {
            let (start, len) = program.place(base).expect("a live tensor is placed");
            (start, start + len, first, last, graph.info(base).name.clone())
        })
        .collect();
    let scratch =
        plan.scratch.iter().enumerate().flat_map(|(step, pieces)| pieces.iter().map(move |&piece| (step, piece)));
    blocks
        .extend(scratch.map(|(step, (start, extent))| (start, start + extent, step, step, format!("scratch {step}"))));
    for (i, a) in blocks.iter().enumerate() {
        assert!(a.1 <= plan.arena, "{} ends at {} of {}", a.4, a.1, plan.arena);
        for b in &blocks[..i] {
            let (together, overlap) = (a.2 <= b.3 && b.2 <= a.3, a.0 < b.1 && b.0 < a.1);
            assert!(!(together && overlap), "{} and {} share memory while both live", a.4, b.4);
        }
    }
    let at = |step: usize| blocks.iter().filter(|b| b.2 <= step && step <= b.3).map(|b| b.1 - b.0).sum();
    (0..=end).map(at).max().unwrap_or(0)
}

#[test]
fn nothing_that_lives_at_one_time_shares_memory() {
    for case in CASES.iter() {
        let built = case.build(false);
        check_plan(&built.program(), &built.results());
    }
    for wrt in [Wrt::Weights, Wrt::Alphas] {
        let step = Supernetwork::new(wrt);
        let program = Program::new("step", step.graph.clone(), &[step.gradient]);
        let peak = check_plan(&program, &[step.gradient]);
        // An arena that never uses memory again would be sound, but wasteful.
        assert!(4 * program.plan.arena < 5 * peak, "arena of {} where {peak} live at once", program.plan.arena);
    }
}

#[test]
fn what_no_result_needs_is_dropped() {
    let mut g = Graph::new();
    let mut layout = StoreLayout::new();
    let (x, kept) = (layout.add("x", Shape::vector(4)), layout.add("kept", Shape::vector(4)));
    let (x, kept) = (g.state(x), g.state(kept));
    let used = Relu::record(&mut g, x);
    let unused = Relu::record(&mut g, used);
    let result = Relu::record(&mut g, used);
    Linear::record_into(&mut g, &[(1.0, x)], kept).expect("one shape");
    let program = Program::new("small", g.clone(), &[result]);
    assert_eq!(program.nodes().len(), 3, "the op of the result, the one before it, and the one that writes a state");
    assert_eq!(program.place(unused), None);
    assert_eq!(program.place(kept), None);
    assert!(program.place(result).is_some());
    assert_eq!(Program::new("state alone", g, &[]).nodes().len(), 1);
}

/// What a step differentiates.
#[derive(Clone, Copy, PartialEq)]
enum Wrt {
    Weights,
    Alphas,
}

/// A small supernet with one gradient.
struct Supernetwork {
    graph: Graph,
    gradient: Tensor,
}

impl Supernetwork {
    fn new(wrt: Wrt) -> Self {
        let geometry = Geometry { height: 8, width: 8, channels: 3 };
        let network = Supernet::new(SearchSpace::darts(2, 3).expect("a sound space"), geometry, 4);
        let (mut layout, mut graph) = (StoreLayout::new(), Graph::new());
        let images = graph.state(layout.add("images", Shape::map(2, 8, 8, 3)));
        let weights = graph.state(layout.add("weights", Shape::vector(network.layout.weights_len())));
        let alphas = graph.state(layout.add("alphas", Shape::vector(network.space.alphas_len())));
        let labels = graph.state(layout.add("labels", Shape::vector(2)));
        let mut pass = Pass::train(&mut graph, &network.layout, weights);
        let logits = network.forward(&mut pass, images, alphas, 0).expect("the shapes fit");
        let op = CrossEntropy { smoothing: 0.0 };
        let (loss, _) = CrossEntropy::record(&mut graph, op, logits, labels).expect("a label a row");
        let leaf = if wrt == Wrt::Weights { weights } else { alphas };
        let gradient = graph.gradients(loss, &[leaf]).expect("every op has a rule")[0];
        Self { graph, gradient }
    }
}

/// How many gradient ops of a graph compute gradients of weights, of mixing weights, and of maps.
fn wanted(graph: &Graph) -> [usize; 3] {
    let mut counts = [0; 3];
    for node in graph.nodes() {
        let (weights, mixing, maps) = match &node.op {
            Op::DenseBackward(op) => (op.weight || op.bias, false, op.input),
            Op::SeparableBackward(op) => {
                (op.branches.iter().any(|b| b.weight), false, op.branches.iter().any(|b| b.input))
            }
            Op::ReduceBackward(op) => (op.edges.iter().any(|e| e.1), false, op.input),
            Op::MixtureBackward(op) => (op.wants.iter().any(|w| w.1), op.weights, op.wants.iter().any(|w| w.0)),
            Op::SoftmaxBackward(_) => (false, true, false),
            _ => (false, false, false),
        };
        for (count, wanted) in counts.iter_mut().zip([weights, mixing, maps]) {
            *count += usize::from(wanted);
        }
    }
    counts
}

#[test]
fn only_the_gradients_asked_for_are_recorded() {
    let (weights, alphas) = (Supernetwork::new(Wrt::Weights), Supernetwork::new(Wrt::Alphas));
    let [w, m, maps] = wanted(&weights.graph);
    assert!(w > 0 && maps > 0);
    assert_eq!(m, 0, "a weight step computes no gradient of the mixing weights");
    let [w, m, maps] = wanted(&alphas.graph);
    assert!(m > 0 && maps > 0);
    assert_eq!(w, 0, "an architecture step computes no gradient of the weights");
    // The images are data: the stem hands nothing back.
    let stem = |graph: &Graph| {
        let images = |n: &&supernet::graph::Node| {
            matches!(&n.op, Op::DenseBackward(op) if op.dense.kernel == 3) && n.inputs.len() > 1
        };
        graph.nodes().iter().filter(images).map(|n| n.outputs.len()).collect::<Vec<_>>()
    };
    assert_eq!(stem(&weights.graph), [1], "one op for the stem's weights, without the gradient of the images");
    assert_eq!(stem(&alphas.graph), [0; 0], "nothing of the stem leads to the alphas");
}

/// One op of a random graph: what, and which earlier maps it reads.
type Choice = (u8, usize, usize);

const MAP: Shape = Shape::map(2, 3, 4, 4);

/// Records a chain of random ops on maps of one shape; returns the loss and the leaves.
fn random_graph(layout: &mut StoreLayout, choices: &[Choice], smooth: bool) -> Result<(Graph, Tensor, Vec<State>)> {
    let mut g = Graph::new();
    let leaves = vec![
        layout.add("a", MAP),
        layout.add("b", MAP),
        layout.add("taps", Shape::matrix(9, 4)),
        layout.add("alphas", Shape::vector(6)),
    ];
    let dot = layout.add("dot", Shape::matrix(4, 1));
    let mut maps: Vec<Tensor> = leaves[..2].iter().map(|&s| g.state(s)).collect();
    let (taps, alphas) = (g.state(leaves[2]), g.state(leaves[3]));
    let weights = softmax(&mut g, alphas, 2, 3)?;
    for &(kind, a, b) in choices {
        let (x, y) = (maps[a % maps.len()], maps[b % maps.len()]);
        let map = match kind % 6 {
            0 if !smooth => Relu::record(&mut g, x),
            0 | 1 => Linear::record(&mut g, &[(0.5, x), (-0.75, y)], "sum")?,
            2 => Depthwise::record(&mut g, Depthwise { kernel: 3, dilation: 1 + a % 2, stride: 1 }, x, taps),
            3 => {
                // Two halves of two maps side by side.
                let out = g.tensor(MAP, "halves");
                for (from, start) in [(x, 0), (y, 2)] {
                    let (half, place) = (g.channels(from, 2 - start, 2)?, g.channels(out, start, 2)?);
                    Linear::record_into(&mut g, &[(1.25, half)], place)?;
                }
                out
            }
            _ => {
                let (mean, var) = Statistics::record(&mut g, x);
                let norm = Some(NormTensors { mean, var, affine: None, eps: 0.1 });
                let sources = [
                    SourceInput { map: Normalised { y: x, norm }, weight: Some(a % 3), mask: None },
                    SourceInput { map: Normalised::plain(y), weight: Some(b % 3), mask: None },
                    SourceInput { map: Normalised::plain(x), weight: None, mask: None },
                ];
                let own = g.slice(weights, 3 * (kind as usize % 2), Shape::vector(3))?;
                let out = g.tensor(MAP, "node");
                Mixture::record(&mut g, &sources, Some(own), None, out)?;
                out
            }
        };
        maps.push(map);
    }
    let last: Vec<(f64, Tensor)> = maps.iter().rev().take(3).map(|&m| (0.5, m)).collect();
    let sum = Linear::record(&mut g, &last, "sum")?;
    let pooled = GlobalPool::record(&mut g, sum);
    let w = g.state(dot);
    let op = Dense { kernel: 1, stride: 1, pad: 0, relu: false, bias: false, statistics: false };
    let each = Dense::record(&mut g, op, pooled, w, None, None)?;
    // The mean over the two images, by a pool over a map of them.
    let flat = g.tensor(Shape::map(1, 1, 2, 1), "rows");
    let place = g.slice(flat, 0, g.shape(each))?;
    Linear::record_into(&mut g, &[(2.0, each)], place)?;
    let loss = GlobalPool::record(&mut g, flat);
    Ok((g, loss, leaves))
}

fn filled(layout: &StoreLayout) -> Reference<f64> {
    let mut device = Reference::new(layout);
    for (number, (_, state)) in layout.iter().enumerate() {
        device.state_mut(state).copy_from_slice(&draw(99, number as u64, state.shape.len(), Draw::Away));
    }
    device
}

/// Runs a property on random graphs that are the same at every run.
fn on_random_graphs(cases: u32, property: impl Fn(&[Choice]) -> std::result::Result<(), TestCaseError>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let choices = proptest::collection::vec((any::<u8>(), 0usize..20, 0usize..20), 1..20);
    runner.run(&choices, |choices| property(&choices)).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn results_do_not_depend_on_where_tensors_lie() {
    on_random_graphs(100, |choices| {
        let mut layout = StoreLayout::new();
        let (mut graph, loss, leaves) = random_graph(&mut layout, choices, false).expect("the shapes fit");
        let leaves: Vec<Tensor> = leaves.into_iter().map(|s| graph.state(s)).collect();
        let mut results = vec![loss];
        results.extend(graph.gradients(loss, &leaves).expect("every op has a rule"));
        // A result keeps its place to the end, so a program of which everything is a result reuses nothing.
        let everything: Vec<Tensor> =
            graph.nodes().iter().flat_map(|n| n.outputs.iter().map(|o| o.tensor)).chain(results.clone()).collect();
        let tight = Program::new("tight", graph.clone(), &results);
        let wide = Program::new("wide", graph, &everything);
        check_plan(&tight, &results);
        check_plan(&wide, &everything);
        prop_assert!(tight.plan.arena <= wide.plan.arena);
        let mut values = [&tight, &wide].map(|program| {
            let mut device = filled(&layout);
            device.run(program);
            results.iter().map(|&t| device.read(program, t)).collect::<Vec<_>>()
        });
        let [a, b] = &mut values;
        prop_assert!(a.iter().flatten().all(|v| v.is_finite()));
        prop_assert_eq!(a, b);
        Ok(())
    });
}

#[test]
fn gradients_of_random_graphs_agree_with_finite_differences() {
    on_random_graphs(60, |choices| {
        let mut layout = StoreLayout::new();
        let (mut graph, loss, leaves) = random_graph(&mut layout, choices, true).expect("the shapes fit");
        let forward = Program::new("forward", graph.clone(), &[loss]);
        let tensors: Vec<Tensor> = leaves.iter().map(|&s| graph.state(s)).collect();
        let gradients = graph.gradients(loss, &tensors).expect("every op has a rule");
        let program = Program::new("backward", graph, &gradients);
        let mut device = filled(&layout);
        device.run(&program);
        let gradients: Vec<_> = gradients.iter().map(|&t| device.read(&program, t)).collect();
        for (number, (&leaf, gradient)) in leaves.iter().zip(&gradients).enumerate() {
            let direction = draw(number as u64, 7, gradient.len(), Draw::Normal(1.0));
            let expected: f64 = direction.iter().zip(gradient).map(|(d, g)| d * g).sum();
            let start = device.state(leaf).to_vec();
            let mut at = |step: f64| {
                let moved = start.iter().zip(&direction).map(|(x, d)| x + step * d).collect::<Vec<_>>();
                device.state_mut(leaf).copy_from_slice(&moved);
                device.run(&forward);
                device.read(&forward, loss)[0]
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            device.state_mut(leaf).copy_from_slice(&start);
            let scale = gradient.iter().fold(1.0, |a: f64, g| a.max(g.abs()));
            prop_assert!((slope - expected).abs() <= 2e-6 * scale, "leaf {number}: {expected} against {slope}");
        }
        Ok(())
    });
}

/// A smooth model of a weight vector and two alphas: convolution, normalisation and identity mixed, classifier.
fn model(g: &mut Graph, images: Tensor, labels: Tensor, weights: Tensor, alphas: Tensor) -> Result<Tensor> {
    let w = g.slice(weights, 0, Shape::matrix(3, 4))?;
    let affine = (g.slice(weights, 12, Shape::vector(4))?, g.slice(weights, 16, Shape::vector(4))?);
    let classifier = g.slice(weights, 20, Shape::matrix(4, 3))?;
    let op = Dense { kernel: 1, stride: 1, pad: 0, relu: false, bias: false, statistics: false };
    let y = Dense::record(g, op, images, w, None, None)?;
    let (mean, var) = Statistics::record(g, y);
    let norm = Some(NormTensors { mean, var, affine: Some(affine), eps: 1e-2 });
    let mixing = softmax(g, alphas, 1, 3)?;
    let sources = [
        SourceInput { map: Normalised { y, norm }, weight: Some(1), mask: None },
        SourceInput { map: Normalised::plain(y), weight: Some(2), mask: None },
    ];
    let node = g.tensor(g.shape(y), "node");
    Mixture::record(g, &sources, Some(mixing), None, node)?;
    let pooled = GlobalPool::record(g, node);
    let logits = Dense::record(g, op, pooled, classifier, None, None)?;
    Ok(CrossEntropy::record(g, CrossEntropy { smoothing: 0.1 }, logits, labels)?.0)
}

#[test]
fn a_second_order_step_gives_the_derivative_through_the_virtual_step() {
    const RADIUS: f64 = 1e-3;
    let mut layout = StoreLayout::new();
    let shapes = [
        ("train images", Shape::map(3, 2, 2, 3), Draw::Normal(1.0)),
        ("train labels", Shape::vector(3), Draw::Below(3)),
        ("valid images", Shape::map(3, 2, 2, 3), Draw::Normal(1.0)),
        ("valid labels", Shape::vector(3), Draw::Below(3)),
        ("weights", Shape::vector(32), Draw::Normal(0.8)),
        ("velocity", Shape::vector(32), Draw::Normal(0.1)),
        ("alphas", Shape::vector(3), Draw::Normal(0.7)),
        ("rate", Shape::vector(1), Draw::Constant(0.5)),
    ];
    let states = shapes.map(|(name, shape, _)| layout.add(name, shape));
    let mut graph = Graph::new();
    let g = &mut graph;
    let [x, t, x_valid, t_valid, w, v, alphas, rate] = states.map(|s| g.state(s));
    let train = model(g, x, t, w, alphas).expect("the shapes fit");
    let gradient = g.gradients(train, &[w]).expect("first gradient")[0];
    let unrolled = Unroll::record(g, Unroll { momentum: 0.9, decay: 0.01 }, [w, v, gradient, rate]);
    let valid = model(g, x_valid, t_valid, unrolled, alphas).expect("the shapes fit");
    let forward = Program::new("validation loss after the virtual step", g.clone(), &[valid]);
    let [direct, d] = g.gradients(valid, &[alphas, unrolled]).expect("second gradient")[..] else { unreachable!() };
    let norm = GlobalNorm::record(g, d, "norm");
    let [plus, minus] = [RADIUS, -RADIUS].map(|radius| {
        let moved = Perturb::record(g, Perturb { radius }, [w, d, norm]);
        let loss = model(g, x, t, moved, alphas).expect("the shapes fit");
        g.gradients(loss, &[alphas]).expect("a gradient at moved weights")[0]
    });
    let (hessian, total) = HessianTerm::record(g, HessianTerm { radius: RADIUS }, [direct, plus, minus, norm, rate]);
    let program = Program::new("second order", graph, &[direct, hessian, total]);
    let mut device = Reference::<f64>::new(&layout);
    for (number, (&state, (_, shape, how))) in states.iter().zip(shapes).enumerate() {
        device.state_mut(state).copy_from_slice(&draw(41, number as u64, shape.len(), how));
    }
    device.run(&program);
    let [direct, hessian, total] = [direct, hessian, total].map(|t| device.read(&program, t));
    let mut largest: f64 = 0.0;
    for i in 0..3 {
        let mut at = |step: f64| {
            device.state_mut(states[6])[i] += step;
            device.run(&forward);
            device.state_mut(states[6])[i] -= step;
            device.read(&forward, valid)[0]
        };
        let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
        assert!((total[i] - slope).abs() < 1e-6, "alpha {i}: {} against {slope}", total[i]);
        assert!((total[i] - (direct[i] - 0.5 * hessian[i])).abs() < 1e-14);
        largest = largest.max((total[i] - direct[i]).abs());
    }
    assert!(largest > 1e-4, "the Hessian term, at most {largest}, is too small for this test to see it");
}

#[test]
fn ops_without_a_gradient_rule_say_so() {
    let (mut layout, mut g) = (StoreLayout::new(), Graph::new());
    let x = g.state(layout.add("x", Shape::vector(3)));
    let norm = GlobalNorm::record(&mut g, x, "norm");
    let error = g.gradients(norm, &[x]).unwrap_err();
    assert!(matches!(error, Error::Shape { op: "global_norm", .. }), "{error}");
}
