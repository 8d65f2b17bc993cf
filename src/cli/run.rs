//! `edgesplice run`

use super::{Context, Exit, Output, SettingsArgs, out};
use std::ffi::OsString;
use std::process::ExitCode;

use crate::app;
use crate::keeper::{self, Role};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Print the effective configuration with every default, and end
    #[arg(long, env = "EDGESPLICE_PRINT_CONFIG", hide_env_values = true, value_parser = super::flags::switch)]
    print_config: bool,
    /// Check flags, configuration and manifests, and end: 0 if `run` would start with them, else 64
    #[arg(long, env = "EDGESPLICE_CHECK_CONFIG", hide_env_values = true, value_parser = super::flags::switch)]
    check_config: bool,
}

/// Runs the agent until it is told to stop.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let settings = context.start()?;
    if args.print_config {
        let yaml = settings.to_yaml()?;
        match context.output {
            Output::Table => out::print(&yaml)?,
            // YAML reads JSON, so this is a configuration file as well.
            Output::Json => out::print_json(&serde_saphyr::from_str::<serde_json::Value>(&yaml)?)?,
        }
    } else if args.check_config {
        // The manifests are part of what `run` refuses to start with; nothing else is looked at, and nothing touched.
        app::refuse_impossible(&settings.state_dir)?;
        app::check_manifests(&settings)?;
        out::print("the configuration is good")?;
    } else {
        match keeper::role()? {
            Role::Worker(store) => app::run(settings, Some(store))?,
            Role::Alone => app::run(settings, None)?,
            Role::Withdraw => app::withdraw_leftovers(&settings)?,
        }
    }
    Ok(Exit::Done)
}

/// Runs as the keeper of the agent, if that is what the command line asks for. Nothing is parsed for that: the process
/// is to stay small, and whatever is wrong is found by the one that it starts.
pub fn keep(arguments: impl IntoIterator<Item = OsString>) -> Option<anyhow::Result<ExitCode>> {
    (keeper::is_keeper() && is_run(arguments)).then(keeper::keep)
}

/// Whether the command is `run`. Where this is wrong, a process stands between that need not be there.
fn is_run(arguments: impl IntoIterator<Item = OsString>) -> bool {
    const WITH_VALUE: [&str; 5] = ["--config", "--log-level", "--log-format", "--output", "-o"];
    let mut arguments = arguments.into_iter().skip(1);
    while let Some(argument) = arguments.next() {
        if WITH_VALUE.iter().any(|flag| argument == *flag) {
            arguments.next();
        } else if !argument.as_encoded_bytes().starts_with(b"-") {
            return argument == "run";
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_found_behind_flags() {
        let is = |line: &str| is_run(line.split(' ').map(OsString::from));
        assert!(is("edgesplice run"));
        assert!(is("edgesplice --config run run --node-name a"));
        assert!(is("edgesplice --log-format=json -o json run"));
        assert!(!is("edgesplice status --watch"));
        assert!(!is("edgesplice --config run status"));
        assert!(!is("edgesplice"));
    }
}
