//! The judgement of a whole machine: pure, from what `read` found to what `remove` is to do.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::facts::{Facts, Ruleset, Unreadable};
use super::items;
use super::pattern::Clauses;
use super::plan::{Kept, Options, Plan, RulesetPlan, TablePlan};
use super::shapes::{MESH_ADDRESS, MESH_LINK, Place, Proof};
use super::table::{Judge, Owner, ROWS, Row, Verdict, look_alikes};

/// Name of EdgeMesh's own process, all standalone versions.
pub(super) const AGENT: &str = "edgemesh-agent";
/// Name of KubeEdge's process, whose versions up to v1.7 had EdgeMesh inside.
pub(super) const EDGECORE: &str = "edgecore";
/// Names of k3s's process, which has kube-proxy inside.
pub(in crate::rules) const K3S: [&str; 3] = ["k3s-server", "k3s-agent", "k3s"];
/// Name of Kubernetes' own service proxy.
pub(in crate::rules) const KUBE_PROXY: &str = "kube-proxy";

/// What EdgeMesh's rules say about the rest of the machine, whether they go or stay.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// Addresses that are, or were, EdgeMesh's proxy.
    pub(super) proxies: BTreeSet<IpAddr>,
    /// Ranges and addresses that EdgeMesh captured.
    pub(super) captured: Vec<IpNet>,
}

/// Decides what is to go and what stays.
pub fn plan(facts: &Facts, options: &Options) -> Plan {
    let mut plan = Plan::default();
    let mut writers = Vec::new();
    let mut evidence = Evidence::default();
    let mut live = BTreeSet::new();
    evidence.proxies.insert(IpAddr::V4(MESH_ADDRESS));
    evidence.proxies.extend(options.mesh_address);
    let mut own: Vec<RulesetPlan> = Vec::new();
    for ruleset in &facts.rulesets {
        let shared = owner(ruleset, facts, options);
        let judge = |rows| Judge { rows, shared: &shared, force: options.force };
        let theirs = judge(rows(options));
        let mut out = RulesetPlan { backend: ruleset.backend, family: ruleset.family, tables: Vec::new() };
        let mut ours = out.clone();
        for table in &ruleset.dump.tables {
            let verdict = theirs.table(table);
            learn(&verdict, &mut evidence, &mut plan);
            live.extend(listening(&verdict, facts, options));
            writers.extend(verdict.writers);
            let mut table_plan = verdict.plan;
            if !options.pod {
                table_plan.kept.extend(look_alikes(table, options.host_manual_rules));
                ours.tables.push(judge(own_rows()).table(table).plan);
            }
            out.tables.push(table_plan);
        }
        for hidden in &ruleset.unreadable {
            let note = unreadable(hidden, ruleset);
            match out.tables.iter_mut().find(|table| table.name == hidden.table) {
                Some(table) => table.merge(note),
                None => out.tables.push(note),
            }
        }
        plan.rulesets.push(out);
        own.push(ours);
    }
    if !options.pod {
        items::of_edgemesh(facts, options, &evidence, &mut plan);
    }
    plan.versions = versions(&writers);
    live.extend(agent(facts));
    if plan.changes() && !options.force && !live.is_empty() {
        plan.refused = live.into_iter().collect();
        let reason = format!("EdgeMesh is alive: {}; stop it, or use --force", plan.refused.join("; "));
        plan.rulesets
            .iter_mut()
            .flat_map(|ruleset| &mut ruleset.tables)
            .for_each(|table| table.refuse(&reason));
        plan.refuse_items(&reason);
    }
    add_own(facts, options, own, &mut plan);
    plan.rulesets.iter_mut().for_each(RulesetPlan::tidy);
    plan
}

/// The footprints that are looked for.
fn rows(options: &Options) -> Vec<&'static Row> {
    let wanted = |row: &&Row| match row.footprint.place {
        Place::Pod => true,
        Place::Node => !options.pod,
        Place::ByHand => !options.pod && options.host_manual_rules,
        Place::Own => false,
    };
    ROWS.iter().filter(wanted).collect()
}

fn own_rows() -> Vec<&'static Row> {
    ROWS.iter().filter(|row| row.footprint.place == Place::Own).collect()
}

/// This program's own leftovers, unless its agent is at work.
fn add_own(facts: &Facts, options: &Options, own: Vec<RulesetPlan>, plan: &mut Plan) {
    let busy = facts.own_agent && !options.force;
    let reason = "an edgesplice agent is at work in this network namespace; stop it, or use --force";
    let mut found = false;
    for (out, ours) in plan.rulesets.iter_mut().zip(own) {
        for mut mine in ours.tables {
            found |= mine.changes();
            if busy {
                mine.refuse(reason);
            }
            if let Some(table) = out.tables.iter_mut().find(|table| table.name == mine.name) {
                table.merge(mine);
            }
        }
    }
    found |= items::of_ours(facts, busy.then_some(reason), plan);
    plan.own = found && !busy;
    if found {
        plan.versions.push("edgesplice".to_owned());
    }
}

/// Notes where EdgeMesh's rules sent packets, and which ranges they captured. One that stays says as much about a route
/// or a link as one that goes, but connections through it are not dead for good.
fn learn(verdict: &Verdict, evidence: &mut Evidence, plan: &mut Plan) {
    plan.targets.extend(verdict.gone.iter().filter_map(Clauses::dnat));
    for clauses in &verdict.wrote {
        evidence.proxies.extend(clauses.dnat().map(|(address, _)| address));
        let net = clauses.value("-d").and_then(|text| {
            text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
        });
        // A RETURN's destination is what EdgeMesh left alone.
        if clauses.target() != Some("RETURN") {
            evidence.captured.extend(net);
        }
    }
}

/// Whose the chains are that have the names of kube-proxy's userspace mode.
fn owner(ruleset: &Ruleset, facts: &Facts, options: &Options) -> Owner {
    let mut mesh = BTreeSet::from([IpAddr::V4(MESH_ADDRESS)]);
    mesh.extend(options.mesh_address);
    mesh.extend(facts.link(MESH_LINK).into_iter().flat_map(|link| link.addresses.iter().copied()));
    let (mut dnats, mut others, mut strangers) = (0, 0, None);
    let shared: Vec<&Row> = ROWS.iter().filter(|row| row.footprint.proof == Proof::Target).collect();
    for table in &ruleset.dump.tables {
        for rule in
            table.rules.iter().filter(|rule| shared.iter().any(|row| row.owns(&table.name, &rule.chain)))
        {
            let clauses = Clauses::of(rule);
            match (clauses.target(), clauses.dnat()) {
                (Some("DNAT"), Some((address, _))) if mesh.contains(&address) => dnats += 1,
                (Some("DNAT" | "REDIRECT"), _) => strangers = Some(rule.line()),
                _ => others += 1,
            }
        }
    }
    if let Some(line) = strangers {
        return Owner::Unproven(format!(
            "belongs to kube-proxy's userspace mode: `{line}` does not lead to EdgeMesh's address (if that was configured, give --mesh-address)"
        ));
    }
    if dnats > 0 {
        return Owner::EdgeMesh;
    }
    if others > 0 {
        return Owner::Unproven(
            "nothing proves that it is EdgeMesh's and not kube-proxy's: no DNAT is left".to_owned(),
        );
    }
    // Empty chains have no effect, so what counts is only whether somebody would miss them.
    let other_mode = ruleset.dump.table("nat").is_some_and(|nat| nat.has_chain("KUBE-SERVICES"));
    let user = facts.processes.iter().find(|process| match process.name {
        AGENT => true,
        KUBE_PROXY => {
            process.command_line.contains("userspace")
                || !other_mode && !process.command_line.contains("--proxy-mode")
        }
        _ => false,
    });
    match user {
        Some(process) => Owner::Unproven(format!(
            "is empty, and {} (process {}) may be using it; stop it and run cleanup again",
            process.name, process.pid
        )),
        None => Owner::EdgeMesh,
    }
}

/// Sockets that take what EdgeMesh's rules send them, those that stay as well: by them routes and links are judged.
fn listening(verdict: &Verdict, facts: &Facts, options: &Options) -> Vec<String> {
    // In a pod the target is the node, whose sockets are not to be seen from there.
    if options.pod {
        return Vec::new();
    }
    let mut found = Vec::new();
    let targets: BTreeSet<_> = verdict
        .wrote
        .iter()
        .filter_map(|rule| Some((rule.dnat()?, rule.value("-p") == Some("udp"))))
        .collect();
    for ((address, port), udp) in targets {
        let Some(port) = port else { continue };
        let takes = facts.listeners.iter().any(|listener| {
            // An unbound UDP socket on the same number is most likely somebody's client socket.
            let all = !udp && listener.address.ip().is_unspecified();
            listener.udp == udp
                && listener.address.port() == port
                && (all || listener.address.ip() == address)
        });
        if takes {
            let inside = facts.processes.iter().any(|process| process.name == EDGECORE);
            let hint = if inside { " (edgecore runs here)" } else { "" };
            found.push(format!(
                "something listens on its {} target {address}:{port}{hint}",
                if udp { "UDP" } else { "TCP" }
            ));
        }
    }
    found
}

/// What shows that EdgeMesh is alive: its process, or a listener at the place that its rules lead to.
pub fn live(facts: &Facts) -> Vec<String> {
    let mut live: BTreeSet<String> = plan(facts, &Options::default()).refused.into_iter().collect();
    live.extend(agent(facts));
    live.into_iter().collect()
}

fn agent(facts: &Facts) -> Option<String> {
    let process = facts.processes.iter().find(|process| process.name == AGENT)?;
    Some(format!("{AGENT} runs as process {}", process.pid))
}

/// Names the versions that wrote what goes. Where several could have written a thing and one of them is certain from
/// another thing, that one is taken.
fn versions(writers: &[BTreeSet<usize>]) -> Vec<String> {
    let certain: BTreeSet<usize> = writers.iter().filter(|set| set.len() == 1).flatten().copied().collect();
    let open = writers.iter().filter(|set| !set.is_empty() && set.is_disjoint(&certain));
    let mut sets: BTreeSet<BTreeSet<usize>> = certain.iter().map(|row| BTreeSet::from([*row])).collect();
    let open: BTreeSet<BTreeSet<usize>> = open.cloned().collect();
    // {1.8, 1.9} says less than {1.7, 1.8, 1.9} leaves open: the smaller explains the larger.
    sets.extend(
        open.iter().filter(|set| !open.iter().any(|other| other != *set && other.is_subset(set))).cloned(),
    );
    let name = |row: &usize| ROWS[*row].footprint.versions;
    sets.iter().map(|set| set.iter().map(name).collect::<Vec<_>>().join(" or ")).collect()
}

/// A table that the programs of this back end cannot read. It is in the way only where chains of EdgeMesh's stand in it.
fn unreadable(hidden: &Unreadable, ruleset: &Ruleset) -> TablePlan {
    let Unreadable { table: name, chains } = hidden;
    let backend = ruleset.backend.as_str();
    let list = ruleset.family.nft();
    let (what, then) = if chains.is_empty() {
        (String::new(), "")
    } else {
        let what = format!("{} of EdgeMesh's, and ", chains.join(", "));
        (what, "; move the native rule to a table of its own, and run cleanup again")
    };
    let reason = format!(
        "holds {what}something that iptables-{backend} cannot read and cleanup does not touch; look with `nft list table \
         {list} {name}`{then}"
    );
    let kept = Kept { rule: format!("*{name}"), reason, blocks: !chains.is_empty() };
    TablePlan { name: name.clone(), kept: vec![kept], ..TablePlan::default() }
}
