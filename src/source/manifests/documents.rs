//! A manifest file's text → objects.
//!
//! Each document is read twice: once for its kind alone, which may stand at its end, and once as that kind. So
//! documents of other kinds are passed over whatever they hold, and a fault always has its line. Where the kind can
//! be seen without parsing, as it nearly always can, the first reading is saved.

mod shape;
mod split;
mod unique;

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::source::slim::{Kind, Object, decode};

use super::MAX_FILE_BYTES;
use shape::{Shape, Word};
use split::split;
use unique::Unique;

/// What is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) document: usize,
    /// The line in the file, from 1.
    pub(super) line: usize,
    pub(super) what: String,
}

/// What a file held.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Each object with the number of its document.
    pub(super) objects: Vec<(usize, Object)>,
    pub(super) warnings: Vec<String>,
}

/// Reads all documents of a file.
pub(super) fn read(text: &str, json: bool) -> Result<Found, Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Found::default();
    if json {
        read_json(text, &mut found)?;
    } else {
        read_yaml(text, &mut found)?;
    }
    Ok(found)
}

/// The number of the document that goes on where `text`, the beginning of a file, ends.
pub(super) fn number_after(text: &str, json: bool) -> usize {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if json {
        let values = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
        return values.take_while(Result::is_ok).count() + 1;
    }
    // What comes next is content, so that the last document has some.
    split(&format!("{text}?")).last().map_or(1, |doc| doc.number)
}

fn read_yaml(text: &str, found: &mut Found) -> Result<(), Fault> {
    for doc in split(text) {
        let fault = |error: &serde_saphyr::Error| {
            let error = error.without_snippet();
            let whole = error.to_string();
            let (line, what) = match error.location().filter(|l| l.line() > 0) {
                Some(at) => {
                    let suffix = format!(" at line {}, column {}", at.line(), at.column());
                    let line = doc.line + usize::try_from(at.line()).unwrap_or(1) - 1;
                    (line, whole.strip_suffix(&suffix).unwrap_or(&whole).to_owned())
                }
                None => (doc.first_content(), whole),
            };
            Fault { document: doc.number, line, what: what.replace('\n', " ") }
        };
        let shape = match doc.sniff() {
            // The items of a list need a look at each.
            Some((version, kind)) if !kind.ends_with("List") => Shape::plain(version, kind),
            _ => serde_saphyr::with_deserializer_from_str_with_options(doc.text, options(), |from| {
                Shape::deserialize(from)
            })
            .map_err(|e| fault(&e))?,
        };
        let here = |what| Fault { document: doc.number, line: doc.first_content(), what };
        let Some(plan) = Plan::of(&shape, None, &mut found.warnings).map_err(here)? else { continue };
        let mut objects = Vec::new();
        serde_saphyr::with_deserializer_from_str_with_options(doc.text, options(), |from| {
            Element { plan: &plan, out: &mut objects }.deserialize(from)
        })
        .map_err(|e| fault(&e))?;
        found.objects.extend(objects.into_iter().map(|object| (doc.number, object)));
    }
    Ok(())
}

/// Limits against hostile text. A document without aliases costs no more than its size, which is limited already;
/// aliases, which multiply, are held to what manifests written by hand may want.
fn options() -> serde_saphyr::Options {
    let bytes = usize::try_from(MAX_FILE_BYTES).unwrap_or(usize::MAX);
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: bytes,
            max_nodes: bytes,
            max_total_scalar_bytes: bytes,
            max_aliases: 1000,
            max_anchors: 1000,
            max_recorded_anchor_bytes: 256 * 1024,
            max_recorded_anchor_events: 100_000,
            max_merge_keys: 1000,
            max_depth: 64,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
        },
        with_snippet: false,
        emit_comments: false,
    }
}

fn read_json(text: &str, found: &mut Found) -> Result<(), Fault> {
    let newlines = |text: &str| text.bytes().filter(|b| *b == b'\n').count();
    let (mut rest, mut before) = (text, 0);
    for document in 1.. {
        let fault = |error: &serde_json::Error| {
            let whole = error.to_string();
            let suffix = format!(" at line {} column {}", error.line(), error.column());
            let what = whole.strip_suffix(&suffix).unwrap_or(&whole).to_owned();
            Fault { document, line: before + error.line().max(1), what }
        };
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<Shape>();
        let Some(shape) = stream.next() else { break };
        let shape = shape.map_err(|e| fault(&e))?;
        let (one, more) = rest.split_at(stream.byte_offset());
        let blank = newlines(&one[..one.len() - one.trim_start().len()]);
        let here = |what| Fault { document, line: before + blank + 1, what };
        if let Some(plan) = Plan::of(&shape, None, &mut found.warnings).map_err(here)? {
            if !matches!(plan, Plan::PassOver) {
                Unique::deserialize(&mut serde_json::Deserializer::from_str(one)).map_err(|e| fault(&e))?;
            }
            let mut objects = Vec::new();
            let element = Element { plan: &plan, out: &mut objects };
            element.deserialize(&mut serde_json::Deserializer::from_str(one)).map_err(|e| fault(&e))?;
            found.objects.extend(objects.into_iter().map(|object| (document, object)));
        }
        before += newlines(one);
        rest = more;
    }
    Ok(())
}

/// What to do with a document or an item of a list.
#[derive(Debug)]
enum Plan {
    PassOver,
    Read(Kind),
    List(Vec<Plan>),
}

impl Plan {
    /// `None` for a document that holds nothing. `within` is the `apiVersion` and kind of the items of a typed
    /// list, whose items need not repeat them.
    fn of(
        shape: &Shape,
        within: Option<(&str, &str)>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Self>, String> {
        if shape.is_null {
            return Ok(None);
        }
        if !shape.is_map {
            return Err("not a Kubernetes object: expected a mapping with apiVersion and kind".to_owned());
        }
        let named = |own: &Option<String>, of: Option<&str>, what: &str| {
            let text = own.as_deref().or(of).filter(|t| !t.is_empty()).map(str::to_owned);
            text.ok_or_else(|| format!("not a Kubernetes object: {what} is missing or not a text"))
        };
        let api_version = named(&shape.api_version, within.map(|w| w.0), "apiVersion")?;
        let kind = named(&shape.kind, within.map(|w| w.1), "kind")?;
        if let Some(items) = kind.strip_suffix("List") {
            let within = (!items.is_empty()).then_some((api_version.as_str(), items));
            if within.is_some_and(|(version, kind)| Kind::of(version, kind).is_none()) {
                return Ok(Some(Self::PassOver));
            }
            let plan = |(at, item)| match Self::of(item, within, warnings) {
                Ok(plan) => Ok(plan.unwrap_or(Self::PassOver)),
                Err(why) => Err(format!("item {}: {why}", at + 1)),
            };
            return shape
                .items
                .iter()
                .enumerate()
                .map(plan)
                .collect::<Result<_, _>>()
                .map(|l| Some(Self::List(l)));
        }
        if kind == "EndpointSlice" && api_version.starts_with("discovery.k8s.io/v1beta") {
            warnings.push(format!(
                "an EndpointSlice of {api_version} is passed over; discovery.k8s.io/v1 is read"
            ));
        }
        Ok(Some(Kind::of(&api_version, &kind).map_or(Self::PassOver, Self::Read)))
    }
}

/// Reads one element as planned.
struct Element<'a> {
    plan: &'a Plan,
    out: &'a mut Vec<Object>,
}

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        match self.plan {
            Plan::PassOver => IgnoredAny::deserialize(from).map(|_| ()),
            Plan::Read(kind) => decode(*kind, from).map(|object| self.out.push(object)),
            Plan::List(plans) => from.deserialize_map(ListVisitor { plans, out: self.out }),
        }
    }
}

/// Reads the items of a list, either inside of its mapping or as the bare sequence.
struct ListVisitor<'a> {
    plans: &'a [Plan],
    out: &'a mut Vec<Object>,
}

impl<'de> Visitor<'de> for ListVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Word>()? {
            if key.0.as_deref() == Some("items") && !self.plans.is_empty() {
                map.next_value_seed(Items { plans: self.plans, out: self.out })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for plan in self.plans {
            if seq.next_element_seed(Element { plan, out: self.out })?.is_none() {
                break;
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

struct Items<'a> {
    plans: &'a [Plan],
    out: &'a mut Vec<Object>,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(ListVisitor { plans: self.plans, out: self.out })
    }
}

#[cfg(test)]
mod tests;
