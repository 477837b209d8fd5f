//! Commands and their arguments. Each command has a file of its own: its arguments, what it runs, its report.

mod bench;
mod data;
mod demo;
mod devices;
mod distance;
mod embed;
mod evaluate;
mod experiment;
mod export;
mod folder;
mod interrupt;
mod ot;
mod output;
mod parse;
mod plan;
mod pretrain;
mod progress;
mod search;
mod settings;
mod starting;
mod train;
mod zoo;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use supernet::Result;
use supernet::config::{SearchConfig, TrainConfig};

const AFTER_HELP: &str = "\
Exit status: 0 done, 1 failure, 2 bad input or usage, 3 interrupted with a checkpoint.

Examples:
  supernet search --data builtin:fashion --channels 8 --layers 5 --epochs 10 --out runs/search
  supernet train --genotype runs/search/genotype.json --data builtin:fashion --out runs/train
  supernet evaluate --checkpoint runs/train/checkpoint.safetensors --data builtin:fashion";

/// Searches neural architectures with DARTS supernets, and trains what it finds.
#[derive(Parser)]
#[command(name = "supernet", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    /// Print one JSON object on standard output at the end, and nothing else there.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Search(search::Arguments),
    Pretrain(pretrain::Arguments),
    Zoo(zoo::Arguments),
    Train(train::Arguments),
    Evaluate(evaluate::Arguments),
    Experiment(experiment::Arguments),
    Export(export::Arguments),
    Devices(devices::Arguments),
    Data(data::Arguments),
    Embed(embed::Arguments),
    Distance(distance::Arguments),
    Plan(plan::Arguments),
    Ot(ot::Arguments),
    /// Measure kernels, whole steps, the image loader or transport.
    Bench(bench::Arguments),
    Step(bench::step::Arguments),
}

/// Runs the command of this process's arguments; usage errors, help and version end the process.
pub fn run() -> Result<()> {
    let command = Cli::command()
        .mut_subcommand("pretrain", |c| settings::with_defaults(c, &SearchConfig::default()))
        .mut_subcommand("search", |c| settings::with_defaults(c, &SearchConfig::default()))
        .mut_subcommand("train", |c| settings::with_defaults(c, &TrainConfig::default()));
    let cli = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    let json = cli.json;
    match cli.command {
        Command::Demo(arguments) => demo::run(&arguments, json),
        Command::Search(arguments) => search::run(&arguments, json),
        Command::Pretrain(arguments) => pretrain::run(&arguments, json),
        Command::Zoo(arguments) => zoo::run(&arguments, json),
        Command::Train(arguments) => train::run(&arguments, json),
        Command::Evaluate(arguments) => evaluate::run(&arguments, json),
        Command::Experiment(arguments) => experiment::run(&arguments, json),
        Command::Export(arguments) => export::run(&arguments, json),
        Command::Devices(_) => devices::run(json),
        Command::Data(arguments) => data::run(&arguments, json),
        Command::Embed(arguments) => embed::run(&arguments, json),
        Command::Distance(arguments) => distance::run(&arguments, json),
        Command::Plan(arguments) => plan::run(&arguments, json),
        Command::Ot(arguments) => ot::run(&arguments, json),
        Command::Bench(arguments) => bench::run(&arguments, json),
        Command::Step(arguments) => bench::step::run(&arguments, json),
    }
}
