//! Ctrl-C: the first asks the run to stop after a checkpoint, the second ends the process at once.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use supernet::{Error, Result};

/// Exit status after a second Ctrl-C, as shells report a process that SIGINT ended.
const KILLED: i32 = 130;

/// Catches interrupts from now on; the flag rises at the first.
pub fn catch() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(KILLED);
        }
        let text = "stopping after this step, with a checkpoint; once more to stop at once without one";
        // A terminal that went away must not keep the run from saving itself.
        let _ = writeln!(std::io::stderr(), "{text}");
    };
    ctrlc::set_handler(handler)
        .map_err(|error| Error::usage(format!("cannot catch interrupts in this environment: {error}")))?;
    Ok(stop)
}
