//! `edgesplice rules`

use super::{Context, Exit, Output, SettingsArgs, out};
use crate::app;

/// Arguments of `rules`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Prints what `run` would install now.
pub fn run(_: &Args, context: &Context) -> anyhow::Result<Exit> {
    let rules = app::render_rules(&context.start()?)?;
    match context.output {
        Output::Table => out::print(&rules)?,
        Output::Json => out::print_json(&serde_json::json!({ "rules": rules }))?,
    }
    Ok(Exit::Done)
}
