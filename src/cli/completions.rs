//! `edgesplice completions SHELL` and `edgesplice man FOLDER`: for those who package the program.

use std::path::PathBuf;

use anyhow::Context as _;
use clap_complete::Shell;

use super::{Context, Exit, out};

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The folder that takes the pages, one a command; made if it is not there
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Prints the completion script of a shell.
pub fn completions(args: &CompletionsArgs, _: &Context) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "edgesplice", &mut script);
    out::print(&String::from_utf8(script).context("a completion script is text")?)?;
    Ok(Exit::Done)
}

/// Writes the manual pages.
pub fn man(args: &ManArgs, _: &Context) -> anyhow::Result<Exit> {
    let folder = &args.folder;
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(super::command(), folder))
        .with_context(|| format!("the manual pages cannot be written to {}", folder.display()))?;
    Ok(Exit::Done)
}
