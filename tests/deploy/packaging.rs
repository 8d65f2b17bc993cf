//! What the program brings along for packages, and the commands that need no node: `install.sh`, completions, manual
//! pages, `migrate-config`, `run --check-config`.

use std::path::Path;
use std::process::Command;

use super::lab::PROGRAM;
use super::tools::{Said, must, objects, repository, said};

/// The program in an environment of its own.
fn program(args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.env_clear().env("NODE_NAME", "edge").args(args);
    command
}

/// Installs the program under `root`, as `make install DESTDIR=…` does.
pub(crate) fn install(root: &Path) {
    let mut command = Command::new(repository("scripts/install.sh"));
    must(command.arg(PROGRAM).env("DESTDIR", root).env("PREFIX", "/usr/local"));
}

#[test]
fn install_puts_everything_in_place_and_keeps_a_configuration() {
    let root = tempfile::tempdir().expect("a folder");
    let path = |path: &str| root.path().join(path);
    install(root.path());
    let pages: Vec<String> = std::fs::read_dir(path("usr/local/share/man/man1"))
        .expect("manual pages")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    let help = must(&mut program(&["--help"]));
    let commands = help.split_once("Commands:\n").expect("commands").1;
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let mut count = 0;
    for command in
        commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).filter(|c| !c.is_empty())
    {
        assert!(pages.contains(&format!("edgesplice-{command}.1")), "{command}: {pages:?}");
        count += 1;
    }
    assert!(count >= 8 && pages.contains(&"edgesplice.1".to_owned()), "{count}: {pages:?}");
    let page = std::fs::read_to_string(path("usr/local/share/man/man1/edgesplice-run.1")).expect("a page");
    assert!(page.contains(".TH") && page.contains("\\-\\-drain\\-timeout"), "{page}");
    let bash = path("usr/local/share/bash-completion/completions/edgesplice");
    must(Command::new("bash").arg("-n").arg(&bash));
    assert!(std::fs::read_to_string(&bash).expect("completions").contains("--drain-timeout"));
    for file in ["share/zsh/site-functions/_edgesplice", "share/fish/vendor_completions.d/edgesplice.fish"] {
        let text = std::fs::read_to_string(path("usr/local").join(file)).expect("completions");
        assert!(text.contains("drain-timeout"), "{file}");
    }
    let unit =
        std::fs::read_to_string(path("usr/local/lib/systemd/system/edgesplice.service")).expect("the unit");
    assert!(unit.contains("ExecStart=/usr/local/bin/edgesplice run") && !unit.contains("BINDIR"), "{unit}");

    let config = path("etc/edgesplice/config.yaml").display().to_string();
    must(&mut program(&["run", "--check-config", "--config", &config]));
    std::fs::write(&config, "mine").expect("the configuration");
    install(root.path());
    assert_eq!(std::fs::read_to_string(&config).expect("the configuration"), "mine");
}

#[test]
fn a_configuration_is_checked_with_its_manifests_and_nothing_is_touched() {
    let dir = tempfile::tempdir().expect("a folder");
    let manifests = dir.path().join("services");
    std::fs::create_dir(&manifests).expect("a folder");
    std::fs::copy(repository("tests/fixtures/first-light.yaml"), manifests.join("a.yaml"))
        .expect("a manifest");
    let config = dir.path().join("config.yaml");
    let text = format!(
        "apiVersion: edgesplice.io/v1alpha1\nkind: EdgespliceConfiguration\nstateDir: {0}/state\nsource: {{kind: \
         manifests, manifests: {{path: {0}/services}}}}\n",
        dir.path().display()
    );
    std::fs::write(&config, text).expect("a file");
    let check = || said(program(&["run", "--check-config", "--config"]).arg(&config));
    let Said { code, stdout, stderr } = check();
    assert_eq!((code, stdout.as_str()), (Some(0), "the configuration is good\n"), "{stderr}");
    assert!(!dir.path().join("state").exists());
    std::fs::write(manifests.join("b.yaml"), "kind: Service\napiVersion: v1\nmetadata: {}\n")
        .expect("a file");
    let Said { code, stdout, stderr } = check();
    assert_eq!((code, stdout.as_str()), (Some(64), ""), "{stderr}");
    assert!(stderr.contains("b.yaml") && stderr.lines().count() == 1, "{stderr}");
}

#[test]
fn edgemesh_s_configuration_becomes_ours() {
    let given = repository("tests/fixtures/edgemesh-agent.yaml");
    let given = given.to_str().expect("a path");
    let Said { code, stdout, stderr } = said(&mut program(&["migrate-config", given]));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("1 to be seen to, 0 unknown"), "{stderr}");
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("new.yaml");
    std::fs::write(&file, &stdout).expect("a file");
    must(program(&["run", "--check-config", "--config"]).arg(&file));
    let json = must(&mut program(&["migrate-config", given, "-o", "json"]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["config"].as_str(), Some(stdout.as_str()));
    let keys = json["keys"].as_array().expect("keys");
    assert!(
        keys.iter().any(|key| key["key"] == "modules.edgeTunnel.enable" && key["outcome"] == "attention")
    );
    assert_eq!(objects(&stdout)[0]["kind"], "EdgespliceConfiguration");

    let refused = |args: &[&str], word: &str| {
        let Said { code, stdout, stderr } = said(&mut program(args));
        assert_eq!((code, stdout.as_str()), (Some(64), ""), "{stderr}");
        assert!(stderr.contains(word) && stderr.lines().count() == 1, "{stderr}");
    };
    refused(&["migrate-config", "/no/such/file"], "/no/such/file");
    refused(&["migrate-config", repository("Cargo.toml").to_str().expect("a path")], "Cargo.toml");
}
