//! Cases of separable convolutions: kernels, dilations and strides, sizes that tiles do not divide, views, every kind of
//! normalisation and of gradient, branches that share a map, and whichever gradients are wanted.

use supernet::graph::{Output, Shape, Tensor, TermKind};
use supernet::ops::norm::Norm as Rule;
use supernet::ops::separable::{BackwardBranch, Branch, Separable, SeparableBackward};

use super::cases::{Builder, Norm, Slice};
use super::harness::Case;

/// One branch of a case.
#[derive(Clone, Copy)]
struct Spec {
    /// Kernel, dilation, stride.
    geometry: (usize, usize, usize),
    norm: Norm,
    /// Channels of the output.
    out: usize,
    statistics: bool,
    /// Reads the map of the branch before.
    again: bool,
    /// Coefficients and mask of the gradient's term.
    term: (bool, Option<usize>),
    /// Gradients of the input and of the weights are wanted.
    wants: (bool, bool),
    /// The weights' gradients go where those of the branch before go.
    same_weights: bool,
}

const SPEC: Spec = Spec {
    geometry: (3, 1, 1),
    norm: Norm::Plain,
    out: 16,
    statistics: true,
    again: false,
    term: (false, None),
    wants: (true, true),
    same_weights: false,
};

/// What the branches of a case have in common.
#[derive(Clone, Copy)]
struct Setting {
    x: Shape,
    /// Maps and weights lie within wider ones.
    slice: bool,
    /// Outputs are added to what is there.
    accumulate: bool,
}

impl Setting {
    fn slice(self, c: usize, odd: bool) -> Slice {
        self.slice.then_some(if odd { (c + 5, 3) } else { (2 * c + 4, c.next_multiple_of(4)) })
    }
}

/// Forward and backward, in one program.
fn case(name: &str, setting: Setting, specs: &[Spec]) -> Case {
    let Setting { x, slice, accumulate } = setting;
    let mut b = Builder::new(format!("separable: {name}, {} of {x}, slice {slice}, add {accumulate}", specs.len()));
    let (mut branches, mut inputs, mut outputs) = (Vec::new(), Vec::<Tensor>::new(), Vec::<Output>::new());
    let (mut back, mut back_inputs, mut back_outputs) = (Vec::new(), Vec::<Tensor>::new(), Vec::<Output>::new());
    let mut map: Option<Tensor> = None;
    // Places of the last gradients, for branches that share them.
    let mut dx: Option<Tensor> = None;
    let mut dweights: Option<[Tensor; 2]> = None;
    for (i, s) in specs.iter().enumerate() {
        let (kernel, dilation, stride) = s.geometry;
        let read = match map {
            Some(map) if s.again => map,
            _ => b.map(&format!("x {i}"), x, setting.slice(x.c, i % 2 == 1), |v| v + 0.2),
        };
        map = Some(read);
        let start = inputs.len();
        inputs.push(read);
        let vector = Shape::vector(x.c);
        if s.norm != Norm::Plain {
            inputs.push(b.state(&format!("mean {i}"), vector, |v| 0.2 + 0.1 * v));
            inputs.push(b.state(&format!("var {i}"), vector, |v| 0.5 + 0.3 * v * v));
        }
        if s.norm == Norm::Affine {
            inputs.push(b.state(&format!("gamma {i}"), vector, |v| 1.0 + 0.2 * v));
            inputs.push(b.state(&format!("beta {i}"), vector, |v| 0.3 * v + 0.2));
        }
        let depthwise = Shape::matrix(kernel * kernel, x.c);
        inputs.push(b.map(&format!("depthwise {i}"), depthwise, setting.slice(x.c, false), |v| 0.4 * v));
        inputs.push(b.map(&format!("pointwise {i}"), Shape::matrix(x.c, s.out), None, |v| 0.4 * v));
        let norm = (s.norm != Norm::Plain).then_some(Rule { affine: s.norm == Norm::Affine, eps: 1e-5 });
        let branch = Branch { kernel, dilation, stride, norm, statistics: s.statistics };
        outputs.push(b.output(&format!("y {i}"), branch.output(x, s.out), setting.slice(s.out, false), accumulate));
        if s.statistics {
            outputs.push(b.output(&format!("y mean {i}"), Shape::vector(s.out), None, false));
            outputs.push(b.output(&format!("y var {i}"), Shape::vector(s.out), None, false));
        }
        branches.push(branch);

        let (coef, mask) = s.term;
        back_inputs.extend_from_slice(&inputs[start..]);
        let shape = branch.output(x, s.out);
        if coef {
            back_inputs.push(b.map(&format!("y value {i}"), shape, setting.slice(s.out, false), |v| v));
        }
        back_inputs.push(b.map(&format!("g {i}"), shape, setting.slice(s.out, i % 2 == 0), |v| v + 0.1));
        if coef {
            back_inputs.push(b.map(&format!("coef {i}"), Shape::matrix(3, s.out), setting.slice(s.out, false), |v| v));
        }
        if let Some(row) = mask {
            let value = |v: f64| if v < -0.5 { 0.0 } else { 1.25 };
            back_inputs.push(b.state(&format!("mask {i}"), Shape::matrix(row + 1, x.n), value));
        }
        let (input, weight) = s.wants;
        if input {
            let slice = setting.slice(x.c, i % 2 == 1);
            let place = match dx {
                Some(tensor) if s.again => Output { tensor, accumulate: true },
                _ => b.output(&format!("dx {i}"), x, slice, accumulate),
            };
            dx = Some(place.tensor).filter(|_| s.norm == Norm::Plain);
            back_outputs.push(place);
            if s.norm != Norm::Plain {
                let slice = setting.slice(x.c, false);
                back_outputs.push(b.output(&format!("dcoef {i}"), Shape::matrix(3, x.c), slice, accumulate));
            }
            if s.norm == Norm::Affine {
                back_outputs.push(b.output(&format!("dgamma {i}"), vector, None, accumulate));
                back_outputs.push(b.output(&format!("dbeta {i}"), vector, None, !accumulate));
            }
        }
        if weight {
            let pair = match dweights {
                Some(pair) if s.same_weights => pair.map(|tensor| Output { tensor, accumulate: true }),
                _ => [
                    b.output(&format!("d depthwise {i}"), depthwise, setting.slice(x.c, true), accumulate),
                    b.output(&format!("d pointwise {i}"), Shape::matrix(x.c, s.out), None, accumulate),
                ],
            };
            back_outputs.extend(pair);
            dweights = Some(pair.map(|o| o.tensor));
        }
        if input || weight {
            back.push(BackwardBranch { branch, term: TermKind { coef, mask }, input, weight });
        }
    }
    b.case.graph.push(Separable { branches }, inputs, outputs);
    if !back.is_empty() {
        b.case.graph.push(SeparableBackward { branches: back }, back_inputs, back_outputs);
    }
    b.case
}

/// All cases.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let geometries = [(3, 1, 1), (3, 2, 1), (5, 1, 1), (5, 2, 1), (3, 1, 2), (5, 1, 2), (3, 2, 2), (5, 2, 2)];
    let norms = [Norm::Plain, Norm::Batch, Norm::Affine];
    let shapes = [
        (Shape::map(1, 5, 7, 3), 6),
        (Shape::map(3, 9, 8, 6), 3),
        (Shape::map(2, 8, 8, 16), 16),
        (Shape::map(1, 13, 11, 20), 72),
        (Shape::map(2, 6, 5, 72), 20),
        (Shape::map(1, 4, 4, 40), 144),
    ];
    for (i, (x, out)) in shapes.into_iter().enumerate() {
        for slice in [false, true] {
            // Each geometry with some normalisation, each map with all of them.
            let spec = |g: usize| {
                let term = (g % 4 > 1, [None, Some(1)][g % 2]);
                Spec { geometry: geometries[g % 8], norm: norms[(g + i) % 3], out, term, ..SPEC }
            };
            let specs: Vec<_> = (3 * i..3 * i + 3).map(spec).collect();
            cases.push(case("all kinds", Setting { x, slice, accumulate: slice && i % 2 == 0 }, &specs));
        }
    }
    let setting = Setting { x: Shape::map(2, 9, 9, 16), slice: false, accumulate: false };
    let shared: Vec<_> = geometries.iter().map(|&geometry| Spec { geometry, again: true, ..SPEC }).collect();
    cases.push(case("one map for all", setting, &shared));
    // The sixth does not take part: its input needs no gradient.
    let mut partly = shared.clone();
    partly[5].wants = (false, true);
    partly[6].wants = (true, false);
    partly[7].term = (true, Some(0));
    cases.push(case("one map, added", Setting { accumulate: true, slice: true, ..setting }, &partly));
    let bare = Spec { statistics: false, wants: (false, false), ..SPEC };
    cases.push(case("no statistics", setting, &[bare]));
    let normed = |norm| Spec { norm, again: true, ..SPEC };
    let mixed = [SPEC, normed(Norm::Plain), normed(Norm::Affine), normed(Norm::Batch)];
    cases.push(case("one map, plain and normalised", setting, &mixed));
    let input = Spec { wants: (true, false), norm: Norm::Affine, term: (true, Some(2)), ..SPEC };
    cases.push(case("only input", setting, &[input]));
    cases.push(case("only weights", setting, &[Spec { wants: (false, true), ..input }]));
    let tied = Spec { same_weights: true, ..SPEC };
    cases.push(case("weights used three times", setting, &[SPEC, tied, tied]));
    // So many images that branches of a map share jobs, in regions of one and of two tiles.
    for x in [Shape::map(260, 2, 9, 6), Shape::map(300, 3, 2, 5)] {
        let pair: Vec<_> = shared[..4].iter().flat_map(|&s| [Spec { wants: (false, false), ..s }; 2]).collect();
        cases.push(case("jobs of several branches", Setting { x, ..setting }, &pair));
    }
    let many = Setting { x: Shape::map(4200, 2, 1, 4), ..setting };
    cases.push(case("chunks of two regions", many, &[Spec { out: 8, wants: (false, false), ..SPEC }]));
    cases
}
