//! Wasserstein distances of Gaussians: `W^2 = |m - m'|^2 + tr(S + S' - 2 (S^1/2 S' S^1/2)^1/2)` (Dowson and Landau 1982).
//!
//! With centred samples `X [n, d]`, `Y [m, d]` the covariances are `X'X / (n - 1)` and `Y'Y / (m - 1)`, and the trace of
//! the root is the nuclear norm of `X Y'` over `sqrt((n - 1) (m - 1))`: exact, and small where classes have fewer samples
//! than dimensions. Where they have more, the triangular factor R of `X = Q R` stands in for X.

/// What a Gaussian inherits of a class: mean and a factor of its covariance.
#[derive(Clone, Debug)]
pub struct Gaussian {
    mean: Vec<f64>,
    /// `F [rows, d]` with `F'F` the covariance.
    factor: Vec<f64>,
    rows: usize,
    /// Variance of each dimension.
    variance: Vec<f64>,
}

impl Gaussian {
    /// Mean and unbiased covariance of `points [n, dim]`; the covariance of one point is zero.
    ///
    /// # Panics
    /// Without any point.
    pub fn of(points: &[f32], dim: usize) -> Self {
        let n = points.len() / dim;
        assert!(n > 0, "a class has at least one point");
        let mut mean = vec![0.0; dim];
        for row in points.chunks_exact(dim) {
            mean.iter_mut().zip(row).for_each(|(m, &x)| *m += f64::from(x) / n as f64);
        }
        let root = ((n.max(2) - 1) as f64).sqrt();
        let centred = |i: usize| (f64::from(points[i]) - mean[i % dim]) / root;
        let mut factor: Vec<f64> = (0..points.len()).map(centred).collect();
        let mut variance = vec![0.0; dim];
        factor.iter().enumerate().for_each(|(i, x)| variance[i % dim] += x * x);
        if n > dim {
            factor = triangular(factor, dim);
        }
        Self { mean, rows: factor.len() / dim, factor, variance }
    }

    /// Dimensions.
    pub fn dim(&self) -> usize {
        self.mean.len()
    }
}

/// `|m - m'|^2`.
pub fn means(a: &Gaussian, b: &Gaussian) -> f64 {
    a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// The distance if only variances of single dimensions are known: `|m - m'|^2 + |s - s'|^2` of standard deviations.
pub fn diagonal(a: &Gaussian, b: &Gaussian) -> f64 {
    let spread = |(a, b): (&f64, &f64)| (a.sqrt() - b.sqrt()).powi(2);
    means(a, b) + a.variance.iter().zip(&b.variance).map(spread).sum::<f64>()
}

/// The squared distance, at least 0.
pub fn bures(a: &Gaussian, b: &Gaussian) -> f64 {
    let dim = a.dim();
    // The cross product with the smaller side in front, for its Gram matrix has that many rows.
    let (small, large) = if a.rows <= b.rows { (a, b) } else { (b, a) };
    let mut cross = vec![0.0; small.rows * large.rows];
    for (i, x) in small.factor.chunks_exact(dim).enumerate() {
        for (j, y) in large.factor.chunks_exact(dim).enumerate() {
            cross[i * large.rows + j] = dot(x, y);
        }
    }
    let mut gram = vec![0.0; small.rows * small.rows];
    for i in 0..small.rows {
        for j in 0..=i {
            let row = |i: usize| &cross[i * large.rows..(i + 1) * large.rows];
            let value = dot(row(i), row(j));
            (gram[i * small.rows + j], gram[j * small.rows + i]) = (value, value);
        }
    }
    let nuclear: f64 = eigenvalues(gram, small.rows).into_iter().map(|v| v.max(0.0).sqrt()).sum();
    let trace = |g: &Gaussian| g.variance.iter().sum::<f64>();
    (means(a, b) + trace(a) + trace(b) - 2.0 * nuclear).max(0.0)
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// The triangular factor of `a [n, d]`, `n >= d`, by Householder reflections.
fn triangular(mut a: Vec<f64>, d: usize) -> Vec<f64> {
    let n = a.len() / d;
    let mut v = vec![0.0; n];
    for k in 0..d {
        let norm = (k..n).map(|i| a[i * d + k] * a[i * d + k]).sum::<f64>().sqrt();
        if norm == 0.0 {
            continue;
        }
        let pivot = if a[k * d + k] > 0.0 { -norm } else { norm };
        (k..n).for_each(|i| v[i] = a[i * d + k]);
        v[k] -= pivot;
        let half = v[k..].iter().map(|x| x * x).sum::<f64>() / 2.0;
        // Rows outermost: the matrix lies in rows.
        let mut products = vec![0.0; d - k];
        for i in k..n {
            products.iter_mut().zip(&a[i * d + k..(i + 1) * d]).for_each(|(p, x)| *p += v[i] * x);
        }
        for i in k..n {
            let share = v[i] / half;
            a[i * d + k..(i + 1) * d].iter_mut().zip(&products).for_each(|(x, p)| *x -= share * p);
        }
    }
    a.truncate(d * d);
    for i in 0..d {
        a[i * d..i * d + i].fill(0.0);
    }
    a
}

/// Eigenvalues of a symmetric matrix `a [n, n]`, in no order: Householder's reduction to three diagonals, then implicit
/// QL steps (Bowdler, Martin, Reinsch and Wilkinson 1968).
fn eigenvalues(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    let (mut d, mut e) = (vec![0.0; n], vec![0.0; n]);
    for i in (1..n).rev() {
        let norm = a[i * n..i * n + i].iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm == 0.0 || i == 1 {
            e[i] = a[i * n + i - 1];
            continue;
        }
        let pivot = if a[i * n + i - 1] > 0.0 { -norm } else { norm };
        let mut v = a[i * n..i * n + i].to_vec();
        v[i - 1] -= pivot;
        let half = dot(&v, &v) / 2.0;
        e[i] = pivot;
        // A := H A H of the leading block, as A - v w' - w v'.
        let mut w: Vec<f64> = (0..i).map(|r| dot(&a[r * n..r * n + i], &v) / half).collect();
        let share = dot(&v, &w) / (2.0 * half);
        w.iter_mut().zip(&v).for_each(|(w, v)| *w -= share * v);
        for r in 0..i {
            for c in 0..i {
                a[r * n + c] -= v[r] * w[c] + w[r] * v[c];
            }
        }
    }
    (0..n).for_each(|i| d[i] = a[i * n + i]);
    e.rotate_left(1);
    for l in 0..n {
        // A matrix of finite numbers is done after a few steps a value; the bound only keeps a wrong one from hanging.
        for _ in 0..60 {
            let small = |m: &usize| e[*m].abs() <= f64::EPSILON * (d[*m].abs() + d[*m + 1].abs());
            let m = (l..n - 1).find(small).unwrap_or(n - 1);
            if m == l {
                break;
            }
            let mut g = (d[l + 1] - d[l]) / (2.0 * e[l]);
            g = d[m] - d[l] + e[l] / (g + g.hypot(1.0).copysign(g));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut deflated = false;
            for i in (l..m).rev() {
                let (f, b) = (s * e[i], c * e[i]);
                let r = f.hypot(g);
                e[i + 1] = r;
                if r == 0.0 {
                    d[i + 1] -= p;
                    e[m] = 0.0;
                    deflated = true;
                    break;
                }
                (s, c) = (f / r, g / r);
                g = d[i + 1] - p;
                let r = (d[i] - g) * s + 2.0 * c * b;
                p = s * r;
                d[i + 1] = g + p;
                g = c * r - b;
            }
            if !deflated {
                d[l] -= p;
                e[l] = g;
                e[m] = 0.0;
            }
        }
    }
    d
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, normal};

    fn draw(n: usize, d: usize, seed: u64) -> Vec<f32> {
        let stream = Stream::new(seed, 90);
        let value = |i: usize| {
            let [a, b, ..] = stream.block(0, i as u32);
            normal(a, b).0 as f32 * (1.0 + (i % d) as f32)
        };
        (0..n * d).map(value).collect()
    }

    #[test]
    fn eigenvalues_of_known_matrices() {
        let mut found = eigenvalues(vec![2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0, 1.0, 2.0], 3);
        found.sort_by(f64::total_cmp);
        let root = 2f64.sqrt();
        for (a, b) in found.iter().zip([2.0 - root, 2.0, 2.0 + root]) {
            assert!((a - b).abs() < 1e-13, "{found:?}");
        }
        assert_eq!(eigenvalues(vec![3.5], 1), [3.5]);
        assert_eq!(eigenvalues(vec![0.0; 16], 4), [0.0; 4]);
        // Trace and Frobenius norm of a larger one.
        let n = 40;
        let x = draw(n, n, 3);
        let a: Vec<f64> = (0..n * n).map(|i| f64::from(x[i]) + f64::from(x[i % n * n + i / n])).collect();
        let values = eigenvalues(a.clone(), n);
        let trace: f64 = (0..n).map(|i| a[i * n + i]).sum();
        let norm = dot(&a, &a);
        assert!((values.iter().sum::<f64>() - trace).abs() < 1e-9 * norm.sqrt());
        assert!((dot(&values, &values) - norm).abs() < 1e-10 * norm);
    }

    #[test]
    fn few_samples_and_many_give_the_same_formula() {
        // The same class with every point twice: the same mean, a covariance that is known from the other.
        let (few, dim) = (draw(5, 8, 1), 8);
        let a = Gaussian::of(&few, dim);
        assert!(bures(&a, &a) < 1e-6 * a.variance.iter().sum::<f64>());
        let many = draw(30, 3, 2);
        let b = Gaussian::of(&many, 3);
        assert_eq!(b.rows, 3);
        for i in 0..3 {
            let column: f64 = (0..3).map(|r| b.factor[r * 3 + i].powi(2)).sum();
            assert!((column - b.variance[i]).abs() < 1e-10 * b.variance[i]);
        }
        assert!(bures(&b, &b) < 1e-6 * b.variance.iter().sum::<f64>());
    }

    #[test]
    fn one_dimension_has_the_textbook_value() {
        let a = Gaussian::of(&[0.0, 2.0], 1);
        let b = Gaussian::of(&[1.0, 1.0, 7.0], 1);
        // Means 1 and 3, standard deviations sqrt 2 and sqrt 12.
        let expected = 4.0 + (2f64.sqrt() - 12f64.sqrt()).powi(2);
        assert!((bures(&a, &b) - expected).abs() < 1e-12);
        assert!((diagonal(&a, &b) - expected).abs() < 1e-12);
        assert_eq!(means(&a, &b), 4.0);
    }

    #[test]
    fn one_point_has_no_covariance() {
        let a = Gaussian::of(&[1.0, 2.0], 2);
        let b = Gaussian::of(&[1.0, 5.0], 2);
        assert_eq!(bures(&a, &b), 9.0);
    }
}
