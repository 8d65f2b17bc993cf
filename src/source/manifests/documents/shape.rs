//! The kind of a document, read from any format without looking at the rest.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What a document says it is, read without looking at the rest.
#[derive(Debug, Default)]
pub(super) struct Shape {
    pub(super) is_null: bool,
    pub(super) is_map: bool,
    pub(super) api_version: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) items: Vec<Shape>,
}

impl Shape {
    /// An object that is no list.
    pub(super) fn plain(api_version: &str, kind: &str) -> Self {
        let (api_version, kind) = (Some(api_version.to_owned()), Some(kind.to_owned()));
        Self { is_map: true, api_version, kind, ..Self::default() }
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut shape = Shape { is_map: true, ..Shape::default() };
        while let Some(key) = map.next_key::<Word>()? {
            match key.0.as_deref() {
                Some("apiVersion") => shape.api_version = map.next_value::<Word>()?.0,
                Some("kind") => shape.kind = map.next_value::<Word>()?.0,
                Some("items") => shape.items = map.next_value::<Shape>()?.items,
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(shape)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut shape = Shape::default();
        while let Some(item) = seq.next_element::<Shape>()? {
            shape.items.push(item);
        }
        Ok(shape)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Shape, E> {
        Ok(Shape { is_null: true, ..Shape::default() })
    }

    fn visit_none<E: de::Error>(self) -> Result<Shape, E> {
        self.visit_unit()
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::default())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::default())
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::default())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::default())
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::default())
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ShapeVisitor)
    }
}

/// A text, or nothing where something else stands.
pub(super) struct Word(pub(super) Option<String>);

struct WordVisitor;

impl<'de> Visitor<'de> for WordVisitor {
    type Value = Word;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Word, E> {
        Ok(Word(Some(text.to_owned())))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Word, A::Error> {
        IgnoredAny.visit_map(map).map(|_| Word(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Word, A::Error> {
        IgnoredAny.visit_seq(seq).map(|_| Word(None))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Word, E> {
        Ok(Word(None))
    }

    fn visit_none<E: de::Error>(self) -> Result<Word, E> {
        Ok(Word(None))
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Word, E> {
        Ok(Word(None))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Word, E> {
        Ok(Word(None))
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Word, E> {
        Ok(Word(None))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Word, E> {
        Ok(Word(None))
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(WordVisitor)
    }
}
