//! Datasets read from files made on the spot: every format as it should be, and every way in which it can be wrong
//! with the message that the user sees.

mod fixtures;
mod formats;
mod hostile;
