//! The largest pages of a CUDA device: offsets and extents beyond 2^31 elements, on memory of which only what is touched
//! exists.

use std::sync::Arc;

use supernet::device::needs::CUDA_PAGE;
use supernet::device::pages::HALVES_PAGE;
use supernet::device::precision::Precision;
use supernet::graph::Shape;
use supernet::machine::memory;
use supernet::ops::launch::{Launch, Lower, Place, Places};
use supernet::ops::transport::{
    CERTIFICATE, Certificate, CostExtent, EXTENT, PairCost, Problem, Rule, SCHEDULE, STATUS, Sinkhorn, Source, Table,
};

use super::cuda_cpu::{self, CudaCpu};
use super::harness::{Machine, Page, Placed, Spread, narrow};
use super::{cases, missing};

/// What lies at the end of a page is found there by all kernels. Wide accesses differ in nothing but their width.
#[test]
fn kernels_reach_the_end_of_the_largest_page() {
    let variants = cuda_cpu::all(|variant| !variant.tensor && !variant.wide);
    let mut machine = CudaCpu::new("end", &variants, str::to_owned);
    for case in cases::all() {
        for (precision, page) in [(Precision::F32, CUDA_PAGE), (Precision::Bf16, HALVES_PAGE)] {
            let mut placed = Placed::stored(&case, Spread::One, precision);
            if precision.has_halves() && !placed.has_halves() {
                continue;
            }
            machine.origin = placed.at_the_end_of(page);
            placed.check(&mut machine, &narrow(&placed.launches()));
        }
    }
}

/// Points of both sides: columns are few, so that rows can lie far apart.
const COLUMNS: usize = 40;
/// Coordinates of a point.
const DIMENSIONS: usize = 3;

/// Vectors side by side in page 0; the costs have page 1.
struct Small {
    page: Page,
    end: usize,
}

impl Small {
    fn place(&mut self, shape: Shape, value: impl Fn(usize) -> f32) -> Place {
        let (start, c) = (self.end, shape.c as u32);
        self.end = (start + shape.len()).next_multiple_of(16);
        let to = &mut self.page.values_mut()[start..start + shape.len()];
        to.iter_mut().enumerate().for_each(|(i, v)| *v = value(i));
        Place { page: 0, offset: start as u32, row_stride: c, shape, half: false }
    }
}

/// A number between 0 and 1, another for each `i`.
fn number(i: usize) -> f32 {
    (i * 7919 % 10_007) as f32 / 10_007.0
}

/// What a problem whose costs begin at an element and have this stride leaves: costs, potentials, a certificate, an extent.
/// `costs`: whether they are computed, which writes all padding too.
fn solved(machine: &mut CudaCpu, rows: usize, first: usize, stride: usize, costs: bool) -> Vec<u32> {
    let side = rows.next_multiple_of(16);
    let problem = Problem {
        n: rows as u32,
        m: COLUMNS as u32,
        x: 0,
        y: rows as u32,
        f: 0,
        g: side as u32,
        cost: first as u32,
        stride: stride as u32,
        symmetric: 0,
    };
    let (length, potentials) = (first + rows * stride, side + COLUMNS.next_multiple_of(16));
    assert!(length <= CUDA_PAGE, "{length} elements");
    let table = Arc::new(Table { problems: vec![problem], potentials, costs: length, matrix_free: false });
    let mut pages = [Page::new(1 << 17), Page::sparse(length)];
    let mut small = Small { page: pages[0].clone(), end: 0 };
    let cost = Place { page: 1, shape: Shape::vector(length), row_stride: length as u32, ..Place::default() };
    let points = small.place(Shape::matrix(rows + COLUMNS, DIMENSIONS), number);
    let weight = |i: usize| if i < side { 1.0 / rows as f32 } else { 1.0 / COLUMNS as f32 };
    let weights = small.place(Shape::vector(potentials), weight);
    let settings = [0.25, 0.25, 1.0, -1.0, 100.0, 0.0, 0.0, 0.0];
    let schedule = small.place(Shape::matrix(1, SCHEDULE), |i| settings[i]);
    let shifts = small.place(Shape::vector(potentials), |_| 0.0);
    let status = small.place(Shape::matrix(1, STATUS), |_| 0.0);
    let certificate = small.place(Shape::matrix(1, CERTIFICATE), |_| f32::NAN);
    let extent = small.place(Shape::matrix(1, EXTENT), |_| f32::NAN);
    let (source, one) = (Source::Stored, [false, false]);
    let sinkhorn = Sinkhorn { table: table.clone(), iterations: 2, rule: Rule::Alternating, kernel: false, source };
    let most = Certificate { table: table.clone(), source }.scratch(&[], &[]);
    let scratch = small.place(Shape::vector(most), |_| f32::NAN);
    let lower = |op: &dyn Lower, inputs: &[Place], outputs: &[Place]| {
        let accumulate = &one[..outputs.len()];
        op.launches(&Places { inputs, outputs, accumulate, scratch, pieces: &[scratch] })
    };
    let mut launches: Vec<Launch> = Vec::new();
    if costs {
        let op = PairCost { table: table.clone(), point_scale: 0.5, label_scale: 0.0 };
        launches.extend(lower(&op, &[points], &[cost]));
    } else {
        for row in 0..rows {
            let at = first + row * stride;
            let to = &mut pages[1].values_mut()[at..at + COLUMNS];
            to.iter_mut().enumerate().for_each(|(j, v)| *v = number(row * COLUMNS + j));
        }
    }
    launches.extend(lower(&sinkhorn, &[cost, weights, schedule], &[shifts, status]));
    let op = Certificate { table: table.clone(), source };
    launches.extend(lower(&op, &[cost, weights, shifts, status], &[certificate]));
    launches.extend(lower(&CostExtent { table, source }, &[cost], &[extent]));
    pages[0] = small.page;
    machine.run(&launches, &mut pages).expect("the kernels run");
    let found = [shifts, certificate, extent].into_iter().flat_map(|place| {
        let start = place.offset as usize;
        pages[0].values()[start..start + place.shape.len()].to_vec()
    });
    let row = |row: usize| &pages[1].values()[first + row * stride..][..COLUMNS];
    let bits: Vec<u32> = found.chain((0..rows).flat_map(row).copied()).map(f32::to_bits).collect();
    assert!(bits.iter().any(|&b| b != 0) && bits.iter().all(|&b| !f32::from_bits(b).is_nan()), "numbers are found");
    bits
}

/// A matrix as large as a page gives the same bits as one whose rows lie side by side: all products of rows and strides, and
/// all sums, stay within 32 bits. Of more and of fewer rows than one block solves.
#[test]
fn costs_are_found_in_a_matrix_as_large_as_a_page() {
    if memory("MemTotal:").is_some_and(|bytes| bytes < 4 * CUDA_PAGE) {
        return missing("a matrix of 12 GiB", "SUPERNET_REQUIRE_LARGE", "the system would not promise so much");
    }
    let sources = cuda_cpu::all(|variant| variant == Default::default());
    let sources: Vec<_> = sources.into_iter().filter(|(s, _)| ["transport", "certificate"].contains(&s.stem)).collect();
    let mut machine = CudaCpu::new("large", &sources, str::to_owned);
    let narrow = COLUMNS.next_multiple_of(16);
    for rows in [272, 200] {
        let wide = CUDA_PAGE / rows / 16 * 16;
        assert!(rows * narrow < 1 << 16 && (rows - 1) * wide > 1 << 31);
        let alone = solved(&mut machine, rows, 0, narrow, false);
        assert!(solved(&mut machine, rows, 0, wide, false) == alone, "{rows} rows far apart");
        let alone = solved(&mut machine, rows, 0, narrow, true);
        let last = CUDA_PAGE - rows * narrow;
        assert!(solved(&mut machine, rows, last, narrow, true) == alone, "{rows} rows at the end of the page");
    }
}
