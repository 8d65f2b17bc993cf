//! Whether this machine can let backends see their clients' addresses.

use super::machine::{Lacks, Machine};
use super::plan::Wanted;
use super::reconcile::Reconciler;
use super::scratch::CONNECTION_MARKS;

impl<M: Machine> Reconciler<M> {
    /// Looks whether connections can be marked, once a Service needs that and once only.
    pub(super) async fn probe_marks(&mut self, wanted: &Wanted) {
        if !wanted.keep_source || self.probed_marks {
            return;
        }
        self.probed_marks = true;
        let lacks = self.machine.lacks(self.backend, self.capabilities.v6, &CONNECTION_MARKS).await;
        self.unproven.marks = lacks == Lacks::Unknown;
        let missing = if let Lacks::Something(why) = lacks { Some(unmarked(&why)) } else { None };
        let why = missing
            // Answers to anybody are led here by a mark. To find this machine wherever one looks for the way back would
            // cost pods their datagrams and their refusals.
            .or_else(|| {
                let on = self.machine.follows_marks();
                let names: Vec<String> =
                    on.iter().map(|link| format!("net.ipv4.conf.{link}.src_valid_mark")).collect();
                (!on.is_empty()).then(|| format!("{} is 1; set it to 0 and start anew", names.join(" and ")))
            });
        if let Some(why) = why {
            self.give_up_marks(&why);
        }
    }

    fn give_up_marks(&mut self, why: &str) {
        self.capabilities.connection_marks = false;
        self.warn(format!(
            "edgesplice.io/source-address: preserve cannot be had, backends see this node's address: {why}"
        ));
    }

    /// Gives up what could not be tried beforehand and is part of rules that could not be installed. `false`: there is
    /// nothing of that kind.
    pub(super) fn give_up_unproven(&mut self, wanted: &Wanted, said: &str) -> bool {
        if self.unproven.queues && self.capabilities.queues && wanted.queues > 0 {
            self.give_up_queues(said);
            return true;
        }
        if self.unproven.marks && self.keeps_source(wanted) {
            self.give_up_marks(&unmarked(said));
            return true;
        }
        false
    }

    /// Whether the rules for `wanted` bring home what is answered to clients whose address a backend sees.
    pub(super) fn keeps_source(&self, wanted: &Wanted) -> bool {
        wanted.keep_source && self.capabilities.connection_marks && self.capabilities.policy_routing
    }
}

fn unmarked(why: &str) -> String {
    format!("connections cannot be marked ({why}); modprobe xt_connmark")
}
