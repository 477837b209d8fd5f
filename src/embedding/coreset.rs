//! What a zoo entry carries of a source dataset, so that a distance to it needs no image: some labelled points, and of
//! every class mean, variance and count. Points are rounded to f16, whose relative error is at most 2^-11 (5e-4): far
//! below the distance of two images, so that rankings of datasets do not change.

use half::f16;
use serde::{Deserialize, Serialize};

use super::{Embedded, Sample, Signature};
use crate::data::stratified_subset;
use crate::error::{Error, Result};

/// Description of a coreset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoresetMeta {
    /// Which of the entry's sources it stands for.
    pub source: usize,
    /// What made the points.
    pub signature: Signature,
    /// Points kept.
    pub points: usize,
    /// Elements of a point.
    pub dim: usize,
    /// Images whose points went into means and variances.
    pub images: usize,
    /// Seed of the choice of images.
    pub seed: u64,
}

/// A coreset in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Coreset {
    /// The description.
    pub meta: CoresetMeta,
    /// `points x dim`, values of half precision.
    pub points: Vec<f32>,
    /// Class of each point.
    pub labels: Vec<u32>,
    /// Mean of each class, `classes x dim`.
    pub mean: Vec<f32>,
    /// Diagonal of each class's covariance (unbiased; 0 for a class of one image), `classes x dim`.
    pub variance: Vec<f32>,
    /// Images of each class that the statistics saw.
    pub counts: Vec<u32>,
}

impl Coreset {
    /// Of an embedding: statistics of all its points, and a stratified choice of them.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if a point is beyond half precision, [`Error::Usage`] if the sample is smaller than the number
    /// of classes.
    pub fn new(embedded: &Embedded, source: usize, sample: Sample) -> Result<Self> {
        let (dim, classes, name) = (embedded.dim, embedded.classes.len(), &embedded.name);
        if sample.max < classes {
            let max = sample.max;
            return Err(Error::usage(format!("a coreset of {max} points cannot show the {classes} classes of {name}")));
        }
        let mut counts = vec![0u32; classes];
        let (mut mean, mut m2) = (vec![0.0f64; classes * dim], vec![0.0f64; classes * dim]);
        for (i, &label) in embedded.labels.iter().enumerate() {
            let class = label as usize;
            counts[class] += 1;
            let places = mean[class * dim..][..dim].iter_mut().zip(&mut m2[class * dim..][..dim]);
            // Welford's update: no sum of squares that a far mean would cancel.
            for ((mean, m2), &x) in places.zip(embedded.point(i)) {
                let before = f64::from(x) - *mean;
                *mean += before / f64::from(counts[class]);
                *m2 += before * (f64::from(x) - *mean);
            }
        }
        let unbiased = |(i, m2): (usize, &f64)| (m2 / f64::from(counts[i / dim].saturating_sub(1).max(1))) as f32;
        let variance = m2.iter().enumerate().map(unbiased).collect();
        let chosen = stratified_subset(&embedded.labels, classes, sample.max, sample.seed);
        let points: Vec<f32> =
            chosen.iter().flat_map(|&i| embedded.point(i)).map(|&x| f16::from_f32(x).to_f32()).collect();
        if let Some(at) = points.iter().position(|x| !x.is_finite()) {
            let value = embedded.point(chosen[at / dim])[at % dim];
            return Err(Error::NonFinite(format!(
                "the embedding of {name} by {} has a value {value}, beyond half precision (65504)",
                embedded.signature.embedder
            )));
        }
        let labels = chosen.iter().map(|&i| embedded.labels[i]).collect();
        let meta = CoresetMeta {
            source,
            signature: embedded.signature.clone(),
            points: chosen.len(),
            dim,
            images: embedded.len(),
            seed: sample.seed,
        };
        let mean = mean.iter().map(|&m| m as f32).collect();
        Ok(Self { meta, points, labels, mean, variance, counts })
    }

    /// The points as an embedded dataset of a name and classes.
    pub fn embedded(&self, name: &str, classes: &[String]) -> Embedded {
        Embedded {
            name: name.into(),
            dim: self.meta.dim,
            points: self.points.clone(),
            labels: self.labels.clone(),
            classes: classes.to_vec(),
            signature: self.meta.signature.clone(),
        }
    }
}
