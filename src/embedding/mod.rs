//! Embeddings of datasets: every image becomes a point, so that datasets can be compared. A dataset is embedded once,
//! kept on disk under the hash of what its points depend on, and never embedded again.
//!
//! `embedder` turns images into points: raw pixels, the trunk of a zoo entry, or a pretrained network whose weights the
//! user provides (`convnet` runs it, `efficientnet` and `resnet` say what it looks like). `cache` keeps the points, `coreset`
//! reduces them to what a zoo entry carries, `write` exports them.

pub mod cache;
pub mod convnet;
pub mod coreset;
pub mod efficientnet;
pub mod embedder;
pub mod resnet;
pub mod write;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::Geometry;
use crate::error::{Error, Result};

pub use coreset::{Coreset, CoresetMeta};
pub use embedder::{Embedder, Sample};

/// How pixels enter an embedder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Normalised by constants that belong to the embedder, the same for every dataset: what tells datasets apart, such
    /// as their brightness, stays.
    #[default]
    Normalised,
    /// 0 to 255 without normalisation, as the released distance scripts of supernet transfer do (`prabhant/otdd`).
    Paper,
}

impl Profile {
    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Normalised => "normalised",
            Self::Paper => "paper",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = [Self::Normalised, Self::Paper].into_iter().find(|p| p.name() == text);
        known.ok_or_else(|| Error::usage(format!("profile `{text}`: expected normalised or paper")))
    }
}

/// What two embeddings must have in common for distances between their points to mean anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Signature {
    /// Name of the embedder.
    pub embedder: String,
    /// Hash of its weights; empty where there are none.
    pub weights: String,
    /// Geometry to which images are brought.
    pub size: Geometry,
    /// How pixels enter.
    pub profile: Profile,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { embedder, weights, size, profile } = self;
        write!(f, "{embedder}, images {size}, profile {profile}")?;
        if weights.is_empty() { Ok(()) } else { write!(f, ", weights {weights}") }
    }
}

/// Refuses a distance between points of different spaces.
///
/// # Errors
/// [`Error::Usage`] that names both and what differs.
pub fn check_comparable((a, a_signature): (&str, &Signature), (b, b_signature): (&str, &Signature)) -> Result<()> {
    if a_signature == b_signature {
        return Ok(());
    }
    Err(Error::usage(format!(
        "there is no distance between `{a}` ({a_signature}) and `{b}` ({b_signature}): their points lie in different \
         spaces; embed both with the same embedder (zoo entries: `supernet zoo embed`)"
    )))
}

/// A dataset as labelled points.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// Name of the dataset.
    pub name: String,
    /// Elements of a point.
    pub dim: usize,
    /// `n x dim` values, row by row.
    pub points: Vec<f32>,
    /// Class of each point.
    pub labels: Vec<u32>,
    /// Class names; labels index them.
    pub classes: Vec<String>,
    /// What made the points.
    pub signature: Signature,
}

impl Embedded {
    /// Number of points.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Point `i`.
    ///
    /// # Panics
    /// If there is no such point.
    pub fn point(&self, i: usize) -> &[f32] {
        &self.points[i * self.dim..][..self.dim]
    }
}
