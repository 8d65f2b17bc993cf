//! The three layers, file, environment and flags, laid over one another.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::{UsageError, keys};

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On the command line; the flag with its dashes.
    Flag(String),
    /// In the environment; the variable's name.
    Env(String),
    /// In the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The column, from 1.
        column: u64,
    },
    /// Nowhere; where the default was taken from, in words.
    Default(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Env(variable) => write!(f, "environment variable {variable}"),
            Self::File { path, line, column } => {
                write!(f, "{}, line {line}, column {column}", path.display())
            }
            Self::Default(what) => f.write_str(what),
        }
    }
}

/// One value as written.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// A value from the environment or the command line, which beats the file's.
#[derive(Clone, Debug)]
pub struct Override {
    /// The key it stands for, one of [`keys`].
    pub key: &'static str,
    /// The value as written; lists are separated by commas.
    pub text: String,
    /// Where it was given: a flag or a variable.
    pub origin: Origin,
}

/// All values given, the strongest layer of each key.
#[derive(Debug, Default)]
pub(super) struct Layers(BTreeMap<&'static str, Vec<Given>>);

impl Layers {
    pub(super) fn new(file: BTreeMap<&'static str, Vec<Given>>, overrides: &[Override]) -> Self {
        let mut values = file;
        for over in overrides {
            let given = |text: &str| Given { text: text.to_owned(), origin: over.origin.clone() };
            let list = match over.key {
                keys::SERVICE_CIDRS | keys::DNS_LISTEN | keys::DNS_UPSTREAMS => {
                    // Nothing at all is an empty list; an empty entry between others is a typing error.
                    let entries = if over.text.trim().is_empty() { "" } else { over.text.as_str() };
                    entries.split_terminator(',').map(str::trim).map(given).collect()
                }
                _ => vec![given(&over.text)],
            };
            values.insert(over.key, list);
        }
        Self(values)
    }

    /// The value of `key`, if it was given. `parse` answers with what to give instead.
    pub(super) fn one<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, UsageError> {
        Ok(self.many(key, parse)?.and_then(|mut values| values.pop()))
    }

    /// The values of `key`, if it was given.
    pub(super) fn many<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<Vec<T>>, UsageError> {
        let Some(values) = self.0.get(key) else { return Ok(None) };
        let parsed =
            values.iter().map(|given| parse(&given.text).map_err(|way_out| fault(key, given, &way_out)));
        parsed.collect::<Result<Vec<T>, UsageError>>().map(Some)
    }

    /// A fault that shows only beside another value, that of `beside`. Names the place where `key`'s value (the one
    /// at `index` of a list) was given, or the other's where it was not.
    pub(super) fn fault(
        &self,
        (key, index): (&'static str, usize),
        value: &str,
        beside: &'static str,
        way_out: &str,
    ) -> UsageError {
        if let Some(given) = self.0.get(key).and_then(|values| values.get(index)) {
            return fault(key, given, way_out);
        }
        let place = self.0.get(beside).and_then(|values| values.first());
        let place = place.map(|given| format!("{}: ", given.origin)).unwrap_or_default();
        UsageError::new(format!("{place}{key} is {value:?} by default: {way_out}"))
    }
}

fn fault(key: &str, given: &Given, way_out: &str) -> UsageError {
    UsageError::new(format!("{}: {key} is {:?}: {way_out}", given.origin, given.text))
}
