//! Connections whose bytes a gateway hands on without looking into them: picked by the name in the handshake or by the port alone.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use mesh_core::{
    admit::{Admit, InboundView},
    authz::Heard,
    cluster::Cluster,
    config::{GatewayChain, GatewayTo, WeightedCluster},
    endpoint::{Pick, Tried},
    identity::SpiffeId,
    outcome::{Failure, Flags, Outcome},
    pick::Ask,
    request::RequestView,
    snapshot::Snapshot,
};
use rand::RngCore;
use tokio::{io::copy_bidirectional, sync::watch, time::timeout};

use super::{
    Server,
    guard::{UNDECIDED, tell},
    idle::{Activity, Noted},
    outside::until,
    until_true,
};
use crate::{
    connect::Io,
    telemetry::Relayed,
    tls::{Accepted, End},
};
use counted::{Counted, Passed};

mod counted;

/// Between tellings of what has passed so far. Istio's `tcp_reporting_duration`.
const TELLING: Duration = Duration::from_secs(5);

/// Who has connected, as far as rules about connections see it.
pub(super) struct Visitor {
    peer: Option<SpiffeId>,
    names: Option<Vec<String>>,
    /// The end of a certificate that is none of the mesh.
    until: Option<SystemTime>,
    address: SocketAddr,
    local: Option<IpAddr>,
    server_name: String,
}

impl Visitor {
    pub(super) fn new<I>(io: &Accepted<I>, (address, local): (SocketAddr, Option<IpAddr>), server_name: &str) -> Self {
        let (peer, names, server_name) = (io.peer().cloned(), io.names(), server_name.to_ascii_lowercase());
        let until = names.as_ref().and_then(|_| until(io.peer_chain()));
        Self { peer, names, until, address, local, server_name }
    }
}

impl Server {
    /// Until either side has ended, or serving has.
    pub(super) async fn relay(
        &self,
        mut down: Accepted<impl Io>,
        chain: &Arc<GatewayChain>,
        visitor: &Visitor,
        mut draining: watch::Receiver<bool>,
    ) {
        let address = visitor.address;
        let GatewayTo::Bytes(clusters) = &chain.to else { return };
        let mut tenure = down.take_tenure();
        let Some((up, pick, mut relayed)) = self.reach(clusters, address).await else { return };
        let passed = Passed::default();
        let mut up = Counted::new(up, &passed);
        let activity = Activity::new();
        let mut down = Noted { io: down, activity: activity.clone() };
        {
            let mut copying = std::pin::pin!(copy_bidirectional(&mut down, &mut up));
            let over = async {
                match &mut tenure {
                    // Another certificate of ours ends nothing that was begun with the one before.
                    Some(tenure) => while tenure.end().await == End::Rotated {},
                    None => std::future::pending().await,
                }
            };
            let still = async {
                match chain.idle_limit() {
                    Some(limit) => activity.stands_still(limit).await,
                    None => std::future::pending().await,
                }
            };
            // What would not be let in any more is not kept either.
            let stays = |snapshot: &Snapshot, chain: &_| self.bytes_refused(snapshot, chain, visitor).is_none();
            let mut ended = std::pin::pin!(async {
                tokio::select! {
                    _ = copying.as_mut() => {}
                    () = over => {}
                    () = self.outside_over(Some(chain), visitor.until, stays) => {}
                    () = still => {}
                    () = until_true(&mut draining) => drop(timeout(self.ending.drain, copying).await),
                }
            });
            let mut tellings = tokio::time::interval(TELLING);
            loop {
                tokio::select! {
                    biased;
                    () = ended.as_mut() => break,
                    _ = tellings.tick() => relayed.passed(passed.read.load(Relaxed), passed.written.load(Relaxed)),
                }
            }
        }
        let (sent, received) = (passed.read.load(Relaxed), passed.written.load(Relaxed));
        relayed.passed(sent, received);
        tracing::debug!(target: "mesh::server", peer = %address, chain = &*chain.name, sent, received, "handed on");
        // That it was there is all that is known of how it did.
        pick.finish(&Outcome::response(200), self.clock.now());
    }

    /// Why a connection whose bytes are to be handed on is closed instead, if it is.
    pub(super) fn bytes_refused(
        &self,
        snapshot: &Snapshot,
        chain: &Arc<GatewayChain>,
        visitor: &Visitor,
    ) -> Option<String> {
        let (parts, ()) = http::Request::new(()).into_parts();
        let mut request = RequestView::of(&parts, Some(self.role.port()));
        // Nobody in front is believed, since nobody in front can say anything.
        request.source = Some(visitor.address.ip().to_canonical());
        let view = InboundView {
            port: self.role.port(),
            peer: visitor.peer.as_ref(),
            names: visitor.names.as_deref(),
            claims: None,
            local: visitor.local,
            remote: request.source,
            server_name: &visitor.server_name,
            bytes: true,
            request,
        };
        let mut heard = Heard::default();
        let admitted = snapshot.admit_bytes(chain, &view, &mut heard);
        tell(&heard, view.peer, visitor.address, ("", ""));
        match admitted {
            Admit::Allow => None,
            Admit::Refuse { reason, details, .. } => Some(format!("{reason} {details}")),
            Admit::Ask { .. } => Some(UNDECIDED.to_owned()),
        }
    }

    /// A connection to an endpoint of one of the clusters; another endpoint is tried when one cannot be reached.
    async fn reach(&self, clusters: &[WeightedCluster], address: SocketAddr) -> Option<(Box<dyn Io>, Pick, Relayed)> {
        let mut rng = self.clock.next_request();
        let name = &choose(clusters, rng.next_u64())?.cluster;
        let snapshot = self.live.load()?;
        let Some(cluster) = snapshot.cluster(name) else {
            tracing::warn!(target: "mesh::server", peer = %address, cluster = &**name, "nothing is known of where to hand it on");
            return None;
        };
        let limit = cluster.config().connect_timeout;
        let mut tried = Tried::default();
        for _ in 0..ATTEMPTS {
            let pick = match cluster.pick(&Ask::from(&tried), self.clock.now(), &mut rng) {
                Ok(pick) => pick,
                Err(error) => {
                    tracing::debug!(target: "mesh::server", peer = %address, cluster = &**name, %error, "closed");
                    return self.not_reached(cluster, Flags::UH);
                }
            };
            tried.push(pick.endpoint());
            match timeout(limit, self.pool.bytes(cluster, pick.endpoint())).await {
                Ok(Ok(io)) => {
                    let relayed = self.telemetry.relays(cluster, Some(pick.endpoint()), Flags::NONE);
                    return Some((io, pick, relayed));
                }
                failed => {
                    let why = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => format!("no connection within {limit:?}"),
                    };
                    tracing::debug!(target: "mesh::server", peer = %address, cluster = &**name, why, "not reached");
                    let outcome = Outcome { failure: Some(Failure::Connect), unsent: true, ..Outcome::default() };
                    pick.finish(&outcome, self.clock.now());
                }
            }
        }
        self.not_reached(cluster, Flags::UF | Flags::URX)
    }

    /// Tells of a connection that is closed at once.
    fn not_reached<T>(&self, cluster: &Arc<Cluster>, flags: Flags) -> Option<T> {
        drop(self.telemetry.relays(cluster, None, flags));
        None
    }
}

/// How many endpoints are tried. Envoy `TcpProxy.max_connect_attempts` is 1; one more costs nobody anything.
const ATTEMPTS: usize = 2;

/// One of them, by weight.
fn choose(clusters: &[WeightedCluster], drawn: u64) -> Option<&WeightedCluster> {
    let total: u64 = clusters.iter().map(|one| u64::from(one.weight)).sum();
    let mut left = drawn.checked_rem(total)?;
    clusters.iter().find(|one| match left.checked_sub(one.weight.into()) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    /// GW3: connections are split by weight, as requests are.
    #[test]
    fn connections_are_split_by_weight() {
        let of = |name: &str, weight| WeightedCluster { cluster: name.into(), weight, ..WeightedCluster::default() };
        let clusters = [of("a", 1), of("b", 0), of("c", 3)];
        let chosen: Vec<&str> = (0..8).map(|n| &*choose(&clusters, n).unwrap().cluster).collect();
        assert_eq!(chosen, ["a", "c", "c", "c", "a", "c", "c", "c"]);
        assert!(choose(&[], 1).is_none() && choose(&[of("a", 0)], 1).is_none());
    }
}
