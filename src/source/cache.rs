//! The last good objects on disk, for a node that starts while its server is out of reach.
//!
//! One JSON file with a version and a checksum, replaced atomically. Whatever is wrong with it, it is set aside and
//! named, and never stops the start.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Update;
use super::slim::{self, Kind, Object, ObjectKey};

/// The format's version; a file of any other is set aside.
const VERSION: u64 = 1;
/// Says what the file is to whoever finds it.
const FORMAT: &str = "edgesplice last good objects";
/// The file in the state directory.
const FILE: &str = "last-good.json";
/// Temporary files while writing; a power cut can leave one.
const TEMPORARY: &str = ".last-good-";
/// Largest file that is read or written: twenty times what 10,000 services take.
const MOST: u64 = 256 << 20;

/// The last good objects and when they were good.
#[derive(Clone, Debug)]
pub struct LastGood {
    /// The objects.
    pub objects: Vec<Object>,
    /// When they were last known to be current, by the clock on the wall.
    pub saved_at: SystemTime,
    /// The highest list version seen, where the source keeps one.
    pub mark: u64,
}

impl LastGood {
    /// How old they are; zero where the clock has gone backwards, as on boards without a battery.
    pub fn age(&self) -> Duration {
        SystemTime::now().duration_since(self.saved_at).unwrap_or_default()
    }

    /// When they were current, on the monotonic clock.
    pub fn current_at(&self) -> Instant {
        let now = Instant::now();
        now.checked_sub(self.age()).unwrap_or(now)
    }
}

/// A cache file that cannot be used.
#[derive(Debug)]
pub struct Unusable {
    path: PathBuf,
    why: String,
    set_aside: Option<PathBuf>,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the cache {} {}", self.path.display(), self.why)?;
        match &self.set_aside {
            Some(aside) => write!(f, "; set aside as {}", aside.display()),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Unusable {}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFile<'a> {
    version: u64,
    #[serde(borrow)]
    identity: Cow<'a, str>,
    saved_at: u64,
    mark: u64,
    #[serde(borrow)]
    checksum: Cow<'a, str>,
    #[serde(borrow)]
    objects: &'a RawValue,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    format: &'a str,
    version: u64,
    identity: &'a str,
    saved_at: u64,
    mark: u64,
    checksum: String,
}

#[derive(Deserialize)]
struct Peek {
    #[serde(default)]
    version: Option<u64>,
    #[serde(default)]
    identity: Option<String>,
}

/// The cache file of one state directory.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The cache in `state_dir`; neither has to exist. Removes what an interrupted write has left.
    pub fn open(state_dir: &Path) -> Self {
        for entry in fs::read_dir(state_dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                // Litter only; a read-only directory is reported when the next write fails.
                let _ = fs::remove_file(entry.path());
            }
        }
        Self { dir: state_dir.to_owned() }
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// Whose objects it holds, if there is one that can be read that far.
    pub fn identity(&self) -> Option<String> {
        let bytes = self.read().ok()?;
        serde_json::from_slice::<Peek>(&bytes).ok()?.identity
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        // Whoever may write into the folder is not to lead us elsewhere by a link, or have us wait at a pipe.
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(self.path())?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let mut bytes = Vec::new();
        file.take(MOST + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads the objects of `identity`: the kind of source and its address. `None` where there is no file. A file
    /// that cannot be used is renamed, so that it is neither read again nor lost.
    pub fn load(&self, identity: &str) -> Result<Option<LastGood>, Unusable> {
        let path = self.path();
        let bytes = match self.read() {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Unusable { path, why: format!("cannot be read: {e}"), set_aside: None }),
        };
        parse(&bytes, identity).map(Some).map_err(|(suffix, why)| {
            let aside = path.with_extension(format!("json.{suffix}"));
            // Where even that fails, the next write replaces it.
            let set_aside = fs::rename(&path, &aside).is_ok().then_some(aside);
            Unusable { path, why, set_aside }
        })
    }

    /// Replaces the file: written beside it, flushed, renamed, and the folder flushed.
    pub(super) fn save(&self, text: &str) -> io::Result<()> {
        if text.len() as u64 > MOST {
            return Err(io::Error::other(format!("{} MiB are more than are kept", text.len() >> 20)));
        }
        // For root alone, as the files in it.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        // Created with mode 0600: addresses and names of a whole cluster concern root alone.
        let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.dir)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(self.path())?;
        File::open(&self.dir)?.sync_all()
    }
}

/// Reads a cache file; otherwise a suffix to set it aside with, and what is wrong.
fn parse(bytes: &[u8], identity: &str) -> Result<LastGood, (String, String)> {
    if bytes.len() as u64 > MOST {
        return Err(("too-large".to_owned(), format!("is larger than {} MiB", MOST >> 20)));
    }
    let corrupt = |why: &dyn fmt::Display| ("corrupt".to_owned(), format!("is corrupt: {why}"));
    let file: RawFile<'_> = match serde_json::from_slice(bytes) {
        Ok(file) => file,
        Err(e) if e.is_eof() => return Err(("truncated".to_owned(), "is truncated".to_owned())),
        Err(e) => match serde_json::from_slice::<Peek>(bytes) {
            Ok(Peek { version: Some(other), .. }) if other != VERSION => return Err(version_fault(other)),
            _ => return Err(corrupt(&e)),
        },
    };
    if file.version != VERSION {
        return Err(version_fault(file.version));
    }
    let raw = file.objects.get();
    if file.checksum != checksum(raw) {
        return Err(corrupt(&"its checksum does not match its content"));
    }
    if file.identity != identity {
        let why =
            format!("belongs to another source ({}), and this node now follows {identity}", file.identity);
        return Err(("other-source".to_owned(), why));
    }
    let kinds: BTreeMap<Cow<'_, str>, Vec<&RawValue>> = serde_json::from_str(raw).map_err(|e| corrupt(&e))?;
    let mut objects = Vec::with_capacity(kinds.values().map(Vec::len).sum());
    for (name, list) in kinds {
        let kind = Kind::ALL.into_iter().find(|k| k.as_str() == name);
        let kind = kind.ok_or_else(|| corrupt(&format!("kind `{name}` is not known")))?;
        for one in list {
            let object = slim::decode(kind, &mut serde_json::Deserializer::from_str(one.get()));
            objects.push(object.map_err(|e| corrupt(&e))?);
        }
    }
    Ok(LastGood { objects, saved_at: UNIX_EPOCH + Duration::from_secs(file.saved_at), mark: file.mark })
}

fn version_fault(version: u64) -> (String, String) {
    (
        format!("version-{version}"),
        format!("has format version {version}, and this program reads version {VERSION}"),
    )
}

/// FNV-1a: it guards against a worn flash and a cut file, not against malice.
fn checksum(text: &str) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}

/// Reads a file, for tests with hostile ones; also once more with the right checksum and identity around its objects.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_bytes(bytes: &[u8]) {
    let _ = parse(bytes, "fuzz");
    let _ = serde_json::from_slice::<Peek>(bytes);
    let Ok(objects) = std::str::from_utf8(bytes) else { return };
    let sum = checksum(objects.trim_ascii());
    let whole = format!(
        r#"{{"format":"{FORMAT}","version":{VERSION},"identity":"fuzz","savedAt":1,"mark":0,"checksum":"{sum}","objects":{objects}}}"#
    );
    if let Ok(read) = parse(whole.as_bytes(), "fuzz") {
        let mut shelf = Shelf::default();
        shelf.apply(&Update::Replace(read.objects));
    }
}

/// The objects in force as they stand in the file; kept as text, which is smaller than the objects.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    objects: BTreeMap<ObjectKey, Box<str>>,
}

impl Shelf {
    /// Follows one update.
    pub(super) fn apply(&mut self, update: &Update) {
        match update {
            Update::Replace(all) => {
                self.objects = all.iter().map(|o| (o.key(), slim::encode(o).to_string().into())).collect();
            }
            Update::Upsert(object) => {
                self.objects.insert(object.key(), slim::encode(object).to_string().into());
            }
            Update::Delete(key) => {
                self.objects.remove(key);
            }
        }
    }

    /// The objects as one JSON text, the same for the same objects, and its checksum.
    pub(super) fn body(&self) -> (String, String) {
        let size = self.objects.values().map(|o| o.len() + 1).sum::<usize>();
        let mut text = String::with_capacity(size + 200);
        text.push('{');
        let mut kind = None;
        for (key, object) in &self.objects {
            if kind == Some(key.kind) {
                text.push_str(",\n");
            } else {
                let end = if kind.is_some() { "],\n" } else { "" };
                text.extend([end, "\"", key.kind.as_str(), "\":[\n"]);
                kind = Some(key.kind);
            }
            text.push_str(object);
        }
        text.push_str(if kind.is_some() { "]}" } else { "}" });
        let checksum = checksum(&text);
        (text, checksum)
    }
}

/// The whole file.
pub(super) fn file(
    body: &str,
    checksum: String,
    identity: &str,
    saved_at: SystemTime,
    mark: u64,
) -> serde_json::Result<String> {
    let saved_at = saved_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let head = Head { format: FORMAT, version: VERSION, identity, saved_at, mark, checksum };
    let mut text = serde_json::to_string(&head)?;
    text.pop(); // the closing brace: the objects come last
    text.push_str(",\n\"objects\":");
    text.push_str(body);
    text.push_str("}\n");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ME: &str = "kubernetes https://10.0.0.1:6443";

    fn service(name: &str) -> Object {
        let json = format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"n"}},"spec":{{"clusterIP":"10.96.0.1"}}}}"#
        );
        slim::decode(Kind::Service, &mut serde_json::Deserializer::from_str(&json)).unwrap()
    }

    fn written(dir: &Path) -> Cache {
        let cache = Cache::open(dir);
        let mut shelf = Shelf::default();
        shelf.apply(&Update::Replace(vec![service("b"), service("a")]));
        let (body, sum) = shelf.body();
        let an_hour_ago = SystemTime::now() - Duration::from_hours(1);
        cache.save(&file(&body, sum, ME, an_hour_ago, 77).unwrap()).unwrap();
        cache
    }

    #[test]
    fn what_was_saved_comes_back_with_its_age() {
        let dir = tempfile::tempdir().unwrap();
        let cache = written(dir.path());
        let last = cache.load(ME).unwrap().unwrap();
        assert_eq!(last.objects, [service("a"), service("b")]);
        assert_eq!(last.mark, 77);
        assert!((3599..3602).contains(&last.age().as_secs()), "{:?}", last.age());
        assert!((3599..3602).contains(&last.current_at().elapsed().as_secs()));
        assert_eq!(cache.identity().as_deref(), Some(ME));
        let mode = fs::metadata(cache.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn no_file_is_no_fault() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Cache::open(&dir.path().join("not/there")).load(ME).unwrap().is_none());
    }

    #[test]
    fn every_bad_file_is_set_aside_and_named() {
        type Damage = fn(String) -> String;
        let cases: [(&str, &str, Damage); 7] = [
            ("truncated", "truncated", |t| t[..t.len() / 2].to_owned()),
            ("truncated", "truncated", |_| String::new()),
            ("corrupt", "checksum", |t| t.replace("10.96.0.1", "10.96.0.2")),
            ("corrupt", "corrupt", |t| t.replacen('{', "[", 1)),
            ("version-2", "format version 2", |t| t.replace("\"version\":1", "\"version\":2")),
            ("version-0", "format version 0", |_| r#"{"version":0}"#.to_owned()),
            ("other-source", "another source", |t| t.replace("10.0.0.1:6443", "10.0.0.2:6443")),
        ];
        for (suffix, why, damage) in cases {
            let dir = tempfile::tempdir().unwrap();
            let cache = written(dir.path());
            let text = fs::read_to_string(cache.path()).unwrap();
            fs::write(cache.path(), damage(text)).unwrap();
            let fault = cache.load(ME).unwrap_err().to_string();
            assert!(fault.contains(why), "{fault}");
            assert!(fault.ends_with(&format!("last-good.json.{suffix}")), "{fault}");
            assert!(dir.path().join(format!("last-good.json.{suffix}")).exists());
            assert!(cache.load(ME).unwrap().is_none(), "not read again");
        }
    }

    #[test]
    fn litter_of_an_interrupted_write_goes() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".last-good-abc"), "x").unwrap();
        Cache::open(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_empty_shelf_is_a_valid_file() {
        let (body, sum) = Shelf::default().body();
        let text = file(&body, sum, ME, SystemTime::now(), 0).unwrap();
        assert!(parse(text.as_bytes(), ME).unwrap().objects.is_empty());
    }

    #[test]
    fn a_link_or_a_pipe_in_its_place_does_no_harm() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};

        let dir = tempfile::tempdir().unwrap();
        let (state, victim) = (dir.path().join("state"), dir.path().join("victim"));
        fs::write(&victim, "keep me").unwrap();
        let cache = Cache::open(&state);
        fs::create_dir(&state).unwrap();
        symlink(&victim, cache.path()).unwrap();
        assert!(cache.load("x").is_err(), "a link is not followed");
        assert_eq!(cache.identity(), None);
        cache.save("{}").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "keep me");
        let kept = cache.path().symlink_metadata().unwrap();
        assert!(kept.is_file() && kept.permissions().mode() & 0o777 == 0o600);
        // Nobody writes into it, and nobody waits for that.
        fs::remove_file(cache.path()).unwrap();
        nix::unistd::mkfifo(&cache.path(), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(cache.load("x").is_err());
        cache.save("{}").unwrap();
        assert!(cache.path().symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn the_folder_is_made_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        Cache::open(&state).save("{}").unwrap();
        assert_eq!(state.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }
}
