//! Which of the endpoints may be picked, and which of those come first (kube-proxy's `CategorizeEndpoints`, with
//! spill-over: endpoints elsewhere are kept as a reserve for when the near ones cannot be dialled).

use std::cmp::Ordering;

use crate::source::slim::Hints;

use super::types::{Backend, BackendSet, Excluded, Exclusion, Reach};

/// An endpoint with its way, its conditions, and a bar where it cannot be used.
#[derive(Clone, Debug)]
pub(super) struct Judged<'a> {
    pub(super) backend: Backend,
    pub(super) ready: bool,
    pub(super) serving: bool,
    pub(super) terminating: bool,
    pub(super) hints: Option<&'a Hints>,
    pub(super) bar: Option<Exclusion>,
}

impl Judged<'_> {
    /// How much a copy of an endpoint is worth when copies disagree.
    fn rank(&self) -> u8 {
        if self.ready { 2 } else { u8::from(self.serving) }
    }

    /// Two usable endpoints are the same if they are dialled at the same address. Those that cannot be used differ
    /// by pod as well: nodes without a common network may hand out the same pod addresses.
    fn same(&self, other: &Self) -> Ordering {
        let key = |j: &Self| (j.bar.is_some(), j.backend.addr, j.backend.endpoint);
        if self.bar.is_none() && other.bar.is_none() {
            return self.backend.addr.cmp(&other.backend.addr);
        }
        key(self).cmp(&key(other)).then_with(|| self.backend.pod.cmp(&other.backend.pod))
    }
}

/// Who is preferred.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Near<'a> {
    All,
    Node(&'a str),
    Zone(&'a str),
}

impl Near<'_> {
    fn matches(self, hints: Option<&Hints>) -> bool {
        match self {
            Self::All => true,
            Self::Node(name) => hints.is_some_and(|h| h.nodes.iter().any(|n| **n == *name)),
            Self::Zone(name) => hints.is_some_and(|h| h.zones.iter().any(|z| **z == *name)),
        }
    }
}

/// Where this node is and what the Service asks for.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    /// This node's name.
    pub(super) node: &'a str,
    /// Its zone.
    pub(super) zone: Option<&'a str>,
    /// Only endpoints of this node count: what is said of the others.
    pub(super) local_only: Option<Exclusion>,
}

/// Sorts endpoints into those that may be picked and those that may not.
pub(super) fn choose(mut list: Vec<Judged<'_>>, place: &Place<'_>) -> BackendSet {
    list.sort_by(|a, b| a.same(b).then(b.rank().cmp(&a.rank())).then(b.backend.local.cmp(&a.backend.local)));
    list.dedup_by(|copy, kept| {
        let same = kept.same(copy) == Ordering::Equal;
        kept.backend.local |= same && copy.backend.local;
        same
    });
    let near = if place.local_only.is_some() { Near::All } else { near(&list, place) };
    let candidate = |j: &Judged<'_>| j.bar.is_none() && (place.local_only.is_none() || j.backend.local);
    let any_ready = list.iter().any(|j| candidate(j) && j.ready);

    let (mut first, mut reserve, mut excluded) = (Vec::new(), Vec::new(), Vec::new());
    for mut judged in list {
        let fits = candidate(&judged);
        let why = match judged.bar.take() {
            Some(bar) => bar,
            None if !fits => place.local_only.clone().unwrap_or(Exclusion::NotLocal),
            None if any_ready && judged.ready => {
                let list = if near.matches(judged.hints) { &mut first } else { &mut reserve };
                list.push(judged.backend);
                continue;
            }
            None if judged.serving && judged.terminating && !any_ready => {
                judged.backend.terminating = true;
                first.push(judged.backend);
                continue;
            }
            None if judged.serving && judged.terminating => Exclusion::Terminating,
            None => Exclusion::NotReady,
        };
        if matches!(why, Exclusion::Unreachable(_)) {
            judged.backend.reach = Reach::Unreachable;
        }
        excluded.push(Excluded { backend: judged.backend, why });
    }
    // All the near ones are out of reach: the reserve is all there is.
    let preferred = if first.is_empty() { reserve.len() } else { first.len() };
    first.append(&mut reserve);
    // Snapshots live long, and there may be many thousand sets.
    first.shrink_to_fit();
    excluded.shrink_to_fit();
    BackendSet { eligible: first, preferred, excluded }
}

/// Hints count only when every ready endpoint has them and at least one names this node, or this zone.
fn near<'a>(list: &[Judged<'_>], place: &Place<'a>) -> Near<'a> {
    let ready = || list.iter().filter(|j| j.ready).map(|j| j.hints);
    let counts = |near: Near<'_>, has: fn(&Hints) -> bool| {
        ready().all(|h| h.is_some_and(has)) && ready().any(|h| near.matches(h))
    };
    if counts(Near::Node(place.node), |h| !h.nodes.is_empty()) {
        return Near::Node(place.node);
    }
    match place.zone {
        Some(zone) if counts(Near::Zone(zone), |h| !h.zones.is_empty()) => Near::Zone(zone),
        _ => Near::All,
    }
}

#[cfg(test)]
mod tests;
