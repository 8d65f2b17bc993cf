//! What the API says: pages of a list and lines of a watch, read into slim objects.
//!
//! One object that cannot be read never spoils its page: it becomes an [`Entry`] with the reason.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::fault::Fault;
use super::slim::{self, Kind, Object, ObjectKey, Phase};

/// One object as it stands in a list or an event.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: ObjectKey,
    /// `resourceVersion` as a number, for comparing two states of one object; `None` where it is not a number.
    pub(super) version: Option<u64>,
    pub(super) content: Content,
}

/// What an entry holds.
#[derive(Debug)]
pub(super) enum Content {
    /// The object and a fingerprint of everything in it that this program reads.
    Object(Box<Object>, u64),
    /// It is there, and of no use to anyone: a pod that has ended.
    Ended,
    /// It could not be read; the reason.
    Unreadable(String),
}

/// One page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) entries: Vec<Entry>,
    /// The list's `resourceVersion`; `MetaServer` sometimes gives none.
    pub(super) version: Option<Box<str>>,
    /// Where the next page starts.
    pub(super) more: Option<String>,
}

/// One line of a watch.
#[derive(Debug)]
pub(super) enum Event {
    /// `ADDED` or `MODIFIED`.
    Set(Entry, Option<Box<str>>),
    /// `DELETED`.
    Gone(ObjectKey, Option<Box<str>>),
    /// `BOOKMARK`: nothing but a newer version.
    Bookmark(Option<Box<str>>),
    /// `ERROR`.
    Failed(Fault),
}

#[derive(Deserialize)]
struct RawList<'a> {
    #[serde(default)]
    kind: Option<Box<str>>,
    #[serde(default)]
    metadata: Option<ListMeta>,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default)]
    resource_version: Option<Box<str>>,
    #[serde(rename = "continue", default)]
    more: Option<String>,
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(rename = "type")]
    kind: Box<str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Named {
    metadata: NamedMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamedMeta {
    #[serde(default)]
    name: Option<Arc<str>>,
    #[serde(default)]
    namespace: Option<Arc<str>>,
    #[serde(default)]
    resource_version: Option<Box<str>>,
}

#[derive(Deserialize)]
struct RawStatus {
    #[serde(default)]
    code: Option<u16>,
    #[serde(default)]
    reason: Option<Box<str>>,
    #[serde(default)]
    message: Option<Box<str>>,
}

fn given(version: Option<Box<str>>) -> Option<Box<str>> {
    version.filter(|v| !v.is_empty() && **v != *"0")
}

/// Reads one page of a list of `kind`.
pub(super) fn page(kind: Kind, body: &[u8]) -> Result<Page, Fault> {
    let list: RawList<'_> = serde_json::from_slice(body).map_err(|e| foreign(body, &e))?;
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Fault::Foreign("the answer is JSON, but no Kubernetes list".to_owned()));
    }
    // MetaServer leaves out the kind of an empty list, and the items.
    if let Some(told) = list.kind.as_deref()
        && !told.is_empty()
        && !told.ends_with("List")
    {
        return Err(Fault::Foreign(format!("the answer is a {told}, not a list of {kind}s")));
    }
    if list.kind.is_none() && list.metadata.is_none() && list.items.is_none() && body.len() > 2 {
        return Err(Fault::Foreign("the answer is JSON, but no Kubernetes list".to_owned()));
    }
    let meta = list.metadata.unwrap_or_default();
    let entries =
        list.items.unwrap_or_default().into_iter().filter_map(|raw| entry(kind, raw).map(|(e, _)| e));
    Ok(Page {
        entries: entries.collect(),
        version: given(meta.resource_version),
        more: meta.more.filter(|m| !m.is_empty()),
    })
}

fn foreign(body: &[u8], error: &serde_json::Error) -> Fault {
    let start = String::from_utf8_lossy(&body[..body.len().min(40)]);
    let shown: String = start.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Fault::Foreign(format!("the answer is no Kubernetes list ({error}); it starts with `{shown}`"))
}

/// Reads one object; `None` where it does not even have a name, so that nothing can be said of it.
fn entry(kind: Kind, raw: &RawValue) -> Option<(Entry, Option<Box<str>>)> {
    let named: Named = match serde_json::from_str(raw.get()) {
        Ok(named) => named,
        Err(error) => {
            tracing::warn!(%kind, %error, "skipped an object without readable metadata");
            return None;
        }
    };
    let content = match slim::decode(kind, &mut serde_json::Deserializer::from_str(raw.get())) {
        Ok(object) => project(object),
        Err(error) => Content::Unreadable(error.to_string()),
    };
    let version = given(named.metadata.resource_version);
    let key = match &content {
        // Shares its texts with the object.
        Content::Object(object, _) => object.key(),
        _ => ObjectKey {
            kind,
            namespace: named.metadata.namespace.unwrap_or_else(|| Arc::from("")),
            name: named.metadata.name?,
        },
    };
    Some((Entry { key, version: version.as_deref().and_then(|v| v.parse().ok()), content }, version))
}

/// Drops what no part of this program reads from a live source: ended pods, and the labels and unpublished ports of
/// the others, which only matter where pods stand in for missing slices.
fn project(mut object: Object) -> Content {
    if let Object::Pod(pod) = &mut object {
        if pod.phase == Phase::Ended {
            return Content::Ended;
        }
        pod.labels = Box::default();
        if pod.ports.iter().any(|p| p.host_port.is_none()) {
            pod.ports =
                std::mem::take(&mut pod.ports).into_iter().filter(|p| p.host_port.is_some()).collect();
        }
    }
    let fingerprint = fingerprint(&object);
    Content::Object(Box::new(object), fingerprint)
}

/// A number that differs when anything that is read from the object differs.
pub(super) fn fingerprint(object: &Object) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    hasher.finish()
}

/// Reads one line of a watch on `kind`; `None` for an event that says nothing.
pub(super) fn event(kind: Kind, line: &[u8]) -> Result<Option<Event>, Fault> {
    let bad = |e: serde_json::Error| Fault::Foreign(format!("a line of the watch cannot be read: {e}"));
    let raw: RawEvent<'_> = serde_json::from_slice(line).map_err(bad)?;
    match &*raw.kind {
        "ADDED" | "MODIFIED" => {
            Ok(entry(kind, raw.object).map(|(entry, version)| Event::Set(entry, version)))
        }
        "DELETED" => Ok(entry(kind, raw.object).map(|(entry, version)| Event::Gone(entry.key, version))),
        "BOOKMARK" => {
            let named: Named = serde_json::from_str(raw.object.get()).map_err(bad)?;
            Ok(Some(Event::Bookmark(given(named.metadata.resource_version))))
        }
        "ERROR" => {
            let status: RawStatus = serde_json::from_str(raw.object.get()).map_err(bad)?;
            let code = status.code.unwrap_or(0);
            let gone = code == 410 || matches!(status.reason.as_deref(), Some("Expired" | "Gone"));
            let message = status.message.unwrap_or_default();
            Ok(Some(Event::Failed(match code {
                _ if gone => Fault::Gone,
                401 => Fault::Unauthorized,
                403 => Fault::Forbidden,
                _ => Fault::Status { code, message: message.into(), retry_after: None },
            })))
        }
        // A newer server may say more; what it says is of no use to us.
        _ => Ok(None),
    }
}

/// Reads what a server may answer, for tests with hostile ones.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_bytes(bytes: &[u8]) {
    for kind in Kind::ALL {
        if let Ok(page) = page(kind, bytes) {
            assert!(page.entries.len() <= bytes.len());
        }
        let _ = event(kind, bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_bad_object_does_not_spoil_its_page() {
        let body = br#"{"kind":"ServiceList","metadata":{"resourceVersion":"7","continue":"abc"},"items":[
            {"metadata":{"name":"good","namespace":"n","resourceVersion":"5"},"spec":{"clusterIP":"10.0.0.1"}},
            {"metadata":{"name":"bad","namespace":"n"},"spec":{"clusterIP":"127.0.0.1"}}, {"metadata":7}]}"#;
        let page = page(Kind::Service, body).unwrap();
        assert_eq!(page.version.as_deref(), Some("7"));
        assert_eq!(page.more.as_deref(), Some("abc"));
        assert_eq!(page.entries.len(), 2);
        assert_eq!(page.entries[0].version, Some(5));
        assert!(matches!(page.entries[0].content, Content::Object(..)));
        assert_eq!(page.entries[1].key.to_string(), "Service n/bad");
        assert!(matches!(&page.entries[1].content, Content::Unreadable(why) if why.contains("127.0.0.1")));
    }

    #[test]
    fn lists_without_kind_version_or_items_are_empty_lists() {
        for body in [&b"{}"[..], br#"{"metadata":{}}"#, br#"{"kind":"","items":null}"#, br#"{"items":[]}"#] {
            let page = page(Kind::Service, body).unwrap();
            assert!(page.entries.is_empty() && page.version.is_none(), "{}", String::from_utf8_lossy(body));
        }
        for body in [&b"<html>"[..], b"", br#"{"kind":"Status"}"#, br#"{"hello":"world"}"#, b"[]"] {
            let fault = page(Kind::Service, body).unwrap_err();
            assert!(matches!(fault, Fault::Foreign(_)), "{fault}");
        }
    }

    #[test]
    fn ended_pods_and_what_nobody_reads_are_dropped() {
        let body = br#"{"items":[{"metadata":{"name":"job","namespace":"n"},"status":{"phase":"Succeeded"}},
            {"metadata":{"name":"p","labels":{"a":"b"}},"spec":{"containers":[{"ports":[{"name":"x","containerPort":1},
            {"containerPort":2,"hostPort":2}]}]}}]}"#;
        let page = page(Kind::Pod, body).unwrap();
        assert!(matches!(page.entries[0].content, Content::Ended));
        let Content::Object(object, _) = &page.entries[1].content else { panic!("{page:?}") };
        let Object::Pod(pod) = &**object else { panic!("{object:?}") };
        assert!(pod.labels.is_empty() && pod.ports.len() == 1 && pod.ports[0].host_port == Some(2));
    }

    #[test]
    fn expiry_inside_a_watch_is_told_from_other_errors() {
        let gone = br#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}"#;
        assert!(matches!(event(Kind::Pod, gone), Ok(Some(Event::Failed(Fault::Gone)))));
        let other = br#"{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcd is away"}}"#;
        let Ok(Some(Event::Failed(fault))) = event(Kind::Pod, other) else { panic!() };
        assert_eq!(fault.to_string(), "500 etcd is away");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = page(Kind::Service, &bytes);
            let _ = event(Kind::Pod, &bytes);
        }
    }
}
