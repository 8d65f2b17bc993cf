use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

fn names(loaded: &Loaded) -> Vec<String> {
    loaded.objects.iter().map(|o| o.key().to_string()).collect()
}

#[test]
fn the_jobs_own_manifests_are_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/nginx.yaml");
    let loaded = load(Path::new(path)).unwrap();
    assert_eq!(
        names(&loaded),
        ["Service default/nginx-svc", "Pod default/nginx", "Node edge-a", "Node edge-b"]
    );
    assert_eq!(loaded.warnings, [""; 0]);
}

#[test]
fn a_folder_is_read_in_the_order_of_names() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("b.yml"), service("b", "10.96.0.2")).unwrap();
    fs::write(at("a.yaml"), service("a", "10.96.0.1")).unwrap();
    fs::write(at("c.json"), "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"c\"}}")
        .unwrap();
    fs::write(at("notes.txt"), "not: [yaml").unwrap();
    fs::write(at(".hidden.yaml"), "not: [yaml").unwrap();
    fs::write(at("empty.yaml"), "").unwrap();
    fs::create_dir(at("folder.yaml")).unwrap();
    assert_eq!(names(&load(dir.path()).unwrap()), ["Service default/a", "Service default/b", "Node c"]);
}

#[test]
fn the_last_of_two_equal_keys_counts_and_is_mentioned() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("1.yaml"), service("a", "10.96.0.1")).unwrap();
    fs::write(
        dir.path().join("2.yaml"),
        format!("{}---\n{}", service("b", "10.96.0.2"), service("a", "10.96.0.3")),
    )
    .unwrap();
    let loaded = load(dir.path()).unwrap();
    assert_eq!(names(&loaded), ["Service default/a", "Service default/b"]);
    let Object::Service(a) = &loaded.objects[0] else { panic!() };
    assert_eq!(a.cluster_ips[0].to_string(), "10.96.0.3");
    assert_eq!(loaded.warnings.len(), 1);
    assert!(
        loaded.warnings[0].contains("1.yaml document 1") && loaded.warnings[0].contains("2.yaml document 2")
    );
}

#[test]
fn an_empty_folder_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let loaded = load(dir.path()).unwrap();
    assert!(loaded.objects.is_empty());
    assert_eq!(loaded.warnings.len(), 1);
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    assert_eq!(load(&at("nothing")).unwrap_err(), Fault::Missing { path: at("nothing") });

    symlink(at("loop.yaml"), at("loop.yaml")).unwrap();
    assert!(matches!(load(&at("loop.yaml")).unwrap_err(), Fault::Read { .. }));
    assert!(matches!(load(dir.path()).unwrap_err(), Fault::Read { .. }));
    fs::remove_file(at("loop.yaml")).unwrap();

    symlink(at("nowhere"), at("link.yaml")).unwrap();
    assert_eq!(load(dir.path()).unwrap_err(), Fault::Missing { path: at("link.yaml") });
    fs::remove_file(at("link.yaml")).unwrap();

    for (name, bytes, document, line) in [
        ("latin1.yaml", &b"a: 1\nb: 1\nname: caf\xe9\n"[..], 1, 3),
        ("latin1.yaml", b"a: 1\n---\nb: 1\n---\n\xe9: 1\n", 3, 5),
        ("latin1.yaml", b"\xff", 1, 1),
        ("latin1.json", b"{\"a\": 1}\n{\"b\": \"\xe9\"}\n", 2, 2),
    ] {
        fs::write(at(name), bytes).unwrap();
        assert_eq!(load(dir.path()).unwrap_err(), Fault::NotUtf8 { path: at(name), document, line });
        fs::remove_file(at(name)).unwrap();
    }

    assert_eq!(load(Path::new("/dev/zero")).unwrap_err(), Fault::Special { path: "/dev/zero".into() });
    nix::unistd::mkfifo(&at("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(load(dir.path()).unwrap_err(), Fault::Special { path: at("pipe.yaml") });
    fs::remove_file(at("pipe.yaml")).unwrap();

    let sparse = fs::File::create(at("huge.yaml")).unwrap();
    sparse.set_len(MAX_FILE_BYTES + 1).unwrap();
    let limit = MAX_FILE_BYTES;
    assert_eq!(load(dir.path()).unwrap_err(), Fault::TooLarge { path: at("huge.yaml"), limit });
    fs::remove_file(at("huge.yaml")).unwrap();

    fs::write(at("x.yaml"), "a: 1\n---\nkind: Service\napiVersion: v1\n").unwrap();
    let fault = load(dir.path()).unwrap_err().to_string();
    assert!(
        fault.ends_with(
            "x.yaml: document 1, line 1: not a Kubernetes object: apiVersion is missing or not a text"
        ),
        "{fault}"
    );
}

#[test]
fn an_unreadable_file_is_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, service("a", "10.96.0.1")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser reads everything.
    let result = load(&file);
    if nix::unistd::geteuid().is_root() {
        assert!(result.is_ok());
    } else {
        assert!(matches!(result.unwrap_err(), Fault::Read { .. }));
    }
}

#[test]
fn the_fingerprint_follows_the_content() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, service("a", "10.96.0.1")).unwrap();
    let first = load(dir.path()).unwrap().fingerprint;
    fs::write(&file, service("a", "10.96.0.1")).unwrap();
    assert_eq!(load(dir.path()).unwrap().fingerprint, first);
    fs::write(&file, service("a", "10.96.0.2")).unwrap();
    assert_ne!(load(dir.path()).unwrap().fingerprint, first);
}
