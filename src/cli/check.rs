//! `edgesplice check`

use std::fmt::Write as _;

use super::{Context, Exit, Output, SettingsArgs, out};
use crate::app;
use crate::obs::api::{Finding, Severity};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Prints what stands in the agent's way on this machine.
pub fn run(_: &Args, context: &Context) -> anyhow::Result<Exit> {
    let app::Checkup { packet_filter, notes, findings } = app::check(&context.start()?)?;
    match context.output {
        Output::Table => out::print(&text(&packet_filter, &notes, &findings))?,
        Output::Json => out::print_json(&findings)?,
    }
    let problem = findings.iter().any(|f| f.severity == Severity::Problem);
    Ok(if problem { Exit::Found } else { Exit::Done })
}

/// What is looked at, what is worth knowing, and what was found.
fn text(packet_filter: &str, notes: &[String], findings: &[Finding]) -> String {
    let mut text = String::new();
    if !packet_filter.is_empty() {
        let _ = writeln!(text, "packet filter  {}", out::plain(packet_filter));
    }
    for note in notes {
        let _ = writeln!(text, "names          {}", out::plain(note));
    }
    text + &lines(findings)
}

/// One line a finding, the worst first, each with the command that mends it.
fn lines(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing found".to_owned();
    }
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|f| f.severity);
    let line = |f: &&Finding| {
        let mend = if f.mend.is_empty() { String::new() } else { format!("  mend: {}", out::plain(&f.mend)) };
        format!("{:<8} {}: {}{mend}", f.severity.as_str(), f.id, out::plain(&f.what))
    };
    sorted.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(id: &str, severity: Severity, mend: &str) -> Finding {
        Finding { id: id.to_owned(), severity, what: format!("{id} is\nwrong"), mend: mend.to_owned() }
    }

    #[test]
    fn one_line_a_finding_the_worst_first() {
        let findings = [
            finding("sysctl", Severity::Warning, "sysctl -w net.ipv4.ip_forward=1"),
            finding("note", Severity::Info, ""),
            finding("ipset", Severity::Problem, "modprobe xt_set"),
        ];
        assert_eq!(
            lines(&findings),
            "problem  ipset: ipset is wrong  mend: modprobe xt_set\n\
             warning  sysctl: sysctl is wrong  mend: sysctl -w net.ipv4.ip_forward=1\n\
             info     note: note is wrong"
        );
        assert_eq!(lines(&[]), "nothing found");
        assert_eq!(text("iptables-nft: so", &[], &[]), "packet filter  iptables-nft: so\nnothing found");
        assert_eq!(text("", &["so it is".to_owned()], &[]), "names          so it is\nnothing found");
    }
}
