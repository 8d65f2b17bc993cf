//! Whether clients' first packets are held until a backend is connected, as `intercept.connect` says, and whose address
//! can be kept.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::warn;

use crate::config::{ConnectMode, Settings};
use crate::obs::api::RulesReport;
use crate::proxy::Proxy;
use crate::proxy::hold::{Hold, HoldCounters};
use crate::rules::names::FIRST_QUEUE;

use super::control::Shared;
use super::data;

/// What came of opening the queues.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// What brings held packets, for the data plane.
    pub(super) hold: Option<Hold>,
    /// Why there is none though one is wanted, as a line for people.
    pub(super) fault: Option<String>,
}

impl Opened {
    /// In how many queues first packets are held.
    pub(super) fn queues(&self, settings: &Settings) -> u16 {
        if self.hold.is_some() { wanted(settings) } else { 0 }
    }

    /// What is seen of the held.
    pub(super) fn counters(&self) -> Option<Arc<HoldCounters>> {
        self.hold.as_ref().map(Hold::counters)
    }

    /// Gives the data plane what it needs to serve the held, and to keep clients' addresses where the rules stand that
    /// this takes.
    pub(super) fn equip(
        self,
        proxy: Proxy,
        shared: &Arc<Shared>,
        rules: watch::Receiver<RulesReport>,
    ) -> Proxy {
        let shared = Arc::clone(shared);
        proxy.with_hold(self.hold).with_sources(Arc::new(move |client, backend| {
            rules.borrow().keeps_source && shared.ways.load().is_between(client, backend)
        }))
    }
}

/// In how many queues the first packets are held, if all goes well.
pub(super) fn wanted(settings: &Settings) -> u16 {
    match settings.intercept.connect {
        ConnectMode::AfterAccept => 0,
        ConnectMode::BeforeAccept => u16::try_from(data::threads(&settings.proxy)).unwrap_or(1),
    }
}

/// Opens the queues. Without them everything works, and backends are dialled after accept.
pub(super) fn open(settings: &Settings) -> Opened {
    let count = wanted(settings);
    if count == 0 {
        return Opened::default();
    }
    let (own, refuse) = (settings.intercept.own_mark, settings.intercept.refuse_mark);
    match Hold::open(FIRST_QUEUE, count, own, refuse) {
        Ok(hold) => Opened { hold: Some(hold), fault: None },
        Err(error) => {
            let line = format!(
                "intercept.connect is before-accept, but backends are dialled after accept: netfilter queues from {FIRST_QUEUE} \
                 on cannot be had ({error}); see /proc/net/netfilter/nfnetlink_queue for who has them, or modprobe nfnetlink_queue"
            );
            warn!("{line}");
            Opened { hold: None, fault: Some(line) }
        }
    }
}
