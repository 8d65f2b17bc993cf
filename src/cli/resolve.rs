//! `edgesplice resolve`

use std::fmt::Write as _;

use anyhow::Context as _;
use hyper::StatusCode;

use super::client::{self, Agent};
use super::{Context, Exit, Output, SettingsArgs, out, status, table};
use crate::app;
use crate::config::{Settings, UsageError};
use crate::obs::api::{Resolution, Verdict};

/// Arguments of `resolve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The destination: IP:PORT, NAME:PORT or NAME
    #[arg(value_name = "WHAT")]
    target: String,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Explains one destination.
///
/// `--source` or `--manifests` on the command line asks that source itself. The variables do not: in the agent's own
/// container they say where the agent gets its objects, and it is the agent that is asked there.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    check_target(&args.target)?;
    let settings = context.start()?;
    let resolution = if context.typed("source") || context.typed("manifests") {
        app::resolve_offline(&settings, &args.target)?
    } else {
        ask(&settings, &args.target, context.output)?
    };
    match context.output {
        Output::Json => out::print_json(&resolution)?,
        Output::Table => out::print(&render(&resolution))?,
    }
    Ok(Exit::Done)
}

fn ask(settings: &Settings, target: &str, _: Output) -> anyhow::Result<Resolution> {
    let agent = Agent::new(settings)?;
    let path = format!("/api/v1/resolve?target={}", percent_encode(target));
    let (code, body) = client::block_on(agent.get(&path)).context(
        "the running agent is asked; --source answers without one, such as --source manifests --manifests PATH",
    )?;
    if code != StatusCode::OK {
        return Err(client::refusal(code, &body));
    }
    serde_json::from_slice(&body).context("the agent's answer is not a resolution")
}

/// Holds `target` against the forms there are, so that a typing error is told from a destination that nobody serves.
fn check_target(target: &str) -> Result<(), UsageError> {
    let fault = |why: &str| {
        Err(UsageError::new(format!(
            "WHAT is {target:?}: {why}: give IP:PORT, NAME:PORT or NAME, such as 10.96.0.1:443, web.shop:80 or web.shop"
        )))
    };
    if target.parse::<std::net::SocketAddr>().is_ok_and(|addr| addr.port() != 0) {
        return Ok(());
    }
    if target.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok() {
        return fault("an address needs a port");
    }
    let (name, port) = match target.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (target, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().map_or(true, |p| p == 0)) {
        return fault("the port is not a number from 1 to 65535");
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return fault("this is neither an address nor a name");
    }
    if name.split('.').all(|l| l.bytes().all(|b| b.is_ascii_digit())) {
        return fault("this looks like an address, but is none");
    }
    Ok(())
}

fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

/// The resolution for people.
fn render(resolution: &Resolution) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("{name:<9} {}", out::plain(value)));
            text.push('\n');
        }
    };
    line("target", &resolution.target);
    if let Some(s) = &resolution.service {
        let name = if s.port_name.is_empty() { String::new() } else { format!(" ({})", s.port_name) };
        line("service", &format!("{}/{} port {}/{}{name}", s.namespace, s.name, s.port, s.protocol));
    }
    line("frontend", resolution.frontend.as_deref().unwrap_or_default());
    line("mode", resolution.mode.as_deref().unwrap_or_default());
    line("policy", resolution.policy.as_deref().unwrap_or_default());
    let verdict = match resolution.verdict {
        Verdict::Proxied => "PROXIED",
        Verdict::Refused => "REFUSED",
        Verdict::NotIntercepted => "NOT INTERCEPTED",
    };
    line("verdict", &format!("{verdict}: {}", resolution.why));
    if !resolution.backends.is_empty() {
        text.push('\n');
        text.push_str(&backends(resolution));
    }
    text
}

fn backends(resolution: &Resolution) -> String {
    let mut table = table::new(&["BACKEND", "REACH", "POD", "NODE", "STATE", "ELIGIBLE", "REASON"]);
    for backend in &resolution.backends {
        let eligible = backend.eligible.unwrap_or(backend.state == "ready");
        table.add_row(vec![
            table::cell(&backend.address),
            table::cell(&backend.reach),
            table::cell(backend.pod.as_deref().unwrap_or_default()),
            table::cell(&status::place(backend)),
            table::cell(&backend.state),
            table::cell(if eligible { "yes" } else { "no" }),
            comfy_table::Cell::new(out::plain(&backend.reason)),
        ]);
    }
    table::text(&table)
}
