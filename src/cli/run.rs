//! `edgesplice run`

use super::{Context, Exit, SettingsArgs, out};
use crate::app;

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
        out::print(&settings.to_yaml()?)?;
    } else if args.check_config {
        // The manifests are part of what `run` refuses to start with; nothing else is looked at, and nothing touched.
        app::check_manifests(&settings)?;
        out::print("the configuration is good")?;
    } else {
        app::run(settings)?;
    }
    Ok(Exit::Done)
}
