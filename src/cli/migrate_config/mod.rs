//! `edgesplice migrate-config FILE`: EdgeMesh's configuration as this program's.
//!
//! `read.rs` takes the file apart, `table.rs` says what becomes of each key, this file puts the result together. No
//! knowledge of EdgeMesh beyond its configuration files belongs here.

mod read;
mod table;

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Context, Exit, Output, flags, out};
use crate::config::{Inputs, UsageError, keys};
use read::Keys;

/// Keys whose value is a list.
const LISTS: [&str; 3] = [keys::SERVICE_CIDRS, keys::DNS_LISTEN, keys::DNS_UPSTREAMS];

/// Arguments of `migrate-config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// EdgeMesh's edgemesh-agent.yaml, the ConfigMap that holds it, or the edgecore.yaml of KubeEdge up to v1.7; `-`
    /// reads standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// What became of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Line {
    /// The key in EdgeMesh's file, and its value.
    key: String,
    value: String,
    outcome: Outcome,
    /// The key it is written under now, if any.
    to: Option<&'static str>,
    note: String,
}

/// What became of a key, the most pressing first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// It has no counterpart, or not quite, and somebody must see to it.
    Attention,
    /// No version of EdgeMesh that is known here has this key.
    Unknown,
    /// Written into the new file.
    Translated,
    /// Left out, and nothing is lost.
    Needless,
}

#[derive(Debug, Serialize)]
struct Translation {
    config: String,
    keys: Vec<Line>,
}

/// Translates the file and prints the result: a configuration file whose comments tell what became of each key.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let name = if args.file == Path::new("-") { Path::new("standard input") } else { &args.file };
    let text = read_file(&args.file).map_err(|error| {
        UsageError::new(format!("{}: {error}: give EdgeMesh's configuration file", name.display()))
    })?;
    let translation = translate(&text, name)?;
    match context.output {
        Output::Table => out::print(&translation.config)?,
        Output::Json => out::print_json(&translation)?,
    }
    let count = |outcome| translation.keys.iter().filter(|line| line.outcome == outcome).count();
    out::complain(&format!(
        "{} keys: {} translated, {} not needed, {} to be seen to, {} unknown",
        translation.keys.len(),
        count(Outcome::Translated),
        count(Outcome::Needless),
        count(Outcome::Attention),
        count(Outcome::Unknown)
    ));
    // Files that it names may exist on the nodes only, so this is no error.
    let inputs = Inputs { node_name: Some(flags::no_node_name()), ..Inputs::default() };
    if let Err(error) = inputs.resolve(Some((Path::new("the translation"), &translation.config))) {
        out::complain(&format!("on this machine `edgesplice run` would refuse it: {error}"));
    }
    Ok(Exit::Done)
}

fn read_file(file: &Path) -> std::io::Result<String> {
    if file != Path::new("-") {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().lock().read_to_string(&mut text)?;
    Ok(text)
}

fn translate(text: &str, file: &Path) -> Result<Translation, UsageError> {
    let given = Keys::read(text, file)?;
    let mut lines: Vec<Line> = Vec::new();
    let mut values: Vec<(&'static str, Vec<String>, String)> = Vec::new();
    for (key, value) in given.iter() {
        let fate = table::fate(key, &given);
        if let Some((to, new)) = &fate.to {
            values.push((to, new.clone(), key.to_owned()));
        }
        let to = fate.to.map(|(to, _)| to);
        lines.push(Line {
            key: key.to_owned(),
            value: read::show(value),
            outcome: fate.outcome,
            to,
            note: fate.note,
        });
    }
    values.sort_by_key(|(key, ..)| place(key));
    // Two keys there can be one here.
    values.dedup_by(|(next, _, more), (key, _, from)| {
        let same = next == key;
        if same {
            from.push_str(", ");
            from.push_str(more);
        }
        same
    });
    lines.sort_by_key(|line| line.outcome);
    let mut config = header(file, &lines);
    config.push_str(&body(&values));
    Ok(Translation { config, keys: lines })
}

/// Sections in the order in which the documentation has them.
fn place(key: &str) -> (usize, &str) {
    let order = ["stateDir", "source", "intercept", "proxy", "backends", "dns", "admin", "log"];
    let section = key.split('.').next().unwrap_or(key);
    (order.iter().position(|known| *known == section).unwrap_or(order.len()), key)
}

fn header(file: &Path, lines: &[Line]) -> String {
    let mut text = format!(
        "# Translated from {} (EdgeMesh) by edgesplice {}.\n",
        out::plain(&file.display().to_string()),
        crate::obs::VERSION
    );
    let headings = [
        (Outcome::Attention, "See to these: they have no counterpart, or not quite."),
        (Outcome::Unknown, "Not known as a key of EdgeMesh; left out:"),
        (Outcome::Needless, "Left out, nothing is lost:"),
    ];
    for (outcome, heading) in headings {
        let of_kind: Vec<&Line> = lines.iter().filter(|line| line.outcome == outcome).collect();
        if of_kind.is_empty() {
            continue;
        }
        let _ = write!(text, "#\n# {heading}\n");
        for Line { key, value, note, .. } in of_kind {
            let note = if note.is_empty() { String::new() } else { format!(": {note}") };
            let _ = writeln!(text, "#   {}{note}", out::plain(&format!("{key} ({value})")));
        }
    }
    text.push('\n');
    text
}

/// The values as YAML, nested by the dots of their keys, each with the key that it comes from.
fn body(values: &[(&'static str, Vec<String>, String)]) -> String {
    let mut text = "apiVersion: edgesplice.io/v1alpha1\nkind: EdgespliceConfiguration\n".to_owned();
    let mut open: Vec<&str> = Vec::new();
    for (key, values, from) in values {
        let parts: Vec<&str> = key.split('.').collect();
        let (name, sections) = (parts[parts.len() - 1], &parts[..parts.len() - 1]);
        let common = open.iter().zip(sections).take_while(|(a, b)| a == b).count();
        for (depth, section) in sections.iter().enumerate().skip(common) {
            let _ = writeln!(text, "{}{section}:", "  ".repeat(depth));
        }
        open = sections.to_vec();
        let quoted: Vec<String> = values.iter().map(|value| quote(value)).collect();
        let value = if LISTS.contains(key) { format!("[{}]", quoted.join(", ")) } else { quoted.join(", ") };
        let _ = writeln!(text, "{}{name}: {value}  # {}", "  ".repeat(sections.len()), out::plain(from));
    }
    text
}

/// A scalar as YAML: bare where that is plain, else as a JSON string, which YAML reads too.
fn quote(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | ':' | '_' | '-');
    let bare = value.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && value.chars().all(plain)
        && !value.ends_with(':');
    if bare { value.to_owned() } else { serde_json::Value::from(value).to_string() }
}

/// Translates a file, for tests with hostile ones; what comes out can be read.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_text(text: &str) {
    let Ok(translation) = translate(text, Path::new("fuzz.yaml")) else { return };
    let read: Result<serde_json::Value, _> = serde_saphyr::from_str(&translation.config);
    assert!(read.is_ok(), "{}", translation.config);
}

#[cfg(test)]
mod tests;
