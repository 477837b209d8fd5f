//! Bilevel search over a supernet's weights and alphas.

pub mod choose;
mod halves;
pub mod race;
pub mod run;
pub mod schedule;
pub mod session;
pub mod step;
pub mod transfer;

pub use race::race;
pub use session::search;
