//! The command line: what each command prints, and how wrong input is turned down.

mod lab;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use edgesplice::rules::dump::Dump;
use lab::{Agent, Lab};

const CLUSTER: &str = include_str!("fixtures/first-light.yaml");

#[test]
fn the_commands_print_what_the_contract_says() {
    let lab = Lab::new("commands");
    let a = lab.node("a");
    let agent = Agent::on(&a).manifest("cluster.yaml", CLUSTER).start();

    let status = a.edgesplice_json(&["status", "-o", "json"]);
    assert_eq!(status["node"], "a");
    assert_eq!(status["ready"], true);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["source"]["kind"], "manifests");
    assert_eq!(status["source"]["state"], "synced");
    assert!(status["source"]["ageSeconds"].is_number() && status["source"]["message"].is_string());
    for key in ["port", "activeConnections", "acceptedTotal", "refusedTotal"] {
        assert!(status["proxy"][key].is_u64(), "proxy.{key}: {status}");
    }
    assert_eq!(status["serviceCIDRs"], serde_json::json!(["10.96.0.0/16", "fd00:10:96::/112"]));
    let service = agent.service("nginx-svc");
    assert_eq!(service["namespace"], "default");
    assert_eq!(service["port"]["name"], "http-0");
    assert_eq!(service["port"]["protocol"], "TCP");
    assert_eq!(service["port"]["port"], 12345);
    assert_eq!(service["frontends"], serde_json::json!(["10.96.191.183:12345", "[fd00:10:96::b7]:12345"]));
    assert_eq!(service["mode"], "http");
    for key in ["activeConnections", "connectionsTotal", "bytesInTotal", "bytesOutTotal"] {
        assert!(service[key].is_u64(), "{key}: {service}");
    }
    let backend = &service["backends"][0];
    assert_eq!(
        (&backend["reach"], &backend["node"], &backend["state"]),
        (&"host-port".into(), &"b".into(), &"ready".into())
    );
    for key in ["activeConnections", "connectionsTotal", "failuresTotal"] {
        assert!(backend[key].is_u64(), "{key}: {backend}");
    }

    let table = a.edgesplice(&["status"]);
    assert_eq!(table.code, 0);
    assert!(
        table.stdout.contains("nginx-svc") && table.stdout.contains("192.168.77.2:8080"),
        "{}",
        table.stdout
    );

    for (target, verdict) in [
        ("10.96.191.183:12345", "proxied"),
        ("nginx-svc.default:12345", "proxied"),
        ("10.96.0.20:80", "refused"),
        ("10.96.0.30:80", "refused"),
        ("10.96.191.183:9999", "refused"),
        ("10.96.200.200:80", "refused"),
        ("192.168.77.2:8080", "not-intercepted"),
    ] {
        let answer = a.edgesplice_json(&["resolve", target, "-o", "json"]);
        assert_eq!(answer["target"], target);
        assert_eq!(answer["verdict"], verdict, "{answer}");
        assert!(answer["why"].as_str().is_some_and(|why| !why.is_empty()), "{answer}");
        assert!(answer["backends"].is_array(), "{answer}");
    }
    let answer = a.edgesplice_json(&["resolve", "10.96.0.30:80", "-o", "json"]);
    assert_eq!(answer["service"]["name"], "local-only");
    assert_eq!(answer["backends"][0]["eligible"], false, "{answer}");
    assert!(answer["backends"][0]["reason"].as_str().is_some_and(|why| !why.is_empty()), "{answer}");

    // The port of an HTTP service, where HTTP is answered by name.
    let answer = a.edgesplice_json(&["resolve", "169.254.96.16:12345", "-o", "json"]);
    assert_eq!(answer["verdict"], "not-intercepted", "{answer}");
    assert!(answer["why"].as_str().is_some_and(|why| why.contains("HTTP requests")), "{answer}");
    // An address by itself is no target, however it is asked.
    let (code, body) = agent.get("/api/v1/resolve?target=10.96.0.30").expect("an answer");
    assert!(code == 400 && body.contains("an address needs a port"), "{code} {body}");

    assert_eq!(agent.get("/healthz").expect("an answer").0, 200);
    let (code, metrics) = agent.get("/metrics").expect("an answer");
    assert!(code == 200 && metrics.contains("edgesplice_"), "{metrics}");
    assert_eq!(agent.get("/no-such-path").expect("an answer").0, 404);

    let version = a.edgesplice(&["version"]);
    assert!(version.code == 0 && version.stdout.contains(env!("CARGO_PKG_VERSION")), "{}", version.stdout);
}

#[test]
fn rules_prints_them_and_changes_nothing() {
    let lab = Lab::new("rules");
    let a = lab.node("a");
    let manifests = lab.dir().join("manifests");
    fs::create_dir(&manifests).expect("a folder");
    fs::write(manifests.join("cluster.yaml"), CLUSTER).expect("a file");
    let manifests = manifests.display().to_string();
    let before = a.state();
    let run = a.edgesplice(&[
        "rules",
        "--node-name",
        "a",
        "--manifests",
        &manifests,
        "--service-cidr",
        lab::SERVICE_CIDRS,
        "--proxy-port",
        "15001",
    ]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    before.assert_same(&a.state(), "after `rules`");
    let dump = Dump::parse(&run.stdout).unwrap_or_else(|error| panic!("{error}\n{}", run.stdout));
    let redirects = dump.tables.iter().filter(|table| table.name == "nat").flat_map(|table| &table.rules);
    let redirects: Vec<_> = redirects.filter(|rule| rule.target().as_deref() == Some("REDIRECT")).collect();
    assert!(!redirects.is_empty(), "{}", run.stdout);
    for range in ["10.96.0.0/16", "fd00:10:96::/112"] {
        assert!(run.stdout.contains(range), "{range} is not captured:\n{}", run.stdout);
    }
    assert!(redirects.iter().all(|rule| rule.text.contains("15001")), "{}", run.stdout);
}

/// Chains and rules of ours of one back end, table by table, in an order of their own.
fn ours(text: &str) -> BTreeSet<String> {
    let mut table = "";
    let mut lines = BTreeSet::new();
    for line in text.lines() {
        match line.strip_prefix('*') {
            Some(name) => table = name,
            None if line.contains("EDGESPLICE") => {
                lines.insert(format!("{table} {}", line.split(" [").next().unwrap_or(line)));
            }
            None => {}
        }
    }
    lines
}

/// The marks of the tables that are there only because of the agent are part of what it installs.
#[test]
fn rules_prints_the_chains_that_run_installs() {
    for backend in ["nft", "legacy"] {
        let lab = Lab::new(&format!("rules-{backend}"));
        let a = lab.node("a");
        if backend == "nft" {
            // Somebody else's table: it gets no mark.
            let foreign = a.run(&["iptables-nft", "-t", "filter", "-A", "INPUT", "-j", "ACCEPT"]);
            assert_eq!(foreign.code, 0, "{}", foreign.stderr);
        }
        let file = lab.dir().join("cluster.yaml");
        fs::write(&file, CLUSTER).expect("a file");
        let file = file.display().to_string();
        let print = || {
            let options = ["rules", "--node-name", "a", "--manifests", &file, "--iptables-backend", backend];
            let run = a.edgesplice(&[&options[..], &["--service-cidr", lab::SERVICE_CIDRS]].concat());
            assert_eq!(run.code, 0, "{}", run.stderr);
            run.stdout
        };
        let before = print();
        let agent = Agent::on(&a).backend(backend).manifest("cluster.yaml", CLUSTER).start();
        let (v4, v6) = before.split_once("# ipv6 for ").expect("two families");
        for (printed, family) in [(v4, "iptables"), (v6, "ip6tables")] {
            let save = a.run(&[&format!("{family}-{backend}-save")]).stdout;
            let chains = |text: &str| -> BTreeSet<String> {
                ours(text).into_iter().filter(|line| line.contains(" :")).collect()
            };
            assert_eq!(chains(printed), chains(&save), "{family} {backend}\n{before}\n{save}");
            let marks = chains(printed).iter().filter(|line| line.contains("-CREATED")).count();
            let wanted = match (backend, family) {
                ("legacy", _) => 0,
                (_, "iptables") => 2,
                _ => 3,
            };
            assert_eq!(marks, wanted, "{family} {backend}\n{before}");
        }
        // Beside a running agent as well.
        assert_eq!(print().matches(":EDGESPLICE-CREATED").count(), if backend == "nft" { 5 } else { 0 });
        drop(agent);
    }
}

#[test]
fn wrong_input_is_named_and_changes_nothing() {
    let lab = Lab::new("wrong");
    let a = lab.node("a");
    let broken = lab.dir().join("broken.yaml");
    fs::write(
        &broken,
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: ok\n---\nkind: Service\nmetadata: {name: [\n",
    )
    .expect("a file");
    let config = lab.dir().join("config.yaml");
    fs::write(
        &config,
        "apiVersion: edgesplice.io/v1alpha1\nkind: EdgespliceConfiguration\nproxy:\n  prot: 1\n",
    )
    .expect("a file");
    let empty = lab.dir().join("empty");
    fs::create_dir(&empty).expect("a folder");
    let [broken, config, empty] = [broken, config, empty].map(|path| path.display().to_string());
    let before = a.state();
    let cases: [(&[&str], &[&str]); 8] = [
        (&["--no-such-flag"], &["--no-such-flag"]),
        (&["--service-cidr", "10.96.0.0/40"], &["10.96.0.0/40"]),
        (&["--proxy-port", "70000"], &["70000"]),
        (&["--admin", "nowhere"], &["nowhere"]),
        (&["--drain-timeout", "soon"], &["soon"]),
        (&["--manifests", "/no/such/folder"], &["/no/such/folder"]),
        (&["--manifests", &broken], &["broken.yaml", "2"]),
        (&["--config", &config], &["config.yaml", "prot", "4"]),
    ];
    for (args, named) in cases {
        let state = lab.dir().join("state").display().to_string();
        let mut line = vec!["run", "--node-name", "a", "--state-dir", &state];
        if !args.contains(&"--manifests") {
            line.extend(["--manifests", &empty]);
        }
        line.extend(args);
        let run = a.edgesplice(&line);
        assert_eq!(run.code, 64, "{}: {}", args.join(" "), run.stderr);
        for word in named {
            assert!(run.stderr.contains(word), "{} does not name {word}: {}", args.join(" "), run.stderr);
        }
        before.assert_same(&a.state(), &format!("after a start with {}", args.join(" ")));
    }
    let run = a.edgesplice(&["no-such-command"]);
    assert_eq!(run.code, 64, "{}", run.stderr);
}

#[test]
fn without_root_it_says_what_is_missing() {
    let lab = Lab::new("nobody");
    let a = lab.node("a");
    // The build's folder may be closed to other users; this copy of the program, and its folders, are not.
    let (program, home) = (lab.dir().join("edgesplice"), lab.dir().join("home"));
    fs::create_dir(&home).expect("a folder");
    fs::copy(lab::PROGRAM, &program).expect("a copy of the program");
    for path in [lab.dir(), &program, &home] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("open to all");
    }
    let (program, home) = (program.display().to_string(), home.display().to_string());
    let before = a.state();
    let mut line = vec!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &program, "run"];
    line.extend(["--node-name", "a", "--manifests", &home, "--state-dir", &home]);
    line.extend(["--service-cidr", lab::SERVICE_CIDRS]);
    let run = a.run(&line);
    assert_eq!(run.code, 1, "{}", run.stderr);
    let said = run.stderr.to_lowercase();
    assert!(said.contains("root") || said.contains("cap_net_admin"), "{}", run.stderr);
    before.assert_same(&a.state(), "after a start without root");
}
