//! The commands, one file each, and what they share: flags, output and exit codes.
//!
//! A command loads its settings, asks `app` or the running agent, and prints. Nothing here decides anything about
//! traffic; nothing else in the crate prints.

/// `check`: what would stop the agent on this machine.
pub mod check;
/// `cleanup`: what older EdgeMesh versions and a killed agent left behind.
pub mod cleanup;
mod client;
/// `completions` and `man`: what packages of this program bring along.
pub mod completions;
mod flags;
/// `migrate-config`: EdgeMesh's configuration as this program's.
pub mod migrate_config;
/// Results on standard output.
pub mod out;
/// `resolve`: what becomes of one destination.
pub mod resolve;
/// `rules`: the rules that `run` would install.
pub mod rules;
/// `run`: the agent.
pub mod run;
/// `status`: what the running agent does.
pub mod status;
mod table;
/// `version`: what was built.
pub mod version;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Inputs, LogFormat, Settings, UsageError};
use crate::obs::log;
pub use flags::{AdminArgs, GlobalArgs, SettingsArgs};
pub use out::Output;

/// How a command ended. The numbers are part of the public contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// It failed while running; one line says why.
    Failed = 1,
    /// `check` found a problem, or `cleanup` kept something that it may not remove.
    Found = 2,
    /// Wrong flags or configuration; nothing was changed.
    Usage = 64,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

const LONG_VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("EDGESPLICE_COMMIT"), ")");

/// The command line as typed.
#[derive(Debug, Parser)]
#[command(
    name = "edgesplice",
    version = LONG_VERSION,
    about = "Transparent service interceptor for KubeEdge edge nodes",
    after_help = "A flag beats its environment variable, and that beats the configuration file.",
    subcommand_required = true,
    arg_required_else_help = false,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent: watch the source, install the rules, accept, balance and relay.
    Run(run::Args),
    /// Remove the rules, links, routes and files that older EdgeMesh versions and a killed agent left.
    Cleanup(cleanup::Args),
    /// Look for what would stop the agent on this machine, or make it work wrongly; changes nothing.
    Check(check::Args),
    /// Print the rules that `run` would install now, as iptables-save does; changes nothing.
    Rules(rules::Args),
    /// Show what the running agent does: services, backends, health, counters, age of the data.
    Status(status::Args),
    /// Explain one destination: which service port, which backends, which not and why.
    Resolve(resolve::Args),
    /// Translate EdgeMesh's `edgemesh-agent.yaml`, key by key; says what has no counterpart and changes nothing.
    MigrateConfig(migrate_config::Args),
    /// Print version, commit and features.
    Version(version::Args),
    /// Print the completion script of a shell.
    #[command(hide = true)]
    Completions(completions::CompletionsArgs),
    /// Write the manual pages into a folder.
    #[command(hide = true)]
    Man(completions::ManArgs),
}

impl Command {
    /// Whether it matters which node this is. The others must work on a machine whose host name is no node name.
    fn needs_node_name(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Rules(_) | Self::Resolve(_))
    }
}

/// The whole command line, for whoever describes it.
fn command() -> clap::Command {
    Cli::command()
}

/// What every command gets beside its own arguments.
#[derive(Debug)]
pub struct Context {
    inputs: Inputs,
    /// How a result is printed.
    pub output: Output,
    /// The parsed command line of this command, to tell a flag from a variable.
    pub matches: ArgMatches,
}

impl Context {
    /// Makes the settings from file, environment and flags, and starts logging as they say.
    pub fn start(&self) -> anyhow::Result<Settings> {
        let settings = self.inputs.load()?;
        log::start(&settings.log.level, settings.log.format == LogFormat::Json)?;
        Ok(settings)
    }

    /// Whether the flag with this id was typed, and not just set in the environment.
    pub fn typed(&self, id: &str) -> bool {
        flags::typed(&self.matches, id)
    }
}

/// A command, ready to run.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    context: Context,
}

/// Parses the command line and the environment. Help and version come back as errors that [`finish`] prints.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<Invocation> {
    let mut matches = Cli::command().try_get_matches_from(args)?;
    let cli = Cli::from_arg_matches_mut(&mut matches.clone())?;
    let matches = matches.remove_subcommand().map(|(_, matches)| matches).unwrap_or_default();
    let output = flags::output(&matches)?;
    let inputs = Inputs {
        file: cli.global.config(),
        overrides: flags::overrides(&matches),
        node_name: if cli.command.needs_node_name() {
            flags::default_node_name()
        } else {
            Some(flags::no_node_name())
        },
    };
    Ok(Invocation { command: cli.command, context: Context { inputs, output, matches } })
}

impl Invocation {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<Exit> {
        let context = &self.context;
        match &self.command {
            Command::Run(args) => run::run(args, context),
            Command::Cleanup(args) => cleanup::run(args, context),
            Command::Check(args) => check::run(args, context),
            Command::Rules(args) => rules::run(args, context),
            Command::Status(args) => status::run(args, context),
            Command::Resolve(args) => resolve::run(args, context),
            Command::MigrateConfig(args) => migrate_config::run(args, context),
            Command::Version(args) => version::run(args, context),
            Command::Completions(args) => completions::completions(args, context),
            Command::Man(args) => completions::man(args, context),
        }
    }
}

/// Prints what an error has to say, and gives the exit code.
pub fn finish(outcome: anyhow::Result<Exit>) -> Exit {
    let error = match outcome {
        Ok(exit) => return exit,
        Err(error) => error,
    };
    if let Some(clap) = error.downcast_ref::<clap::Error>() {
        if !clap.use_stderr() {
            return finish(out::print(&clap.render().to_string()).map(|()| Exit::Done).map_err(Into::into));
        }
        out::complain(clap.render().to_string().trim_end());
        return Exit::Usage;
    }
    if error.chain().any(is_broken_pipe) {
        // Whoever read our output has seen enough.
        return Exit::Done;
    }
    out::complain(&format!("error: {}", format!("{error:#}").replace('\n', " ")));
    // As a cause, or as the context of another error.
    let usage = error.downcast_ref::<UsageError>().is_some()
        || error.chain().any(<dyn std::error::Error>::is::<UsageError>);
    if usage { Exit::Usage } else { Exit::Failed }
}

fn is_broken_pipe(cause: &(dyn std::error::Error + 'static)) -> bool {
    // Only our own standard output is meant: `out::print` is the one place that wraps its errors so.
    cause.downcast_ref::<out::StdoutError>().is_some_and(|e| e.0.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests;
