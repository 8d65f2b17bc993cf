//! The `edgesplice` program: parse, run the command, turn the outcome into an exit code.

use std::process::ExitCode;

use edgesplice::cli;

fn main() -> ExitCode {
    let outcome = cli::parse(std::env::args_os()).and_then(cli::Invocation::run);
    cli::finish(outcome).into()
}
