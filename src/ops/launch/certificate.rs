//! What transport plans are worth, and how large costs are, on GPUs. Both are passes over all costs, read or computed from
//! the points: a block a tile of points of one side and a stretch of the other, then a launch that merges the stretches;
//! a block a problem adds up the rest. The passes of a certificate are rows, columns and rows again, for each needs sums
//! of the one before.
//!
//! Shaders have no f64: sums are trees in f32, [`depths`] additions deep, and the remainders of a certificate are zero. The
//! solver widens its bounds by what that may cost.

use super::transport::{TABLE, TILE, stretches};
use super::{BLOCK, Launch, Lower, Place, Places, Slots, Spot, TABLE_BYTES, grid, record};
use crate::graph::Shape;
use crate::ops::transport::{CERTIFICATE, Certificate, CostExtent, EXTENT, LANES, Problem, STATUS, Source, Table};

/// Sums of a stretch for each of its points.
const SUMS: usize = 4;
/// Vectors of points between passes.
const VECTORS: usize = 11;

record! {
    /// Parameters of all kernels of certificates.
    CertificateParams {
        /// Blocks that have work.
        blocks: u32,
        /// Records of the table.
        problems: u32,
        /// Coordinates of a point.
        channels: u32,
        /// Elements from one point to the next.
        point_stride: u32,
        /// The points, unless `stored`.
        points: Spot,
        /// Label of each point, if `labelled`.
        labels: Spot,
        /// Distances of labels, if `labelled`.
        distances: Spot,
        /// All cost matrices, if `stored`.
        cost: Spot,
        /// Elements from one row of `distances` to the next.
        distance_stride: u32,
        /// Whether distances of labels add to the costs.
        labelled: u32,
        /// Factor of the squared distance of points.
        point_scale: f32,
        /// Factor of the distance of labels.
        label_scale: f32,
        /// Whether costs are read from matrices.
        stored: u32,
        /// The pass: 0 of an extent, 1 to 3 of a certificate.
        stage: u32,
        /// All weights.
        weights: Spot,
        /// All potentials.
        potentials: Spot,
        /// A row of progress a problem.
        status: Spot,
        /// In scratch: vectors between passes, each placed like the potentials.
        vectors: Spot,
        /// In scratch: sums of stretches.
        partials: Spot,
        /// A row of results a problem.
        rows: Spot,
        /// Elements of each vector.
        length: u32,
        /// Always 0.
        unused: u32,
    }
}

record! {
    /// One problem.
    CertificateProblem {
        /// Points on the left.
        n: u32,
        /// Points on the right.
        m: u32,
        /// First row of the left points.
        x: u32,
        /// First row of the right points.
        y: u32,
        /// First potential and weight on the left.
        f: u32,
        /// First potential and weight on the right.
        g: u32,
        /// First element of the cost matrix.
        cost: u32,
        /// Elements from one row of the cost matrix to the next.
        stride: u32,
        /// First of the sums of its stretches.
        partial: u32,
        /// Row of the status and of the results.
        number: u32,
        /// First of its blocks.
        block: u32,
        /// Stretches of the other side.
        stretches: u32,
    }
}

const _: () = assert!(TABLE * size_of::<CertificateProblem>() <= TABLE_BYTES);

/// Roundings that a number passes through at most on its way into the sums of a certificate: into the masses of points,
/// which are products of three and are added within a thread and a tile, over the tiles of a stretch, over those who share
/// a point, and over stretches; then from there into totals, over the points of a thread, of a warp and of a block. Who has
/// nothing adds zeros, which round nothing.
pub fn depths(p: &Problem) -> [usize; 2] {
    let side = |right| {
        let (own, stretches) = stretches(p, right);
        let tiles = (if right { p.n } else { p.m } as usize).div_ceil(TILE);
        // Products, shares and differences: 6; thread and tile: 2 and 2; sharers: 2.
        (12 + tiles.div_ceil(stretches) + stretches, own.div_ceil(BLOCK as usize), own.min(BLOCK as usize).div_ceil(32))
    };
    let (rows, columns) = (side(false), side(true));
    // A product and the sums of both sides; a warp: 5; the addition and division of what is paid for a lack: 3.
    [rows.0.max(columns.0), 9 + rows.1 + columns.1 + rows.2.max(columns.2)]
}

/// Sums of all stretches of a problem, on the side that has more.
fn partials(p: &Problem) -> usize {
    let side = |right| {
        let (own, stretches) = stretches(p, right);
        SUMS * own * stretches
    };
    side(false).max(side(true)).next_multiple_of(LANES)
}

fn scratch(table: &Table) -> usize {
    VECTORS * table.potentials + table.problems.iter().map(partials).sum::<usize>()
}

/// The launches of one op.
struct Passes<'a> {
    table: &'a Table,
    params: CertificateParams,
    slots: Slots,
}

impl<'a> Passes<'a> {
    /// `first`: costs or points; `labels`: labels and distances, if they add to costs.
    fn new(table: &'a Table, source: Source, first: Place, labels: Option<(&Place, &Place)>, scratch: Place) -> Self {
        let mut slots = Slots::default();
        let [page, start] = slots.writes(scratch);
        let mut params = CertificateParams {
            vectors: [page, start],
            partials: [page, start + (VECTORS * table.potentials) as u32],
            length: table.potentials as u32,
            ..Default::default()
        };
        match source {
            Source::Stored => {
                params.stored = 1;
                params.cost = slots.reads(first.vector(table.costs));
            }
            Source::Points { point_scale, label_scale } => {
                (params.point_scale, params.label_scale) = (point_scale as f32, label_scale as f32);
                params.channels = first.shape.c as u32;
                params.point_stride = first.row_stride;
                params.points = slots.reads(first);
                if let Some((labels, distances)) = labels {
                    params.labelled = 1;
                    params.labels = slots.reads(labels.vector(first.shape.rows()));
                    params.distances = slots.reads(*distances);
                    params.distance_stride = distances.row_stride;
                }
            }
        }
        Self { table, params, slots }
    }

    /// One kernel over all problems, which take `blocks` blocks each.
    fn launches(&self, kernel: &'static str, stage: u32, blocks: impl Fn(&Problem) -> usize) -> Vec<Launch> {
        let (mut list, mut end, mut number) = (Vec::new(), 0, 0);
        for problems in self.table.problems.chunks(TABLE) {
            let mut sum = 0;
            let record = |p: &Problem| {
                let Problem { n, m, x, y, f, g, cost, stride, .. } = *p;
                let (partial, block) = (end as u32, sum as u32);
                let stretches = stretches(p, stage == 2).1 as u32;
                let row = CertificateProblem { n, m, x, y, f, g, cost, stride, partial, number, block, stretches };
                (end, sum, number) = (end + partials(p), sum + blocks(p), number + 1);
                row
            };
            let table: Vec<_> = problems.iter().map(record).collect();
            let params = CertificateParams { blocks: sum as u32, problems: table.len() as u32, stage, ..self.params };
            list.push(Launch {
                source: "certificate",
                kernel,
                // Neighbouring threads read neighbouring elements one by one.
                wide: false,
                halves: self.slots.halves,
                params: bytemuck::bytes_of(&params).to_vec(),
                table: bytemuck::cast_slice(&table).to_vec(),
                pages: self.slots.pages.clone(),
                grid: grid(sum),
                block: BLOCK,
                jobs: None,
                reads: Vec::new(),
                writes: Vec::new(),
            });
        }
        list
    }

    /// A pass and the merging of its stretches.
    fn pass(&self, stage: u32) -> Vec<Launch> {
        let side = |p: &Problem| stretches(p, stage == 2);
        let kernel = if stage == 2 { "certificate_columns" } else { "certificate_rows" };
        let mut list = self.launches(kernel, stage, |p| side(p).0.div_ceil(TILE) * side(p).1);
        list.extend(self.launches("certificate_merge", stage, |p| side(p).0.div_ceil(BLOCK as usize)));
        list
    }
}

impl Lower for Certificate {
    fn scratch(&self, _inputs: &[Shape], _outputs: &[Shape]) -> usize {
        scratch(&self.table)
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let [first, weights, potentials, status, ..] = *at.inputs else {
            unreachable!("four inputs and more are recorded")
        };
        assert!(!at.accumulate[0], "certificates are written, never added");
        let (table, count) = (&*self.table, self.table.problems.len());
        let labels = at.inputs.get(4).zip(at.inputs.get(5));
        let mut passes = Passes::new(table, self.source, first, labels, at.scratch);
        passes.params.weights = passes.slots.reads(weights.vector(table.potentials));
        passes.params.potentials = passes.slots.reads(potentials.vector(table.potentials));
        passes.params.status = passes.slots.reads(status.vector(count * STATUS));
        passes.params.rows = passes.slots.writes(at.outputs[0].vector(count * CERTIFICATE));
        let mut list: Vec<_> = (1..=3).flat_map(|stage| passes.pass(stage)).collect();
        list.extend(passes.launches("certificate_totals", 3, |_| 1));
        list
    }
}

impl Lower for CostExtent {
    fn scratch(&self, _inputs: &[Shape], _outputs: &[Shape]) -> usize {
        scratch(&self.table)
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        assert!(!at.accumulate[0], "extents are written, never added");
        let labels = at.inputs.get(1).zip(at.inputs.get(2));
        let mut passes = Passes::new(&self.table, self.source, at.inputs[0], labels, at.scratch);
        passes.params.rows = passes.slots.writes(at.outputs[0].vector(self.table.problems.len() * EXTENT));
        let mut list = passes.pass(0);
        list.extend(passes.launches("extent_totals", 0, |_| 1));
        list
    }
}
