//! Commands: arguments are parsed into plain values (`args`), merged with configuration files (`settings`), and handed
//! to the library; progress goes to standard error (`progress`), results to standard output (`output`).

mod args;
mod commands;
mod output;
mod progress;
mod settings;

use clap::Parser;
use supernet::Result;

/// Parses the arguments and runs the command.
pub fn run() -> Result<()> {
    let cli = args::Cli::parse();
    match cli.command {
        args::Command::Search(args) => commands::search(&args),
        args::Command::Train(args) => commands::train(&args),
        args::Command::Evaluate(args) => commands::evaluate(&args),
        args::Command::Export(args) => commands::export(&args),
        args::Command::Devices(args) => commands::devices(&args),
        args::Command::Data(args) => commands::data(&args),
        args::Command::Plan(args) => commands::plan(&args),
        args::Command::Step(args) => commands::step(&args),
    }
}
