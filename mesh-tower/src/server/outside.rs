//! How long connections of the world outside may stand at a gateway: as long as what was demanded of them is what is demanded, and
//! what they have shown is good.
//!
//! Another certificate of the gateway's own changes nothing for them. Other roots, lists of revoked certificates, names or modes do:
//! who comes again is judged by those. Source: Envoy, which drains the connections of a filter chain that changed.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_core::{
    config::{GatewayChain, GatewayTls},
    snapshot::Snapshot,
};
use rustls_pki_types::CertificateDer;
use tokio::time::sleep;

use super::{Caller, Server};
use crate::tls::validity;

/// Wall time is looked at this often, since it may jump and timers do not follow it.
const LOOK: Duration = Duration::from_secs(5);

impl Server {
    /// Ends when a caller from outside may not go on; never at a workload's port.
    pub(super) async fn caller_over(&self, caller: &Caller) {
        if !self.role.is_gateway() {
            return std::future::pending().await;
        }
        let until = caller.names.as_ref().and_then(|_| until(&caller.chain));
        self.outside_over(caller.outside.as_ref(), until, |_, _| true).await;
    }

    /// The same of a connection that was accepted by this chain, in plaintext where there is none, and for which more may have to be
    /// true of what the chain is now.
    pub(super) async fn outside_over(
        &self,
        chain: Option<&Arc<GatewayChain>>,
        until: Option<SystemTime>,
        stays: impl Fn(&Snapshot, &Arc<GatewayChain>) -> bool,
    ) {
        let changed = async {
            loop {
                // Listening before looking: an update between the two is not missed.
                let updated = self.live.updated();
                if !self.live.load().is_some_and(|snapshot| self.stands(&snapshot, chain, &stays)) {
                    return;
                }
                updated.await;
            }
        };
        let expired = async {
            let Some(until) = until else { return std::future::pending().await };
            let left = || until.duration_since(self.identity.clock().now()).ok().filter(|left| !left.is_zero());
            while let Some(left) = left() {
                sleep(left.min(LOOK)).await;
            }
        };
        tokio::select! {
            () = changed => {}
            () = expired => {}
        }
    }

    fn stands(
        &self,
        snapshot: &Snapshot,
        chain: Option<&Arc<GatewayChain>>,
        stays: &impl Fn(&Snapshot, &Arc<GatewayChain>) -> bool,
    ) -> bool {
        let now = snapshot.gateway(self.role.port());
        let Some(chain) = chain else {
            // It was one of a port for plain HTTP.
            return now.is_none();
        };
        let same = now.and_then(|gateway| gateway.chains.iter().find(|now| now.name == chain.name));
        same.is_some_and(|now| demands_same(now.tls.as_deref(), chain.tls.as_deref()) && stays(snapshot, now))
    }
}

/// Is of callers the same demanded?
fn demands_same(now: Option<&GatewayTls>, before: Option<&GatewayTls>) -> bool {
    match (now, before) {
        (Some(now), Some(before)) => {
            now.callers == before.callers
                && now.roots == before.roots
                && now.subject_alt_names == before.subject_alt_names
        }
        (now, before) => now.is_none() && before.is_none(),
    }
}

/// When a certificate is over.
pub(super) fn until(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    chain.first().and_then(validity).map(|(_, end)| end)
}
