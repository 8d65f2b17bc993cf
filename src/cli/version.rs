//! `edgesplice version`

use serde::Serialize;

use super::{Context, Exit, Output, out};
use crate::obs::{COMMIT, VERSION};

/// What this build can do, for scripts that must know before they rely on it.
const FEATURES: &[&str] = &["manifests", "kubernetes", "metaserver", "tcp", "udp", "http", "dns"];

/// Arguments of `version`: none of its own.
#[derive(Debug, clap::Args)]
pub struct Args {}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the names of the public contract")]
struct Version {
    version: &'static str,
    commit: &'static str,
    features: &'static [&'static str],
}

/// Prints what was built. Needs no settings, so that it answers even where they are wrong.
pub fn run(_: &Args, context: &Context) -> anyhow::Result<Exit> {
    let version = Version { version: VERSION, commit: COMMIT, features: FEATURES };
    match context.output {
        Output::Table => {
            out::print(&format!(
                "edgesplice {VERSION}\ncommit     {COMMIT}\nfeatures   {}",
                FEATURES.join(", ")
            ))?;
        }
        Output::Json => out::print_json(&version)?,
    }
    Ok(Exit::Done)
}
