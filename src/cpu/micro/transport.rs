//! Optimal transport: costs, the rows of an iteration in the log and in the kernel domain, certificates.
//!
//! Rows of cost matrices are padded to whole vectors of every level, so there are no tails. Exponents are in base 2:
//! `scaled` potentials are `potential * log2(e) / eps`, with the logarithm of the weight added where that is said.

use super::super::simd::{Vector, exp2, log2};

/// Rows that an iteration takes at once.
const GROUP: usize = 4;

/// Arguments of `cost_tile`: `cost[i][j] = scale * |x_i - y_j|^2` for `rows` points x and `columns` points y.
#[derive(Clone, Copy, Debug)]
pub struct CostTile {
    /// First point x.
    pub x: *const f32,
    /// Distance between points x.
    pub ldx: usize,
    /// Points x.
    pub rows: usize,
    /// Coordinates.
    pub d: usize,
    /// Points y, transposed: coordinate `k` of all `columns` at `y + k * columns`.
    pub y: *const f32,
    /// Points y, a multiple of 16.
    pub columns: usize,
    /// Factor.
    pub scale: f32,
    /// Costs, overwritten.
    pub cost: *mut f32,
    /// Distance between rows of costs.
    pub ldc: usize,
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn cost_tile<V: Vector>(a: &CostTile) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut i = 0;
        while i + GROUP <= a.rows {
            cost_group::<V, GROUP>(a, i);
            i += GROUP;
        }
        while i < a.rows {
            cost_group::<V, 1>(a, i);
            i += 1;
        }
    }
}

/// The coordinates are summed in runs of this length, so that the error does not grow with their number.
const RUN: usize = 64;

#[inline(always)]
unsafe fn cost_group<V: Vector, const R: usize>(a: &CostTile, i: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut j = 0;
        // Two vectors side by side hide the latency of the sums.
        while j + 2 * V::LANES <= a.columns {
            cost_block::<V, R, 2>(a, i, j);
            j += 2 * V::LANES;
        }
        while j < a.columns {
            cost_block::<V, R, 1>(a, i, j);
            j += V::LANES;
        }
    }
}

#[inline(always)]
unsafe fn cost_block<V: Vector, const R: usize, const C: usize>(a: &CostTile, i: usize, j: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut total = [[V::zero(); C]; R];
        let mut k = 0;
        while k < a.d {
            let end = (k + RUN).min(a.d);
            let mut sum = [[V::zero(); C]; R];
            while k < end {
                let mut y = [V::zero(); C];
                for (c, y) in y.iter_mut().enumerate() {
                    *y = V::load(a.y.add(k * a.columns + j + c * V::LANES));
                }
                for (r, sum) in sum.iter_mut().enumerate() {
                    let x = V::splat(*a.x.add((i + r) * a.ldx + k));
                    for (sum, y) in sum.iter_mut().zip(y) {
                        let d = x.sub(y);
                        *sum = d.mul_add(d, *sum);
                    }
                }
                k += 1;
            }
            for (total, sum) in total.iter_mut().zip(sum) {
                for (total, sum) in total.iter_mut().zip(sum) {
                    *total = total.add(sum);
                }
            }
        }
        for (r, total) in total.iter().enumerate() {
            for (c, total) in total.iter().enumerate() {
                let to = a.cost.add((i + r) * a.ldc + j + c * V::LANES);
                total.mul(V::splat(a.scale)).store(to);
            }
        }
    }
}

/// Arguments of `log_rows`: with `e[i][j] = 2^(fs[i] + gs[j] - scale * cost[i][j])`, `sums[i] = sum_j e[i][j]` and
/// `columns[j] = sum_i weights[i] / sums[i] * e[i][j]`.
#[derive(Clone, Copy, Debug)]
pub struct LogRows {
    /// First row.
    pub cost: *const f32,
    /// Distance between rows, and columns with their padding.
    pub stride: usize,
    /// Rows.
    pub rows: usize,
    /// `log2(e) / eps`.
    pub scale: f32,
    /// Scaled potentials of the rows.
    pub fs: *const f32,
    /// Scaled potentials of the columns with their weights; -1e30 in the padding.
    pub gs: *const f32,
    /// Weights of the rows.
    pub weights: *const f32,
    /// Where the rows `e` go; at least `4 * stride` floats. All of them are kept one behind the other if `keep`; they may
    /// then take the place of the costs.
    pub e: *mut f32,
    /// Whether every row has a place of its own in `e`.
    pub keep: bool,
    /// Sums of the rows.
    pub sums: *mut f32,
    /// Sums of the columns, overwritten; null for none.
    pub columns: *mut f32,
    /// Whether the sums of the columns are added to what is there.
    pub add: bool,
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn log_rows<V: Vector>(a: &LogRows) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut i = 0;
        while i + GROUP <= a.rows {
            log_group::<V, GROUP>(a, i);
            i += GROUP;
        }
        while i < a.rows {
            log_group::<V, 1>(a, i);
            i += 1;
        }
    }
}

#[inline(always)]
unsafe fn log_group<V: Vector, const R: usize>(a: &LogRows, i: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let e = if a.keep { a.e.add(i * a.stride) } else { a.e };
        let scale = V::splat(-a.scale);
        let mut fs = [V::zero(); R];
        for (r, fs) in fs.iter_mut().enumerate() {
            *fs = V::splat(*a.fs.add(i + r));
        }
        let mut sum = [V::zero(); R];
        let mut j = 0;
        while j < a.stride {
            let gs = V::load(a.gs.add(j));
            for r in 0..R {
                let cost = V::load(a.cost.add((i + r) * a.stride + j));
                let value = exp2(cost.mul_add(scale, fs[r].add(gs)));
                value.store(e.add(r * a.stride + j));
                sum[r] = sum[r].add(value);
            }
            j += V::LANES;
        }
        let mut weight = [0.0; R];
        for r in 0..R {
            let sum = sum[r].reduce_sum();
            *a.sums.add(i + r) = sum;
            weight[r] = *a.weights.add(i + r) / sum;
        }
        if !a.columns.is_null() {
            weighted_columns::<V, R>(e, a.stride, weight, a.columns, i == 0 && !a.add);
        }
    }
}

/// `columns (+)= sum of the rows by their weights`.
#[inline(always)]
unsafe fn weighted_columns<V: Vector, const R: usize>(
    rows: *const f32,
    stride: usize,
    weight: [f32; R],
    columns: *mut f32,
    first: bool,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut w = [V::zero(); R];
        for (w, weight) in w.iter_mut().zip(weight) {
            *w = V::splat(weight);
        }
        let mut j = 0;
        while j < stride {
            let mut c = if first { V::zero() } else { V::load(columns.add(j)) };
            for (r, w) in w.iter().enumerate() {
                c = V::load(rows.add(r * stride + j)).mul_add(*w, c);
            }
            c.store(columns.add(j));
            j += V::LANES;
        }
    }
}

/// Arguments of `kernel_rows`: `sums[i] = sum_j kernel[i][j] v[j]`,
/// `columns[j] = sum_i weights[i] / sums[i] * kernel[i][j]`.
#[derive(Clone, Copy, Debug)]
pub struct KernelRows {
    /// First row.
    pub kernel: *const f32,
    /// Distance between rows, and columns with their padding.
    pub stride: usize,
    /// Rows.
    pub rows: usize,
    /// Factors of the columns.
    pub v: *const f32,
    /// Weights of the rows.
    pub weights: *const f32,
    /// Sums of the rows.
    pub sums: *mut f32,
    /// Sums of the columns, overwritten.
    pub columns: *mut f32,
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn kernel_rows<V: Vector>(a: &KernelRows) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut i = 0;
        while i + GROUP <= a.rows {
            kernel_group::<V, GROUP>(a, i);
            i += GROUP;
        }
        while i < a.rows {
            kernel_group::<V, 1>(a, i);
            i += 1;
        }
    }
}

#[inline(always)]
unsafe fn kernel_group<V: Vector, const R: usize>(a: &KernelRows, i: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let rows = a.kernel.add(i * a.stride);
        // Two sums a row hide the latency of the additions.
        let mut sum = [[V::zero(); 2]; R];
        let mut j = 0;
        while j + 2 * V::LANES <= a.stride {
            for half in 0..2 {
                let at = j + half * V::LANES;
                let v = V::load(a.v.add(at));
                for (r, sum) in sum.iter_mut().enumerate() {
                    sum[half] = V::load(rows.add(r * a.stride + at)).mul_add(v, sum[half]);
                }
            }
            j += 2 * V::LANES;
        }
        while j < a.stride {
            let v = V::load(a.v.add(j));
            for (r, sum) in sum.iter_mut().enumerate() {
                sum[0] = V::load(rows.add(r * a.stride + j)).mul_add(v, sum[0]);
            }
            j += V::LANES;
        }
        let mut weight = [0.0; R];
        for r in 0..R {
            let sum = sum[r][0].add(sum[r][1]).reduce_sum();
            *a.sums.add(i + r) = sum;
            weight[r] = *a.weights.add(i + r) / sum;
        }
        weighted_columns::<V, R>(rows, a.stride, weight, a.columns, i == 0);
    }
}

/// Arguments of `lse_rows`: `out[i] = log2 sum_j 2^(gs[j] - scale * cost[i][j])`.
#[derive(Clone, Copy, Debug)]
pub struct LseRows {
    /// First row.
    pub cost: *const f32,
    /// Distance between rows, and columns with their padding.
    pub stride: usize,
    /// Rows.
    pub rows: usize,
    /// `log2(e) / eps`.
    pub scale: f32,
    /// Scaled potentials of the columns with their weights; -3e38 in the padding.
    pub gs: *const f32,
    /// Logarithms.
    pub out: *mut f32,
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn lse_rows<V: Vector>(a: &LseRows) {
    // SAFETY: the caller's contract.
    unsafe {
        let scale = V::splat(-a.scale);
        for i in 0..a.rows {
            let row = a.cost.add(i * a.stride);
            let exponent = |j: usize| V::load(row.add(j)).mul_add(scale, V::load(a.gs.add(j)));
            let mut top = exponent(0);
            let mut j = V::LANES;
            while j < a.stride {
                top = exponent(j).max(top);
                j += V::LANES;
            }
            let mut lanes = [f32::MIN; 16];
            top.store(lanes.as_mut_ptr());
            let top = lanes.into_iter().fold(f32::MIN, f32::max);
            let (shift, mut sum, mut j) = (V::splat(top), V::zero(), 0);
            while j < a.stride {
                sum = sum.add(exp2(exponent(j).sub(shift)));
                j += V::LANES;
            }
            *a.out.add(i) = top + sum.reduce_sum().log2();
        }
    }
}

/// Arguments of `lse_columns`: `out[j] = log2 sum_i 2^(fs[i] - scale * cost[i][j])` for `columns` columns.
#[derive(Clone, Copy, Debug)]
pub struct LseColumns {
    /// First row at the first column.
    pub cost: *const f32,
    /// Distance between rows.
    pub stride: usize,
    /// Rows.
    pub rows: usize,
    /// Columns, a multiple of 16.
    pub columns: usize,
    /// `log2(e) / eps`.
    pub scale: f32,
    /// Scaled potentials of the rows with their weights.
    pub fs: *const f32,
    /// Logarithms.
    pub out: *mut f32,
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn lse_columns<V: Vector>(a: &LseColumns) {
    // SAFETY: the caller's contract.
    unsafe {
        let scale = V::splat(-a.scale);
        let mut j = 0;
        while j < a.columns {
            let exponent = |i: usize| V::load(a.cost.add(i * a.stride + j)).mul_add(scale, V::splat(*a.fs.add(i)));
            let mut top = exponent(0);
            for i in 1..a.rows {
                top = exponent(i).max(top);
            }
            let mut sum = V::zero();
            for i in 0..a.rows {
                sum = sum.add(exp2(exponent(i).sub(top)));
            }
            log2(sum).add(top).store(a.out.add(j));
            j += V::LANES;
        }
    }
}

/// Arguments of `update_potentials`: with `l = log2(sums) - target` (or `l = sums - target` if those are logarithms),
/// `potential += step * (damping * (potential - l * unit) - potential)` for relative sums, which hold the potential
/// already, and the same with `- l * unit` alone for absolute ones.
#[derive(Clone, Copy, Debug)]
pub struct PotentialUpdate {
    /// Elements, a multiple of 16.
    pub n: usize,
    /// Potentials, changed.
    pub potential: *mut f32,
    /// Sums, or logarithms of sums.
    pub sums: *const f32,
    /// Logarithms of what the sums should be; null for 0.
    pub target: *const f32,
    /// Whether `sums` are sums of the plan, which holds the potential, rather than logarithms without it.
    pub relative: bool,
    /// `eps / log2(e)`.
    pub unit: f32,
    /// Share of a whole step.
    pub step: f32,
    /// `rho / (rho + eps)`.
    pub damping: f32,
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn update_potentials<V: Vector>(a: &PotentialUpdate) {
    // SAFETY: the caller's contract.
    unsafe {
        let (unit, step, damping) = (V::splat(-a.unit), V::splat(a.step), V::splat(a.damping));
        let mut i = 0;
        while i < a.n {
            let (old, sums) = (V::load(a.potential.add(i)), V::load(a.sums.add(i)));
            let mut l = if a.relative { log2(sums) } else { sums };
            if !a.target.is_null() {
                l = l.sub(V::load(a.target.add(i)));
            }
            // For whole steps the old potential must not enter with its rounding.
            let new = if a.relative { l.mul_add(unit, old) } else { l.mul(unit) };
            let new = new.mul(damping);
            let new = if a.step == 1.0 { new } else { new.sub(old).mul_add(step, old) };
            new.store(a.potential.add(i));
            i += V::LANES;
        }
    }
}

/// See [`super::Micro`].
// The type only names the instruction set, for which the compiler vectorises the lanes.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
pub(super) unsafe fn deviation<V: Vector>(weights: *const f32, x: *const f32, y: *const f32, n: usize) -> [f32; 3] {
    const SIDE: usize = 16;
    let (mut sum, mut low, mut high) = ([0.0f32; SIDE], [f32::INFINITY; SIDE], [f32::NEG_INFINITY; SIDE]);
    let mut step = |i: usize, lane: usize| {
        // SAFETY: the caller's contract: `i < n`, and `y` has as many elements unless it is null.
        let (w, value, whole) = unsafe { (*weights.add(i), *x.add(i), if y.is_null() { 1.0 } else { *y.add(i) }) };
        sum[lane] += w * (value / whole - 1.0).abs();
        low[lane] = if value < low[lane] { value } else { low[lane] };
        high[lane] = if value > high[lane] { value } else { high[lane] };
    };
    let mut i = 0;
    while i + SIDE <= n {
        (0..SIDE).for_each(|lane| step(i + lane, lane));
        i += SIDE;
    }
    (0..n - i).for_each(|lane| step(i + lane, lane));
    let low = low.into_iter().fold(f32::INFINITY, f32::min);
    [sum.into_iter().sum(), low, high.into_iter().fold(f32::NEG_INFINITY, f32::max)]
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn fold_rows<V: Vector>(partials: *const f32, rows: usize, stride: usize, out: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut j = 0;
        while j < stride {
            let mut sum = V::load(partials.add(j));
            for row in 1..rows {
                sum = sum.add(V::load(partials.add(row * stride + j)));
            }
            sum.store(out.add(j));
            j += V::LANES;
        }
    }
}

/// Doubles that are summed side by side.
const WIDE: usize = 8;

/// Arguments of `plan_rows`: a row `p[j] = weight * e[j]` of a plan, times the share `y[j]` of a column.
#[derive(Clone, Copy, Debug)]
pub struct PlanRows {
    /// A row of exponentials.
    pub e: *const f32,
    /// A row of costs.
    pub cost: *const f32,
    /// Columns.
    pub m: usize,
    /// Weight of the row.
    pub weight: f64,
    /// Shares of the columns; null for 1.
    pub y: *const f64,
    /// Row sum, product with the cost, and product of the cost with `missing`; three numbers, overwritten.
    pub sums: *mut f64,
    /// What is missing in each column; null for none.
    pub missing: *const f64,
    /// Column sums, added to; null for none.
    pub columns: *mut f64,
}

/// See [`super::Micro`].
// The type only names the instruction set, for which the compiler vectorises the lanes.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
pub(super) unsafe fn plan_rows<V: Vector>(a: &PlanRows) {
    // SAFETY: the caller's contract: all rows have `m` elements.
    unsafe {
        let (mut mass, mut value, mut short) = ([0.0f64; WIDE], [0.0f64; WIDE], [0.0f64; WIDE]);
        let mut step = |j: usize, lane: usize| {
            let cost = f64::from(*a.cost.add(j));
            let mut p = a.weight * f64::from(*a.e.add(j));
            if !a.y.is_null() {
                p *= *a.y.add(j);
            }
            mass[lane] += p;
            value[lane] += p * cost;
            if !a.missing.is_null() {
                short[lane] += *a.missing.add(j) * cost;
            }
            if !a.columns.is_null() {
                *a.columns.add(j) += p;
            }
        };
        let mut j = 0;
        while j + WIDE <= a.m {
            for lane in 0..WIDE {
                step(j + lane, lane);
            }
            j += WIDE;
        }
        for lane in 0..a.m - j {
            step(j + lane, lane);
        }
        let fold = |lanes: [f64; WIDE]| lanes.iter().sum::<f64>();
        for (i, lanes) in [mass, value, short].into_iter().enumerate() {
            *a.sums.add(i) = fold(lanes);
        }
    }
}

/// Arguments of `transform`: `columns[j] = min(columns[j], cost[j] - potential)`, or, without columns, the least
/// `cost[j] - other[j]` into `least`.
#[derive(Clone, Copy, Debug)]
pub struct Transform {
    /// A row of costs.
    pub cost: *const f32,
    /// Columns.
    pub m: usize,
    /// Potential of the row.
    pub potential: f64,
    /// Minima of the columns; null for the other way.
    pub columns: *mut f64,
    /// Potentials of the columns.
    pub other: *const f64,
    /// Minimum of the row.
    pub least: *mut f64,
}

/// See [`super::Micro`].
// The type only names the instruction set, for which the compiler vectorises the lanes.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
pub(super) unsafe fn transform<V: Vector>(a: &Transform) {
    // SAFETY: the caller's contract: all rows have `m` elements.
    unsafe {
        if !a.columns.is_null() {
            for j in 0..a.m {
                let (value, now) = (f64::from(*a.cost.add(j)) - a.potential, *a.columns.add(j));
                *a.columns.add(j) = if value < now { value } else { now };
            }
            return;
        }
        let mut low = [f64::INFINITY; WIDE];
        let mut j = 0;
        while j + WIDE <= a.m {
            for (lane, low) in low.iter_mut().enumerate() {
                let value = f64::from(*a.cost.add(j + lane)) - *a.other.add(j + lane);
                *low = if value < *low { value } else { *low };
            }
            j += WIDE;
        }
        while j < a.m {
            low[0] = low[0].min(f64::from(*a.cost.add(j)) - *a.other.add(j));
            j += 1;
        }
        *a.least = low.into_iter().fold(f64::INFINITY, f64::min);
    }
}
