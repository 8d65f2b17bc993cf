use super::*;

/// What EdgeMesh v1.17 prints as its defaults, for an edge node.
const DEFAULTS: &str = include_str!("../../../tests/fixtures/edgemesh-agent.yaml");

fn of(text: &str) -> Translation {
    translate(text, Path::new("edgemesh-agent.yaml")).unwrap()
}

fn settings(translation: &Translation) -> crate::config::Settings {
    let inputs = Inputs { node_name: Some(flags::no_node_name()), ..Inputs::default() };
    inputs.resolve(Some((Path::new("new.yaml"), &translation.config))).unwrap()
}

fn line<'a>(translation: &'a Translation, key: &str) -> &'a Line {
    translation.keys.iter().find(|line| line.key == key).unwrap_or_else(|| panic!("no {key}"))
}

#[test]
fn every_key_of_the_defaults_is_known_and_the_result_is_the_default() {
    let translation = of(DEFAULTS);
    let unknown: Vec<&Line> = translation.keys.iter().filter(|l| l.outcome == Outcome::Unknown).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let all = Keys::read(DEFAULTS, Path::new("x")).unwrap();
    assert_eq!(translation.keys.len(), all.iter().count());
    let inputs = Inputs { node_name: Some(flags::no_node_name()), ..Inputs::default() };
    assert_eq!(settings(&translation), inputs.resolve(None).unwrap());
    for line in &translation.keys {
        assert!(
            translation.config.contains(&line.key),
            "{} is not mentioned:\n{}",
            line.key,
            translation.config
        );
    }
}

#[test]
fn each_row_can_be_reached() {
    // A row behind a prefix that covers it would be dead.
    let rows: Vec<&str> = table::rows().collect();
    for (at, row) in rows.iter().enumerate() {
        let shadow = rows[..at].iter().find(|before| before.ends_with('.') && row.starts_with(**before));
        assert_eq!(shadow, None, "{row}");
    }
}

#[test]
fn the_documentation_has_every_row() {
    let page = include_str!("../../../docs/migration.md");
    for row in table::rows() {
        assert!(page.contains(&format!("`{row}`")), "docs/migration.md lacks {row}");
    }
}

#[test]
fn what_has_a_counterpart_is_carried_over() {
    let translation = of("\
kind: EdgeMeshAgent
kubeAPIConfig:
  kubeConfig: /etc/kube/config
  metaServer: {server: 'http://10.0.0.5:10550', security: {requireAuthorization: false}}
commonConfig: {bridgeDeviceName: edgemesh0, bridgeDeviceIP: 169.254.97.17}
modules:
  edgeDNS: {enable: true, listenPort: 5353, cacheDNS: {enable: true, upstreamServers: [10.0.0.2, '10.0.0.3:5300']}}
  edgeProxy: {enable: true, subNet: 10.96.0.0/12}
");
    let config = translation.config.split_once("\n\n").unwrap().1;
    assert_eq!(
        config,
        "apiVersion: edgesplice.io/v1alpha1
kind: EdgespliceConfiguration
source:
  kubernetes:
    kubeconfig: /etc/kube/config  # kubeAPIConfig.kubeConfig
  metaserver:
    url: http://10.0.0.5:10550  # kubeAPIConfig.metaServer.server
intercept:
  serviceCIDRs: [10.96.0.0/12]  # modules.edgeProxy.subNet
dns:
  listen: [169.254.97.17:5353]  # commonConfig.bridgeDeviceIP, modules.edgeDNS.listenPort
  mode: auto  # modules.edgeDNS.enable
  upstreams: [10.0.0.2, 10.0.0.3:5300]  # modules.edgeDNS.cacheDNS.upstreamServers
"
    );
}

#[test]
fn certificates_are_carried_over_only_where_they_are_asked_for() {
    let with = |required: bool| {
        of(&format!(
            "kind: EdgeMeshAgent\nkubeAPIConfig: {{metaServer: {{server: 'https://127.0.0.1:10550', security: \
             {{requireAuthorization: {required}, tlsCaFile: /c/ca, tlsCertFile: /c/crt, tlsPrivateKeyFile: /c/key}}}}}}"
        ))
        .config
    };
    assert!(with(true).contains("tlsCaFile: /c/ca  #") && with(true).contains("tlsKeyFile: /c/key  #"));
    assert!(!with(false).contains("tlsCaFile: /c/ca  #"));
}

#[test]
fn what_has_none_is_named_with_what_to_do() {
    let translation = of("\
kind: EdgeMeshAgent
kubeAPIConfig: {master: 'http://10.0.0.1:8080'}
modules:
  edgeProxy: {enable: false, serviceFilterMode: FilterIfLabelDoesNotExists, socks5Proxy: {enable: true, listenPort: 1}}
  edgeTunnel: {enable: true, psk: {path: /p}, metricConfig: {enable: true}}
  edgeCNI: {enable: true}
  other: {thing: 1}
");
    let pressing = |key: &str| {
        let line = line(&translation, key);
        assert_eq!(line.outcome, Outcome::Attention, "{line:?}");
        assert!(!line.note.is_empty() && translation.config.contains(&line.note));
    };
    pressing("kubeAPIConfig.master");
    pressing("modules.edgeProxy.enable");
    pressing("modules.edgeProxy.serviceFilterMode");
    pressing("modules.edgeProxy.socks5Proxy.enable");
    pressing("modules.edgeTunnel.enable");
    pressing("modules.edgeTunnel.metricConfig.enable");
    pressing("modules.edgeCNI.enable");
    assert_eq!(line(&translation, "modules.edgeTunnel.psk.path").outcome, Outcome::Needless);
    assert_eq!(line(&translation, "modules.other.thing").outcome, Outcome::Unknown);
    assert_eq!(settings(&translation).intercept.service_proxy_name, "edgesplice");
    assert_eq!(translation.keys[0].outcome, Outcome::Attention, "the most pressing come first");
}

#[test]
fn a_config_map_and_kubeedge_itself_are_understood() {
    let map = "kind: ConfigMap\ndata:\n  edgemesh-agent.yaml: |\n    kind: EdgeMeshAgent\n    modules:\n      edgeDNS: \
               {enable: false}\n";
    assert!(of(map).config.contains("mode: off  # modules.edgeDNS.enable"));
    let core = "kind: EdgeCore\nmodules:\n  edged: {clusterDNS: x}\n  edgeMesh: {enable: true, lbStrategy: RoundRobin, \
                listenPort: 40001, subNet: 9.251.0.0/16}\n";
    let translation = of(core);
    assert_eq!(translation.keys.len(), 4, "edgecore's other keys are its own: {:?}", translation.keys);
    assert_eq!(line(&translation, "modules.edgeMesh.subNet").outcome, Outcome::Attention);
    assert!(line(&translation, "modules.edgeMesh.lbStrategy").note.contains("round-robin"));
}

#[test]
fn other_files_are_refused() {
    let refused = |text: &str, word: &str| {
        let error = translate(text, Path::new("f.yaml")).unwrap_err().to_string();
        assert!(error.starts_with("f.yaml: ") && error.contains(word) && !error.contains('\n'), "{error}");
    };
    refused("kind: EdgeMeshGateway\n", "EdgeMeshGateway");
    refused("kind: EdgeCore\nmodules: {edged: {}}\n", "EdgeCore");
    refused("kind: ConfigMap\ndata: {a: b}\n", "edgemesh-agent.yaml");
    refused("a: 1\n", "neither");
    refused("a: [1\n", "YAML");
    refused("", "neither");
}

#[test]
fn hostile_values_stay_values() {
    let translation =
        of("kind: EdgeMeshAgent\nkubeAPIConfig: {kubeConfig: \"/x\\ny: z # \\\"\", qps: \"1\\n# 2\"}\n");
    assert_eq!(settings_text(&translation), "/x\ny: z # \"");
    assert!(translation.config.lines().all(|line| !line.starts_with("y:")));
}

/// The kubeconfig of a translation, which need not exist.
fn settings_text(translation: &Translation) -> String {
    let value: serde_json::Value = serde_saphyr::from_str(&translation.config).unwrap();
    value["source"]["kubernetes"]["kubeconfig"].as_str().unwrap().to_owned()
}
