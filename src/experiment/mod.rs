//! Whole comparisons: searches that start from the zoo beside searches that start from nothing, through the training of
//! what they find.
//!
//! [`job`] runs one piece into a folder of its own and keeps its result, so that a comparison that was stopped goes on
//! where it stood. [`demo`] is the smallest comparison, [`protocol`] the whole one,
//! [`report`] what came of it, with the [`statistics`] for that.

pub mod demo;
pub mod job;
pub mod protocol;
pub mod report;
pub mod statistics;
