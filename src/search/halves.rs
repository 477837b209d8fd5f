//! The two halves of a dataset's training part, one for the weights and one for the alphas, and the orders in which an
//! epoch's batches are drawn from them. Everything follows from the seed, so that a resumed run draws the same batches.

use std::sync::Arc;

use crate::config::SearchConfig;
use crate::data::{Dataset, Images, permutation, stratified_split};
use crate::error::{Error, Result};
use crate::run::Control;

/// Purposes of the data orders, for the counter-based generator.
const PURPOSE_WEIGHT_ORDER: u32 = 32;
const PURPOSE_ALPHA_ORDER: u32 = 33;

/// The halves of the training data and the batches drawn from them.
pub(super) struct Halves {
    pub images: Arc<Images>,
    weight: Vec<u32>,
    /// Images that train the alphas, and validate.
    pub alpha: Vec<u32>,
    pub batch: usize,
    seed: u64,
}

impl Halves {
    /// Splits a dataset; `spec` names it in messages.
    pub fn new(dataset: &Dataset, spec: &str, config: &SearchConfig) -> Result<Self> {
        let labels = &dataset.train.labels;
        let (weight, alpha) = stratified_split(labels, dataset.classes.len(), config.weight_share, config.seed);
        let least = weight.len().min(alpha.len());
        if least < 2 {
            return Err(Error::usage(format!(
                "{spec}: {} training images leave a half with {least}; a search needs at least two in each",
                labels.len()
            )));
        }
        let narrow = |indices: Vec<usize>| indices.into_iter().map(|i| i as u32).collect();
        let images = Arc::new(dataset.train.clone());
        Ok(Self { images, weight: narrow(weight), alpha: narrow(alpha), batch: least, seed: config.seed })
    }

    /// Brings the batches of several datasets to one size: what the settings ask for, or what the smallest half has.
    pub fn agree(all: &mut [Self], config: &SearchConfig, control: &mut Control<'_>) {
        let least = all.iter().map(|h| h.batch).min().unwrap_or(0);
        let batch = config.batch.min(least);
        if batch < config.batch {
            let text =
                format!("the smallest half has {least} images: the batch shrinks from {} to {batch}", config.batch);
            control.observer.note(&text);
        }
        all.iter_mut().for_each(|h| h.batch = batch);
    }

    /// Steps of an epoch.
    pub fn steps(&self) -> usize {
        self.weight.len() / self.batch
    }

    /// Order of the weight half in an epoch.
    pub fn weight_order(&self, epoch: usize) -> Vec<u32> {
        let order = permutation(self.weight.len(), self.seed, PURPOSE_WEIGHT_ORDER, epoch as u64);
        order.into_iter().map(|i| self.weight[i as usize]).collect()
    }

    /// Order of the alpha half for an epoch's steps: passes over the half, each in an order of its own, a pass's
    /// remainder dropped, going on across epochs.
    pub fn alpha_order(&self, epoch: usize) -> Vec<u32> {
        let a_pass = self.alpha.len() / self.batch;
        let mut order = Vec::with_capacity(self.steps() * self.batch);
        let mut pass: Option<(usize, Vec<u32>)> = None;
        for step in 0..self.steps() {
            let number = epoch * self.steps() + step;
            let wanted = number / a_pass;
            if pass.as_ref().is_none_or(|p| p.0 != wanted) {
                pass = Some((wanted, permutation(self.alpha.len(), self.seed, PURPOSE_ALPHA_ORDER, wanted as u64)));
            }
            let indices = &pass.as_ref().expect("set just now").1;
            let start = number % a_pass * self.batch;
            order.extend(indices[start..start + self.batch].iter().map(|&i| self.alpha[i as usize]));
        }
        order
    }
}
