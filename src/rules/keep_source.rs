//! Whether this machine can let backends see their clients' addresses.

use super::machine::Machine;
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
        let why = lacks
            .map(|why| format!("connections cannot be marked ({why}); modprobe xt_connmark"))
            // Answers to anybody are led here by a mark. To find this machine wherever one looks for the way back would
            // cost pods their datagrams and their refusals.
            .or_else(|| {
                let on = self.machine.follows_marks();
                let names: Vec<String> =
                    on.iter().map(|link| format!("net.ipv4.conf.{link}.src_valid_mark")).collect();
                (!on.is_empty()).then(|| format!("{} is 1; set it to 0 and start anew", names.join(" and ")))
            });
        if let Some(why) = why {
            self.capabilities.connection_marks = false;
            self.warn(format!(
                "edgesplice.io/source-address: preserve cannot be had, backends see this node's address: {why}"
            ));
        }
    }

    /// Whether the rules for `wanted` bring home what is answered to clients whose address a backend sees.
    pub(super) fn keeps_source(&self, wanted: &Wanted) -> bool {
        wanted.keep_source && self.capabilities.connection_marks && self.capabilities.policy_routing
    }
}
