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
    /// The destination: IP:PORT, NAME:PORT or NAME; a port may be followed by /tcp (the default) or /udp
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
        ask(&settings, &args.target)?
    };
    match context.output {
        Output::Json => out::print_json(&resolution)?,
        Output::Table => out::print(&render(&resolution))?,
    }
    Ok(Exit::Done)
}

fn ask(settings: &Settings, target: &str) -> anyhow::Result<Resolution> {
    let agent = Agent::new(settings)?;
    let path = format!("/api/v1/resolve?target={}", percent_encode(target));
    let (code, body) = client::block_on(agent.get(&path))
        .context("resolve asks the running agent (--source answers without one)")?;
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
    // The protocol may be said, and is else TCP.
    let target = match target.rsplit_once('/') {
        Some((before, protocol))
            if ["tcp", "udp"].iter().any(|known| known.eq_ignore_ascii_case(protocol)) =>
        {
            before
        }
        _ => target,
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
            let _ = writeln!(text, "{name:<9} {}", out::plain(value));
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
    for (n, note) in resolution.notes.iter().enumerate() {
        line(if n == 0 { "because" } else { "" }, note);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::obs::api::ResolvedService;
    use crate::obs::api::tests::sample;

    #[test]
    fn targets_are_told_from_typing_errors() {
        for good in [
            "10.96.0.1:443",
            "[fd00::1]:80",
            "web",
            "web.shop:80",
            "web.shop.svc.cluster.local.",
            "7eleven.shop",
            "10.96.0.10:53/udp",
            "kube-dns.kube-system:53/UDP",
        ] {
            assert!(check_target(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ":80",
            "10.96.0.1",
            "fd00::1",
            "[fd00::1]",
            "web:",
            "web:0",
            "web:http",
            "a b",
            "web..shop",
            "1.2:3",
            "10.96.0.10:53/sctp",
        ] {
            assert!(check_target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_target_is_encoded_for_the_query() {
        assert_eq!(percent_encode("[::1]:80"), "%5B::1%5D:80");
        assert_eq!(percent_encode("a&b=\u{e9}%"), "a%26b%3D%C3%A9%25");
    }

    #[test]
    fn the_way_of_a_destination_is_shown() {
        let mut backends = sample().services[0].backends.clone();
        backends[0].eligible = Some(true);
        backends[1].eligible = Some(false);
        let resolution = Resolution {
            target: "web.shop:80".to_owned(),
            service: Some(ResolvedService {
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
                port: 80,
                protocol: "TCP".to_owned(),
                port_name: "http".to_owned(),
            }),
            frontend: Some("10.96.0.10:80".to_owned()),
            mode: Some("tcp".to_owned()),
            policy: Some("least-request".to_owned()),
            backends,
            verdict: Verdict::Proxied,
            why: "1 of 2 backends is eligible".to_owned(),
            notes: vec!["first".to_owned(), "second".to_owned()],
        };
        insta::assert_snapshot!(render(&resolution), @r#"
        target    web.shop:80
        service   shop/web port 80/TCP (http)
        frontend  10.96.0.10:80
        mode      tcp
        policy    least-request
        verdict   PROXIED: 1 of 2 backends is eligible
        because   first
                  second

        BACKEND          REACH      POD    NODE       STATE    ELIGIBLE  REASON
        192.0.2.2:30080  host-port  web-0  node-b z1  ready    yes
        192.0.2.3:30080  host-port  web-0  node-b z1  ejected  no        connection refused, back in 8s
        "#);
    }
}
