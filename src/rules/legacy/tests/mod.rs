//! The pure part: judging dumps, and the scripts against a packet filter in memory.

mod generated;
mod strangers;

use std::fmt::Write as _;

use super::facts::{Link, Process, Resolver, Route, Ruleset};
use super::plan::{Item, Kept, TablePlan};
use super::*;
use crate::net::listening::Listening;
use crate::rules::apply::{Backend, Family};
use crate::rules::dump::{Chain, Dump, Rule};

fn fixture(name: &str) -> Dump {
    let path = format!("{}/tests/fixtures/edgemesh/{name}.rules", env!("CARGO_MANIFEST_DIR"));
    Dump::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn facts_of(dump: Dump) -> Facts {
    let ruleset = Ruleset {
        backend: Backend::Nft,
        family: Family::V4,
        text: String::new(),
        dump,
        unreadable: Vec::new(),
    };
    Facts { rulesets: vec![ruleset], ..Facts::default() }
}

fn nat(text: &str) -> Dump {
    let text = format!("*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{text}COMMIT\n");
    Dump::parse(&text).unwrap()
}

fn judge(dump: Dump) -> Plan {
    plan(&facts_of(dump), &Options::default())
}

/// Applies a script as `iptables-restore --noflush` does, all or nothing.
fn apply(dump: &mut Dump, script: &str) -> Result<(), String> {
    let mut next = dump.clone();
    let mut name = String::new();
    for line in script.lines() {
        if let Some(table) = line.strip_prefix('*') {
            table.clone_into(&mut name);
            continue;
        }
        if line == "COMMIT" {
            continue;
        }
        let table = next.tables.iter_mut().find(|table| table.name == name).ok_or("no such table")?;
        let (command, rest) = line.split_once(' ').ok_or("no argument")?;
        let fail = |what: &str| Err(format!("{what}: {line}"));
        match command {
            "-D" => {
                let (chain, text) = rest.split_once(' ').ok_or("no rule")?;
                let Some(at) = table.rules.iter().position(|rule| rule.chain == chain && rule.text == text)
                else {
                    return fail("no such rule");
                };
                table.rules.remove(at);
            }
            "-F" if table.has_chain(rest) => table.rules.retain(|rule| rule.chain != rest),
            "-X" => {
                let used = table
                    .rules
                    .iter()
                    .any(|rule| rule.chain == rest || rule.target().as_deref() == Some(rest));
                let before = table.chains.len();
                table.chains.retain(|chain| chain.name != rest || chain.policy != "-");
                if used || table.chains.len() == before {
                    return fail("chain in use, or no such chain");
                }
            }
            _ => return fail("unknown command, or no such chain"),
        }
    }
    *dump = next;
    Ok(())
}

fn scripts(plan: &Plan) -> Vec<String> {
    let steps = steps(plan).into_iter();
    steps.filter_map(|step| if let Step::Rules { script, .. } = step { Some(script) } else { None }).collect()
}

/// Cleans a dump, and checks that nothing is left to clean.
fn cleaned(mut dump: Dump, options: &Options) -> (Dump, Plan) {
    let plan = plan(&facts_of(dump.clone()), options);
    for script in scripts(&plan) {
        apply(&mut dump, &script).unwrap();
    }
    let again = super::plan(&facts_of(dump.clone()), options);
    assert!(!again.changes_rules(), "a second cleanup would remove {again:#?}");
    (dump, plan)
}

fn kept(plan: &Plan) -> Vec<String> {
    plan.tables().flat_map(|table| &table.kept).map(|kept| kept.rule.clone()).collect()
}

#[test]
fn each_version_is_recognised_and_goes() {
    for (name, version) in [
        ("f1_pod", "EdgeMesh of KubeEdge v1.0.0 to v1.2.1"),
        ("f2", "EdgeMesh of KubeEdge v1.3.0 to v1.7.x"),
        ("f3", "EdgeMesh v1.7.0"),
        ("f4", "EdgeMesh v1.8.0"),
        ("f5", "EdgeMesh v1.9.0"),
        ("f6", "EdgeMesh v1.10.0 to v1.11.0"),
        ("f7", "EdgeMesh v1.12.0 to v1.17.0"),
    ] {
        let (left, plan) = cleaned(fixture(name), &Options::default());
        assert_eq!(plan.versions, [version], "{name}");
        assert!(!plan.blocked() && kept(&plan).is_empty(), "{name}");
        assert!(
            left.tables.iter().all(|table| table.chains.iter().all(|chain| !chain.name.contains("MESH")))
        );
    }
}

#[test]
fn kube_proxy_in_userspace_mode_stays() {
    let before = fixture("f8");
    let (left, plan) = cleaned(before.clone(), &Options::default());
    assert_eq!(left, before);
    assert!(plan.versions.is_empty() && plan.blocked());
    assert_eq!(kept(&plan).len(), 5);
    let forced = Options { force: true, ..Options::default() };
    assert_eq!(cleaned(before.clone(), &forced).0, before);
}

#[test]
fn an_address_that_was_configured_counts_as_edgemesh() {
    let mut dump = fixture("f7");
    for rule in dump.tables.iter_mut().flat_map(|table| &mut table.rules) {
        rule.text = rule.text.replace("169.254.96.16", "172.31.9.9");
    }
    assert!(judge(dump.clone()).blocked());
    let named = Options { mesh_address: Some([172, 31, 9, 9].into()), ..Options::default() };
    assert!(plan(&facts_of(dump.clone()), &named).changes_rules());
    let mut facts = facts_of(dump);
    facts.links = vec![link("edgemesh0", "bridge", "172.31.9.9")];
    let found = plan(&facts, &Options::default());
    assert!(found.changes_rules() && found.links[0].remove);
}

#[test]
fn empty_shared_chains_go_only_if_nobody_may_use_them() {
    let dump = nat(
        ":KUBE-PORTALS-HOST - [0:0]\n-A OUTPUT -m comment --comment \"handle ClusterIPs; NOTE: this must be before the NodePort rules\" -j KUBE-PORTALS-HOST\n",
    );
    assert!(judge(dump.clone()).changes_rules());
    let with = |name: &'static str, command: &str, extra: &str| {
        let mut dump = dump.clone();
        if !extra.is_empty() {
            dump.tables[0].chains.push(Chain { name: extra.to_owned(), policy: "-".to_owned() });
        }
        let mut facts = facts_of(dump);
        facts.processes = vec![Process { pid: 7, name, command_line: command.to_owned() }];
        plan(&facts, &Options::default()).changes_rules()
    };
    assert!(!with("kube-proxy", "kube-proxy --proxy-mode=userspace", "KUBE-SERVICES"));
    assert!(!with("kube-proxy", "kube-proxy --config=/x", ""));
    assert!(with("kube-proxy", "kube-proxy --config=/x", "KUBE-SERVICES"));
    assert!(with("kube-proxy", "kube-proxy --proxy-mode=ipvs", ""));
    assert!(!with("edgemesh-agent", "edgemesh-agent", ""));
}

#[test]
fn words_in_comments_are_not_rules() {
    let text = ":EDGE-MESH - [0:0]\n\
        -A PREROUTING -m comment --comment \"-j EDGE-MESH\" -j ACCEPT\n\
        -A PREROUTING -m comment --comment \"-j\" -m comment --comment EDGE-MESH -j ACCEPT\n\
        -A OUTPUT -j LOG --log-prefix \"-j EDGE-MESH \"\n\
        -A OUTPUT -m strange --odd \"a \\\"b\\\" c\" --flag ! --other -j EDGE-MESH-CUSTOM\n";
    let (left, plan) = cleaned(nat(text), &Options::default());
    assert_eq!(left.tables[0].rules.len(), 4);
    assert!(!left.tables[0].has_chain("EDGE-MESH") && !plan.blocked());
}

#[test]
fn names_are_compared_whole() {
    let names = [
        "EDGE-MESH-CUSTOM",
        "EDGE-MES",
        "EDGEMESH",
        "EDGEMESH_OUTBOUND2",
        "KUBE-NODEPORTS",
        "KUBE-NODE-PORT",
        "kube-portals-host",
    ];
    let mut text = String::new();
    for name in names {
        let _ = writeln!(text, ":{name} - [0:0]");
    }
    for name in names {
        let _ = writeln!(text, "-A {name} -p tcp -j DNAT --to-destination 169.254.96.16:40001");
        let _ = writeln!(text, "-A PREROUTING -m comment --comment \"edgemesh root chain\" -j {name}");
    }
    let before = nat(&text);
    let (left, plan) = cleaned(before.clone(), &Options::default());
    assert_eq!(left, before);
    assert!(plan.blocked());
    assert_eq!(kept(&plan), ["-N EDGE-MESH-CUSTOM", "-N EDGEMESH", "-N EDGEMESH_OUTBOUND2"]);
}

#[test]
fn a_known_name_in_another_table_is_somebody_elses() {
    let text = "*mangle\n:PREROUTING ACCEPT [0:0]\n:EDGE-MESH - [0:0]\n-A PREROUTING -j EDGE-MESH\nCOMMIT\n";
    let before = Dump::parse(text).unwrap();
    let (left, plan) = cleaned(before.clone(), &Options::default());
    assert_eq!(left, before);
    assert_eq!(kept(&plan), ["-N EDGE-MESH"]);
}

#[test]
fn hand_made_rules_go_only_on_demand() {
    let before = fixture("f1_host");
    let (left, plan) = cleaned(before.clone(), &Options::default());
    assert!(left == before && kept(&plan) == ["-N PORT-MAP"] && plan.blocked());
    let (left, _) = cleaned(before, &Options { host_manual_rules: true, ..Options::default() });
    assert!(left.tables[0].rules.is_empty() && !left.tables[0].has_chain("PORT-MAP"));
}

#[test]
fn own_rules_go_unless_the_agent_is_at_work() {
    let text = ":EDGESPLICE - [0:0]\n-A OUTPUT -m comment --comment edgesplice -j EDGESPLICE\n\
        -A EDGESPLICE -m comment --comment edgesplice -j RETURN\n";
    let (left, plan) = cleaned(nat(text), &Options::default());
    assert!(left.tables[0].rules.is_empty() && plan.own && plan.versions == ["edgesplice"]);
    let mut facts = facts_of(nat(text));
    facts.own_agent = true;
    facts.sets = vec!["edgesplice-served".to_owned(), "other".to_owned()];
    let busy = super::plan(&facts, &Options::default());
    assert!(!busy.changes() && busy.blocked() && busy.sets.len() == 1);
    let forced = super::plan(&facts, &Options { force: true, ..Options::default() });
    assert!(forced.changes_rules() && forced.sets[0].remove);
}

#[test]
fn what_is_alive_stays() {
    let mut facts = facts_of(fixture("f5"));
    facts.links = vec![link("edgemesh0", "bridge", "169.254.96.16")];
    let on = |address: &str, udp| Listening { udp, address: address.parse().unwrap(), inode: 0 };
    for (listener, alive) in [
        (on("169.254.96.16:40001", false), true),
        (on("0.0.0.0:40001", false), true),
        (on("[::]:40001", false), true),
        (on("169.254.96.16:40001", true), false),
        (on("127.0.0.1:40001", false), false),
        (on("169.254.96.16:40002", false), false),
    ] {
        facts.listeners = vec![listener];
        let found = plan(&facts, &Options::default());
        assert_eq!(found.refused.is_empty(), !alive, "{listener:?}");
        assert_eq!(found.changes_rules(), !alive, "{listener:?}");
        assert!(plan(&facts, &Options { force: true, ..Options::default() }).changes_rules());
    }
    facts.listeners.clear();
    facts.processes = vec![Process { pid: 9, name: "edgemesh-agent", command_line: String::new() }];
    assert!(!plan(&facts, &Options::default()).changes());
    facts.processes[0].name = "edgecore";
    assert!(plan(&facts, &Options::default()).changes());
}

fn link(name: &str, kind: &str, address: &str) -> Link {
    let addresses =
        address.split(' ').filter(|word| !word.is_empty()).map(|word| word.parse().unwrap()).collect();
    Link { index: 5, name: name.to_owned(), kind: kind.to_owned(), addresses, controller: None }
}

#[test]
fn links_go_by_name_kind_and_address() {
    for (name, kind, address, goes) in [
        ("edgemesh0", "bridge", "169.254.96.16", Some(true)),
        ("edgemesh0", "dummy", "169.254.96.16", Some(true)),
        ("edgemesh0", "bridge", "169.254.96.17", Some(true)),
        ("edgemesh0", "bridge", "10.0.0.1", Some(false)),
        ("edgemesh0", "bridge", "169.254.96.16 10.0.0.1", Some(false)),
        ("edgemesh0", "bridge", "", Some(false)),
        ("edgemesh0", "veth", "169.254.96.16", Some(false)),
        ("edge0", "dummy", "9.251.0.1 9.251.0.20", Some(true)),
        ("edge0", "dummy", "9.251.0.1 10.0.0.1", Some(false)),
        ("edge0", "bridge", "9.251.0.1", Some(false)),
        ("edge0", "dummy", "", Some(false)),
        ("edge_tun0", "tun", "10.1.1.1", Some(true)),
        ("edge_tun0", "bridge", "", Some(false)),
        ("edge-dummy0", "dummy", "169.254.30.10", None),
        ("nodelocaldns", "dummy", "169.254.20.10", None),
        ("edgemesh1", "bridge", "169.254.96.16", None),
    ] {
        let facts = Facts { links: vec![link(name, kind, address)], ..Facts::default() };
        let found = plan(&facts, &Options::default()).links;
        assert_eq!(found.first().map(|item| item.remove), goes, "{name} {kind} {address}");
    }
    let mut member = link("veth1", "veth", "");
    member.controller = Some(5);
    member.index = 6;
    let facts =
        Facts { links: vec![link("edgemesh0", "bridge", "169.254.96.16"), member], ..Facts::default() };
    assert!(!plan(&facts, &Options::default()).changes());
    let mut facts = Facts { links: vec![link("edgemesh0", "bridge", "169.254.96.16")], ..Facts::default() };
    facts.listeners = vec![Listening { udp: true, address: "169.254.96.16:53".parse().unwrap(), inode: 0 }];
    assert!(plan(&facts, &Options::default()).blocked());
}

#[test]
fn routes_go_if_their_range_is_edgemeshs_and_their_gateway_is_this_machine() {
    let route = |destination: &str, gateway: &str| Route {
        table: 254,
        destination: destination.parse().unwrap(),
        gateway: gateway.parse().ok(),
        device: "docker0".to_owned(),
        protocol: 3,
    };
    let routes = vec![
        route("9.251.0.0/16", "172.17.0.1"),
        route("9.251.0.0/16", "172.17.0.2"),
        route("9.251.0.0/16", ""),
        route("10.96.0.0/12", "172.17.0.1"),
        route("10.96.0.0/12", "192.168.5.1"),
        route("10.200.0.0/16", "172.17.0.1"),
        route("0.0.0.0/0", "172.17.0.1"),
    ];
    let mut facts = facts_of(fixture("f3"));
    facts.links = vec![link("docker0", "bridge", "172.17.0.1")];
    facts.routes = routes;
    let goes = |facts: &Facts| {
        let found = plan(facts, &Options::default()).routes;
        found.into_iter().filter(|item| item.remove).map(|item| item.name).collect::<Vec<_>>()
    };
    assert_eq!(
        goes(&facts),
        ["9.251.0.0/16 via 172.17.0.1 dev docker0", "10.96.0.0/12 via 172.17.0.1 dev docker0"]
    );
    // v1.10 and later name no range, but the addresses in it.
    facts.rulesets = facts_of(fixture("f7")).rulesets;
    assert_eq!(goes(&facts).len(), 2);
    facts.rulesets.clear();
    assert_eq!(goes(&facts).len(), 1);
}

#[test]
fn a_rule_that_stays_says_as_much_about_a_route_as_one_that_goes() {
    let jump = ("MYCHAIN", "-s 10.1.1.1/32 -p tcp -j EDGE-MESH");
    let inside = ("EDGE-MESH", "-s 10.9.9.9/32 -j RETURN");
    for (chain, text) in [jump, inside] {
        let mut dump = fixture("f5");
        dump.tables[0].rules.push(Rule { chain: chain.to_owned(), text: text.to_owned() });
        // A stranger's range is none of EdgeMesh's.
        let own =
            Rule { chain: "DOCKER".to_owned(), text: "-d 10.200.0.0/16 -p udp -j EDGE-MESH".to_owned() };
        dump.tables[0].rules.push(own);
        let mut facts = facts_of(dump);
        facts.links = vec![link("docker0", "bridge", "172.17.0.1")];
        facts.routes = ["10.96.0.0/12", "10.200.0.0/16"]
            .map(|range| Route {
                table: 254,
                destination: range.parse().unwrap(),
                gateway: "172.17.0.1".parse().ok(),
                device: "docker0".to_owned(),
                protocol: 3,
            })
            .to_vec();
        for force in [false, true] {
            let found = plan(&facts, &Options { force, ..Options::default() });
            let goes: Vec<bool> = found.routes.iter().map(|item| item.remove).collect();
            assert_eq!(goes, [true, false], "{chain} {force}");
        }
        // Unless it is still in use.
        let address = "169.254.96.16:40001".parse().unwrap();
        facts.listeners = vec![Listening { udp: false, address, inode: 0 }];
        assert!(!plan(&facts, &Options::default()).changes(), "{chain}");
    }
}

#[test]
fn name_servers_go_if_they_were_edgemesh_and_are_dead() {
    let ip = |text: &str| -> std::net::IpAddr { text.parse().unwrap() };
    let mut facts = Facts { links: vec![link("cni0", "bridge", "10.22.0.1")], ..Facts::default() };
    let servers = ["10.22.0.1", "169.254.96.16", "192.168.5.1", "172.17.0.1"].map(ip).to_vec();
    facts.resolver = Some(Resolver { servers, ..Resolver::default() });
    let goes = |facts: &Facts| {
        let found = plan(facts, &Options::default()).name_servers;
        found
            .into_iter()
            .filter(|(_, item)| item.remove)
            .map(|(server, _)| server.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(goes(&facts), ["10.22.0.1", "169.254.96.16"]);
    facts.rulesets = facts_of(fixture("f2")).rulesets;
    assert_eq!(goes(&facts), ["10.22.0.1", "169.254.96.16", "172.17.0.1"]);
    let resolver = facts.resolver.as_mut().unwrap();
    resolver.answering.insert(ip("169.254.96.16"));
    assert_eq!(goes(&facts), ["10.22.0.1", "172.17.0.1"]);
    facts.resolver.as_mut().unwrap().link_to = Some("/run/systemd/resolve/stub-resolv.conf".into());
    assert!(goes(&facts).is_empty() && plan(&facts, &Options::default()).blocked());
}

#[test]
fn nat_comes_last_because_it_proves_whose_the_rest_is() {
    let plan = judge(fixture("f7"));
    let scripts = scripts(&plan);
    assert!(scripts[0].starts_with("*filter\n") && scripts[1].starts_with("*nat\n"));
    insta::assert_snapshot!(scripts[0], @r#"
    *filter
    -D INPUT -m comment --comment "Ensure that non-local NodePort traffic can flow" -j KUBE-NODEPORT-NON-LOCAL
    -F KUBE-NODEPORT-NON-LOCAL
    -X KUBE-NODEPORT-NON-LOCAL
    COMMIT
    "#);
}

#[test]
fn an_unreadable_table_is_reported() {
    let mut facts = facts_of(Dump::default());
    for (chains, blocked) in [(vec![], false), (vec!["EDGE-MESH"], true)] {
        facts.rulesets[0].unreadable = vec![Unreadable { table: "nat".to_owned(), chains }];
        let plan = plan(&facts, &Options::default());
        assert!(plan.blocked() == blocked && kept(&plan) == ["*nat"]);
    }
}

#[test]
fn refusing_leaves_nothing_to_do() {
    for (chains, emptied) in [(vec!["X".to_owned()], Vec::new()), (Vec::new(), vec!["X".to_owned()])] {
        let mut table = TablePlan { chains, emptied, ..TablePlan::default() };
        assert!(table.changes());
        table.refuse("why");
        assert!(!table.changes() && table.kept[0].blocks);
    }
    assert!(Item::blocked("x", "y").blocks && !Item::left("x", "y").blocks);
}

#[test]
fn a_cut_between_any_two_steps_is_mended_by_the_next_cleanup() {
    let mut dump = fixture("f7_hybrid");
    for name in ["f3", "f5", "f6"] {
        for table in fixture(name).tables {
            let into = dump.tables.iter_mut().find(|into| into.name == table.name).unwrap();
            let new =
                table.chains.into_iter().filter(|chain| !into.has_chain(&chain.name)).collect::<Vec<_>>();
            into.chains.extend(new);
            into.rules.extend(table.rules.into_iter().filter(|rule| rule.line().contains("MESH")));
        }
    }
    let (whole, plan) = cleaned(dump.clone(), &Options::default());
    let scripts = scripts(&plan);
    assert_eq!(scripts.len(), 2);
    for done in 0..=scripts.len() {
        let mut cut = dump.clone();
        scripts[..done].iter().for_each(|script| apply(&mut cut, script).unwrap());
        assert_eq!(cleaned(cut, &Options::default()).0, whole, "after {done} steps");
    }
}
