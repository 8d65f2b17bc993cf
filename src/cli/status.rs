//! `edgesplice status`

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hyper::StatusCode;

use super::client::{self, Agent};
use super::{AdminArgs, Context, Exit, Output, out, table};
use crate::app;
use crate::obs::api::{BackendReport, ServiceReport, Status};

/// How often `--watch` redraws.
const REDRAW: Duration = Duration::from_secs(1);

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    admin: AdminArgs,
    /// Redraw every second until interrupted
    #[arg(short, long, env = "EDGESPLICE_WATCH", hide_env_values = true, value_parser = super::flags::switch)]
    watch: bool,
    /// Say whether the agent is ready, and is of this container: 0 if so, else 1
    #[arg(long, env = "EDGESPLICE_READY", hide_env_values = true, value_parser = super::flags::switch, conflicts_with = "watch")]
    ready: bool,
    /// Show only services whose namespace/name holds this text
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
}

/// Asks the running agent and prints its answer.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let agent = Agent::new(&context.start()?)?;
    client::block_on(async {
        if args.ready {
            is_ready(agent).await?;
        } else if args.watch {
            tokio::select! {
                end = watch(agent, args, context.output) => end?,
                interrupt = tokio::signal::ctrl_c() => interrupt?,
            }
        } else {
            out::print(&ask(agent, args, context.output).await?.0)?;
        }
        Ok(Exit::Done)
    })
}

/// Whether the agent that has the node is ready, and runs where this process does. On a node that is being upgraded an
/// agent in another container may have it still, and answer for the port that both share.
async fn is_ready(agent: Agent) -> anyhow::Result<()> {
    match app::holder() {
        None => bail!("no agent has this node: start it with `edgesplice run`"),
        // The kernel has no number for it here.
        Some(0) => bail!("the agent that has this node runs in another container"),
        Some(_) => {}
    }
    let (status, body) = agent.get("/readyz").await?;
    if status != StatusCode::OK {
        bail!("not ready: {}", String::from_utf8_lossy(&body).trim_end().replace('\n', "; "));
    }
    out::print("ready\n")?;
    Ok(())
}

/// Redraws for ever; an agent that is away for a while is shown as such.
async fn watch(agent: Agent, args: &Args, output: Output) -> anyhow::Result<()> {
    let screen = std::io::stdout().is_terminal() && output == Output::Table;
    let mut before: Option<(Instant, Status)> = None;
    loop {
        match ask(agent, args, output).await {
            Ok((text, status)) => {
                let at = Instant::now();
                let rates = match (&before, output) {
                    (Some((then, old)), Output::Table) => rates(old, &status, at - *then),
                    _ => String::new(),
                };
                before = Some((at, status));
                show(&format!("{rates}{text}"), screen)?;
            }
            Err(e) if output == Output::Table => show(&format!("{e:#}"), screen)?,
            Err(e) => out::complain(&format!("error: {e:#}")),
        }
        tokio::time::sleep(REDRAW).await;
    }
}

/// Prints `text`, on a screen over what stood there: line by line, so that nothing flickers, and no more than fits.
fn show(text: &str, screen: bool) -> anyhow::Result<()> {
    if !screen {
        return Ok(out::print(text)?);
    }
    let rows = terminal_size::terminal_size().map_or(usize::MAX, |(_, rows)| usize::from(rows.0));
    let lines: Vec<&str> = text.lines().collect();
    // To the top left corner; each line clears what stood behind it, the last what stood below.
    let mut drawn = String::from("\x1b[H");
    let room = if lines.len() >= rows { rows.saturating_sub(2) } else { lines.len() };
    for line in &lines[..room] {
        let _ = writeln!(drawn, "{line}\x1b[K");
    }
    if room < lines.len() {
        let _ = writeln!(drawn, "… {} more lines: name a service to see less\x1b[K", lines.len() - room);
    }
    drawn.push_str("\x1b[J");
    Ok(out::draw(&drawn)?)
}

/// What has changed in `time`, for one second.
fn rates(old: &Status, new: &Status, time: Duration) -> String {
    let seconds = time.as_secs_f64().max(0.001);
    let per_second = |old: u64, new: u64| new.saturating_sub(old) as f64 / seconds;
    let sum = |status: &Status, of: fn(&ServiceReport) -> u64| status.services.iter().map(of).sum::<u64>();
    let flow = |of: fn(&ServiceReport) -> u64| {
        let whole = Duration::from_secs_f64(per_second(sum(old, of), sum(new, of)).min(1e18)).as_secs();
        table::bytes(whole)
    };
    format!(
        "rates    {:.1} new connections/s  {:.1} refused/s  in {}/s  out {}/s\n",
        per_second(old.proxy.accepted_total, new.proxy.accepted_total),
        per_second(old.proxy.refused_total, new.proxy.refused_total),
        flow(|service| service.bytes_in_total),
        flow(|service| service.bytes_out_total),
    )
}

async fn ask(agent: Agent, args: &Args, output: Output) -> anyhow::Result<(String, Status)> {
    let (code, body) = agent.get("/api/v1/status").await?;
    if code != StatusCode::OK {
        return Err(client::refusal(code, &body));
    }
    let mut status: Status =
        serde_json::from_slice(&body).context("the agent's answer is not the status of an agent")?;
    let all = status.services.len();
    if let Some(wanted) = &args.service {
        status.services.retain(|service| format!("{}/{}", service.namespace, service.name).contains(wanted));
    }
    let text = match (output, &args.service) {
        // As received: an agent of another version may say more than this program knows.
        (Output::Json, None) => String::from_utf8(body.to_vec()).context("the agent's answer is not text")?,
        (Output::Json, Some(_)) => serde_json::to_string(&status)?,
        (Output::Table, Some(wanted)) if status.services.is_empty() && all > 0 => {
            format!(
                "{}\nnone of {all} service ports has {} in its name\n",
                summary(&status),
                out::plain(wanted)
            )
        }
        (Output::Table, _) => render(&status),
    };
    Ok((text, status))
}

/// The status for people.
pub(super) fn render(status: &Status) -> String {
    let mut text = summary(status);
    if status.services.is_empty() {
        text.push_str("\nno services\n");
    } else {
        text.push('\n');
        text.push_str(&services(&status.services));
    }
    text
}

/// Everything but the services.
fn summary(status: &Status) -> String {
    let mut text = String::new();
    head(&mut text, status).and_then(|()| warnings(&mut text, status)).unwrap_or_default();
    text
}

fn head(text: &mut String, status: &Status) -> std::fmt::Result {
    let Status { source, proxy, rules, .. } = status;
    let ready = if status.ready { "ready" } else { "NOT READY" };
    writeln!(
        text,
        "node     {}  edgesplice {}  {ready}",
        out::plain(&status.node),
        out::plain(&status.version)
    )?;
    write!(text, "source   {}  {}  {} old", source.kind, source.state, table::age(source.age_seconds))?;
    writeln!(text, "{}", after(&source.message))?;
    write!(
        text,
        "proxy    port {}  connections {}  accepted {}",
        proxy.port, proxy.active_connections, proxy.accepted_total
    )?;
    writeln!(text, "  refused {}  pauses {}", proxy.refused_total, proxy.accept_pauses_total)?;
    if proxy.udp_flows + proxy.udp_dropped_total + proxy.udp_unreachable_total > 0 {
        write!(text, "udp      flows {}  dropped {}", proxy.udp_flows, proxy.udp_dropped_total)?;
        writeln!(text, "  unreachable {}", proxy.udp_unreachable_total)?;
    }
    if let Some(dns) = &status.dns {
        write!(text, "dns      {}", out::plain(&dns.addresses.join("  ")))?;
        write!(text, "  cluster {}  other {}", dns.cluster_queries_total, dns.foreign_queries_total)?;
        writeln!(text, "  kept {}  failed {}", dns.cached_answers_total, dns.upstream_failures_total)?;
    }
    let refusal = if rules.refuse_before_accept { "refused before accept" } else { "reset after accept" };
    let backend = if rules.backend.is_empty() { "none" } else { &rules.backend };
    write!(text, "rules    {backend}  unserved ports {refusal}  repairs {}", rules.repairs_total)?;
    writeln!(text, "{}", after(&rules.last_error))?;
    let ranges =
        if status.service_cidrs.is_empty() { "none".to_owned() } else { status.service_cidrs.join("  ") };
    writeln!(text, "ranges   {}", out::plain(&ranges))
}

/// More about a line, behind it.
fn after(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!("  {}", out::plain(message)) }
}

fn warnings(text: &mut String, status: &Status) -> std::fmt::Result {
    for condition in status.conditions.iter().filter(|c| !c.ok) {
        writeln!(text, "WAITING  {}: {}", out::plain(&condition.name), out::plain(&condition.detail))?;
    }
    for warning in &status.warnings {
        writeln!(text, "WARNING  {}", out::plain(warning))?;
    }
    Ok(())
}

/// One line a service port, and its backends indented below it.
fn services(services: &[ServiceReport]) -> String {
    let headings = [
        "SERVICE / BACKEND",
        "VIA",
        "MODE / NODE",
        "STATE",
        ">CONNS",
        ">TOTAL",
        ">FAILED",
        ">IN",
        ">OUT",
        "REASON",
    ];
    let mut table = table::new(&headings);
    for service in services {
        table.add_row(vec![
            table::cell(&port_name(service)),
            table::cell(&service.frontends.join(" ")),
            table::cell(&format!("{} {}", service.mode, service.policy)),
            table::cell(&ready_count(&service.backends)),
            table::cell(&service.active_connections.to_string()),
            table::cell(&service.connections_total.to_string()),
            table::cell(&service.backends.iter().map(|b| b.failures_total).sum::<u64>().to_string()),
            table::cell(&table::bytes(service.bytes_in_total)),
            table::cell(&table::bytes(service.bytes_out_total)),
            comfy_table::Cell::new(""),
        ]);
        for backend in &service.backends {
            table.add_row(vec![
                table::cell(&format!("  {}", backend.address)),
                table::cell(&backend.reach),
                table::cell(&place(backend)),
                table::cell(&backend.state),
                table::cell(&backend.active_connections.to_string()),
                table::cell(&backend.connections_total.to_string()),
                table::cell(&backend.failures_total.to_string()),
                comfy_table::Cell::new(""),
                comfy_table::Cell::new(""),
                comfy_table::Cell::new(out::plain(&backend.reason)),
            ]);
        }
    }
    table::text(&table)
}

/// `namespace/name:port 80/TCP`
fn port_name(service: &ServiceReport) -> String {
    let port = &service.port;
    let name = if port.name.is_empty() { String::new() } else { format!(":{}", port.name) };
    format!("{}/{}{name} {}/{}", service.namespace, service.name, port.port, port.protocol)
}

fn ready_count(backends: &[BackendReport]) -> String {
    let ready = backends.iter().filter(|b| b.state == "ready" && b.eligible != Some(false)).count();
    format!("{ready}/{} ready", backends.len())
}

/// Node and zone of a backend, as far as they are known.
pub(super) fn place(backend: &BackendReport) -> String {
    let parts = [backend.node.as_deref(), backend.zone.as_deref()];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::obs::api::tests::sample;

    #[test]
    fn everything_stands_in_the_table() {
        insta::assert_snapshot!(render(&sample()), @r#"
        node     node-a  edgesplice 0.1.0  NOT READY
        source   manifests  error  1m 1s old  web.yaml, document 2, line 7: no kind
        proxy    port 15001  connections 2  accepted 40  refused 1  pauses 0
        udp      flows 3  dropped 0  unreachable 1
        dns      169.254.96.16:53  cluster 0  other 0  kept 0  failed 0
        rules    nft  unserved ports refused before accept  repairs 1
        ranges   10.96.0.0/12
        WAITING  rules: xtables lock is held
        WARNING  kube-proxy's chains are here too

        SERVICE / BACKEND     VIA            MODE / NODE        STATE      CONNS  TOTAL  FAILED       IN      OUT  REASON
        shop/web:http 80/TCP  10.96.0.10:80  tcp least-request  1/2 ready      2     40       6  1.5 KiB  1.0 MiB
          192.0.2.2:30080     host-port      node-b z1          ready          1     20       3
          192.0.2.3:30080     host-port      node-b z1          ejected        1     20       3                    connection refused, back in 8s
        "#);
    }

    #[test]
    fn rates_are_what_has_changed() {
        let (old, mut new) = (sample(), sample());
        new.proxy.accepted_total += 30;
        new.services[0].bytes_out_total += 4096;
        let line = rates(&old, &new, Duration::from_secs(2));
        assert_eq!(line, "rates    15.0 new connections/s  0.0 refused/s  in 0 B/s  out 2.0 KiB/s\n");
        // An agent that has started anew counts from 0.
        assert!(rates(&new, &old, Duration::from_secs(1)).contains(" 0.0 new"));
    }

    #[test]
    fn no_services_are_said() {
        let mut status = sample();
        status.services.clear();
        assert!(render(&status).ends_with("\nno services\n"));
    }
}
