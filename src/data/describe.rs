//! What there is to know about a dataset at a glance.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Dataset, Geometry, Images};

/// Deviations below this are taken as this: dividing by that of a constant channel would give infinity.
const LEAST_STD: f32 = 1e-3;

/// Per-channel mean and standard deviation of pixels scaled to 0..1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    /// Mean of each channel.
    pub mean: Vec<f32>,
    /// Population standard deviation of each channel, at least 1e-3.
    pub std: Vec<f32>,
}

/// Statistics of the training part, for normalising both parts. Sums are of integers: exact, whatever the number
/// of threads.
pub fn normalisation(train: &Images) -> Normalisation {
    let channels = train.geometry.channels;
    let zero = || vec![[0u64; 256]; channels];
    let add = |mut a: Vec<[u64; 256]>, b: Vec<[u64; 256]>| {
        a.iter_mut().flatten().zip(b.iter().flatten()).for_each(|(a, b)| *a += b);
        a
    };
    let histograms = train
        .pixels
        .par_chunks(channels << 16)
        .map(|pixels| {
            let mut histograms = zero();
            for pixel in pixels.chunks_exact(channels) {
                histograms.iter_mut().zip(pixel).for_each(|(histogram, &value)| histogram[usize::from(value)] += 1);
            }
            histograms
        })
        .reduce(zero, add);
    let moments = histograms.iter().map(|histogram| {
        let total = |power: u32| -> u64 { (0..).zip(histogram).map(|(value, n): (u64, _)| value.pow(power) * n).sum() };
        let n = total(0).max(1) as f64;
        let mean = total(1) as f64 / n;
        let variance = (total(2) as f64 / n - mean * mean).max(0.0);
        ((mean / 255.0) as f32, ((variance.sqrt() / 255.0) as f32).max(LEAST_STD))
    });
    let (mean, std) = moments.unzip();
    Normalisation { mean, std }
}

/// Images of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassCount {
    /// Name of the class.
    pub name: String,
    /// Training images.
    pub train: usize,
    /// Test images.
    pub test: usize,
}

/// Summary of a dataset, for people and, serialized, for scripts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// Name of the dataset.
    pub name: String,
    /// Hash of its contents.
    pub identity: String,
    /// Size and channels of every image.
    #[serde(flatten)]
    pub geometry: Geometry,
    /// Number of training images.
    pub train_images: usize,
    /// Number of test images.
    pub test_images: usize,
    /// Images of each class, in the order of the labels.
    pub classes: Vec<ClassCount>,
    /// Statistics of the training part.
    #[serde(flatten)]
    pub normalisation: Normalisation,
    /// Remarks of the reader.
    pub notes: Vec<String>,
}

/// Counts and statistics of a dataset.
pub fn describe(dataset: &Dataset) -> Description {
    let n = dataset.classes.len();
    let counts = dataset.train.class_counts(n).into_iter().zip(dataset.test.class_counts(n));
    let class = |(name, (train, test)): (&String, _)| ClassCount { name: name.clone(), train, test };
    Description {
        name: dataset.name.clone(),
        identity: dataset.identity.clone(),
        geometry: dataset.train.geometry,
        train_images: dataset.train.len(),
        test_images: dataset.test.len(),
        classes: dataset.classes.iter().zip(counts).map(class).collect(),
        normalisation: normalisation(&dataset.train),
        notes: dataset.notes.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_known_pixels() {
        let geometry = Geometry { height: 1, width: 2, channels: 2 };
        let images = Images { geometry, pixels: vec![0, 51, 255, 51, 0, 51, 255, 51], labels: vec![0, 1] };
        assert_eq!(normalisation(&images), Normalisation { mean: vec![0.5, 0.2], std: vec![0.5, LEAST_STD] });
    }

    #[test]
    fn no_images_give_finite_statistics() {
        let geometry = Geometry { height: 1, width: 1, channels: 1 };
        let images = Images { geometry, pixels: Vec::new(), labels: Vec::new() };
        assert_eq!(normalisation(&images), Normalisation { mean: vec![0.0], std: vec![LEAST_STD] });
    }
}
