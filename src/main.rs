//! The `edgesplice` program: parse, run the command, turn the outcome into an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use edgesplice::cli::{Exit, Output, cleanup, out};

/// The command line as typed.
#[derive(clap::Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The form of a result
    #[arg(short, long, global = true, default_value = "table", value_parser = ["table", "json"])]
    output: String,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Remove what older EdgeMesh versions and this program left on the node
    Cleanup(cleanup::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS };
        }
    };
    let Command::Cleanup(args) = &cli.command;
    let output = if cli.output == "json" { Output::Json } else { Output::Table };
    let exit = cleanup::run(args, output).unwrap_or_else(|error| {
        out::complain(&format!("error: {}", format!("{error:#}").replace('\n', " ")));
        Exit::Failed
    });
    ExitCode::from(exit as u8)
}
