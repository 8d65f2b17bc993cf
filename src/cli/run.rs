//! `edgesplice run`

use super::{Context, Exit, Output, SettingsArgs, out};
use crate::app;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Print the effective configuration with every default, and end
    #[arg(long, env = "EDGESPLICE_PRINT_CONFIG", hide_env_values = true, value_parser = super::flags::switch)]
    print_config: bool,
    /// Check flags and configuration, and end
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
    } else if !args.check_config {
        app::run(settings)?;
    }
    Ok(Exit::Done)
}
