//! Entropic transport on GPUs. Costs: a block a tile of a problem's cost matrix, points staged in shared memory. Sinkhorn:
//! problems of at most [`BLOCK`] points a side are solved by a block each, which does all iterations of a replay with
//! the potentials in its registers; of larger ones every iteration is three launches, rows, columns, and one that books
//! the iteration. All sum exponentials over running maxima, so the log domain serves whatever domain is asked for: a
//! stored kernel would read as much memory as the costs that it replaces.
//!
//! Without a cost matrix both halves of an iteration compute costs as `pair_cost` does and use them at once: a block owns a
//! tile of points and a stretch of the other side, and a further launch merges the stretches.
//!
//! The sizes of problems are host data: they are the launches' tables.

use super::{BLOCK, Launch, Lower, Place, Places, Slots, Spot, TABLE_BYTES, grid, record};
use crate::graph::Shape;
use crate::ops::transport::{LANES, PairCost, Problem, Rule, SCHEDULE, STATUS, Sinkhorn, Source, Table};

/// Costs along each side of a tile of `pair_cost`.
pub const TILE: usize = 64;
/// Rows, or columns, that a block of `sinkhorn_rows` or `sinkhorn_columns` owns.
pub const SIDE: usize = 16;
/// Most problems that one launch takes: `TABLE` in the shader.
pub const TABLE: usize = 341;

record! {
    /// Parameters of all transport kernels.
    TransportParams {
        /// Blocks that have work.
        blocks: u32,
        /// Records of the table.
        problems: u32,
        /// Coordinates of a point.
        channels: u32,
        /// Elements from one point to the next.
        point_stride: u32,
        /// The points.
        points: Spot,
        /// Label of each point, if `labelled`.
        labels: Spot,
        /// Distances of labels, if `labelled`.
        distances: Spot,
        /// All cost matrices; in scratch, the sums of stretches where costs are computed from the points.
        cost: Spot,
        /// Elements from one row of `distances` to the next.
        distance_stride: u32,
        /// Whether distances of labels add to the costs.
        labelled: u32,
        /// Factor of the squared distance of points.
        point_scale: f32,
        /// Factor of the distance of labels.
        label_scale: f32,
        /// Whether both sides move at once, by [`Rule::Annealed`].
        annealed: u32,
        /// Iterations of `sinkhorn_small`.
        iterations: u32,
        /// Whether `sinkhorn_advance` stands before the first iteration and has none to book.
        begin: u32,
        /// Whether `sinkhorn_points` and `sinkhorn_merge` are at the right points.
        right: u32,
        /// All weights.
        weights: Spot,
        /// A row of settings a problem.
        schedule: Spot,
        /// All potentials.
        potentials: Spot,
        /// A row of progress a problem.
        status: Spot,
        /// In scratch: `log2(weight) + potential log2(e) / eps`, placed like the potentials.
        shifts: Spot,
        /// In scratch: soft c-transforms of the left sides, placed like the potentials.
        soft: Spot,
    }
}

record! {
    /// One problem.
    TransportProblem {
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
        /// First element of the cost matrix, or of the sums of its stretches.
        cost: u32,
        /// Elements from one row of the cost matrix to the next.
        stride: u32,
        /// 1 where both sides are one measure with one potential.
        symmetric: u32,
        /// Row of the schedule and of the status.
        number: u32,
        /// First of its blocks.
        block: u32,
        /// Stretches of the other side, where costs are computed from the points.
        stretches: u32,
    }
}

const _: () = assert!(TABLE * size_of::<TransportProblem>() <= TABLE_BYTES);

/// Blocks that a lone problem should have without a cost matrix: twice what a large GPU runs at a time.
const ENOUGH: usize = 1056;

/// Points of a side, and stretches of the other side for each tile of them: enough for many blocks, none of them empty.
pub(super) fn stretches(p: &Problem, right: bool) -> (usize, usize) {
    let (own, other) = if right { (p.m, p.n) } else { (p.n, p.m) };
    let (own, tiles) = (own as usize, (other as usize).div_ceil(TILE));
    let each = tiles.div_ceil((ENOUGH / own.div_ceil(TILE)).max(1));
    (own, tiles.div_ceil(each))
}

/// Largest exponents and sums of all stretches of a problem, on the side that has more.
fn partials(p: &Problem) -> usize {
    let side = |right| {
        let (own, stretches) = stretches(p, right);
        2 * own * stretches
    };
    side(false).max(side(true)).next_multiple_of(LANES)
}

/// The launches of one kernel over some problems, which take `blocks` blocks each and are named with their numbers.
fn launches(
    kernel: &'static str,
    params: TransportParams,
    slots: &Slots,
    problems: &[(usize, &Problem)],
    blocks: impl Fn(&Problem) -> usize,
) -> Vec<Launch> {
    let launch = |problems: &[(usize, &Problem)]| {
        let mut sum = 0;
        let record = |&(number, p): &(usize, &Problem)| {
            let block = sum as u32;
            sum += blocks(p);
            let Problem { n, m, x, y, f, g, cost, stride, symmetric } = *p;
            let stretches = stretches(p, params.right != 0).1 as u32;
            let number = number as u32;
            TransportProblem { n, m, x, y, f, g, cost, stride, symmetric, number, block, stretches }
        };
        let table: Vec<_> = problems.iter().map(record).collect();
        let params = TransportParams { blocks: sum as u32, problems: table.len() as u32, ..params };
        Launch {
            source: "transport",
            kernel,
            // Neighbouring threads read neighbouring elements one by one; potentials are written one by one.
            wide: false,
            halves: slots.halves,
            params: bytemuck::bytes_of(&params).to_vec(),
            table: bytemuck::cast_slice(&table).to_vec(),
            pages: slots.pages.clone(),
            grid: grid(sum),
            block: BLOCK,
            jobs: None,
            reads: Vec::new(),
            writes: Vec::new(),
        }
    };
    problems.chunks(TABLE).map(launch).collect()
}

impl Lower for PairCost {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        assert!(!at.accumulate[0], "costs are written, never added");
        let points = at.inputs[0];
        let mut slots = Slots::default();
        let mut params = TransportParams {
            cost: slots.writes(at.outputs[0].vector(self.table.costs)),
            point_scale: self.point_scale as f32,
            label_scale: self.label_scale as f32,
            ..Default::default()
        };
        read_points(&mut params, &mut slots, points, at.inputs.get(1).zip(at.inputs.get(2)));
        let problems: Vec<_> = self.table.problems.iter().enumerate().collect();
        let tiles = |p: &Problem| (p.n as usize).div_ceil(TILE) * (p.stride as usize).div_ceil(TILE);
        launches("pair_cost", params, &slots, &problems, tiles)
    }
}

/// Whether one block solves the problem: a thread owns a potential of each side.
fn small(p: &Problem) -> bool {
    p.n.max(p.m) <= BLOCK
}

impl Lower for Sinkhorn {
    /// Shifts, and soft c-transforms; the sums of stretches.
    fn scratch(&self, _inputs: &[Shape], _outputs: &[Shape]) -> usize {
        let Table { problems, potentials, matrix_free, .. } = &*self.table;
        match matrix_free {
            true => 2 * potentials + problems.iter().map(partials).sum::<usize>(),
            false if problems.iter().all(small) => 0,
            false => 2 * potentials,
        }
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let [first, weights, schedule, ..] = *at.inputs else { unreachable!("three inputs and more are recorded") };
        let [potentials, status] = *at.outputs else { unreachable!("two outputs are recorded") };
        assert!(!at.accumulate.contains(&true), "potentials and status are written in place");
        let count = self.table.problems.len();
        let mut slots = Slots::default();
        let mut params = TransportParams {
            annealed: u32::from(self.rule == Rule::Annealed),
            iterations: self.iterations as u32,
            weights: slots.reads(weights.vector(self.table.potentials)),
            schedule: slots.reads(schedule.vector(count * SCHEDULE)),
            potentials: slots.writes(potentials.vector(self.table.potentials)),
            status: slots.writes(status.vector(count * STATUS)),
            ..Default::default()
        };
        let Source::Points { point_scale, label_scale } = self.source else {
            params.cost = slots.reads(first.vector(self.table.costs));
            return self.stored(params, slots, at);
        };
        (params.point_scale, params.label_scale) = (point_scale as f32, label_scale as f32);
        read_points(&mut params, &mut slots, first, at.inputs.get(3).zip(at.inputs.get(4)));
        self.free(params, slots, at)
    }
}

/// The points of a problem, and the labels and distances that add to its costs.
fn read_points(params: &mut TransportParams, slots: &mut Slots, points: Place, labels: Option<(&Place, &Place)>) {
    params.channels = points.shape.c as u32;
    params.point_stride = points.row_stride;
    params.points = slots.reads(points);
    if let Some((labels, distances)) = labels {
        params.labelled = 1;
        params.labels = slots.reads(labels.vector(points.shape.rows()));
        params.distances = slots.reads(*distances);
        params.distance_stride = distances.row_stride;
    }
}

impl Sinkhorn {
    /// Iterations on stored costs.
    fn stored(&self, mut params: TransportParams, mut slots: Slots, at: &Places<'_>) -> Vec<Launch> {
        let (alone, split): (Vec<_>, Vec<_>) = self.table.problems.iter().enumerate().partition(|(_, p)| small(p));
        let mut list = launches("sinkhorn_small", params, &slots, &alone, |_| 1);
        if split.is_empty() {
            return list;
        }

        let [page, first] = slots.writes(at.scratch);
        params.shifts = [page, first];
        params.soft = [page, first + self.table.potentials as u32];
        let asymmetric: Vec<_> = split.iter().copied().filter(|(_, p)| p.symmetric == 0).collect();
        let begin = TransportParams { begin: 1, ..params };
        list.extend(launches("sinkhorn_advance", begin, &slots, &split, |_| 1));
        let mut iteration = launches("sinkhorn_rows", params, &slots, &split, |p| (p.n as usize).div_ceil(SIDE));
        let columns = |p: &Problem| (p.m as usize).div_ceil(SIDE);
        iteration.extend(launches("sinkhorn_columns", params, &slots, &asymmetric, columns));
        iteration.extend(launches("sinkhorn_advance", params, &slots, &split, |_| 1));
        for _ in 0..self.iterations {
            list.extend(iteration.iter().cloned());
        }
        list
    }

    /// Iterations on costs that are computed from the points.
    fn free(&self, mut params: TransportParams, mut slots: Slots, at: &Places<'_>) -> Vec<Launch> {
        let [page, first] = slots.writes(at.scratch);
        let potentials = self.table.potentials as u32;
        params.shifts = [page, first];
        params.soft = [page, first + potentials];
        params.cost = [page, first + 2 * potentials];
        let mut end = 0;
        let place = |p: &Problem| {
            let cost = end as u32;
            end += partials(p);
            Problem { cost, ..*p }
        };
        let problems: Vec<Problem> = self.table.problems.iter().map(place).collect();
        let all: Vec<_> = problems.iter().enumerate().collect();
        let asymmetric: Vec<_> = all.iter().copied().filter(|(_, p)| p.symmetric == 0).collect();
        let half = |side: &[(usize, &Problem)], right: bool| {
            let params = TransportParams { right: right.into(), ..params };
            let tiles = |p: &Problem| {
                let (own, stretches) = stretches(p, right);
                own.div_ceil(TILE) * stretches
            };
            let mut list = launches("sinkhorn_points", params, &slots, side, tiles);
            let merged = |p: &Problem| stretches(p, right).0.div_ceil(BLOCK as usize);
            list.extend(launches("sinkhorn_merge", params, &slots, side, merged));
            list
        };
        let mut iteration = half(&all, false);
        iteration.extend(half(&asymmetric, true));
        iteration.extend(launches("sinkhorn_advance", params, &slots, &all, |_| 1));
        let begin = TransportParams { begin: 1, ..params };
        let mut list = launches("sinkhorn_advance", begin, &slots, &all, |_| 1);
        for _ in 0..self.iterations {
            list.extend(iteration.iter().cloned());
        }
        list
    }
}
