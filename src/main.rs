//! The command line: runs what was asked for and turns the result into an exit status (0 done, 1 failure, 2 bad input
//! or usage, 3 interrupted with a checkpoint).

mod cli;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where standard error is closed there is nobody to tell; the status still says it.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
