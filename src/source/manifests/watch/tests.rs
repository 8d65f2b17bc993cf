use std::fs;
use std::os::unix::fs::symlink;

use tokio::sync::watch;

use super::*;

/// Generous, so that a loaded machine does not fail the test; what is waited for takes 100 ms normally.
const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    updates: mpsc::Receiver<Update>,
    status: watch::Receiver<SourceStatus>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

fn start(path: &Path) -> Running {
    let (updates, incoming) = mpsc::channel(16);
    let begin = SourceStatus {
        kind: "manifests",
        state: SourceState::Stale,
        fresh_at: Instant::now(),
        message: String::new(),
        unreadable: Unreadable::default(),
    };
    let (status, seen) = watch::channel(begin);
    let stop = CancellationToken::new();
    let source = ManifestSource::new(path.to_owned(), load(path).unwrap());
    let task = tokio::spawn(source.run(Sink { updates, status }, stop.clone()));
    Running { updates: incoming, status: seen, stop, task }
}

impl Running {
    /// The names of the Services in the next update.
    async fn next(&mut self) -> Vec<String> {
        match tokio::time::timeout(PATIENCE, self.updates.recv()).await.expect("no update came") {
            Some(Update::Replace(objects)) => objects.iter().map(|o| o.key().name.to_string()).collect(),
            other => panic!("{other:?}"),
        }
    }

    async fn until(&mut self, state: SourceState) -> SourceStatus {
        let wait = self.status.wait_for(|s| s.state == state);
        tokio::time::timeout(PATIENCE, wait).await.expect("the state never came").unwrap().clone()
    }

    async fn quiet(&mut self) {
        let more = tokio::time::timeout(Duration::from_millis(400), self.updates.recv()).await;
        assert!(more.is_err(), "{more:?}");
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("did not stop").unwrap().unwrap();
    }
}

fn service(name: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n")
}

#[tokio::test]
async fn a_folder_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, service("a")).unwrap();
    let mut run = start(dir.path());
    assert_eq!(run.next().await, ["a"]);
    run.until(SourceState::Synced).await;

    fs::write(dir.path().join("b.yaml"), service("b")).unwrap();
    assert_eq!(run.next().await, ["a", "b"]);
    fs::remove_file(&file).unwrap();
    assert_eq!(run.next().await, ["b"]);

    // Files that are no manifests, and writing the same again, are no news.
    fs::write(dir.path().join("notes.txt"), "x").unwrap();
    fs::write(dir.path().join("b.yaml"), service("b")).unwrap();
    run.quiet().await;
    run.end().await;
}

#[tokio::test]
async fn a_bad_reload_keeps_the_last_good_state() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, service("a")).unwrap();
    let mut run = start(&file);
    assert_eq!(run.next().await, ["a"]);

    fs::write(&file, "apiVersion: v1\nkind: Service\nmetadata: {}\n").unwrap();
    let status = run.until(SourceState::Error).await;
    assert!(
        status.message.contains("a.yaml: document 1, line 3: missing field `name`"),
        "{}",
        status.message
    );
    run.quiet().await;

    // Back to what is in force: good again, and nothing to send.
    fs::write(&file, service("a")).unwrap();
    assert_eq!(run.until(SourceState::Synced).await.message, "");
    run.quiet().await;

    fs::write(&file, service("b")).unwrap();
    assert_eq!(run.next().await, ["b"]);
    run.end().await;
}

#[tokio::test]
async fn editors_that_rename_over_the_file_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, service("a")).unwrap();
    let mut run = start(&file);
    assert_eq!(run.next().await, ["a"]);
    for name in ["b", "c", "d"] {
        let temporary = dir.path().join("a.yaml~");
        fs::write(&temporary, service(name)).unwrap();
        fs::rename(&temporary, &file).unwrap();
        assert_eq!(run.next().await, [name]);
    }
    fs::remove_file(&file).unwrap();
    let status = run.until(SourceState::Error).await;
    assert!(status.message.contains("no such file"), "{}", status.message);
    fs::write(&file, service("e")).unwrap();
    assert_eq!(run.next().await, ["e"]);
    run.until(SourceState::Synced).await;
    run.end().await;
}

#[tokio::test]
async fn the_link_swap_of_a_configmap_volume_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let publish = |version: &str, name: &str| {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("a.yaml"), service(name)).unwrap();
        symlink(version, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
    };
    publish("..2026_01", "one");
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    let (mut folder, mut file) = (start(dir.path()), start(&at("a.yaml")));
    assert_eq!(folder.next().await, ["one"]);
    assert_eq!(file.next().await, ["one"]);
    for (version, name) in [("..2026_02", "two"), ("..2026_03", "three")] {
        publish(version, name);
        assert_eq!(folder.next().await, [name]);
        assert_eq!(file.next().await, [name]);
    }
    folder.end().await;
    file.end().await;
}

#[tokio::test]
async fn a_folder_that_is_made_anew_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("deep/manifests");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("a.yaml"), service("a")).unwrap();
    let mut run = start(&folder);
    assert_eq!(run.next().await, ["a"]);
    fs::remove_dir_all(dir.path().join("deep")).unwrap();
    run.until(SourceState::Error).await;
    // At once, or it might be read while it is empty.
    let fresh = dir.path().join("fresh");
    fs::create_dir_all(fresh.join("manifests")).unwrap();
    fs::write(fresh.join("manifests/a.yaml"), service("b")).unwrap();
    fs::rename(fresh, dir.path().join("deep")).unwrap();
    assert_eq!(run.next().await, ["b"]);
    // And the new folder is watched like the old one.
    fs::write(folder.join("a.yaml"), service("c")).unwrap();
    assert_eq!(run.next().await, ["c"]);
    run.end().await;
}

#[tokio::test]
async fn a_link_that_leads_elsewhere_is_followed_by_the_slow_look() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let target = elsewhere.path().join("real.yaml");
    fs::write(&target, service("a")).unwrap();
    symlink(&target, dir.path().join("a.yaml")).unwrap();
    let mut run = start(dir.path());
    assert_eq!(run.next().await, ["a"]);
    fs::write(&target, service("b")).unwrap();
    assert_eq!(run.next().await, ["b"]);
    run.end().await;
}

#[tokio::test]
async fn a_storm_of_writes_is_read_as_few_times_as_possible() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, service("a")).unwrap();
    let mut run = start(&file);
    assert_eq!(run.next().await, ["a"]);
    for round in 0..50 {
        fs::write(&file, service(&format!("r{round}"))).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut reads = 1;
    while run.next().await != ["r49"] {
        reads += 1;
    }
    assert!(reads <= 3, "{reads} reads");
    run.end().await;
}

#[test]
fn reading_and_neighbours_are_no_change() {
    use notify::event::{CreateKind, ModifyKind, RenameMode};
    let ours = Path::new("/x/a.yaml");
    let event = |kind, path: &str| Event::new(kind).add_path(path.into());
    let write = EventKind::Access(AccessKind::Close(AccessMode::Write));
    let read = EventKind::Access(AccessKind::Open(AccessMode::Any));
    let cases = [
        (event(write, "/x/a.yaml"), true),
        (event(read, "/x/a.yaml"), false),
        (event(write, "/x/b.yaml"), false),
        (event(EventKind::Create(CreateKind::File), "/x/a.yaml"), true),
        (event(EventKind::Modify(ModifyKind::Name(RenameMode::To)), "/x/..data"), true),
        (event(EventKind::Modify(ModifyKind::Name(RenameMode::To)), "/x/y/..data"), false),
    ];
    for (event, want) in cases {
        assert_eq!(concerns(&event, ours), want, "{event:?}");
    }
    assert!(concerns(&event(write, "/x/a.yaml/inside.yaml"), ours));
}
