//! Who holds a connection, as far as the requests on it need to know.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use http::HeaderValue;
use mesh_core::{
    config::{GatewayChain, MtlsMode, Name},
    identity::SpiffeId,
    rate_limit::Limits,
};
use rustls_pki_types::CertificateDer;

use crate::{telemetry::PeerCache, tls::Accepted};

/// One connection, as far as its requests need to know.
pub(super) struct Caller {
    pub(super) peer: Option<SpiffeId>,
    /// What it proved that with, its own certificate first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// What its certificate says, which it has shown to a gateway without being of the mesh.
    pub(super) names: Option<Vec<String>>,
    /// By what a gateway has accepted it.
    pub(super) outside: Option<Arc<GatewayChain>>,
    /// How the application is told of it, once that was asked.
    pub(super) told: OnceLock<Option<HeaderValue>>,
    pub(super) address: SocketAddr,
    /// Where it was accepted, as far as that is one address.
    pub(super) local: Option<IpAddr>,
    /// The name it asked for in the handshake.
    pub(super) server_name: String,
    pub(super) mode: MtlsMode,
    pub(super) cache: PeerCache,
    /// Its own buckets, where connections are counted apart.
    pub(super) limits: OnceLock<Limits>,
    pub(super) http2: bool,
    /// It came over TLS.
    pub(super) secure: bool,
    /// Of a gateway the routes its requests go by, where they are not those of the port.
    pub(super) routes: Option<Name>,
    /// The gateway has written its address behind what it said of where it comes from.
    pub(super) appended: usize,
    /// Over HTTP/1.1 it is told with the next answer that this was the last.
    pub(super) leaving: AtomicBool,
    /// Why it is not believed any more.
    pub(super) refused: OnceLock<String>,
}

impl Caller {
    /// Of a connection that has just been accepted.
    pub(super) fn new<I>(accepted: &Accepted<I>, address: SocketAddr, local: Option<IpAddr>, mode: MtlsMode) -> Self {
        Self {
            peer: accepted.peer().cloned(),
            chain: accepted.peer_chain().to_vec(),
            names: accepted.names(),
            outside: None,
            told: OnceLock::new(),
            address,
            local,
            server_name: accepted.server_name().unwrap_or("").to_ascii_lowercase(),
            mode,
            cache: PeerCache::default(),
            limits: OnceLock::new(),
            http2: accepted.alpn() == Some(b"h2"),
            secure: accepted.is_tls(),
            routes: None,
            appended: 0,
            leaving: AtomicBool::new(false),
            refused: OnceLock::new(),
        }
    }

    /// With its next answer it is told to go.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// Is it to be told so in a header?
    pub(super) fn is_leaving(&self) -> bool {
        !self.http2 && self.leaving.load(Relaxed)
    }

    /// Nothing is taken from it any more.
    pub(super) fn refuse(&self, why: String) {
        let _ = self.refused.set(why);
    }
}
