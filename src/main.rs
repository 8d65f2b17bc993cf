//! The `edgesplice` program: keep the agent's process, or parse, run the command, and turn the outcome into an exit code.

use std::process::ExitCode;

use edgesplice::cli;

fn main() -> ExitCode {
    if let Some(kept) = cli::run::keep(std::env::args_os()) {
        return kept.unwrap_or_else(|error| cli::finish(Err(error)).into());
    }
    let outcome = cli::parse(std::env::args_os()).and_then(cli::Invocation::run);
    cli::finish(outcome).into()
}
