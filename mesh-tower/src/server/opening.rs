//! From a connection that has been made to one that may speak.
//!
//! Where callers are to begin, their first bytes are waited for before anything else: who says nothing costs a socket, and takes no
//! turn at the cryptography from those who speak.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mesh_core::config::MtlsMode;
use tokio::{sync::watch, time::timeout};

use super::{HEAD, Server, Shaken, until_true};
use crate::{
    connect::Io,
    telemetry::refused,
    tls::{GatewayAcceptor, Reason, Rewound, Turns, begun},
};

/// How long a caller may take for the TLS handshake, and wait for its turn. Envoy's default is 15 s.
const HANDSHAKE: Duration = Duration::from_secs(10);

impl Server {
    /// `None` closes it.
    pub(super) async fn open<I: Io>(
        &self,
        (turns, acceptor): (&Turns, GatewayAcceptor),
        stream: I,
        (address, local): (SocketAddr, Option<IpAddr>),
        draining: &mut watch::Receiver<bool>,
    ) -> Option<Shaken<I>> {
        let stream = match self.callers_begin() {
            false => Rewound::new(stream),
            true => tokio::select! {
                biased;
                begun = timeout(self.patience(), begun(stream)) => begun.ok()?.ok()??,
                () = until_true(draining) => return None,
            },
        };
        let shaken = async {
            let _turn = match stream.is_handshake() {
                true => Some(timeout(HANDSHAKE, turns.take(address.ip())).await.ok().flatten()?),
                false => None,
            };
            timeout(HANDSHAKE, self.shake(acceptor, stream, address, local)).await.ok()
        };
        match shaken.await {
            Some(Ok(Shaken::Refused(why))) => {
                tracing::debug!(target: "mesh::authz", peer = %address, why, "connection refused");
                None
            }
            Some(Ok(shaken)) => Some(shaken),
            Some(Err(error)) => {
                let reason = error.reason();
                tracing::debug!(target: "mesh::server", peer = %address, %reason, %error, "connection refused");
                None
            }
            None => {
                refused("inbound", Reason::Timeout);
                tracing::debug!(target: "mesh::server", peer = %address, "handshake took too long");
                None
            }
        }
    }

    /// How long a caller may say nothing.
    fn patience(&self) -> Duration {
        self.inbound().and_then(|inbound| inbound.request_headers_timeout).unwrap_or(HEAD)
    }

    /// Is it the caller that speaks first? Of bytes that are handed on as they come nobody knows.
    fn callers_begin(&self) -> bool {
        if self.role.is_gateway() {
            let snapshot = self.live.load();
            return snapshot.is_some_and(|it| it.gateway(self.role.port()).is_some_and(|gateway| gateway.inspects()));
        }
        self.inbound().map_or(self.secure, |inbound| inbound.mtls != MtlsMode::Disable)
    }
}
