use super::*;

const HEAD: &str = "apiVersion: edgesplice.io/v1alpha1\nkind: EdgespliceConfiguration\n";

fn inputs() -> Inputs {
    let node_name = Some(("Node-A".to_owned(), Origin::Default("host name")));
    Inputs { node_name, ..Inputs::default() }
}

fn read(text: &str) -> Result<Settings, UsageError> {
    inputs().resolve(Some(("edge.yaml".as_ref(), text)))
}

fn fault(body: &str) -> String {
    read(&format!("{HEAD}{body}")).expect_err("must be refused").to_string()
}

fn with(key: &'static str, text: &str) -> Inputs {
    let mut inputs = inputs();
    inputs.overrides.push(Override { key, text: text.to_owned(), origin: Origin::Flag("--x".to_owned()) });
    inputs
}

#[test]
fn nothing_given_gives_the_defaults() {
    let settings = inputs().resolve(None).unwrap();
    assert_eq!(settings.node_name, "node-a");
    assert_eq!(settings.admin.listen.to_string(), "127.0.0.1:10265");
    assert_eq!(settings.dns.listen[0].to_string(), "169.254.96.16:53");
    assert_eq!(settings.proxy.drain_timeout, Duration::from_secs(30));
    assert_eq!((settings.intercept.own_mark, settings.intercept.refuse_mark), (0x10, 0x20));
    assert_eq!(read(HEAD).unwrap(), settings);
}

#[test]
fn empty_sections_and_nulls_mean_the_default() {
    let text = format!("{HEAD}proxy:\ndns:\n  domain:\n  listen: ~\nsource:\n  manifests:\n");
    assert_eq!(read(&text).unwrap(), inputs().resolve(None).unwrap());
}

#[test]
fn what_is_printed_reads_back_as_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd: name #1");
    std::fs::write(&path, "").unwrap();
    let text = format!(
        "{HEAD}stateDir: '0123'\nnode: {{name: '17'}}\n\
         source: {{kind: manifests, manifests: {{path: '{}'}}, metaserver: {{url: 'http://[::1]:10550/'}}}}\n\
         intercept: {{serviceCIDRs: [fd00::/112, 10.96.0.0/12], iptablesBackend: nft, removeStale: true,\n\
         \x20 kubernetesService: true, coexistWithKubeProxy: true, serviceProxyName: 'true', nodePortAddresses: [10.0.0.0/8], externalIPs: true, connect: before-accept, syncPeriod: 1m30s, ownMark: 0x100, refuseMark: 512}}\n\
         proxy: {{port: 15001, workers: 2, drainTimeout: 5m, connectTimeout: 300ms, dialBudget: 2s, dialStagger: 20ms,\n\
         \x20 maxConnections: 10, keepRules: true, takeOver: true}}\n\
         backends: {{podNetwork: none}}\n\
         dns: {{mode: 'off', listen: ['[fd01::1]:53'], domain: Cluster.Example., upstreams: [10.0.0.2, 'fd01::2'], upstreamFrom: kube-dns}}\n\
         admin: {{listen: '0.0.0.0:9'}}\nhardening: {{mode: off}}\nlog: {{level: 'info,edgesplice=debug', format: json}}\n",
        path.display()
    );
    for settings in [read(&text).unwrap(), inputs().resolve(None).unwrap()] {
        let printed = settings.to_yaml().unwrap();
        assert!(!printed.contains("\"edgesplice.io"), "plain strings are not quoted:\n{printed}");
        assert_eq!(read(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}")), settings, "{printed}");
    }
    let settings = read(&text).unwrap();
    assert_eq!(settings.intercept.service_cidrs[0].to_string(), "10.96.0.0/12");
    assert_eq!(settings.source.metaserver, "http://[::1]:10550");
    assert_eq!(settings.dns.domain, "cluster.example");
    assert_eq!(settings.dns.upstreams[1].to_string(), "[fd01::2]:53");
    assert_eq!(settings.dns.upstream_from, UpstreamFrom::KubeDns);
}

#[test]
fn the_printed_file_shows_every_key() {
    let printed = inputs().resolve(None).unwrap().to_yaml().unwrap();
    insta::assert_snapshot!(printed, @r#"
        apiVersion: edgesplice.io/v1alpha1
        kind: EdgespliceConfiguration
        node:
          name: node-a
        stateDir: /var/lib/edgesplice
        source:
          kind: auto
          manifests:
            path: null
          kubernetes:
            kubeconfig: null
          metaserver:
            url: http://127.0.0.1:10550
            tlsCaFile: null
            tlsCertFile: null
            tlsKeyFile: null
            tokenFile: null
        intercept:
          serviceCIDRs: []
          iptablesBackend: auto
          removeStale: false
          kubernetesService: false
          coexistWithKubeProxy: false
          serviceProxyName: ""
          nodePorts: true
          nodePortAddresses:
          - primary
          externalIPs: false
          connect: after-accept
          syncPeriod: 2s
          ownMark: "0x10"
          refuseMark: "0x20"
        proxy:
          port: 0
          workers: 0
          drainTimeout: 30s
          connectTimeout: 1s
          dialBudget: 5s
          dialStagger: 250ms
          maxConnections: 0
          maxConnectionsPerSource: 0
          keepRules: false
          takeOver: false
          http:
            mode: auto
            headTimeout: 10s
            idleTimeout: 1h
            requestTimeout: 0s
            accessLog: null
            accessLogShare: 1
        backends:
          podNetwork: auto
        dns:
          mode: auto
          listen:
          - 169.254.96.16:53
          domain: cluster.local
          upstreams: []
          upstreamFrom: node
        admin:
          listen: 127.0.0.1:10265
        hardening:
          mode: auto
        log:
          level: info
          format: text
        "#);
}

#[test]
fn overrides_beat_the_file_and_name_themselves() {
    let file = format!("{HEAD}proxy: {{port: 1}}\nintercept: {{serviceCIDRs: [10.0.0.0/16]}}\n");
    let file = Some(("edge.yaml".as_ref(), file.as_str()));
    assert_eq!(with(keys::PROXY_PORT, "2").resolve(file).unwrap().proxy.port, 2);
    let listed = with(keys::SERVICE_CIDRS, "10.96.0.0/12, fd00::/112").resolve(file).unwrap();
    assert_eq!(listed.intercept.service_cidrs.len(), 2);
    let error = with(keys::PROXY_PORT, "http").resolve(file).unwrap_err().to_string();
    assert_eq!(error, "flag --x: proxy.port is \"http\": give a port from 1 to 65535, or 0 for any free one");
}

#[test]
fn a_head_that_is_not_ours_is_refused() {
    assert!(read("").unwrap_err().to_string().contains("apiVersion"));
    assert!(
        read("kind: EdgespliceConfiguration\n").unwrap_err().to_string().contains("apiVersion is missing")
    );
    let other = "apiVersion: edgesplice.io/v2\nkind: EdgespliceConfiguration\n";
    let error = read(other).unwrap_err().to_string();
    assert!(error.starts_with("edge.yaml, line 1, column 13: apiVersion is \"edgesplice.io/v2\""), "{error}");
    let other = "apiVersion: edgesplice.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    assert!(read(other).unwrap_err().to_string().contains("line 2, column 7: kind is"));
}

#[test]
fn unknown_keys_wrong_shapes_and_bad_yaml_name_their_line() {
    for (body, parts) in [
        ("proxy:\n  prot: 15001\n", ["edge.yaml, line 4", "prot", "port"]),
        ("proxyy: {}\n", ["edge.yaml, line 3", "proxyy", "proxy"]),
        ("proxy:\n  port: [1]\n", ["edge.yaml, line 4", "port: [1]", "single value"]),
        ("proxy: 5\n", ["edge.yaml, line 3", "proxy: 5", "keys are wanted"]),
        (
            "intercept:\n  serviceCIDRs: 10.96.0.0/12\n",
            ["edge.yaml, line 4", "serviceCIDRs: 10.96.0.0/12", "a list"],
        ),
        ("proxy:\n  port: 1\n  port: 2\n", ["edge.yaml, line 5", "port: 2", "duplicate"]),
        ("proxy: {port: 1\n", ["edge.yaml, line ", "", ""]),
        ("---\nproxy: {port: 1}\n", ["edge.yaml, line ", "", ""]),
    ] {
        let error = fault(body);
        for part in parts {
            assert!(error.contains(part), "{body:?} gave {error:?}, which lacks {part:?}");
        }
        assert!(!error.contains('\n'), "{error:?} is one line");
    }
}

#[test]
fn bad_values_name_key_value_line_and_way_out() {
    for (body, wanted) in [
        ("proxy: {port: 70000}", "line 3, column 15: proxy.port is \"70000\": give a port"),
        ("proxy: {port: -1}", "proxy.port is \"-1\""),
        ("proxy: {port: ''}", "proxy.port is \"\""),
        ("proxy: {keepRules: yes}", "proxy.keepRules is \"yes\": give true or false"),
        ("proxy: {drainTimeout: 0s}", "proxy.drainTimeout is \"0s\""),
        ("proxy: {drainTimeout: 30}", "such as 250ms"),
        ("proxy: {drainTimeout: 10000d}", "at most 24h"),
        (
            "proxy: {connectTimeout: 9s}",
            "proxy.connectTimeout is \"9s\": it is longer than proxy.dialBudget (5s)",
        ),
        (
            "proxy: {dialBudget: 500ms}",
            "line 3, column 21: proxy.connectTimeout is \"1s\" by default: it is longer",
        ),
        ("proxy: {workers: 1000}", "from 0 to 256"),
        ("proxy: {port: 10265}", "admin.listen has this port too"),
        ("intercept: {serviceCIDRs: [10.96.0.1/12]}", "give 10.96.0.0/12"),
        ("intercept: {serviceCIDRs: [10.96.0.0]}", "give a range such as"),
        ("intercept: {serviceCIDRs: [0.0.0.0/0]}", "which never holds services"),
        (
            "intercept: {serviceCIDRs: [10.96.0.0/12, 10.97.0.0/16]}",
            "is \"10.97.0.0/16\": it overlaps 10.96.0.0/12",
        ),
        (
            "intercept: {serviceCIDRs: [10.96.0.0/12]}\nadmin: {listen: '10.96.0.9:1'}",
            "lies in the service range",
        ),
        ("intercept: {ownMark: 0x30}", "a single bit"),
        ("intercept: {ownMark: 0x4000}", "kube-proxy use this mark"),
        ("intercept: {ownMark: 0x20}", "refuseMark is \"0x20\" by default: intercept.ownMark is the same"),
        ("intercept: {iptablesBackend: nftables}", "give one of auto, nft, legacy"),
        ("source: {kind: files}", "give one of auto, kubernetes, metaserver, manifests"),
        ("source: {kind: manifests}", "source.kind is \"manifests\": it needs a file or folder"),
        (
            "source: {manifests: {path: /no/such/folder}}",
            "source.manifests.path is \"/no/such/folder\": No such file",
        ),
        ("source: {metaserver: {url: 'ftp://x'}}", "give a URL such as"),
        ("source: {metaserver: {url: '127.0.0.1:10550'}}", "give a URL such as"),
        ("source: {metaserver: {url: 'http://127.0.0.1:99999'}}", "give a URL such as"),
        ("dns: {listen: [169.254.96.16]}", "give ADDR:PORT"),
        ("dns: {domain: 'cluster..local'}", "is not a DNS label"),
        ("dns: {upstreams: ['0.0.0.0']}", "address of a DNS server"),
        ("dns: {upstreams: ['169.254.96.16']}", "the agent itself answers there"),
        ("dns: {mode: on}", "give one of auto, off"),
        ("node: {name: 'my_node'}", "is not a DNS label"),
        ("intercept: {coexistWithKubeProxy: maybe}", "give true or false"),
        ("intercept: {serviceProxyName: 'a b'}", "serviceProxyName is \"a b\": give the value of a label"),
        ("intercept: {serviceProxyName: '-x'}", "give the value of a label"),
        ("log: {level: verbose}", "give a level"),
        ("log: {format: xml}", "give one of text, json"),
    ] {
        let error = fault(body);
        assert!(error.contains(wanted), "{body:?} gave {error:?}, not {wanted:?}");
    }
}

#[test]
fn a_host_name_that_is_no_node_name_says_how_to_go_on() {
    let mut inputs = inputs();
    inputs.node_name = Some(("my_box".to_owned(), Origin::Default("host name")));
    let error = inputs.resolve(None).unwrap_err().to_string();
    assert!(
        error.starts_with("host name: node.name is \"my_box\"") && error.contains("--node-name"),
        "{error}"
    );
}

#[test]
fn never_services_are_ranges() {
    for (inside, range) in [("127.0.0.0/24", "127.0.0.0/8"), ("fe80::/64", "fe80::/10"), ("::/0", "::1/128")]
    {
        let error = with(keys::SERVICE_CIDRS, inside).resolve(None).unwrap_err().to_string();
        assert!(error.contains(range), "{error}");
    }
}
