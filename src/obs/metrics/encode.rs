//! Families of metrics: what each is, and how its series are written.

use std::collections::HashMap;
use std::fmt::Error;

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;

use super::figures::{Counts, Scrape};
use crate::obs::meter::Distribution;

/// What a family's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows, until the program starts anew. Its series end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations in seconds, by buckets.
    Histogram,
    /// Always 1; its labels tell.
    Info,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }

    fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
            Self::Histogram => MetricType::Histogram,
            Self::Info => MetricType::Info,
        }
    }
}

/// One family: everything that documentation and exposition need.
pub(super) struct Family {
    /// Without the prefix and without `_total`.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// Names of the labels, in the order of the values in `write`.
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
    write: Write,
}

/// Writes all series of a family.
type Write = fn(&Scrape, &mut Out<'_>) -> Result<(), Error>;
/// Names of labels.
type Labels = &'static [&'static str];

pub(super) const fn counter(name: &'static str, labels: Labels, help: &'static str, write: Write) -> Family {
    Family { name, kind: Kind::Counter, labels, help, write }
}

pub(super) const fn gauge(name: &'static str, labels: Labels, help: &'static str, write: Write) -> Family {
    Family { name, kind: Kind::Gauge, labels, help, write }
}

pub(super) const fn histogram(
    name: &'static str,
    labels: Labels,
    help: &'static str,
    write: Write,
) -> Family {
    Family { name, kind: Kind::Histogram, labels, help, write }
}

pub(super) const fn info(name: &'static str, labels: Labels, help: &'static str, write: Write) -> Family {
    Family { name, kind: Kind::Info, labels, help, write }
}

impl Family {
    /// Writes the family, its head even where it has no series now.
    pub(super) fn encode(&self, scrape: &Scrape, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let metric = encoder.encode_descriptor(self.name, self.help, None, self.kind.metric_type())?;
        let mut out = Out { metric, kind: self.kind, labels: self.labels };
        (self.write)(scrape, &mut out)
    }
}

/// One number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Whole(u64),
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(u64::from(value))
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

/// Takes the series of one family.
pub(super) struct Out<'a> {
    metric: MetricEncoder<'a>,
    kind: Kind,
    labels: &'static [&'static str],
}

type NoExemplars<'a> = Option<&'a HashMap<usize, Exemplar<[(&'static str, &'static str); 0], f64>>>;
type NoExemplar<'a> = Option<&'a Exemplar<[(&'static str, &'static str); 0], f64>>;

impl Out<'_> {
    /// The only series of a family without labels.
    pub(super) fn one(&mut self, value: impl Into<Value>) -> Result<(), Error> {
        write(&mut self.metric, self.kind, value.into())
    }

    /// The same where the number may be unknown: a wrong zero would be believed.
    pub(super) fn maybe(&mut self, value: Option<impl Into<Value>>) -> Result<(), Error> {
        value.map_or(Ok(()), |value| self.one(value))
    }

    /// One series.
    pub(super) fn put(&mut self, labels: &[&str], value: impl Into<Value>) -> Result<(), Error> {
        let set: Vec<(&str, &str)> = self.labels.iter().copied().zip(labels.iter().copied()).collect();
        let mut series = self.metric.encode_family(&set)?;
        write(&mut series, self.kind, value.into())
    }

    /// One series for each kind.
    pub(super) fn counts(&mut self, counts: &Counts) -> Result<(), Error> {
        counts.iter().try_for_each(|(kind, count)| self.put(&[kind], *count))
    }

    /// A histogram without labels; nothing where there is none.
    pub(super) fn histogram(&mut self, read: &Distribution) -> Result<(), Error> {
        if read.buckets.is_empty() {
            return Ok(());
        }
        let none: NoExemplars<'_> = None;
        self.metric.encode_histogram(read.sum, read.count, &read.buckets, none)
    }

    /// One histogram of several. `buckets`: upper bounds, the last one infinity, each with its own count.
    pub(super) fn histogram_of(
        &mut self,
        labels: &[&str],
        sum: f64,
        buckets: &[(f64, u64)],
    ) -> Result<(), Error> {
        let set: Vec<(&str, &str)> = self.labels.iter().copied().zip(labels.iter().copied()).collect();
        let none: NoExemplars<'_> = None;
        let count = buckets.iter().map(|(_, count)| count).sum();
        self.metric.encode_family(&set)?.encode_histogram(sum, count, buckets, none)
    }

    /// What tells what was built.
    pub(super) fn info(&mut self, values: &[&str]) -> Result<(), Error> {
        let set: Vec<(&str, &str)> = self.labels.iter().copied().zip(values.iter().copied()).collect();
        self.metric.encode_info(&set)
    }
}

fn write(metric: &mut MetricEncoder<'_>, kind: Kind, value: Value) -> Result<(), Error> {
    let none: NoExemplar<'_> = None;
    match (kind, value) {
        (Kind::Counter, Value::Whole(value)) => metric.encode_counter(&value, none),
        (Kind::Counter, Value::Real(value)) => metric.encode_counter(&value, none),
        (_, Value::Whole(value)) => metric.encode_gauge(&value),
        (_, Value::Real(value)) => metric.encode_gauge(&value),
    }
}
