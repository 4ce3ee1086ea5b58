//! What a server of this process demands of its callers. Source: Envoy `Listener` `virtualInbound`, filter chains by port.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{LocalRateLimit, Name, RouteTable, StringMatch};

/// The policy of one listening port.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Inbound {
    /// The filter chain's name, for people (`0.0.0.0_9080`).
    pub name: Name,
    /// Who may speak at all.
    pub mtls: MtlsMode,
    /// Any one must match the identity of a caller with a certificate; empty lets in every identity of the mesh's roots.
    ///
    /// Envoy `CertificateValidationContext.match_subject_alt_names` of the `DownstreamTlsContext`.
    pub callers: Vec<StringMatch>,
    /// Protocols offered in the TLS handshake. Istio: `h2`, `http/1.1`.
    pub alpn: Vec<String>,
    /// The routes of what is let in; each is [`Action::NonForwarding`](super::Action) or a direct response.
    pub routes: Arc<RouteTable>,
    /// Why requests are refused, when a filter of the chain demands something this library cannot enforce.
    pub refused: Option<String>,
    /// How many requests are let in. Envoy `LocalRateLimit` among the `http_filters`.
    pub rate_limit: Option<Arc<LocalRateLimit>>,
    /// How long a caller may take for the head of an HTTP/1.1 request; `None` is 30 s here. Of HTTP/2 a head comes whole.
    ///
    /// Envoy `HttpConnectionManager.request_headers_timeout`, there without limit by default.
    pub request_headers_timeout: Option<Duration>,
    /// How long a caller may take to send a request, its body included, as long as it is not answered: 408 then. `None` is
    /// no limit. Envoy `HttpConnectionManager.request_timeout`.
    pub request_timeout: Option<Duration>,
    /// How many connections there may be at once; more are closed as soon as they are accepted. `None` is no limit.
    ///
    /// Envoy network filter `ConnectionLimit.max_connections`.
    pub max_connections: Option<u64>,
}

impl Default for Inbound {
    /// What a server demands before the control plane has spoken: mutual TLS.
    fn default() -> Self {
        Self {
            name: Name::default(),
            mtls: MtlsMode::Strict,
            callers: Vec::new(),
            alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
            routes: Arc::default(),
            refused: None,
            rate_limit: None,
            request_headers_timeout: None,
            request_timeout: None,
            max_connections: None,
        }
    }
}

impl Inbound {
    /// Is there no place for another connection beside so many?
    pub fn is_full(&self, open: usize) -> bool {
        self.max_connections.is_some_and(|most| u64::try_from(open).is_ok_and(|open| open >= most))
    }
}

/// Source: Istio `PeerAuthentication.mtls.mode`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MtlsMode {
    /// Plaintext only.
    Disable,
    /// Both on one port, told apart by the first byte.
    Permissive,
    /// Mutual TLS only.
    #[default]
    Strict,
}
