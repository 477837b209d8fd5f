//! Cases of separable convolutions: kernels, dilations and strides, sizes that tiles do not divide, views, every kind of
//! normalisation and of gradient, branches that share a map, and whichever gradients are wanted.

use supernet::graph::{Output, Shape, Tensor};
use supernet::ops::norm::Norm as Rule;
use supernet::ops::separable::{Branch, Separable};

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
}

const SPEC: Spec = Spec { geometry: (3, 1, 1), norm: Norm::Plain, out: 16, statistics: true, again: false };

/// What the branches of a case have in common.
#[derive(Clone, Copy)]
struct Setting {
    x: Shape,
    /// Maps and weights lie within wider ones.
    slice: bool,
    /// Outputs of the forward are added to what is there.
    accumulate: bool,
}

impl Setting {
    fn slice(self, c: usize, odd: bool) -> Slice {
        self.slice.then_some(if odd { (c + 5, 3) } else { (2 * c + 4, c.next_multiple_of(4)) })
    }
}

fn case(name: &str, setting: Setting, specs: &[Spec]) -> Case {
    let Setting { x, slice, accumulate } = setting;
    let mut b = Builder::new(format!("separable: {name}, {} of {x}, slice {slice}, add {accumulate}", specs.len()));
    let (mut branches, mut inputs, mut outputs) = (Vec::new(), Vec::<Tensor>::new(), Vec::<Output>::new());
    let mut map: Option<Tensor> = None;
    for (i, s) in specs.iter().enumerate() {
        let (kernel, dilation, stride) = s.geometry;
        let read = match map {
            Some(map) if s.again => map,
            _ => b.map(&format!("x {i}"), x, setting.slice(x.c, i % 2 == 1), |v| v + 0.2),
        };
        map = Some(read);
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
    }
    b.case.graph.push(Separable { branches }, inputs, outputs);
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
            let spec = |g: usize| Spec { geometry: geometries[g % 8], norm: norms[(g + i) % 3], out, ..SPEC };
            let specs: Vec<_> = (3 * i..3 * i + 3).map(spec).collect();
            cases.push(case("all kinds", Setting { x, slice, accumulate: slice && i % 2 == 0 }, &specs));
        }
    }
    let setting = Setting { x: Shape::map(2, 9, 9, 16), slice: false, accumulate: false };
    let shared: Vec<_> = geometries.iter().map(|&geometry| Spec { geometry, again: true, ..SPEC }).collect();
    cases.push(case("one map for all", setting, &shared));
    cases.push(case("no statistics", setting, &[Spec { statistics: false, ..SPEC }]));
    let many = Setting { x: Shape::map(9, 61, 61, 4), ..setting };
    cases.push(case("chunks of two tiles", many, &[Spec { out: 8, ..SPEC }]));
    cases
}
